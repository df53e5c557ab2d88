"""The main job: `python -m focaljax` trains, compares, recommends, reports, and refuses what it cannot."""

import csv
import json
import re
import runpy
import signal
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("optax")
pytest.importorskip("matplotlib")
pytest.importorskip("pandas")
pytest.importorskip("jinja2")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

import focaljax
from focaljax.study import checkpoint, cli, compare, pictures, report, settings, train
from focaljax.study.errors import DivergedError, StudyError
from focaljax.study.outcome import END, STOPPED

PANELS = {
    "balanced_accuracy",
    "nll",
    "ece",
    "loss_curves",
    "recall_per_class",
    "reliability",
}
FILES = {"report.html", "report.json", "results.csv", "summary.png"} | {f"{name}.png" for name in PANELS}
PNG = b"\x89PNG\r\n\x1a\n"
HARD_NAMES = ("plain", "$x_{y$ & 10% [bold] <b>", "日本 with a very long class name")
SMALL = ("--gamma", 0, 2, "--alpha", "none", "balanced", "--seeds", 1, "--folds", 3)


def study(*arguments: object) -> int:
    """Run the command line; return its exit code however it leaves."""
    try:
        return cli.main([str(argument) for argument in arguments])
    except SystemExit as leaving:
        assert isinstance(leaving.code, int)
        return leaving.code


def write_table(path: Path, rows: int = 90) -> Path:
    """Write numbers, missing cells, text, truth values, a constant, a saved index and awkward class names."""
    rng = np.random.default_rng(1)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "size", "count", "colour", "wet", "unit", "kind"])
        for row in range(rows):
            kind = 0 if row % 10 < 6 else 1 if row % 10 < 9 else 2
            size = "" if row % 8 == 3 else 1e6 + 3 * kind + rng.normal()
            colour = ("red", "green", "")[(kind + (rng.random() < 0.2)) % 3]
            wet = bool(rng.random() < 0.5)
            writer.writerow([row, size, int(rng.integers(9)), colour, wet, "cm", HARD_NAMES[kind]])
    return path


def write_imbalanced(path: Path, rows: int = 3000) -> Path:
    """Write two overlapping classes, one in ten rows of the second: cross-entropy hardly ever names it."""
    rng = np.random.default_rng(3)
    y = (np.arange(rows) % 10 == 0).astype(np.int64)
    np.savez(path, x=rng.normal(size=(rows, 2)) + 1.5 * y[:, None], y=y)
    return path


@pytest.fixture(scope="module")
def helped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the report of a study in which class weights help."""
    folder = tmp_path_factory.mktemp("study")
    file, out = write_imbalanced(folder / "mine.npz"), folder / "made" / "report"
    options = ("--gamma", 0, 2, "--alpha", "none", "balanced", "--seeds", 2, "--epochs", 4)
    assert study("--npz", file, *options, "--out", out) == 0
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
    names = [setting["name"] for setting in content["settings"]]
    assert len(names) == 5 and names[0] == "cross-entropy" and names[-1] == settings.ADJUSTED
    assert len(content["runs"]) == 2 * 5 * 2 * 5  # times, settings, seeds, folds
    assert content["versions"]["jax"] == jax.__version__
    assert content["versions"]["focaljax"] == focaljax.__version__
    with (helped / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, run in zip(rows, content["runs"], strict=True):
        assert all(row[name] == str(run[name]) for name in ("setting", "seed", "fold", "when", "nll", "ece"))
        assert float(row["recall[1]"]) == run["recall"][1]
    base = {(r["when"], r["seed"], r["fold"]): r["ece"] for r in content["runs"] if r["setting"] == names[0]}
    for when, results in content["results"].items():
        for name, of_setting in zip(names, results["settings"], strict=True):
            mine = [r for r in content["runs"] if (r["when"], r["setting"]) == (when, name)]
            paired = [r["ece"] - base[when, r["seed"], r["fold"]] for r in mine]
            assert of_setting["ece"]["mean"]["mean"] == pytest.approx(np.mean([r["ece"] for r in mine]))
            difference = of_setting["ece"]["difference_to_cross_entropy"]
            half = compare.corrected_t(np.array(paired), 1 / 3)
            assert difference["mean"] == pytest.approx(np.mean(paired), abs=1e-12)
            assert difference["high"] == pytest.approx(half.high, abs=1e-12)
    assert set(content["results"]) == {STOPPED, END}


def test_where_class_weights_help_they_are_recommended(content: dict):
    advice = content["recommendation"]
    assert advice["found"] and advice["for"] == "balanced accuracy" and advice["when"] == STOPPED
    assert advice["setting"] in ("cross-entropy with balanced alpha", settings.ADJUSTED)
    assert "cross-entropy with balanced alpha" in advice["better_than_cross_entropy"]
    assert "focal gamma=2" not in advice["better_than_cross_entropy"]
    assert advice["setting"] in advice["headline"]
    assert "NLL is worse" in " ".join(advice["reasons"])  # what it costs is said
    gain = advice["gain_of_choosing_on_validation"]
    assert gain["low"] > 0


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
    for word in ("Nadeau", "Holm", STOPPED, END, "inverse_frequency"):
        assert word in text


def test_a_table_of_mixed_columns_and_awkward_names(tmp_path: Path, capsys):
    file, out = write_table(tmp_path / "mine.csv"), tmp_path / "out"
    assert study("--csv", file, "--label", "kind", *SMALL, "--epochs", 1, "--for", "nll", "--out", out) == 0
    assert {entry.name for entry in out.iterdir()} == FILES
    numbers = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert sorted(numbers["data"]["classes"]) == sorted(HARD_NAMES)
    assert numbers["data"]["inputs_of_the_network"] == 3 + 3 + 3  # size, missing or not, count; colour; wet
    assert numbers["data"]["rare_classes"] == [HARD_NAMES[2]]
    assert numbers["recommendation"]["for"] == "NLL"
    page = (out / "report.html").read_text(encoding="utf-8")
    assert Page(page).open == [] and "[bold] <b>" not in page and "[bold] &lt;b&gt;" in page
    assert "unit" in capsys.readouterr().out  # the constant column that was left out


# A run that stops goes on.


def test_an_interrupted_run_goes_on_with_resume(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_imbalanced(tmp_path / "mine.npz", 120)
    full = True

    def draw_all(folder: Path, outcome: object) -> None:
        if full:
            raise OSError("the disk is full")

    monkeypatch.setattr(pictures, "draw_all", draw_all)
    command = ("--npz", "mine.npz", *SMALL, "--epochs", 3)
    usual = signal.getsignal(signal.SIGINT)  # ignored where a shell has started this in the background
    assert study(*command, "--out", "whole") == 2  # but nothing is lost
    assert (
        "the disk is full; the same command with --resume" in capsys.readouterr().err
        and not Path("whole").exists()
    )
    full = False
    assert study(*command, "--out", "whole", "--resume") == 0
    due = checkpoint.Unfinished.save_if_due

    def interrupt(self: checkpoint.Unfinished, progress: train.Progress) -> None:
        due(self, progress)
        if progress.epoch == 1:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Unfinished, "save_if_due", interrupt)
        assert study(*command, "--out", "parts") == 130
    assert "after epoch 2 of 3; the same command with --resume goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is usual
    assert not (tmp_path / "parts").exists()
    refuses(capsys, tmp_path, "go on with the same command and --resume", *command, "--out", "parts")
    other = (*command[:-1], 4, "--out", "parts", "--resume")
    refuses(capsys, tmp_path, "--resume needs what the run was begun with: epochs was 3, is 4", *other)
    assert study(*command, "--out", "parts", "--resume") == 0
    assert "Going on after epoch 2 of 3" in capsys.readouterr().out
    for file in ("report.json", "results.csv"):
        assert Path("parts", file).read_bytes() == Path("whole", file).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"mine.npz", "whole", "parts"}
    nothing = "there is nothing to resume"
    refuses(capsys, tmp_path, nothing, *command, "--out", "parts", "--resume", "--overwrite")


def test_an_interruption_before_the_first_block_leaves_nothing(tmp_path: Path, capsys, monkeypatch):
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "start", interrupted)
    assert study("--quick", "--out", tmp_path / "out") == 130
    assert "interrupted" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_diverged_run_cannot_be_resumed(tmp_path: Path, capsys, monkeypatch):
    def diverged(of: train.Study) -> None:
        unfinished = checkpoint.Unfinished(tmp_path / "out")
        (unfinished.folder / "state.npz").touch()
        assert unfinished.saved
        raise DivergedError("training diverged")

    monkeypatch.setattr(train, "start", diverged)
    refuses(capsys, tmp_path, "diverged", "--quick", "--out", tmp_path / "out")
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
        ("there is no file or folder", ("--parquet", "missing.parquet", "--label", "y")),
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
        ("there is nothing to resume", ("--resume",)),
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
