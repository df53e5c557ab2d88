"""The command line of `python -m focaljax`: read the options, do the study, leave with a code."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

import focaljax
from focaljax.study import (
    blocks,
    checkpoint,
    console,
    data,
    folds,
    outcome,
    page,
    pictures,
    recommend,
    report,
    settings,
    table,
    train,
)
from focaljax.study.errors import DivergedError, StudyError

STEPS, SEEDS = 1000, 3
QUICK_STEPS, QUICK_SEEDS = 200, 2
LARGEST_SEED = 2**31 - 1
MAX_GAMMA = 100.0

ABOUT = """\
Which gamma and which alpha for this data? Train one small Optax classifier with cross-entropy, with
focal loss for several gammas and class weights, and with logit adjustment, on every fold of every seed,
all in one compiled program. Recommend one by its balanced accuracy, NLL or calibration error on the
test folds, or say that no difference was found.
"""
EXAMPLES = """\
examples:
  python -m focaljax                                  scikit-learn's digits, made long-tailed
  python -m focaljax --quick                          the same in seconds, with wider intervals
  python -m focaljax --csv mine.csv --label species   your own table; --parquet likewise
  python -m focaljax --npz mine.npz --for nll         your own arrays `x` and `y`
  python -m focaljax --gamma 1 2 3 --alpha none balanced --folds 10 --out my-report

The folder holds report.html, report.json, results.csv (two rows per run) and the pictures. A run that was
interrupted goes on with the same command and --resume. Wrong files or options end with exit code 2 and
write nothing.
"""


class Interrupted(Exception):
    """The user stopped a run that can go on later."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; return 0, 2 after a message that says what to mend, or 130 if it was interrupted."""
    parser = _parser()
    options = parser.parse_args(arguments)
    _check(parser, options)
    try:
        _study(options)
    except StudyError as error:
        print(f"focaljax: error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stopped:
        print(f"focaljax: interrupted {stopped}; the same command with --resume goes on", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("focaljax: interrupted", file=sys.stderr)
        return 130
    return 0


def _study(options: argparse.Namespace) -> None:
    report.check_folder(options.out, options.overwrite)
    unfinished = checkpoint.Unfinished(options.out)
    unfinished.begin(_recorded(options), options.resume, options.overwrite)
    try:
        finished = _trained(options, unfinished)
        try:
            _report(options, finished)
        except StudyError as error:
            raise StudyError(f"{error}; the same command with --resume tries it again") from None
    except BaseException as error:
        if isinstance(error, DivergedError) or not unfinished.saved:
            unfinished.discard()
        elif isinstance(error, KeyboardInterrupt):
            raise Interrupted("before the report was written") from None
        raise
    unfinished.discard()


def _trained(options: argparse.Namespace, unfinished: checkpoint.Unfinished) -> outcome.Outcome:
    problem, screen = _problem(options, unfinished.folder), Console()
    count, note = folds.choose_count(problem, options.folds)
    console.show_problem(screen, problem, [note] if note else [])
    seeds = options.seeds or (QUICK_SEEDS if options.quick else SEEDS)
    dealt = folds.deal(problem, range(options.seed, options.seed + seeds), count, unfinished.folder)
    steps = QUICK_STEPS if options.quick else STEPS
    epochs = options.epochs or blocks.epochs_for(problem.rows, count, steps)
    study = train.Study(problem, dealt, settings.choose(options.gamma, options.alpha), epochs)
    start = train.start(study)
    if options.resume:
        start = unfinished.load(start)
        console.show_lines(screen, [f"Going on after {_place(study, start)}."])
    s, k, a = study.shape
    with console.progress_bar(screen) as bar, checkpoint.stopping() as stop:
        training = f"training {s * k * a} runs ({a} settings x {k} folds x {s} seeds)"
        task = bar.add_task("compiling one program for all runs", total=epochs * study.reader.count)

        def moved(progress: train.Progress) -> None:
            done = progress.epoch * study.reader.count + progress.block
            bar.update(task, completed=done, description=training)
            if stop.asked:
                unfinished.save(progress)
                raise Interrupted(f"after {_place(study, progress)}")
            unfinished.save_if_due(progress)

        progress = train.train(study, start, moved)
        unfinished.save(progress)  # until the report is written
    return outcome.outcome(study, recommend.CRITERIA[options.criterion], progress)


def _report(options: argparse.Namespace, finished: outcome.Outcome) -> None:
    screen = Console()
    console.show_outcome(screen, finished)

    def fill(folder: Path) -> None:
        content = report.numbers(finished, _recorded(options))
        report.write_json(folder / "report.json", content)
        report.write_csv(folder / "results.csv", content)
        pictures.draw_all(folder, finished)
        page.write(folder / "report.html", finished, content)

    report.write_folder(options.out, options.overwrite, fill)
    console.show_lines(screen, [f"Report, numbers and pictures: {options.out / 'report.html'}"])


def _place(study: train.Study, progress: train.Progress) -> str:
    block = f", block {progress.block} of {study.reader.count}" if progress.block else ""
    return f"epoch {progress.epoch} of {study.epochs}{block}"


def _recorded(options: argparse.Namespace) -> dict[str, Any]:
    """Return all that the numbers depend on."""
    recorded = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    for name in ("out", "resume", "overwrite"):
        del recorded[name]
    for name in ("csv", "parquet", "npz"):
        path = getattr(options, name)
        if path is not None and path.exists():
            files = [file.stat() for file in ([path] if path.is_file() else path.glob("*.parquet"))]
            recorded["bytes of the data"] = sum(file.st_size for file in files)
            recorded["time of the data"] = max((file.st_mtime_ns for file in files), default=0)
    return recorded | {"versions": report.versions()}


def _problem(options: argparse.Namespace, scratch: Path) -> data.Problem:
    least = options.folds or folds.LEAST
    if options.csv is not None:
        return table.read_csv(options.csv, options.label, options.drop, scratch, least_rows=least)
    if options.parquet is not None:
        return table.read_parquet(options.parquet, options.label, options.drop, scratch, least_rows=least)
    if options.npz is not None:
        return table.read_npz(options.npz, options.features, options.label, scratch, least_rows=least)
    return data.long_tailed_digits()


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse options that say nothing together."""
    if options.drop and not (options.csv or options.parquet):
        parser.error("--drop needs --csv FILE or --parquet FILE")
    if options.label is not None and not (options.csv or options.parquet or options.npz):
        parser.error("--label needs --csv FILE, --parquet FILE or --npz FILE")
    if options.features is not None and not options.npz:
        parser.error("--features needs --npz FILE")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="focaljax",
        usage="python -m focaljax [options]",
        description=ABOUT,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--version", action="version", version=f"focaljax {focaljax.__version__}")
    add("--quick", action="store_true", help=f"{QUICK_SEEDS} seeds and {QUICK_STEPS} steps")

    group = parser.add_argument_group("the data (default: digits)")
    one = group.add_mutually_exclusive_group().add_argument
    one("--csv", type=Path, metavar="FILE", help="a table with a header")
    one("--parquet", type=Path, metavar="FILE", help="the same as Parquet, or a folder of its part files")
    one("--npz", type=Path, metavar="FILE", help="arrays: features [N, ...] and labels [N]")
    group.add_argument(
        "--label", metavar="NAME", help="the column to predict, all others are features; in --npz the labels"
    )
    group.add_argument("--features", metavar="NAME", help="in --npz the features")
    group.add_argument("--drop", nargs="+", default=[], metavar="COLUMN", help="columns to leave out")

    group = parser.add_argument_group(
        "the losses (cross-entropy and logit adjustment always run)"
    ).add_argument
    group(
        "--gamma",
        nargs="+",
        type=_gamma,
        metavar="G",
        help="focusing parameters; 0 is cross-entropy (default: "
        f"{' '.join(f'{gamma:g}' for gamma in settings.GAMMAS)})",
    )
    group(
        "--alpha",
        nargs="+",
        choices=settings.ALPHAS,
        help="class weights: none, inverse frequency, effective number; every gamma runs with every alpha "
        "(default: all)",
    )
    group(
        "--for",
        dest="criterion",
        choices=recommend.CRITERIA,
        default="balanced-accuracy",
        help="what the recommendation goes by (default: %(default)s)",
    )

    group = parser.add_argument_group("the training").add_argument
    group(
        "--folds",
        type=_whole(folds.LEAST, 100),
        metavar="K",
        help=f"at least {folds.LEAST}: one to test, one to stop by, the others to train (default: "
        f"{folds.USUAL})",
    )
    group("--seeds", type=_whole(1, 1000), metavar="N", help=f"times to deal the folds (default: {SEEDS})")
    group(
        "--seed",
        type=_whole(0, LARGEST_SEED - 1000),
        default=0,
        metavar="S",
        help="the first seed; the others follow it (default: 0)",
    )
    group(
        "--epochs",
        type=_whole(1, 100_000),
        metavar="N",
        help=f"passes over the training rows (default: as many as make {STEPS} steps, at least 3)",
    )

    group = parser.add_argument_group("the report").add_argument
    group(
        "--out",
        type=Path,
        default=Path("focaljax-report"),
        metavar="DIR",
        help="a new or empty folder (default: %(default)s)",
    )
    group("--overwrite", action="store_true", help="replace the report that is in the folder")
    group("--resume", action="store_true", help="go on with a run that was interrupted")
    return parser


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, {low} to {high}")
        return value

    return parse


def _gamma(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= MAX_GAMMA:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {MAX_GAMMA:g}")
    return value
