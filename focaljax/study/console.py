"""What the terminal shows: a progress bar, the table of results and the sentences under it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich import box, progress
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from focaljax.study import network, words
from focaljax.study.outcome import Outcome
from focaljax.study.verdict import JUDGED

STYLES = {"better": "green", "worse": "red"}


@contextmanager
def progress_bar(console: Console) -> Iterator[network.Progress]:
    """Show one bar per kind of work, with the time that is left, and sentences above them."""
    usual, tasks = progress.Progress.get_default_columns(), {}
    with progress.Progress(*usual, progress.TimeElapsedColumn(), console=console) as bar:

        def show(what: str, done: int, total: int) -> None:
            if not total:
                return show_lines(bar.console, [what])
            if what not in tasks:
                for task in tasks.values():
                    bar.remove_task(task)
                tasks.clear()
                tasks[what] = bar.add_task(what, total=total)
            return bar.update(tasks[what], completed=done, total=total)

        yield show


def show_lines(console: Console, lines: Iterable[str]) -> None:
    """Print plain sentences: no markup, and nothing that the terminal's encoding cannot say."""
    for line in lines:
        console.print(_text(console, line), highlight=False)


def show_outcome(console: Console, outcome: Outcome) -> None:
    """Print the table, the verdict and why, and the code."""
    console.print(_table(outcome))
    console.print(_text(console, words.headline(outcome)), style="bold", highlight=False)
    show_lines(console, words.reasons(outcome))
    look = Syntax("", "python", theme="ansi_dark", background_color="default")
    console.print(look.highlight(words.code(outcome)), soft_wrap=True)  # a program is whole in any terminal


def _table(outcome: Outcome) -> Table:
    """The means over runs, stopped early, marked against cross-entropy."""
    title = f"Test folds, mean over {words.runs(outcome)}, {outcome.stopped.when}"
    grid = Table(title=title, caption=words.MARKS, box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    grid.add_column("setting", no_wrap=True)
    for head in (metric.name.replace("calibrated", "calib.") for metric in JUDGED):
        grid.add_column(head.replace(" ", "\n"), justify="right", no_wrap=True)
    for i, row in enumerate(outcome.table):
        cells = [Text(words.marked(row[m]), style=STYLES.get(row[m].verdict, "")) for m in JUDGED]
        name = row[outcome.metric].setting.short
        grid.add_row(name, *cells, style="bold" if i == outcome.advice.shown else "")
    return grid


def _text(console: Console, line: str) -> Text:
    return Text(line.encode(console.encoding, "replace").decode(console.encoding))
