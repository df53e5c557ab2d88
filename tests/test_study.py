"""The main job, on the command line and in a notebook: it trains, compares, reports, and refuses."""

import contextlib
import csv
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("optax")
pytest.importorskip("matplotlib")
pd = pytest.importorskip("pandas")
pytest.importorskip("jinja2")
rich = pytest.importorskip("rich.console")
datasets = pytest.importorskip("sklearn.datasets")

import focaljax  # noqa: E402
from focaljax import __main__ as cli  # noqa: E402
from focaljax.study import (  # noqa: E402
    Outcome,
    StudyError,
    compare,
    measures,
    pictures,
    report,
    run,
    settings,
    verdict,
    words,
)
from focaljax.study import console as terminal  # noqa: E402
from focaljax.study.run import END, STOPPED  # noqa: E402

PANELS = {
    *("balanced_accuracy", "average_precision", "nll", "ece"),
    *("loss_curves", "recall_per_class", "reliability"),
}
FILES = {"report.html", "report.json", "results.csv", "summary.png"} | {f"{name}.png" for name in PANELS}
PNG = b"\x89PNG\r\n\x1a\n"
HARD_NAMES = ("plain", "$x_{y$ & 10% [bold] <b>", "日本 with a very long class name")


def study(*arguments: object) -> int:
    """Run the command line; return its exit code however it leaves."""
    try:
        return cli.main([str(argument) for argument in arguments])
    except SystemExit as leaving:
        assert isinstance(leaving.code, int)
        return leaving.code


def overlapping(shares: tuple[float, ...], rows: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return overlapping classes of these shares: cross-entropy hardly ever names the rare ones."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(shares)), np.maximum(8, np.rint(rows * np.array(shares)).astype(int)))
    centres = 1.5 * np.array([[0, 0], [1, 0], [0, 1], [-1, 0], [0, -1]])[: len(shares)]
    return rng.normal(size=(len(y), 2)) + centres[y], y


def write_table(path: Path) -> None:
    """Write numbers, missing cells, text, truth values, a constant, a saved index and awkward class names."""
    rng = np.random.default_rng(1)
    x, y = overlapping((0.85, 0.1, 0.05), 600)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "size", "count", "colour", "wet", "unit", "kind"])
        for row, ((one, other), kind) in enumerate(zip(x, y, strict=True)):
            size, colour = "" if row % 8 == 3 else 1e6 + one, rng.choice(["red", "green", ""])
            wet = bool(rng.random() < 0.5)
            writer.writerow([row, size, round(4 * other), colour, wet, "cm", HARD_NAMES[kind]])


@pytest.fixture(scope="module")
def helped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the report of a study in which class weights help; what the program said lies in said.txt."""
    folder = tmp_path_factory.mktemp("study")
    write_table(folder / "mine.csv")
    out = folder / "made" / "report"
    options = ("--gamma", 0, 2, "--alpha", "none", "balanced", "--seeds", 2, "--epochs", 4)
    with (folder / "said.txt").open("w") as said, contextlib.redirect_stdout(said):
        assert study("--csv", folder / "mine.csv", "--label", "kind", *options, "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def content(helped: Path) -> dict:
    """Return the numbers of that report."""
    return json.loads((helped / "report.json").read_text(encoding="utf-8"))


# What a run leaves.


def test_a_run_leaves_all_files_and_nothing_else(helped: Path):
    assert {file.name for file in helped.iterdir()} == FILES
    assert {file.name for file in helped.parent.iterdir()} == {"report"}
    for file in helped.glob("*.png"):
        assert file.read_bytes().startswith(PNG)
        assert file.stat().st_size > 10_000


def test_the_numbers_are_complete_and_agree_with_each_other(helped: Path, content: dict):
    runs = pd.read_csv(helped / "results.csv")
    names = list(dict.fromkeys(runs["setting"]))
    assert len(names) == 6 and names[0] == "cross-entropy" and names[-1] == settings.POST_HOC
    assert len(runs) == 2 * 6 * 2 * 5  # times, settings, seeds, folds
    assert content["versions"]["jax"] == jax.__version__
    assert content["versions"]["focaljax"] == focaljax.__version__
    assert set(content["results"]) == set(runs["when"]) == {STOPPED, END}
    for (when, name), mine in runs.groupby(["when", "setting"]):
        base = runs[(runs["when"] == when) & (runs["setting"] == "cross-entropy")]
        for metric in verdict.METRICS:
            of_setting = content["results"][when][name][metric.name]
            paired = mine[metric.field].to_numpy() - base[metric.field].to_numpy()
            assert of_setting["mean"] == pytest.approx(mine[metric.field].mean())
            assert of_setting["difference"] == pytest.approx(paired.mean(), abs=1e-12)
            high = verdict.corrected_t(paired, 1 / 3, -metric.highest, metric.highest).high
            assert of_setting["high"] == pytest.approx(high, abs=1e-12)
    recall = runs[[f"recall[{name}]" for name in content["data"]["classes"]]].mean(axis=1)
    np.testing.assert_allclose(recall, runs["balanced_accuracy"], rtol=1e-6)


def test_where_class_weights_help_they_are_recommended(content: dict):
    advice = content["recommendation"]
    assert advice["verdict"] == verdict.BETTER and advice["for"] == "balanced accuracy"
    assert advice["setting"] in ("cross-entropy with balanced alpha", settings.POST_HOC)
    in_words = " ".join(advice["reasons"])
    assert "threshold" in in_words and "NLL is worse" in in_words  # what it is, and what it costs
    results = content["results"][STOPPED]
    assert results["cross-entropy with balanced alpha"]["balanced accuracy"]["verdict"] == verdict.BETTER
    assert results["focal gamma=2"]["balanced accuracy"]["verdict"] != verdict.BETTER
    assert results[settings.POST_HOC]["calibrated NLL"]["difference"] == 0.0
    assert advice["gain_of_choosing_on_validation"][1] > 0


class Page(HTMLParser):
    """Holds the page to being well-formed, and remembers its figures and what it would fetch."""

    void = frozenset({"meta", "br", "img", "link", "path", "use", "rect"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.figures: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag not in ("meta", "br", "img", "link"):
            self.open.append(tag)
        if found.get("id"):
            self.ids.append(str(found["id"]))
        if tag == "svg" and "figure" in self.open:
            self.figures.append(self.ids[-1])
        targets = (found.get(name) for name in ("src", "href", "xlink:href"))
        self.fetched += [target for target in targets if target and not target.startswith("#")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_one_file_with_every_picture(helped: Path, content: dict):
    text = (helped / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == [] and page.fetched == [] and "url(http" not in text
    assert set(page.figures) == PANELS == set(pictures.PANELS)
    assert len(page.ids) == len(set(page.ids))
    for name in re.findall(r"(?:url\(|href=\")#([^)\"]+)", text):
        assert name in page.ids
    for picture in re.findall(r"<svg.*?</svg>", text, re.S):
        ElementTree.fromstring(picture)
        assert not set(re.findall(r"#[0-9a-f]{6}", picture)) & {"#010203", "#040506", "#070809", "#000000"}
    assert content["recommendation"]["headline"] in text and "prefers-color-scheme: dark" in text
    for word in (
        "Nadeau",
        "Holm",
        STOPPED.capitalize(),
        END.capitalize(),
        settings.POST_HOC,
        "position: sticky",
    ):
        assert word in text


def test_a_table_of_mixed_columns_and_awkward_names(helped: Path, content: dict):
    assert sorted(content["data"]["classes"]) == sorted(HARD_NAMES)
    assert content["data"]["inputs_of_the_network"] == 3 + 3 + 3  # size, missing or not, count; colour; wet
    assert content["options"]["label"] == "kind"
    page = (helped / "report.html").read_text(encoding="utf-8")
    assert "[bold] <b>" not in page and "[bold] &lt;b&gt;" in page
    said = (helped.parents[1] / "said.txt").read_text(encoding="utf-8")
    assert "Left out, constant: unit." in said and content["recommendation"]["headline"][:40] in said


# In a notebook, on data of several kinds.


ROWS = 342  # in 3 folds so many each as breast_cancer has in 5: one program judges all
NOTEBOOK = {"gamma": [0, 2], "alpha": ["none"], "folds": 3, "seeds": 1, "epochs": 1, "criterion": "auroc"}


@pytest.fixture(scope="module")
def quick() -> Outcome:
    x, y = overlapping((0.9, 0.1), ROWS)
    return compare(pd.DataFrame(x, columns=["a", "b"]), y, **NOTEBOOK)


def test_a_notebook_sees_tables(quick: Outcome):
    assert list(quick.frame.index) == ["cross-entropy", "focal gamma=2", settings.ADJUSTED, settings.POST_HOC]
    shown = quick.table[1][verdict.AUROC]
    assert quick.frame.loc["focal gamma=2", ("AUROC", "difference")] == shown.difference.mean
    assert quick.frame.loc["cross-entropy", ("AUROC", "verdict")] == "baseline"
    assert len(quick.runs) == 2 * 4 * 3
    page = quick._repr_html_()
    assert Page(page).open == [] and quick.advice.verdict in page.lower() and "<table" in page
    assert repr(quick).startswith("<Outcome: ")
    (x, y), told = overlapping((0.9, 0.1), ROWS), []
    again = compare(x, np.eye(2)[y], **NOTEBOOK, progress=lambda *what: told.append(what))
    assert told[0][0].startswith(f"the data: {ROWS} rows")
    pd.testing.assert_frame_equal(again.runs, quick.runs)


QUICK = {"gamma": [0.0, 2.0], "seeds": 1, "steps": 200}


def test_a_small_table_of_five_classes_is_decided_or_it_says_what_would_decide():
    """Weights win nearly all runs of such a table; whether 5 folds show it is a matter of its rows."""
    x, y = overlapping((0.44, 0.44, 0.07, 0.035, 0.015), 1461)
    outcome = compare(x, y, **QUICK, alpha=["balanced"], folds=5)
    wins = [i for i, s in enumerate(outcome.settings) if s.name == "cross-entropy with balanced alpha"]
    gains = outcome.stopped.test["balanced_accuracy"]
    assert ((gains[..., wins[0]] - gains[..., 0]) > 0).mean() >= 0.9
    assert outcome.advice.verdict in (verdict.UNDECIDED, verdict.BETTER)
    assert outcome.advice.verdict == verdict.BETTER or outcome.advice.deciding is not None


def test_one_in_five_hundred():
    """Weights gain much balanced accuracy; what that says of ranks is said too."""
    x, y = overlapping((0.998, 0.002), 20_000)
    outcome = compare(np.c_[x, x @ [[1.0], [2.0]]], y, **QUICK, alpha=["balanced"])
    assert outcome.advice.verdict == verdict.BETTER
    assert outcome.settings[outcome.advice.shown].alpha != "none"
    test, counts = outcome.stopped.test, outcome.class_counts
    assert (
        counts[1] == 40 and (test["average_precision"][..., 0] < 0.5).all()
    )  # of the rare class, not of both
    assert re.search("only its threshold|where no threshold matters", " ".join(words.reasons(outcome)))


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer"])
def test_bundled_tables(name: str):
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    if name == "wine":
        x, y = x[-150:], y[-150:]  # as many as iris has: one program judges both
    outcome = compare(x, y, **QUICK)
    assert outcome.advice.verdict in (verdict.UNDECIDED, verdict.EQUAL)  # nothing is to be gained there
    test = {name: values.mean() for name, values in outcome.stopped.test.items()}
    assert test["accuracy"] > 0.9 and test["nll_calibrated"] < 2 * test["nll"]
    if name == "iris":  # its classes are balanced: weights and priors do nothing
        assert [s.name for s in outcome.settings] == ["cross-entropy", "focal gamma=2"]
        assert len(outcome.about["data"]["notes"]) == 4


def test_a_validation_fold_without_an_error_makes_nobody_sure():
    """By hand: 20 rows that are right and one more that is not say 20 / 21, whatever the logits were."""
    logits = np.tile(np.float32([9.0, 0.0]), (2, ROWS // 3, 1))
    labels = np.repeat([[0], [1]], ROWS // 3, 1)  # to validate, all are right; to test, all are wrong
    counts = np.repeat((np.arange(ROWS // 3) < 20).astype(np.float32)[None], 2, 0)
    alpha, shift = np.ones(2, np.float32), np.zeros(2, np.float32)
    found = measures.judge(logits, labels, counts, np.float32(0), alpha, shift, shift)
    np.testing.assert_allclose(found.nll[2], np.log([21 / 20, 21]), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"criterion": "accuracy"}, "expected a criterion out of balanced-accuracy, auroc"),
        ({"gamma": [-1]}, "finite gammas of at least 0"),
        ({"gamma": []}, "finite gammas of at least 0"),
        ({"alpha": ["some"]}, "alphas out of none, balanced, effective; got"),
        ({"folds": 2}, "folds of at least 3, got 2"),
        ({"seeds": 0}, "seeds of at least 1, got 0"),
        ({"margin": -0.1}, "margin of at least 0"),
        ({"gamma": [0], "alpha": ["none"]}, "on this data all settings are cross-entropy"),
    ],
)
def test_compare_refuses(options: dict, said: str):
    with pytest.raises(StudyError, match=said):
        compare(np.arange(24.0)[:, None] ** 2, np.arange(24) % 2, **options)


def test_trees():
    """Their curves are those of the logits that are measured, and the words speak of rounds."""
    x, y = overlapping((0.7, 0.2, 0.1), 200)
    table = pd.DataFrame(
        {"a": x[:, 0], "b": np.where(x[:, 1] > 2, np.nan, x[:, 1]), "c": np.where(x[:, 0] > 0, "+", "-")}
    )
    outcome = compare(table, y, model="trees", gamma=[0, 2], alpha=["none"], folds=3, seeds=1, epochs=5)
    assert list(outcome.frame.index) == [
        "cross-entropy",
        "focal gamma=2",
        settings.ADJUSTED,
        settings.POST_HOC,
    ]
    assert outcome.nll.shape == (5, 2, 1, 3, 3)
    np.testing.assert_allclose(outcome.end.validation["nll"][..., :3], outcome.nll[-1, 0], rtol=1e-5)
    np.testing.assert_allclose(outcome.end.test["nll"][..., :3], outcome.nll[-1, 1], rtol=1e-5)
    np.testing.assert_allclose(
        outcome.stopped.validation["nll"][..., :3], outcome.nll[:, 0].min(0), rtol=1e-5
    )
    assert (outcome.nll[-1, ..., :2] < np.log(3)).all()  # what scores of 0 have
    said = outcome.numbers()
    assert said["training"]["model"].startswith("LightGBM")
    assert "after the round of lowest plain NLL" in " ".join(said["caveats"])


def test_trees_without_lightgbm_say_what_to_install(monkeypatch):
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    with pytest.raises(StudyError, match=r"lightgbm not found; pip install focaljax\[boosting\]"):
        compare(np.eye(6), [0, 1] * 3, model="trees")


def test_a_hundred_classes_have_legible_pictures():
    rng = np.random.default_rng(0)
    y = np.concatenate([np.arange(100), np.arange(100), np.arange(100), rng.choice(100, 300)])
    outcome = compare(rng.normal(size=(len(y), 3)), y, gamma=[2], alpha=["none"], seeds=1, folds=3, epochs=1)
    page = pictures.svg("recall_per_class", outcome)
    height, labels = re.search(r'height="([0-9.]+)pt"', page), re.findall(r">(\d+) \((\d+)\)<", page)
    assert height is not None and len(labels) == 100
    assert float(height[1]) / 100 > 6.5 * 1.2  # points per class, of letters of 6.5


# What an interruption and a full disk leave.


MODULE = (sys.executable, "-m", "focaljax")
SCRIPT = (str(Path(sys.executable).with_name("focaljax")),)


def started(*arguments: object, program: tuple[str, ...] = MODULE) -> subprocess.Popen:
    """Start the program, which shows its progress as in a terminal."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(focaljax.__file__).parents[1])}
    environment |= {"FORCE_COLOR": "1", "TERM": "xterm"}
    command = [*program, *map(str, arguments)]
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup lets no program hear Ctrl-C
    try:
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
    finally:
        signal.signal(signal.SIGINT, heard)


@pytest.mark.parametrize(
    "moments",
    [
        [
            ("", 2.5, signal.SIGINT, MODULE),
            ("", 0.5, signal.SIGINT, SCRIPT),
            ("", 0.5, signal.SIGTERM, MODULE),
        ],
        [
            ("reading", 0.0, signal.SIGINT, SCRIPT),
            ("compiling", 1.0, signal.SIGINT, MODULE),
            ("training", 0.0, signal.SIGINT, MODULE),
        ],
    ],
    ids=["of the imports", "of the work"],
)
def test_an_interruption_at_any_moment_is_one_line(moments, tmp_path: Path):
    """So many seconds after the program has said a word."""
    with contextlib.ExitStack() as running:
        programs = []
        for *_, program in moments:
            programs.append(started("--epochs", 100_000, "--out", tmp_path / "out", program=program))
            running.enter_context(programs[-1])
            running.callback(programs[-1].kill)
        for program, (word, seconds, number, _) in zip(programs, moments, strict=True):
            said = ""
            while word not in said:
                said += program.stdout.read(1) or pytest.fail(f"ended before {word!r}")
            time.sleep(seconds)
            program.send_signal(number)
            out, error = program.communicate(timeout=60)
            assert (program.returncode, error) == (130, "focaljax: interrupted\n")
            assert list(tmp_path.iterdir()) == [] and "Traceback" not in out


def test_an_interruption_while_the_handler_is_set_is_one_line():
    folder = str(Path(focaljax.__file__).parent)
    code = f"import os, signal, sys, time; sys.path.append({folder!r}); import _interrupt\n"
    code += "wake = signal.set_wakeup_fd\n"
    code += "signal.set_wakeup_fd = lambda *a, **k: (os.kill(os.getpid(), signal.SIGINT), wake(*a, **k))\n"
    code += "_interrupt.leave_at_once(); time.sleep(50)"
    program = started(program=(sys.executable, "-c", code))
    assert program.communicate(timeout=40) == ("", "focaljax: interrupted\n") and program.returncode == 130


def test_a_full_disk_ends_with_one_line_and_the_table_on_the_screen(
    quick: Outcome, tmp_path: Path, capsys, monkeypatch
):
    monkeypatch.setattr("focaljax.study.compare", lambda *_, **__: quick)
    monkeypatch.setattr(report, "make", lambda _: {"report.html": bytes(20_000)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        assert study("--out", tmp_path / "out") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    out, error = capsys.readouterr()
    assert error.startswith("focaljax: error: the report cannot be written: ") and error.count("\n") == 1
    assert "post-hoc adjustment" in out and "losses = softmax_focal_loss_with_integer_labels(" in out
    assert list(tmp_path.iterdir()) == []


# What a run refuses.

GOOD = "a,b,y\n" + "".join(f"{i},{i % 5},{'uv'[i % 2]}\n" for i in range(12))


def refuses(capsys, folder: Path, words: str, *arguments: object) -> None:
    """Expect exit code 2, one clear line, and a folder that is as it was."""
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert study(*arguments) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("focaljax: error: ")
    assert words in message
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("there is no file", ("--csv", "missing.csv", "--label", "y")),
        ("there is no file", ("--parquet", "missing.parquet", "--label", "y")),
        ("there is no file", ("--npz", "missing.npz")),
        ("has the columns: a, b, y", ("--csv", "good.csv")),
        ("no column 'c'", ("--csv", "good.csv", "--label", "y", "--drop", "c")),
        ("cannot be both", ("--csv", "good.csv", "--label", "y", "--drop", "y")),
        ("at least 7 rows", ("--csv", "good.csv", "--label", "y", "--folds", "7")),
        ("not allowed with", ("--csv", "good.csv", "--npz", "good.npz")),
        ("--label needs --csv", ("--label", "y")),
        ("--drop needs --csv", ("--npz", "good.npz", "--drop", "y")),
        ("--features needs --npz", ("--csv", "good.csv", "--features", "x")),
        ("--folds", ("--folds", "2")),
        ("--seeds", ("--seeds", "0")),
        ("--seeds", ("--seeds", "many")),
        ("--epochs", ("--epochs", "0")),
        ("--seed", ("--seed", "-1")),
        ("--gamma", ("--gamma", "-1")),
        ("--gamma", ("--gamma", "nan")),
        ("--gamma", ("--gamma", "two")),
        ("--alpha", ("--alpha", "some")),
        ("--for", ("--for", "accuracy")),
        ("--margin", ("--margin", "-1")),
        ("--sep needs --csv", ("--parquet", "good.csv", "--sep", ";")),
        ("--sep", ("--csv", "good.csv", "--sep", "ab")),
        ("--rows", ("--rows", "1")),
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
    report.write(tmp_path, {"report.json": b"new"}, True)
    assert (tmp_path / "mine.txt").read_text() == "keep me"
    assert (tmp_path / "report.json").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 2


def test_an_error_while_writing_leaves_nothing(tmp_path: Path):
    with pytest.raises(StudyError, match="cannot be written"):
        report.write(tmp_path / "out", {"report.json": b"half", "no/such/folder": b""}, False)
    assert list(tmp_path.iterdir()) == []


# The command line by itself.


def test_the_options_are_those_of_the_study():
    assert (
        cli.MODELS == run.MODELS and cli.ALPHAS == settings.ALPHAS and cli.CRITERIA == tuple(verdict.CRITERIA)
    )
    assert (cli.STEPS, cli.SEEDS) == (run.STEPS, run.SEEDS)
    options = cli._parser().parse_args([])
    assert options.margin == run.MARGIN


def test_a_missing_demo_extra_is_named_but_help_needs_none(monkeypatch: pytest.MonkeyPatch, capsys):
    for name in [*sys.modules]:
        if name.startswith("focaljax.study"):
            monkeypatch.delitem(sys.modules, name)
    for name in ("rich", "pandas"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys, "argv", ["focaljax", "--version"])
    codes = []
    for argument in ("--version", "--help", "--quick"):
        monkeypatch.setattr(sys, "argv", ["focaljax", argument])
        codes.append(study(argument))
    assert codes == [0, 0, 2]
    said = capsys.readouterr()
    assert (
        said.out.startswith(f"focaljax {focaljax.__version__}\n")
        and "--csv mine.csv --label species" in said.out
    )
    assert said.err == "focaljax: error: pandas, rich not found; pip install focaljax[demo]\n"


def test_the_module_and_the_script_are_the_program():
    for running in [started("--version", program=program) for program in (MODULE, SCRIPT)]:
        assert running.communicate(timeout=60) == (f"focaljax {focaljax.__version__}\n", "")
        assert running.returncode == 0


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list:
    """The features, labels and options that the command line gives to a study, which does nothing."""
    given = []

    def compared(*data: object, **options: object):
        given.append((data, options))
        raise StudyError("seen")

    monkeypatch.setattr("focaljax.study.compare", compared)
    return given


def test_arrays_and_the_criterion_reach_the_study(asked: list, tmp_path: Path):
    x, y = overlapping((0.9, 0.1), 30)
    np.savez(tmp_path / "mine.npz", x=x, y=y)
    assert study("--npz", tmp_path / "mine.npz", "--for", "nll", "--out", tmp_path / "out") == 2
    ((features, labels), options), *_ = asked
    np.testing.assert_array_equal(features, x)
    np.testing.assert_array_equal(labels, y)
    assert options["criterion"] == "nll"


def test_the_quick_study_makes_fewer_runs_and_trains_each_to_the_end(asked: list):
    """Networks that are stopped half-way would be compared by how fast they learn."""
    for arguments in ((), ("--quick",), ("--quick", "--gamma", 1, "--seeds", 2)):
        assert study(*arguments, "--out", "none-yet") == 2
    full, quick, own = (options for _, options in asked)
    assert {name for name in full if full[name] != quick[name]} - {"progress"} == {"gamma", "seeds"}
    assert {*quick["gamma"]} < {*settings.GAMMAS} and quick["seeds"] < full["seeds"]
    assert (own["gamma"], own["seeds"]) == ([1.0], 2)


@pytest.mark.parametrize(
    "setting", [settings.Setting(2.0, "effective"), settings.Setting(0.0, settings.POST_HOC)]
)
def test_the_printed_program_is_whole_in_a_narrow_terminal(quick: Outcome, setting, monkeypatch):
    monkeypatch.setattr(words, "code", lambda outcome: setting.call(2))
    screen = rich.Console(width=40, file=io.StringIO())
    terminal.show_outcome(screen, quick)
    assert setting.call(2) in screen.file.getvalue()
    assert max(map(len, setting.call(2).splitlines())) > 60


def test_a_wrong_label_is_named_before_a_folder_in_use(tmp_path: Path, capsys):
    (tmp_path / "good.csv").write_text(GOOD)
    table = ("--csv", tmp_path / "good.csv", "--out", tmp_path)
    refuses(capsys, tmp_path, "no column 'z'", *table, "--label", "z")
    refuses(capsys, tmp_path, "is not empty", *table, "--label", "y")
