"""What the terminal shows: lines, tables, and a progress bar over the jobs of a bench."""

from argparse import Namespace
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from bench.results import writer
from bench.tables import TABLES

console = Console()


def say(line: str) -> None:
    """A plain line."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def collect(
    args: Namespace, result: dict[str, Any], jobs: Iterable[tuple[str, Any]], do: Callable[[Any], None]
) -> None:
    """Does the jobs under a bar that names them, writes `result` after each one, and shows its tables."""
    jobs = list(jobs)
    columns = TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn()
    times = TimeElapsedColumn(), TimeRemainingColumn()
    with writer(args.out, result, say) as write, Progress(*columns, *times, console=console) as bar:
        task = bar.add_task("", total=len(jobs))
        for words, job in jobs:
            bar.update(task, description=words)
            do(job)
            bar.advance(task)
            write()
    console.print(Markdown("\n\n".join(table.markdown() for table in TABLES[result["bench"]](result))))
