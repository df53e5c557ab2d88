"""The command line of `python -m focaljax`: read the options, do the study, leave with a code."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

import focaljax
from focaljax.study import console, former as data, pictures, report, settings, table, train, words
from focaljax.study.errors import StudyError
from focaljax.study.outcome import judge

STEPS, SEEDS = 1000, 20
QUICK_STEPS, QUICK_SEEDS = 150, 4
LARGEST_SEED = 2**31 - 1
MAX_GAMMA = 100.0

ABOUT = """\
Does focal loss help on this data? Train one small Optax classifier with cross-entropy and with
focal loss, for several gammas, kinds of alpha and seeds, all in one compiled program, and compare
calibration (NLL, ECE) and balanced accuracy on held-out rows, with intervals over the seeds.
"""
EXAMPLES = """\
examples:
  python -m focaljax                                  scikit-learn's digits, made long-tailed
  python -m focaljax --quick                          the same in seconds, with wider intervals
  python -m focaljax --csv mine.csv --label species   your own table
  python -m focaljax --gamma 1 2 3 --alpha none balanced --seeds 30 --out my-report

The folder holds report.json, results.csv (one row per run), loss_curves.png, recall_per_class.png,
reliability.png and summary.png. Wrong files or options end with exit code 2 and write nothing.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; return 0, or 2 after a message that says what to mend."""
    parser = _parser()
    options = parser.parse_args(arguments)
    chosen = settings.choose(options.gamma, options.alpha)
    if len(chosen) < 2:
        parser.error("nothing to compare with cross-entropy: choose a --gamma above 0")
    if options.csv is None and (options.label is not None or options.drop):
        parser.error("--label and --drop need --csv FILE")
    try:
        _study(options, chosen)
    except StudyError as error:
        print(f"focaljax: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("focaljax: interrupted, nothing was written", file=sys.stderr)
        return 130
    return 0


def _study(options: argparse.Namespace, chosen: Sequence[settings.Setting]) -> None:
    report.check_folder(options.out, options.overwrite)
    problem = _problem(options)
    seeds = options.seeds or (QUICK_SEEDS if options.quick else SEEDS)
    splits = data.split(problem, range(options.seed, options.seed + seeds))
    epochs = options.epochs or train.epochs_for(problem, QUICK_STEPS if options.quick else STEPS)

    screen = Console()
    console.show_problem(screen, problem)
    with console.progress_bar(screen) as bar:
        task = bar.add_task("compiling one program for all runs", total=epochs)
        training = f"training {len(chosen) * seeds} runs ({len(chosen)} settings x {seeds} seeds)"

        def moved(epoch: int) -> None:
            bar.update(task, completed=epoch, description=training)

        trained = train.train(problem, splits, chosen, epochs, moved)
    outcome = judge(problem, splits, chosen, trained)
    console.show_table(screen, outcome.table)
    console.show_lines(screen, [words.headline(outcome), *words.findings(outcome)])
    console.show_lines(screen, words.caveats(outcome))

    def fill(folder: Path) -> None:
        content = report.numbers(outcome, _recorded(options))
        report.write_json(folder / "report.json", content)
        report.write_csv(folder / "results.csv", content)
        pictures.draw_all(folder, outcome)

    report.write_folder(options.out, options.overwrite, fill)
    console.show_lines(screen, [f"Numbers and pictures: {options.out}"])


def _recorded(options: argparse.Namespace) -> dict[str, object]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}


def _problem(options: argparse.Namespace) -> data.Problem:
    if options.csv is None:
        return data.long_tailed_digits()
    return table.read_problem(options.csv, options.label, options.drop, options.max_rows)


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

    group = parser.add_argument_group("the data").add_argument
    group("--csv", type=Path, metavar="FILE", help="a table with a header; default: digits")
    group("--label", metavar="COLUMN", help="the column to predict; all others are features")
    group("--drop", nargs="+", default=[], metavar="COLUMN", help="columns to leave out")
    group(
        "--max-rows",
        type=_whole(10, 1_000_000),
        default=20_000,
        metavar="N",
        help="use a stratified sample of a longer table (default: %(default)s)",
    )

    group = parser.add_argument_group("the losses (plain cross-entropy always runs)").add_argument
    group(
        "--gamma",
        nargs="+",
        type=_gamma,
        metavar="G",
        help="focusing parameters; 0 is cross-entropy (default: 0.5 1 2 5)",
    )
    group(
        "--alpha",
        nargs="+",
        choices=settings.ALPHAS,
        help="class weights: none, or inverse class frequency; every gamma runs with every alpha "
        "(default: none, and balanced with gamma 0 and 2)",
    )

    group = parser.add_argument_group("the training").add_argument
    group(
        "--seeds",
        type=_whole(2, 1000),
        metavar="N",
        help=f"how many, at least 2: an interval needs two (default: {SEEDS})",
    )
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
        help=f"passes over the training rows (default: as many as make {STEPS} steps)",
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
