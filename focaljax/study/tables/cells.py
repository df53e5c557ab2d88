"""Cells of one column in one chunk of rows: numbers or words, whatever file they come from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

NUMBER, DATE, TRUTH, TEXT = "number", "date", "truth", "text"
ISO_DATE = r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?(?:Z|[+-]\d\d:?\d\d)?)?"
CELLS_AT_A_TIME = 1_000_000  # 8 MB as float64: small beside what the parsers need
MOST_ROWS_AT_A_TIME = 65_536


@dataclass(frozen=True)
class Numbers:
    """Numbers of `kind` NUMBER, or DATE in seconds: `values` [rows] float64, NaN where missing."""

    values: np.ndarray
    kind: str = NUMBER

    @property
    def present(self) -> np.ndarray:
        """Which cells are not missing, [rows] bool."""
        return ~np.isnan(self.values)

    def take(self, rows: np.ndarray) -> "Numbers":
        """Only these rows."""
        return Numbers(self.values[rows], self.kind)

    def counts(self) -> tuple[list[float], list[int]]:
        """The different values, and how often each is there."""
        values, counts = np.unique(self.values[self.present], return_counts=True)
        return values.tolist(), counts.tolist()


@dataclass(frozen=True)
class Words:
    """Words of `kind` TEXT or TRUTH: cell i is `levels[codes[i]]`, missing where `codes` [rows] is -1."""

    codes: np.ndarray
    levels: Sequence[str] | pd.Index
    kind: str = TEXT

    @property
    def present(self) -> np.ndarray:
        """Which cells are not missing, [rows] bool."""
        return self.codes >= 0

    def take(self, rows: np.ndarray) -> "Words":
        """Only these rows."""
        return Words(self.codes[rows], self.levels, self.kind)

    def counts(self) -> tuple[list[str], list[int]]:
        """The different words, and how often each is there."""
        counts = np.bincount(self.codes[self.present], minlength=len(self.levels))
        there = np.flatnonzero(counts)
        return np.asarray(self.levels, object)[there].tolist(), counts[there].tolist()

    def numbers(self, of_levels: np.ndarray) -> np.ndarray:
        """Each cell's number, [rows] float64, of each level's."""
        return np.append(of_levels, np.nan)[self.codes]  # -1 is the last


Cells = Numbers | Words
Chunk = Mapping[str, Cells]  # by the names of the columns


class Unread(Mapping[str, Cells]):
    """A chunk whose columns become cells when they are asked for: some are not, see `survey`."""

    def __init__(self, names: Sequence[str], read: Callable[[str], Cells]) -> None:
        """Let `read` make the cells of a column."""
        self._names, self._read = names, read
        self._cells: dict[str, Cells] = {}

    def __getitem__(self, name: str) -> Cells:
        """Make the cells, once."""
        if name not in self._cells:
            self._cells[name] = self._read(name)
        return self._cells[name]

    def __iter__(self) -> Iterator[str]:
        """Give the names."""
        return iter(self._names)

    def __len__(self) -> int:
        """Count the columns."""
        return len(self._names)


@dataclass(frozen=True)
class Known:
    """What is known of columns before they are read: their kinds, and texts that are missing numbers."""

    kinds: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, Sequence[str]] = field(default_factory=dict)


class Source(Protocol):
    """A file that can be read as often as one likes, a chunk of rows at a time.

    Attributes:
      path: where it is.
      columns: the names of all its columns, in order, each once.
      row_index: those that a library wrote beside the data to name its rows.
      typed: whether it says itself what each column holds; if not, that is found out from its text.
      notes: sentences about how it was read.
    """

    path: Path
    columns: tuple[str, ...]
    row_index: tuple[str, ...]
    typed: bool
    notes: tuple[str, ...]

    def state(self) -> object:
        """What changes when the file does, as JSON can hold it: sizes and times."""
        ...

    def chunks(self, columns: Sequence[str], known: Known) -> Iterator[Chunk]:
        """Give the rows in their order; if the file has text, what is known decides how to read it."""
        ...


def rows_at_a_time(columns: int) -> int:
    """How many rows are a chunk, at most."""
    return max(1, min(MOST_ROWS_AT_A_TIME, CELLS_AT_A_TIME // max(1, columns)))


def of_series(column: pd.Series, kind: str | None) -> Cells:
    """What pandas has read: numbers, truth values, or text, which stays text where `kind` says so.

    Text of which every cell is a number (integers that no integer type holds) is numbers: what a column
    is must not depend on where a chunk ends.
    """
    if pd.api.types.is_bool_dtype(column.dtype):
        return Words(column.to_numpy(np.int64), ["False", "True"], TRUTH)
    if pd.api.types.is_numeric_dtype(column.dtype):
        return Numbers(column.to_numpy(np.float64))
    codes, found = pd.factorize(column)
    levels = pd.Index(found)
    if len(levels) and isinstance(levels[0], bool):
        return Words(codes, [str(level) for level in levels], TRUTH)
    if len(levels) and kind is None and not np.isnan(numeric(levels[:1])[0]):
        values = numeric(levels)
        if not np.isnan(values).any():
            return Numbers(np.append(values, np.nan)[codes])
    return Words(codes, levels)


def numeric(levels: Sequence[str] | pd.Index) -> np.ndarray:
    """The numbers that these texts are, NaN for each that is none."""
    return np.asarray(pd.to_numeric(np.asarray(levels, object), errors="coerce"), np.float64)


def seconds(levels: Sequence[str] | pd.Index) -> np.ndarray | None:
    """Seconds since 1970, [levels] float64, if every level is an ISO 8601 date; UTC if it has no zone."""
    if not len(levels):
        return np.empty(0)
    texts = pd.Series(levels, dtype="str")
    if not texts.iloc[:1].str.fullmatch(ISO_DATE).all() or not texts.str.fullmatch(ISO_DATE).all():
        return None
    times = pd.to_datetime(texts, format="ISO8601", utc=True, errors="coerce")
    if times.isna().any():
        return None
    return times.dt.as_unit("us").astype("int64").to_numpy() / 1e6
