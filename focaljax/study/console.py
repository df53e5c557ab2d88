"""What the terminal shows: a progress bar, the table of results and the sentences under it."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from focaljax.study.compare import Comparison
from focaljax.study.former import Problem

STYLES = {"better": "green", "worse": "red"}
MOST_NAMES = 5
MARKS = {"better": "+", "worse": "-"}


def progress_bar(console: Console) -> Progress:
    """Return a bar that moves once per epoch of all runs."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    return Progress(*columns, TimeElapsedColumn(), console=console)


def show_lines(console: Console, lines: Iterable[str]) -> None:
    """Print plain sentences: no markup, and nothing that the terminal's encoding cannot say."""
    for line in lines:
        console.print(_text(console, line), highlight=False)


def show_problem(console: Console, problem: Problem) -> None:
    """Say which data is studied, what was left out of it and which classes are called rare."""
    names = [problem.class_names[k] for k in problem.rare[::-1]]
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    rare = f"Rare classes, the rarest third: {', '.join(names[:MOST_NAMES])}{more}"
    show_lines(console, (f"{line}." for line in (problem.description, *problem.notes, rare)))


def show_table(console: Console, table: Sequence[Sequence[Comparison]]) -> None:
    """Print the mean over seeds of every metric for every setting, marked against cross-entropy."""
    grid = Table(
        title="Held-out results, mean over seeds",
        caption="+ better, - worse than cross-entropy: the paired interval excludes 0",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    grid.add_column("setting")
    for cell in table[0]:
        grid.add_column(cell.metric.name.replace(" ", "\n"), justify="right", no_wrap=True)
    for row in table:
        grid.add_row(row[0].setting.name, *map(_cell, row))
    console.print(grid)


def _cell(cell: Comparison) -> Text:
    mark = MARKS.get(cell.verdict, " ")
    return Text(f"{cell.mean.mean:.3f} {mark}", style=STYLES.get(cell.verdict, ""))


def _text(console: Console, line: str) -> Text:
    return Text(line.encode(console.encoding, "replace").decode(console.encoding))
