"""The user's files: CSV by pandas, Parquet by pyarrow, .npz by NumPy, as features and labels in memory.

CSV and Parquet files come in batches. Of a file with more than `rows` rows a stratified sample is kept: its
labels are read first, then its rows, of which one batch at a time is in memory.
"""

import csv
import difflib
import lzma
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pandas.io.common import get_handle

from focaljax.study.data import renamed, unique
from focaljax.study.errors import StudyError

ROWS = 1_000_000
BATCH = 2**22  # cells
FEWEST = 20  # rows of a class that a sample keeps, if there are as many
SEPARATORS = ",;\t|"
PAIRS = (("x", "y"), ("X", "y"), ("features", "labels"), ("data", "target"))
DAMAGED = (
    *(OSError, EOFError, ValueError, RuntimeError, ImportError, csv.Error, pa.ArrowException),
    *(zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError),
)


class Table(NamedTuple):
    """What a file holds: features and labels, as `compare` takes them, its name, and notes on the reading."""

    features: Any
    labels: Any
    name: str
    notes: list[str]


Batches = Callable[[list[str]], Iterator[pd.DataFrame]]  # of some columns


def read_csv(
    path: Path, label: str | None, drop: Sequence[str] = (), *, sep: str | None = None, rows: int = ROWS
) -> Table:
    """Read UTF-8 text with a header, compressed if its name says so.

    All cells are read as text, so that what a column is does not depend on where a batch ends. `sep` None
    takes the one of `SEPARATORS` that the header has most of.
    """
    with _errors(path, "text with separated cells"):
        with get_handle(_file(path), "r", encoding="utf-8-sig", compression="infer") as handles:
            header = str(handles.handle.readline())
        if not header.strip():
            raise StudyError(f"{path} is empty; expected a header and rows")
        mark = sep or max(SEPARATORS, key=header.count)
        options: dict[str, Any] = {"sep": mark, "encoding": "utf-8-sig"}
        columns = [str(name) for name in pd.read_csv(path, nrows=0, **options).columns]
    notes = [f"the cells are separated by {mark!r}"] * (mark != (sep or ","))
    given = next(csv.reader([header], delimiter=mark))
    if len(given) == len(columns):  # not a header of several lines
        notes += renamed([name or new for name, new in zip(given, columns, strict=True)], columns)

    def batches(names: list[str]) -> Iterator[pd.DataFrame]:
        few = names if len(names) == 1 else None  # with `usecols` pandas overlooks rows that are too long
        chosen = {"header": 0, "names": columns, "index_col": False, "usecols": few, "dtype": "str"}
        reader: Any = pd.read_csv(path, chunksize=max(1, BATCH // len(columns)), **options, **chosen)
        with reader:
            yield from (frame[names] for frame in reader)

    with _errors(path, "text with separated cells"):
        return _table(path, columns, batches, label, drop, rows, notes)


def read_parquet(path: Path, label: str | None, drop: Sequence[str] = (), *, rows: int = ROWS) -> Table:
    """Read a Parquet file, or a folder of part files `*.parquet` in the order of their names."""
    parts = sorted(path.glob("*.parquet")) if path.is_dir() else [_file(path)]
    if not parts:
        raise StudyError(f"the folder {path} has no files *.parquet")
    with _errors(path, "Parquet"):
        schema = pq.read_schema(parts[0])
        for part in parts[1:]:
            if not pq.read_schema(part).equals(schema):
                raise StudyError(f"{part} has other columns than {parts[0]}")
        columns = unique(schema.names)
        kinds = dict(zip(columns, schema.types, strict=True))

        def batches(names: list[str]) -> Iterator[pd.DataFrame]:
            for part in parts:
                with pq.ParquetFile(part) as file:
                    wanted = [schema.names[columns.index(name)] for name in names]
                    for batch in file.iter_batches(max(1, BATCH // len(columns)), columns=wanted):
                        found = dict(zip(unique(batch.schema.names), batch.columns, strict=True))
                        yield pd.DataFrame({name: _series(found[name]) for name in names})

        odd = [name for name, kind in kinds.items() if not _usable(kind)]
        if label in odd:
            raise StudyError(f"the column {label!r} of {path} is {kinds[label]}; expected classes")
        left = sorted({*odd} - {*drop})
        notes = renamed(schema.names, columns)
        notes += [f"left out, neither numbers, dates nor text: {', '.join(left)}"] if left else []
        return _table(path, columns, batches, label, drop, rows, notes, odd)


def read_npz(path: Path, features: str | None = None, label: str | None = None) -> Table:
    """Read arrays of an .npz file: features [N, ...] and labels [N], [N, 1] or one-hot [N, C].

    Names that are not given are those of the first of `PAIRS` that the file has.
    """
    with _errors(path, "an .npz file"), _file(path).open("rb") as opened:
        file = np.load(opened, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array")
        has = f"it has: {', '.join(file.files) or 'none'}"
        for name in (features, label):
            if name is not None and name not in file.files:
                raise StudyError(f"{path} has no array {name!r}; {has}")
        pairs = [(features or x, label or y) for x, y in PAIRS]
        found = [(x, y) for x, y in pairs if x in file.files and y in file.files and x != y]
        if not found:
            usual = f"no usual pair of arrays ({', '.join(f'{x} and {y}' for x, y in PAIRS)})"
            raise StudyError(f"{path} has {usual}; {has}; name them with --features and --label")
        others = [name for name in file.files if name not in found[0]]
        notes = ["the features are the array {!r}, the labels {!r}".format(*found[0])]
        notes += [f"left out, other arrays of the file: {', '.join(others)}"] if others else []
        return Table(file[found[0][0]], file[found[0][1]], path.name, notes)


def _table(
    path: Path,
    columns: Sequence[str],
    batches: Batches,
    label: str | None,
    drop: Sequence[str],
    most: int,
    notes: list[str],
    odd: Collection[str] = (),
) -> Table:
    """Check the names, and read the columns that remain."""
    listed = ", ".join(columns[:30]) + f" and {len(columns) - 30} more" * (len(columns) > 30)
    if label is None:
        raise StudyError(f"no label column is named; {path} has the columns: {listed}")
    for name in (label, *drop):
        if name not in columns:
            folded = {column.strip().casefold(): column for column in columns}
            close = difflib.get_close_matches(name.strip().casefold(), folded, 1)
            meant = f" (did you mean {folded[close[0]]!r}?)" if close else ""
            raise StudyError(f"{path} has no column {name!r}{meant}; it has: {listed}")
    if label in drop:
        raise StudyError(f"column {label!r} of {path} cannot be both the label and dropped")
    names = [name for name in columns if name not in {*drop, *odd}]
    frame, note = _sample(batches, names, label, most)
    notes = [*notes, *([f"left out as asked: {', '.join(drop)}"] if drop else []), *note]
    return Table(frame.drop(columns=label), frame[label], path.name, notes)


def _sample(batches: Batches, names: list[str], label: str, most: int) -> tuple[pd.DataFrame, list[str]]:
    """Return all rows, or a stratified sample of about `most` of them and a note."""
    read: list[pd.DataFrame] = []
    for frame in batches(names):
        read.append(frame)
        if sum(map(len, read)) > most:
            break
    else:
        if not sum(map(len, read)):
            raise StudyError("there are columns but no rows")
        return pd.concat(read, ignore_index=True), []
    read.clear()
    labels = pd.concat((batch[label] for batch in batches([label])), ignore_index=True)
    rng, keep = np.random.default_rng(0), np.zeros(len(labels), bool)
    share = most / np.count_nonzero(labels.notna())
    for rows in labels.groupby(labels).indices.values():
        kept = max(int(len(rows) * share), min(len(rows), FEWEST))
        keep[rng.choice(rows, kept, replace=False)] = True
    start = 0
    for frame in batches(names):
        read.append(frame.loc[keep[start : start + len(frame)]])
        start += len(frame)
    note = f"a stratified sample of {keep.sum()} of {len(labels)} rows was taken (--rows)"
    return pd.concat(read, ignore_index=True), [note]


def _usable(kind: pa.DataType) -> bool:
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return not (pa.types.is_nested(inner) or any(test(inner) for test in binary))


def _series(column: pa.Array) -> pd.Series:
    """Return a column of Parquet as pandas has it: dictionaries as values, all that measures as numbers."""
    t = pa.types
    if t.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if t.is_decimal(kind):
        column = column.cast(pa.float64())
    elif t.is_time(kind):
        column = column.cast(pa.int32() if t.is_time32(kind) else pa.int64())
    elif t.is_date(kind):
        column = column.cast(pa.timestamp("s"))
    return column.to_pandas()


def _file(path: Path) -> Path:
    if not path.is_file():
        folder = f"expected a file, got the folder {path}"
        raise StudyError(folder if path.is_dir() else f"there is no file {path}")
    return path


@contextmanager
def _errors(path: Path, kind: str) -> Iterator[None]:
    """Tell what pandas, pyarrow, the decoders and the disk have to say as what is wrong with the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            yield
    except UnicodeDecodeError as error:
        byte = f"{error.reason}, byte {error.object[error.start]:#04x}"
        raise StudyError(f"{path} is not UTF-8 text: {byte}; save it as UTF-8") from None
    except pd.errors.ParserWarning:
        raise StudyError(f"{path} has rows with more cells than the header") from None
    except DAMAGED as error:
        raise StudyError(f"{path} cannot be read as {kind}: {' '.join(str(error).split())}") from None
