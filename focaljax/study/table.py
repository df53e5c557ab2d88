"""The user's own data: a CSV or Parquet file, or NumPy's .npz, becomes a problem, or an error.

Rows stream: memory does not grow with their number. What is read lies, encoded, in a folder `scratch` that
may be deleted between runs, and is found there again while the file and the options stay the same.

Every column but the label's and those in `drop` is a feature. Numbers, and dates as seconds, are centred and
scaled in float64 before they become float32; truth values and text are categories. Text in any row of a CSV
file makes its column a category, except marks like "?" or "-", without a letter or digit: among numbers they
are missing cells. Rows without a label are left out.

Nothing is left out in silence: the problem's `notes` name every column and row that is (a saved row index,
numbers that count the rows, constant and empty columns, identifiers and free text, levels beyond the most
frequent 100, rows without a label) and count the missing cells. What cannot be used is a `StudyError` that
names the file, the column and the row, counted from 1 after the header.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path

from focaljax.study.data import Problem
from focaljax.study.errors import StudyError
from focaljax.study.tables import encode
from focaljax.study.tables.arrays import Arrays
from focaljax.study.tables.cells import Source
from focaljax.study.tables.columnar import Columnar
from focaljax.study.tables.delimited import Delimited

LEAST_ROWS = 5  # of each class: one for every fold
MOST_NAMES = 30


def read_csv(
    path: Path,
    label: str | None,
    drop: Sequence[str],
    scratch: Path,
    *,
    least_rows: int = LEAST_ROWS,
    rows: int | None = None,
) -> Problem:
    """Return the problem of predicting column `label` of a CSV file from its other columns.

    UTF-8, commas, a header; compressed if its name says so, as pandas reads it. Empty cells and what pandas
    calls missing ("NA", "null", "nan", ...) are missing. Text that is ISO 8601 dates only is dates.

    Args:
      path: the file.
      label: the column of classes: text, truth values or numbers; at most 100 different ones.
      drop: columns to leave out.
      scratch: the folder for the encoded rows; made if it is not there.
      least_rows: how many rows each class must have.
      rows: how many to read at a time; None chooses by their size.

    Returns:
      The problem; its arrays are memory maps of files in `scratch`.

    Raises:
      StudyError: if the file cannot be read, has no such column or no usable label or features.
    """
    return _read_table(Delimited(_file(path), rows), label, drop, scratch, least_rows)


def read_parquet(
    path: Path,
    label: str | None,
    drop: Sequence[str],
    scratch: Path,
    *,
    least_rows: int = LEAST_ROWS,
    rows: int | None = None,
) -> Problem:
    """Return the problem of predicting column `label` of a Parquet file, or a folder of part files.

    As `read_csv`, but columns are what the file's schema says: dictionaries, strings and truth values are
    categories, decimals, times of day and durations (in seconds) numbers, timestamps dates; null and NaN are
    missing, an empty string is not. Other types must be dropped.

    Args:
      path: the file, or a folder of files `*.parquet`, which are read in the order of their names.
      label: the column of classes.
      drop: columns to leave out.
      scratch: the folder for the encoded rows.
      least_rows: how many rows each class must have.
      rows: how many to read at a time, at most; None chooses.

    Returns:
      The problem; its arrays are memory maps of files in `scratch`.

    Raises:
      StudyError: as `read_csv`; also if part files differ in their columns.
    """
    if not path.exists():
        raise StudyError(f"there is no file or folder {path}")
    return _read_table(Columnar(path, rows), label, drop, scratch, least_rows)


def read_npz(
    path: Path,
    features: str | None,
    labels: str | None,
    scratch: Path,
    *,
    least_rows: int = LEAST_ROWS,
    rows: int | None = None,
) -> Problem:
    """Return the problem of two arrays of an .npz file, features [N, F] (numbers) and labels [N].

    Args:
      path: the file, compressed or not.
      features: the name of the array; None takes x, X, features or data, and says so in the notes.
      labels: the name of the array; None takes y, labels or target, whichever goes with the features.
      scratch: the folder for the encoded rows.
      least_rows: how many rows each class must have.
      rows: how many to read at a time; None chooses.

    Returns:
      The problem; column j of the array `x` is named `x[j]`.

    Raises:
      StudyError: if there are no such arrays, they hold Python objects, or their shapes do not fit.
    """
    source = Arrays(_file(path), features, labels, scratch, rows)
    return encode.read(source, source.label, (), scratch, least_rows)


def _file(path: Path) -> Path:
    if path.is_dir():
        raise StudyError(f"expected a file, got the folder {path}")
    if not path.is_file():
        raise StudyError(f"there is no file {path}")
    return path


def _read_table(
    source: Source, label: str | None, drop: Sequence[str], scratch: Path, least_rows: int
) -> Problem:
    listed = ", ".join(source.columns[:MOST_NAMES])
    if len(source.columns) > MOST_NAMES:
        listed += f" and {len(source.columns) - MOST_NAMES} more"
    if label is None:
        raise StudyError(f"no label column is named; {source.path} has the columns: {listed}")
    for name in (label, *drop):
        if name not in source.columns:
            raise StudyError(f"{source.path} has no column {name!r}{_hint(name, source)}; it has: {listed}")
    if label in drop:
        raise StudyError(f"column {label!r} of {source.path} cannot be both the label and dropped")
    return encode.read(source, label, drop, scratch, least_rows)


def _hint(name: str, source: Source) -> str:
    """What the user may have meant."""
    folded = {column.strip().casefold(): column for column in source.columns}
    close = difflib.get_close_matches(name.strip().casefold(), folded, 1)
    if close:
        return f" (did you mean {folded[close[0]]!r}?)"
    separators = [mark for mark in ";\t|" if len(source.columns) == 1 and mark in source.columns[0]]
    return f" (expected commas between the cells, got {separators[0]!r})" if separators else ""
