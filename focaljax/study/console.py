"""What the terminal shows: a progress bar, the table of results and the sentences under it."""

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from focaljax.study import words
from focaljax.study.compare import JUDGED, Comparison, cell
from focaljax.study.data import Problem
from focaljax.study.outcome import Outcome

STYLES = {"better": "green", "worse": "red"}
MARKS = {"better": "+", "worse": "-"}


def progress_bar(console: Console) -> Progress:
    """Return a bar that moves once per block of rows, with the time that is left."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("left:"), TimeRemainingColumn(), console=console)


def show_lines(console: Console, lines: Iterable[str]) -> None:
    """Print plain sentences: no markup, and nothing that the terminal's encoding cannot say."""
    for line in lines:
        console.print(_text(console, line), highlight=False)


def show_problem(console: Console, problem: Problem, notes: Iterable[str]) -> None:
    """Say which data is studied and what was done to it."""
    show_lines(console, [f"{problem.description}.", *map(words.sentence, (*problem.notes, *notes))])


def show_outcome(console: Console, outcome: Outcome) -> None:
    """Print the table, what to use and why, and the call."""
    console.print(_table(outcome))
    console.print(_text(console, words.headline(outcome)), style="bold", highlight=False)
    show_lines(console, words.reasons(outcome))
    call = outcome.study.settings[outcome.recommendation.index].call(outcome.study.problem.classes)
    console.print(Syntax(call, "python", theme="ansi_dark", background_color="default", padding=(1, 2)))


def _table(outcome: Outcome) -> Table:
    """The means over runs at both times, marked against cross-entropy."""
    grid = Table(
        title=f"Test folds, mean over {words.runs(outcome)}",
        caption="stop: stopped early; end: at the end of training\n"
        "+ better, - worse than cross-entropy, corrected for shared rows and many settings",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    grid.add_column("setting", no_wrap=True)
    for metric in JUDGED:
        name = metric.name.replace("balanced accuracy", "bal. acc.")
        for when in ("stop", "end"):
            grid.add_column(f"{name}\n{when}", justify="right", no_wrap=True)
    for i, setting in enumerate(outcome.study.settings):
        mark = "bold" if i == outcome.recommendation.index else ""
        cells = (_cell(cell(results.table[i], metric)) for metric in JUDGED for results in outcome.both)
        grid.add_row(setting.short, *cells, style=mark)
    return grid


def _cell(compared: Comparison) -> Text:
    mark = MARKS.get(compared.verdict, " ")
    return Text(f"{compared.mean.mean:.3f} {mark}", style=STYLES.get(compared.verdict, ""))


def _text(console: Console, line: str) -> Text:
    return Text(line.encode(console.encoding, "replace").decode(console.encoding))
