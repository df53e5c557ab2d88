"""The command line of `python -m focaljax`, or `focaljax`: read the options, do the study, leave with a code.

Help and version need no package of the extra `demo`: the options are read before any of them is imported.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import focaljax
from focaljax import _interrupt

NEEDED = ("jinja2", "matplotlib", "optax", "pandas", "pyarrow", "rich", "sklearn")
ALPHAS = ("none", "balanced", "effective")
CRITERIA = (
    "balanced-accuracy",
    "auroc",
    "average-precision",
    "nll",
    "calibrated-nll",
    "ece",
    "calibrated-ece",
)
STEPS, SEEDS = 1000, 3
QUICK_GAMMAS, QUICK_SEEDS = (0, 2), 1
MODELS = ("network", "trees")
FILES = ("csv", "parquet", "npz")

ABOUT = """\
Which gamma and which alpha for this data? Train one small Optax classifier with cross-entropy, with
focal loss for several gammas and class weights, and with the priors of the classes taken out in training or
after it, on every fold of every seed, all in one compiled program. Say what is better on the test folds, that
no difference is worth having, or that it is undecided, and what would decide it.
"""
EXAMPLES = """\
examples:
  python -m focaljax                                  scikit-learn's digits, made long-tailed
  python -m focaljax --quick                          fewer runs: faster, with wider intervals
  python -m focaljax --csv mine.csv --label species   your own table; --parquet likewise
  python -m focaljax --npz mine.npz --for nll         your own arrays `x` and `y`
  python -m focaljax --gamma 1 2 3 --alpha none balanced --folds 10 --out my-report

The folder, one for each report, holds report.html, report.json, results.csv (two rows per run) and pictures.
Wrong files or options end with code 2, Ctrl-C with 130; neither writes. Notebooks: focaljax.study.compare.
"""


def run() -> int:
    """Run the program as a shell does: Ctrl-C ends it at once."""
    _interrupt.leave_at_once()
    return main()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; return 0, or 2 after a line that says what to mend."""
    parser = _parser()
    options = parser.parse_args(arguments)
    _check(parser, options)
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        return _say(f"{', '.join(missing)} not found; pip install focaljax[demo]")
    from focaljax.study import StudyError

    try:
        _study(options)
        sys.stdout.flush()
    except (StudyError, OSError, MemoryError) as error:
        if isinstance(error, BrokenPipeError):  # nobody reads on: what is left is for nobody
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _say(str(error) or type(error).__name__)
    return 0


def _say(what: str) -> int:
    print(f"focaljax: error: {what}", file=sys.stderr)
    return 2


def _study(options: argparse.Namespace) -> None:
    from rich.console import Console

    from focaljax.study import compare, console, report

    screen = Console()
    with console.progress_bar(screen) as progress:
        progress("reading", 0, 1)
        features, labels, name, notes = _data(options)
        report.check_folder(options.out, options.overwrite)
        outcome = compare(
            features,
            labels,
            gamma=options.gamma or (QUICK_GAMMAS if options.quick else None),
            alpha=options.alpha,
            criterion=options.criterion,
            margin=options.margin,
            folds=options.folds,
            seeds=options.seeds or (QUICK_SEEDS if options.quick else SEEDS),
            seed=options.seed,
            epochs=options.epochs,
            model=options.model,
            name=name,
            notes=notes,
            progress=progress,
        )
    recorded = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if v}
    outcome.about["options"] = {k: v for k, v in recorded.items() if k not in ("out", "overwrite")}
    console.show_outcome(screen, outcome)
    page = report.save(outcome, options.out, options.overwrite, _interrupt.writing)
    console.show_lines(screen, [f"Report, numbers and pictures: {page}"])


def _data(options: argparse.Namespace):
    """Return features, labels, the name of the data and notes."""
    from focaljax.study import data, tables

    if options.npz:
        table = tables.read_npz(options.npz, options.features, options.label)
    elif options.csv:
        table = tables.read_csv(options.csv, options.label, options.drop, sep=options.sep, rows=options.rows)
    elif options.parquet:
        table = tables.read_parquet(options.parquet, options.label, options.drop, rows=options.rows)
    else:
        return *data.long_tailed_digits(), "scikit-learn's digits, made long-tailed", ()
    return table.features, table.labels, table.name, table.notes


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse options that say nothing together."""
    for option, files in (("drop", FILES[:2]), ("sep", FILES[:1]), ("label", FILES), ("features", FILES[2:])):
        if getattr(options, option) and not any(getattr(options, file) for file in files):
            parser.error(f"--{option} needs {' or '.join(f'--{file} FILE' for file in files)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="focaljax",
        usage="python -m focaljax [options]",
        description=ABOUT,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"focaljax {focaljax.__version__}")
    parser.add_argument("--quick", action="store_true", help="gammas 0 and 2, one seed")
    group = parser.add_argument_group("the data (default: digits)")
    one = group.add_mutually_exclusive_group().add_argument
    one("--csv", type=Path, metavar="FILE", help="a table with a header")
    one("--parquet", type=Path, metavar="FILE", help="the same as Parquet, or a folder of its part files")
    one("--npz", type=Path, metavar="FILE", help="arrays: features [N, ...] and labels [N] or one-hot [N, C]")
    add = group.add_argument
    add("--label", metavar="NAME", help="the column to predict, all others are features; in --npz the labels")
    add("--features", metavar="NAME", help="in --npz the features")
    add("--drop", nargs="+", default=[], metavar="COLUMN", help="columns to leave out")
    sep = "what separates cells of --csv (default: , ; | or tab, as the header has)"
    add("--sep", type=_mark, metavar="C", help=sep)
    rows = "of a longer table so many are taken, each class in proportion (default: %(default)s)"
    add("--rows", type=_within(int, 100, 2**31 - 1), default=1_000_000, metavar="N", help=rows)

    add = parser.add_argument_group("the losses (cross-entropy and priors taken out always run)").add_argument
    gammas = "focusing parameters; 0 is cross-entropy (default: 0 0.5 1 2 5)"
    add("--gamma", nargs="+", type=_within(float, 0, 100), metavar="G", help=gammas)
    alphas = "class weights: none, inverse frequency, effective number; each with each gamma (default: all)"
    add("--alpha", nargs="+", choices=ALPHAS, help=alphas)
    criterion = "what the recommendation goes by (default: %(default)s)"
    add("--for", dest="criterion", choices=CRITERIA, default=CRITERIA[0], help=criterion)
    margin = "the least difference in it worth having (default: %(default)s)"
    add("--margin", type=_within(float, 0, 1e9), default=0.01, metavar="D", help=margin)

    add = parser.add_argument_group("the training").add_argument
    folds = "at least 3: one to test, one to stop by, the others to train (default: 5)"
    add("--folds", type=_within(int, 3, 100), metavar="K", help=folds)
    seeds = f"times to deal the folds (default: {SEEDS})"
    add("--seeds", type=_within(int, 1, 1000), metavar="N", help=seeds)
    seed = "the first seed; the others follow it (default: 0)"
    add("--seed", type=_within(int, 0, 2**31 - 1001), default=0, metavar="S", help=seed)
    model = "a small network, or LightGBM's trees, which need the extra boosting (default: %(default)s)"
    add("--model", choices=MODELS, default=MODELS[0], help=model)
    epochs = f"passes over the rows (default: what makes {STEPS} steps, at least 3); rounds of trees (100)"
    add("--epochs", type=_within(int, 1, 100_000), metavar="N", help=epochs)

    add = parser.add_argument_group("the report").add_argument
    out = "a new or empty folder (default: %(default)s)"
    add("--out", type=Path, default=Path("focaljax-report"), metavar="DIR", help=out)
    add("--overwrite", action="store_true", help="replace the report that is in the folder")
    return parser


def _within(kind: type, low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:  # nor NaN
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:g} to {high:g}")
        return value

    parse.__name__ = {int: "whole number", float: "number"}[kind]  # in argparse's words on what is none
    return parse


def _mark(text: str) -> str:
    mark = {"\\t": "\t", "tab": "\t"}.get(text, text)
    if len(mark) != 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not one character")
    return mark


if __name__ == "__main__":
    sys.exit(run())
