"""What the terminal shows: a progress bar and tables."""

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from bench.tables import Table

console = Console()


def progress() -> Progress:
    """A bar with what is being done, the time gone and the time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed}/{task.total}"),
    )
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


def say(line: str) -> None:
    """A plain line."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def show(tables: list[Table]) -> None:
    """Prints tables one below the other."""
    for table in tables:
        say(table.title)
        grid = RichTable(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
        for i, name in enumerate(table.header):
            grid.add_column(name, justify="right" if i else "left", no_wrap=not i)
        for row in table.rows:
            grid.add_row(*row)
        console.print(grid)
        if table.note:
            say(table.note)
        say("")
