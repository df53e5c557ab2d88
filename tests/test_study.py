"""The main job: `python -m focaljax` trains, compares, reports, and refuses what it cannot use."""

import csv
import json
import math
import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("optax")
pytest.importorskip("matplotlib")
pytest.importorskip("pandas")
pytest.importorskip("rich")
sklearn_metrics = pytest.importorskip("sklearn.metrics")

import focaljax  # noqa: E402
from focaljax.study import cli, compare, evaluate, report, settings, table, train  # noqa: E402
from focaljax.study import former as data  # noqa: E402
from focaljax.study.errors import StudyError  # noqa: E402

FILES = {
    "report.json",
    "results.csv",
    "loss_curves.png",
    "recall_per_class.png",
    "reliability.png",
    "summary.png",
}
PNG = b"\x89PNG\r\n\x1a\n"
HARD_NAMES = ("plain", "$x_{y$ & 10% [bold]", "日本 with a very long class name")


def study(*arguments: object) -> int:
    """Run the command line; return its exit code however it leaves."""
    try:
        return cli.main([str(argument) for argument in arguments])
    except SystemExit as leaving:
        assert isinstance(leaving.code, int)
        return leaving.code


def write_table(path: Path, rows: int = 90) -> Path:
    """Write numbers, text, truth values, a constant, a saved index and awkward class names."""
    rng = np.random.default_rng(1)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "size", "count", "colour", "wet", "unit", "kind"])
        for row in range(rows):
            kind = 0 if row % 10 < 6 else 1 if row % 10 < 9 else 2
            size = 1e6 + 3 * kind + rng.normal()
            colour = ("red", "green", "blue")[(kind + (rng.random() < 0.2)) % 3]
            wet = bool(rng.random() < 0.5)
            writer.writerow([row, size, int(rng.integers(9)), colour, wet, "cm", HARD_NAMES[kind]])
    return path


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the report of one short run on the digits."""
    out = tmp_path_factory.mktemp("study") / "made" / "report"
    assert study("--quick", "--seeds", 3, "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def content(quick: Path) -> dict:
    """Return the numbers of that report."""
    return json.loads((quick / "report.json").read_text(encoding="utf-8"))


# What a run leaves.


def test_a_run_leaves_all_files_and_nothing_else(quick: Path):
    assert {file.name for file in quick.iterdir()} == FILES
    assert {file.name for file in quick.parent.iterdir()} == {"report"}
    for file in quick.glob("*.png"):
        assert file.read_bytes().startswith(PNG)
        assert file.stat().st_size > 20_000


def test_the_numbers_are_complete_and_agree_with_each_other(quick: Path, content: dict):
    n_settings, n_seeds = len(settings.DEFAULT), 3
    assert len(content["settings"]) == len(content["summary"]) == n_settings
    assert len(content["runs"]) == n_settings * n_seeds
    assert content["versions"]["jax"] == jax.__version__
    assert content["versions"]["focaljax"] == focaljax.__version__
    with (quick / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["setting"], int(row["seed"])) for row in rows] == [
        (run["setting"], run["seed"]) for run in content["runs"]
    ]
    for row, run in zip(rows, content["runs"], strict=True):
        assert float(row["nll"]) == run["nll"]
        assert float(row["recall[9]"]) == run["recall"][9]
    for of_setting in content["summary"]:
        mine = [run["ece"] for run in content["runs"] if run["setting"] == of_setting["setting"]]
        assert of_setting["ece"]["mean"]["mean"] == pytest.approx(np.mean(mine))


def test_the_classifier_learns(content: dict):
    accuracy = [run["accuracy"] for run in content["runs"]]
    assert min(accuracy) > 0.5  # chance is 0.1
    for curve in content["curves"]["train_nll"]:
        assert curve[-1] < 0.3 * curve[0]


def test_the_differences_are_paired_by_seed(content: dict):
    nll = np.array([run["nll"] for run in content["runs"]]).reshape(-1, 3)
    for i, of_setting in enumerate(content["summary"]):
        paired = nll[i] - nll[0]
        got = of_setting["nll"]["difference_to_cross_entropy"]
        half = 4.302652730 * paired.std(ddof=1) / math.sqrt(3)  # t(0.975, 2 degrees of freedom)
        assert got["mean"] == pytest.approx(paired.mean(), abs=1e-12)
        assert got["high"] - got["mean"] == pytest.approx(half, abs=1e-9)


def test_the_words_repeat_the_verdicts(content: dict):
    for of_setting in content["summary"][1:]:
        for field, name in (("nll", "NLL"), ("ece", "ECE")):
            start = f"{name}, {of_setting[field]['verdict']}: "
            (line,) = (line for line in content["findings"] if line.startswith(start))
            assert f"{of_setting['setting']} " in line
    assert "early stopping" in " ".join(content["caveats"])


def test_a_table_of_mixed_columns_and_awkward_names(tmp_path: Path, capsys):
    file, out = write_table(tmp_path / "mine.csv"), tmp_path / "out"
    options = ("--gamma", 2, "--alpha", "balanced", "--seeds", 2, "--epochs", 1, "--out", out)
    assert study("--csv", file, "--label", "kind", *options) == 0
    assert {entry.name for entry in out.iterdir()} == FILES
    numbers = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert sorted(numbers["data"]["classes"]) == sorted(HARD_NAMES)
    assert numbers["data"]["features"] == 2 + 3 + 2  # size, count; three colours; wet or not
    assert numbers["data"]["rare_classes"] == [HARD_NAMES[2]]
    assert sum(numbers["data"]["held_out_rows_per_class"]) == 27
    shown = capsys.readouterr().out
    assert "constant columns dropped: unit" in shown
    assert "row index" in shown
    assert "[bold]" in table.read_problem(file, "kind", (), 1000).class_names[0]


# What a run computes.


@pytest.fixture(scope="module")
def traced() -> tuple[train.Trained, int]:
    """Train twelve settings for three epochs, and count how often the loss was traced."""
    traces = []
    loss = train.softmax_focal_loss_with_integer_labels

    def counted(*arguments, **options):
        traces.append(options)
        return loss(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "softmax_focal_loss_with_integer_labels", counted)
        return train_many(), len(traces)


def train_many() -> train.Trained:
    """Train cross-entropy twice and focal losses with several gammas, with two seeds."""
    problem = data.long_tailed_digits()
    chosen = settings.choose([0.25, 0.5, 1.0, 2.0, 5.0], ["none", "balanced"])
    chosen = (settings.BASELINE, *chosen)
    return train.train(problem, data.split(problem, [7, 8]), chosen, epochs=3)


def test_one_program_serves_every_setting(traced: tuple[train.Trained, int]):
    trained, traces = traced
    assert trained.train_nll.shape == trained.test_nll.shape == (12, 2, 3)
    assert traces == 1


def test_the_same_seeds_give_the_same_numbers(traced: tuple[train.Trained, int]):
    trained, _ = traced
    again = train_many()
    np.testing.assert_array_equal(trained.logits, again.logits)
    np.testing.assert_array_equal(trained.test_nll, again.test_nll)
    # Two runs of the same loss are the same run: seeds fix initialisation, rows and batches.
    np.testing.assert_array_equal(trained.logits[0], trained.logits[1])
    assert np.abs(trained.logits[0] - trained.logits[2]).max() > 0
    assert np.abs(trained.logits[0, 0] - trained.logits[0, 1]).max() > 0


def test_splits_are_disjoint_long_tailed_and_standardised_by_their_training_rows():
    problem = data.long_tailed_digits()
    splits = data.split(problem, range(3))
    for train_rows, test_rows, mean in zip(splits.train, splits.test, splits.mean, strict=True):
        assert not set(train_rows) & set(test_rows)
        counts = np.bincount(problem.labels[train_rows], minlength=10)
        np.testing.assert_array_equal(counts, problem.train_counts)
        assert np.all(np.bincount(problem.labels[test_rows]) == data.TEST_PER_DIGIT)
        np.testing.assert_allclose(mean, problem.features[train_rows].mean(0), rtol=1e-5)
    assert problem.train_counts[0] == 50 * problem.train_counts[9] + 10


def test_balanced_alpha_is_inverse_frequency_with_mean_one_over_examples():
    counts = np.array([60, 30, 10])
    alpha = settings.Setting(2.0, "balanced").class_weights(counts)
    np.testing.assert_allclose(alpha * counts, 100 / 3, rtol=1e-6)
    np.testing.assert_array_equal(settings.Setting(2.0).class_weights(counts), 1.0)


def test_metrics_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(400, 5)).astype(np.float32)
    labels = np.append(np.arange(5), rng.integers(0, 5, 395))
    got = evaluate.measure(logits, labels, np.array([3, 4]))
    predicted = logits.argmax(1)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    recall = sklearn_metrics.recall_score(labels, predicted, average=None)
    assert got.accuracy == pytest.approx(sklearn_metrics.accuracy_score(labels, predicted))
    assert got.balanced_accuracy == pytest.approx(sklearn_metrics.balanced_accuracy_score(labels, predicted))
    assert got.nll == pytest.approx(sklearn_metrics.log_loss(labels, p))
    np.testing.assert_allclose(got.recall, recall)
    assert got.rare_recall == pytest.approx(recall[3:].mean())
    ece = 0.0
    for low in range(15):  # by the definition, bin by bin
        inside = (p.max(1) > low / 15) & (p.max(1) <= (low + 1) / 15)
        if inside.any():
            gap = (predicted == labels)[inside].mean() - p.max(1)[inside].mean()
            ece += inside.mean() * abs(gap)
    assert got.ece == pytest.approx(ece, rel=1e-5)  # probabilities in float32


def test_calibration_error_by_hand():
    # Two bins: confidence 0.6 right in 1 of 2 rows (gap 0.1), 0.9 right in 2 of 2 (gap 0.1).
    p = np.array([[0.6, 0.4], [0.6, 0.4], [0.9, 0.1], [0.9, 0.1]])
    labels = np.array([0, 1, 0, 0])
    diagram = evaluate.reliability(np.log(p), labels)
    assert evaluate.ECE.result(evaluate.binned(np.log(p), labels)) == pytest.approx(0.1)
    assert np.isnan(diagram.accuracy).sum() == evaluate.BINS - 2


def test_extreme_logits_stay_finite():
    logits = np.array([[1e4, 0.0], [3e38, -3e38]], np.float32)
    got = evaluate.measure(logits, np.array([1, 0]), np.array([1]))
    assert got.nll == pytest.approx(5e3)


def test_verdicts_need_an_interval_without_zero():
    lower = compare.Interval(-0.2, -0.3, -0.1)
    assert compare.verdict(lower, compare.NLL) == "better"
    assert compare.verdict(lower, compare.BALANCED) == "worse"
    touching = compare.Interval(-0.2, -0.4, 0.0)
    assert compare.verdict(touching, compare.NLL) == "no difference found"
    same = compare.t_interval(np.zeros(3))
    assert compare.verdict(same, compare.NLL) == "no difference found"


# What a run refuses.

GOOD = "a,b,y\n" + "".join(f"{i},{i % 5},{'uv'[i % 2]}\n" for i in range(12))
REFUSED = {
    "empty": ("", "is empty"),
    "header only": ("a,b,y\n", "no rows"),
    "no such label": (GOOD.replace("y", "z", 1), "no column 'y'; it has: a, b, z"),
    "one class": ("a,y\n1,u\n2,u\n3,u\n", "one class only: 'u'"),
    "one row of a class": (GOOD + "1,1,w\n", "class 'w' of column 'y' has 1 row"),
    "identifier": ("a,y\n" + "".join(f"{i},{i}\n" for i in range(9)), "9 different values"),
    "NaN": (
        GOOD.replace("3,3,v", ",3,v"),
        "column 'a' has 1 empty or NaN cells, the first in data row 4",
    ),
    "missing label": (GOOD.replace("3,3,v", "3,3,"), "column 'y' has 1 empty or NaN cells"),
    "infinite": (GOOD.replace("4,4,u", "4,-inf,u"), "column 'b' is infinite in data row 5"),
    "ragged": (GOOD + "1,2,u,9\n", "cannot be read"),
    "longer rows": ("a,y\n" + "1,2,u\n" * 4, "cannot be read"),
    "no features": ("y\nu\nv\nu\nv\n", "no feature columns"),
    "constant features": ("a,y\n1,u\n1,v\n1,u\n1,v\n", "no feature columns"),
    "text identifier": (
        "a,y\n" + "".join(f"name{i},{'uv'[i % 2]}\n" for i in range(120)),
        "text column 'a' has 120 different values",
    ),
    "binary": ("\x00\x01\udcff\udcfe,y\n", "cannot be read"),
}


def refuses(capsys, folder: Path, words: str, *arguments: object) -> None:
    """Expect exit code 2, one clear line, and a folder that is as it was."""
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert study(*arguments) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("focaljax: error: ")
    assert words in message
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_table_is_refused(name: str, tmp_path: Path, capsys):
    text, words = REFUSED[name]
    file, out = tmp_path / "bad.csv", tmp_path / "out"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    refuses(capsys, tmp_path, words, "--csv", file, "--label", "y", "--out", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("there is no file", ("--csv", "missing.csv", "--label", "y")),
        ("there is no file", ("--csv", ".", "--label", "y")),
        ("--csv needs --label COLUMN; good.csv has the columns: a, b, y", ("--csv", "good.csv")),
        ("no column 'c'", ("--csv", "good.csv", "--label", "y", "--drop", "c")),
        ("cannot be both", ("--csv", "good.csv", "--label", "y", "--drop", "y")),
        ("need --csv", ("--label", "y")),
        ("--seeds", ("--seeds", "1")),
        ("--seeds", ("--seeds", "many")),
        ("--epochs", ("--epochs", "0")),
        ("--seed", ("--seed", "-1")),
        ("--gamma", ("--gamma", "-1")),
        ("--gamma", ("--gamma", "nan")),
        ("--gamma", ("--gamma", "two")),
        ("--alpha", ("--alpha", "some")),
        ("nothing to compare", ("--gamma", "0")),
        ("unrecognized", ("--gama", "1")),
        ("is a file", ("--out", "good.csv")),
        ("cannot be made", ("--out", "good.csv/report")),
    ],
)
def test_bad_options_are_refused(words, arguments, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("good.csv").write_text(GOOD)
    refuses(capsys, tmp_path, words, *arguments)
    assert [file.name for file in tmp_path.iterdir()] == ["good.csv"]


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, capsys):
    (tmp_path / "mine.txt").write_text("keep me")
    refuses(capsys, tmp_path, "choose another with --out", "--quick", "--out", tmp_path)


def test_overwrite_replaces_the_report_and_nothing_else(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("keep me")
    (tmp_path / "report.json").write_text("old")
    report.write_folder(tmp_path, True, lambda f: report.write_json(f / "report.json", {"new": 1}))
    assert (tmp_path / "mine.txt").read_text() == "keep me"
    assert json.loads((tmp_path / "report.json").read_text()) == {"new": 1}
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), ValueError("nan")])
def test_an_error_while_writing_leaves_nothing(error: BaseException, tmp_path: Path):
    def fill(folder: Path) -> None:
        (folder / "report.json").write_text("half")
        raise error

    with pytest.raises(StudyError if isinstance(error, OSError) else type(error)):
        report.write_folder(tmp_path / "out", False, fill)
    assert list(tmp_path.iterdir()) == []


def test_diverged_training_is_an_error():
    splits = data.split(data.long_tailed_digits(), [5, 6])
    logits = np.zeros((2, 2, 3, 10))
    logits[1, 0, 2, 4] = math.nan
    with pytest.raises(StudyError, match="diverged with focal gamma=0.5, seed 5"):
        train._check_finite(logits, settings.DEFAULT, splits)


def test_huge_and_tiny_numbers_are_standardised(tmp_path: Path):
    file = tmp_path / "wide.csv"
    rows = (f"{i}e307,{i}e-320,{2**60 + i},{'uv'[i % 2]}\n" for i in range(8))
    file.write_text("huge,tiny,close,y\n" + "".join(rows))
    features = table.read_problem(file, "y", (), 100).features
    np.testing.assert_allclose(features[:, :2].std(axis=0), 1.0, rtol=1e-4)
    assert np.isfinite(features).all()


def test_a_long_table_is_sampled_by_class_and_says_so(tmp_path: Path):
    file = tmp_path / "long.csv"
    rows = (f"{i},{'rare' if i % 100 == 0 else 'often'}\n" for i in range(3000))
    file.write_text("a,y\n" + "".join(rows))
    problem = table.read_problem(file, "y", (), 500)
    assert dict(zip(problem.class_names, np.bincount(problem.labels), strict=True)) == {
        "often": 495,
        "rare": 10,
    }
    assert "3000" in problem.notes[0]


def test_a_missing_demo_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(SystemExit) as leaving:
        runpy.run_module("focaljax", run_name="__main__")
    assert leaving.value.code == 2
    message = capsys.readouterr().err
    assert message == "focaljax: error: rich not found; pip install focaljax[demo]\n"


def test_help_and_version_leave_with_success(capsys):
    assert study("--version") == 0
    assert capsys.readouterr().out == f"focaljax {focaljax.__version__}\n"
    assert study("--help") == 0
    assert "--csv mine.csv --label species" in capsys.readouterr().out
