"""The first pass over a table: what its columns hold, and which rows have a label."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from focaljax.study.tables.cells import (
    DATE,
    NUMBER,
    TEXT,
    Cells,
    Chunk,
    Known,
    Numbers,
    Source,
    Words,
    numeric,
    seconds,
)
from focaljax.study.tables.moments import Moments

MOST_MARKS = 10
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
    """One column so far.

    Attributes:
      kinds: of its chunks.
      levels: how often each is there, if it is no number.
      dates: whether all its text is dates.
      number: whether any cell is a number, as text too.
      marks: texts without a letter or digit, like "?"; among numbers alone they are missing numbers.
      word: the first text that is neither number nor mark.
    """

    def __init__(self, typed: bool) -> None:
        """Start with no chunk; a typed column's text is no number, whatever it looks like."""
        self.kinds: set[str] = set()
        self.levels = Levels()
        self.dates = True
        self.number = False
        self.marks: set[str] = set()
        self.word: str | None = None
        self._typed = typed

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
            self.number = self.number or bool(cells.present.any())
            return cells.values
        of_levels = seconds(cells.levels) if self.dates and cells.kind == TEXT else None
        self.dates = of_levels is not None
        if of_levels is not None:
            self.word = self.word or next(iter(cells.levels), None)
            return cells.numbers(of_levels)
        if cells.kind == TEXT and not self._typed and not (self.number and self.word):
            self._look_for_numbers(cells.levels)
        return None

    def _look_for_numbers(self, levels: Sequence[str] | pd.Index) -> None:
        none = np.isnan(numeric(levels))
        self.number = self.number or not none.all()
        for level in np.asarray(levels, object)[none]:
            if any(map(str.isalnum, level)) or len(self.marks) == MOST_MARKS:
                self.word = self.word or level
                return
            self.marks.add(level)


class Survey:
    """What one pass over the columns finds.

    Attributes:
      known: what was known of them before.
      rows: how many rows have a label.
      unlabelled: how many have none, and the first of them, counted from 1.
      columns: a `Column` for each name, the label's too.
      features: the names without the label's, in the order of `moments`.
      moments: of the numbers in each feature.
      label_infinite: the first row whose label is an infinity, 0 if there is none.
    """

    def __init__(self, source: Source, columns: Sequence[str], label: str, known: Known) -> None:
        """Read `columns` of the source once, the label's among them."""
        self.known = known
        self.rows = 0
        self.unlabelled = (0, 0)
        self.columns = {name: Column(source.typed) for name in columns}
        self.features = tuple(name for name in columns if name != label)
        self.moments = Moments(len(self.features))
        self.label_infinite = 0
        for first, chunk in numbered(source, columns, known):
            self._add(first, chunk, label)

    def settled(self) -> Known:
        """What must be known to read all chunks of a column as the same kind."""
        kinds, missing = {}, {}
        for name, column in self.columns.items():
            if name in self.features and column.number and column.marks and not column.word:
                kinds[name], missing[name] = NUMBER, sorted(column.marks)
            elif column.mixed:
                kinds[name] = TEXT
        return Known(kinds, missing)

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


def numbered(source: Source, columns: Sequence[str], known: Known) -> Iterator[tuple[int, Chunk]]:
    """The chunks of a source, each with the number of its first row, counted from 1."""
    first = 1
    for chunk in source.chunks(columns, known):
        yield first, chunk
        first += len(chunk[columns[0]].present)


def survey(source: Source, columns: Sequence[str], label: str) -> Survey:
    """Return the survey of these columns: the second, if text in some rows says how to read others."""
    found = Survey(source, columns, label, Known())
    settled = found.settled()
    return Survey(source, columns, label, settled) if settled.kinds else found
