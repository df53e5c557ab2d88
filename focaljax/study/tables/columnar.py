"""Parquet: one file, or a folder of part files with the same columns, read by pyarrow in batches."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from focaljax.study.errors import StudyError
from focaljax.study.tables.cells import (
    DATE,
    NUMBER,
    TEXT,
    TRUTH,
    Cells,
    Chunk,
    Known,
    Numbers,
    Unread,
    Words,
    rows_at_a_time,
)

BUFFER = 2**20  # bytes of a column to read at a time, instead of a whole row group
DAMAGED = (pa.ArrowException, OSError, ValueError)  # ValueError: text that is not UTF-8
PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
EMPTY, DURATION = "nothing", "durations"  # beside the kinds of cells


class Columnar:
    """A Parquet file or a folder of them: `path`, its columns, and what each holds."""

    def __init__(self, path: Path, rows: int | None = None) -> None:
        """Read the schemas and check that they agree; `rows` is how many a chunk has, at most."""
        self.path = path
        self._parts = _parts(path)
        self._kinds: dict[str, str] = {}
        self.columns: tuple[str, ...] = ()
        for part in self._parts:
            self._agree(part, _open(part).schema_arrow)
        self.typed = True
        self.row_index = tuple(name for name in self.columns if name.startswith("__index_level_"))
        lasting = [name for name in self.columns if self._kinds[name] == DURATION]
        self.notes: tuple[str, ...] = (
            (f"durations and times of day, in seconds: {', '.join(lasting)}",) if lasting else ()
        )
        self._rows = rows or rows_at_a_time(len(self.columns))

    def state(self) -> object:
        """The name, the size and the time of each file."""
        known = [(part.name, part.stat()) for part in _parts(self.path)]
        return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in known]

    def chunks(self, columns: Sequence[str], known: Known) -> Iterator[Chunk]:
        """Give the rows of all parts, in the order of their names; the file itself says the kinds."""
        unreadable = [f"{name} ({self._kinds[name]})" for name in columns if self._kinds[name] not in READERS]
        if unreadable:
            raise StudyError(
                f"{self.path}: expected numbers, text, truth values or dates, got {', '.join(unreadable)}; "
                "leave these columns out with --drop"
            )
        for part in self._parts:
            try:
                for batch in _open(part).iter_batches(self._rows, columns=list(columns)):
                    if batch.num_rows:
                        yield Unread(columns, partial(_column, part, batch))
            except DAMAGED as error:
                raise _unreadable(part, error) from None

    def _agree(self, part: Path, schema: pa.Schema) -> None:
        names = tuple(schema.names)
        for name in names:
            if names.count(name) > 1:
                raise StudyError(f"{part} has more than one column {name!r}; expected each name once")
        if self.columns and set(names) != set(self.columns):
            (name, *_) = sorted(set(names) ^ set(self.columns))
            raise StudyError(
                f"column {name!r} is in some of the files of {self.path} but not in all ({part.name})"
            )
        self.columns = self.columns or names
        for name in names:
            kind = _kind(schema.field(name).type)
            known = self._kinds.get(name, EMPTY)
            if EMPTY not in (kind, known) and kind != known:
                raise StudyError(f"{part}: column {name!r} holds {kind}, but {known} in the files before it")
            self._kinds[name] = known if kind == EMPTY else kind


def _parts(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    parts = sorted(path.glob("*.parquet"))
    deeper = next((file for file in sorted(path.rglob("*.parquet")) if file.parent != path), None)
    if deeper is not None:
        raise StudyError(f"expected the files of {path} in the folder itself, got {deeper.relative_to(path)}")
    if not parts:
        raise StudyError(f"the folder {path} has no file *.parquet")
    return parts


def _open(part: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(part, buffer_size=BUFFER, pre_buffer=False)
    except DAMAGED as error:
        raise _unreadable(part, error) from None


def _unreadable(part: Path, error: Exception) -> StudyError:
    return StudyError(f"{part} cannot be read as Parquet: {' '.join(str(error).split())}")


def _kind(kind: pa.DataType) -> str:
    """The kind of a column by its type; the type's own name if it is none that can be read."""
    for known, is_one in KINDS:
        if is_one(kind):
            return known
    return str(kind)


def _column(part: Path, batch: pa.RecordBatch, name: str) -> Cells:
    column = batch.column(name)
    kind = _kind(column.type)
    try:
        return READERS[kind](column, kind)
    except DAMAGED as error:
        raise _unreadable(part, error) from None


def _words(column: pa.Array, kind: str) -> Cells:
    if not types.is_dictionary(column.type):
        column = column.dictionary_encode()
    codes = column.indices.cast(pa.int64()).fill_null(-1).to_numpy()
    levels = column.dictionary.to_pylist()
    if None in levels:
        codes = np.array([*(-1 if level is None else i for i, level in enumerate(levels)), -1])[codes]
    return Words(codes, levels, kind)


def _truth(column: pa.Array, kind: str) -> Cells:
    return Words(column.cast(pa.int64()).fill_null(-1).to_numpy(), ["False", "True"], kind)


def _numbers(column: pa.Array, kind: str) -> Cells:
    return Numbers(_floats(column), kind)


def _times(column: pa.Array, kind: str) -> Cells:
    """Dates and timestamps since 1970 in UTC, durations and times of day, in seconds."""
    if types.is_date(column.type):
        column = column.cast(pa.timestamp("ms"))
    per_second = PER_SECOND[column.type.unit]
    return Numbers(_floats(_as_integers(column)) / per_second, DATE if kind == DATE else NUMBER)


def _as_integers(column: pa.Array) -> pa.Array:
    return column.cast(pa.int32() if types.is_time32(column.type) else pa.int64())


def _floats(column: pa.Array) -> np.ndarray:
    """[rows] float64, NaN for null; a copy that may be written to."""
    return np.array(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), np.float64)


def _nothing(column: pa.Array, kind: str) -> Cells:
    return Numbers(np.full(len(column), np.nan))


KINDS: tuple[tuple[str, Callable[[pa.DataType], bool]], ...] = (
    (NUMBER, lambda t: types.is_integer(t) or types.is_floating(t) or types.is_decimal(t)),
    (TRUTH, types.is_boolean),
    (TEXT, lambda t: _is_text(t.value_type if types.is_dictionary(t) else t)),
    (DATE, lambda t: types.is_date(t) or types.is_timestamp(t)),
    (DURATION, lambda t: types.is_time(t) or types.is_duration(t)),
    (EMPTY, types.is_null),
)
READERS: dict[str, Callable[[pa.Array, str], Cells]] = {
    NUMBER: _numbers,
    TRUTH: _truth,
    TEXT: _words,
    DATE: _times,
    DURATION: _times,
    EMPTY: _nothing,
}


def _is_text(kind: pa.DataType) -> bool:
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
