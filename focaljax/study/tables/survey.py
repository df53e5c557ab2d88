"""The first pass over a table: what its columns hold, and which rows have a label."""

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from focaljax.study.tables.cells import (
    DATE,
    TEXT,
    Cells,
    Chunk,
    Numbers,
    Source,
    Words,
    seconds,
)
from focaljax.study.tables.moments import Moments

MOST_COUNTED = 2**16  # different values of one column; with more it is an identifier or a quantity


class Levels:
    """How often each value of one column is there; `counts` is None after MOST_COUNTED different ones."""

    def __init__(self) -> None:
        """Start with no cells."""
        self.cells = 0
        self.counts: dict | None = {}

    def add(self, cells: Cells) -> None:
        """Count the cells of a chunk."""
        self.cells += int(cells.present.sum())
        if self.counts is None:
            return
        for value, count in zip(*cells.counts(), strict=True):
            self.counts[value] = self.counts.get(value, 0) + count
        if len(self.counts) > MOST_COUNTED:
            self.counts = None


class Column:
    """One column so far: which kinds its chunks were, whether all its text is dates, and its levels."""

    def __init__(self) -> None:
        """Start with no chunk."""
        self.kinds: set[str] = set()
        self.dates = True
        self.levels = Levels()

    @property
    def mixed(self) -> bool:
        """Whether chunks differ in kind, so that only its text says what each cell is."""
        return len(self.kinds) > 1

    @property
    def kind(self) -> str | None:
        """The kind of the whole column, text if any chunk is; None if every cell is missing."""
        if self.mixed:
            return TEXT
        return DATE if self.kinds == {TEXT} and self.dates else next(iter(self.kinds), None)

    @property
    def hopeless(self) -> bool:
        """Whether it is text of too many values, whatever follows."""
        return self.levels.counts is None and TEXT in self.kinds and not self.dates

    def see(self, cells: Cells) -> np.ndarray | None:
        """Note the kind of a chunk, rows without a label too; return numbers, if it has or may have them."""
        if cells.present.any():
            self.kinds.add(cells.kind)
        if isinstance(cells, Numbers):
            return cells.values
        of_levels = seconds(cells.levels) if self.dates and cells.kind == TEXT else None
        self.dates = of_levels is not None
        return None if of_levels is None else cells.numbers(of_levels)


class Survey:
    """What one pass over the columns finds.

    Attributes:
      rows: how many rows have a label.
      unlabelled: how many have none, and the first of them, counted from 1.
      columns: a `Column` for each name, the label's too.
      features: the names without the label's, in the order of `moments`.
      moments: of the numbers in each feature.
    """

    def __init__(
        self, source: Source, columns: Sequence[str], label: str, kinds: Mapping[str, str] | None = None
    ) -> None:
        """Read `columns` of the source once, the label's among them."""
        self.rows = 0
        self.unlabelled = (0, 0)
        self.columns = {name: Column() for name in columns}
        self.features = tuple(name for name in columns if name != label)
        self.moments = Moments(len(self.features))
        self.label_infinite = 0
        for first, chunk in numbered(source, columns, kinds or {}):
            self._add(first, chunk, label)

    def mixed(self) -> list[str]:
        """The columns that must be read again as text."""
        return [name for name, column in self.columns.items() if column.mixed]

    def _add(self, first: int, chunk: Chunk, label: str) -> None:
        labels = chunk[label]
        self.columns[label].see(labels)
        kept = np.flatnonzero(labels.present)
        without = len(labels.present) - kept.size
        if without:
            count, at = self.unlabelled
            self.unlabelled = (count + without, at or first + int(np.argmin(labels.present)))
        everything = not without
        self.rows += kept.size
        labels = labels if everything else labels.take(kept)
        self.columns[label].levels.add(labels)
        if isinstance(labels, Numbers) and not self.label_infinite and np.isinf(labels.values).any():
            self.label_infinite = first + int(kept[np.isinf(labels.values).argmax()])
        which, values = [], []
        for j, name in enumerate(self.features):
            column = self.columns[name]
            if column.hopeless:
                continue
            cells = chunk[name]
            numbers = column.see(cells)
            if numbers is not None:
                which.append(j)
                values.append(numbers if everything else numbers[kept])
            if isinstance(cells, Words):
                column.levels.add(cells if everything else cells.take(kept))
        if which and kept.size:
            self.moments.add(np.array(which), np.stack(values), first + kept)


def numbered(source: Source, columns: Sequence[str], kinds: Mapping[str, str]) -> Iterator[tuple[int, Chunk]]:
    """The chunks of a source, each with the number of its first row, counted from 1."""
    first = 1
    for chunk in source.chunks(columns, kinds):
        yield first, chunk
        first += len(chunk[columns[0]].present)


def survey(source: Source, columns: Sequence[str], label: str) -> tuple[Survey, Collection[str]]:
    """Return the survey of these columns, and which have text in some chunks only.

    What such a column holds is counted in a second reading, as text in all chunks.
    """
    found = Survey(source, columns, label)
    mixed = found.mixed()
    if mixed:
        again = Survey(source, [*{label: 0, **dict.fromkeys(mixed)}], label, dict.fromkeys(mixed, TEXT))
        for name in mixed:
            found.columns[name].levels = again.columns[name].levels
    return found, mixed
