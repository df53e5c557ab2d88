"""The problem: rows of numbers and categories, one label each, made of what users have.

Every column of a table is a feature. Numbers, and dates as seconds, are centred and scaled in float64 before
they become float32; truth values and text are categories. Text whose cells are numbers is numbers, also with
thousands separators; marks like "?" among them, without a letter or digit, are missing. Nothing is left out
in silence: the problem's notes name every column and row that is. skrub's `TableVectorizer` does not serve
here: it makes 30 columns of letters of an identifier, or of numbers with separators, and says nothing of it.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import pandas as pd

from focaljax.study.errors import StudyError

MOST_CLASSES = 1000
MOST_LEVELS = 100  # of one column; the others are too rare to learn from, and are one
FEW = 20  # so many different values in so few rows are no sign of an identifier
MOST_NAMED = 30
ISO_DATE = r"\d{4}[-/]\d\d[-/]\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?(?:Z|[+-]\d\d:?\d\d)?)?"
THOUSANDS = r"\s*[-+]?\d{1,3}(?:,\d{3})+(?:\.\d*)?\s*"


@dataclass(frozen=True)
class Problem:
    """A classification problem of N rows, n columns of numbers and k columns of categories.

    Attributes:
      numbers: [N, n] float32, centred and scaled over all rows; NaN is a missing cell.
      categories: [N, k] int32; code 0 is a missing cell or a rare level, 1 and up are the levels.
      labels: [N] int32, from 0 to C - 1; every class has rows.
      number_names: n names.
      levels: of each column of categories, by its name, what the codes from 1 on mean.
      class_names: C names, in the order of the labels.
      description: one sentence about where the rows come from, without its full stop.
      notes: sentences the user should read (columns dropped, cells missing), without their full stop.
    """

    numbers: np.ndarray
    categories: np.ndarray
    labels: np.ndarray
    number_names: tuple[str, ...]
    levels: dict[str, tuple[str, ...]]
    class_names: tuple[str, ...]
    description: str
    notes: tuple[str, ...] = ()

    @property
    def class_counts(self) -> np.ndarray:
        """[C] rows of each class."""
        return np.bincount(self.labels, minlength=len(self.class_names))


def rarest(counts: np.ndarray) -> np.ndarray:
    """Return the rarest third of the classes, at least one: indices, rarest last."""
    return np.argsort(-counts, kind="stable")[-max(1, len(counts) // 3) :]


def long_tailed_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's 8 x 8 digits with a geometric tail: 174 zeros, as there are, and 10 nines."""
    from sklearn.datasets import load_digits

    pixels, labels = map(np.asarray, load_digits(return_X_y=True))
    counts = np.rint(np.geomspace(174, 10, 10)).astype(int)
    rows = np.sort(np.concatenate([np.flatnonzero(labels == k)[:n] for k, n in enumerate(counts)]))
    return pixels[rows].reshape(-1, 8, 8), labels[rows]


def make(features: Any, labels: Any, name: str = "the data", notes: Sequence[str] = ()) -> Problem:
    """Return the problem of predicting labels from features, as `focaljax.study.compare` takes both."""
    codes, class_names, said = _classes(labels)
    if not isinstance(features, pd.DataFrame):
        array = np.asarray(features)
        if array.ndim < 2 or array.dtype.kind not in "biuf":
            raise StudyError(f"expected features [N, ...] of numbers, got {array.dtype} {list(array.shape)}")
        features = pd.DataFrame(array.reshape(len(array), -1).astype(np.float64))
        features.columns = [f"x[{j}]" for j in features.columns]
    if len(features) != len(codes):
        raise StudyError(f"expected one label per row of features, got {len(codes)} and {len(features)}")
    there = codes >= 0
    if not there.all():
        first = int(np.argmin(there)) + 1
        said.append(f"left out, rows without a label: {(~there).sum()} (the first is data row {first})")
    names = unique(map(str, features.columns))
    columns = _Columns(np.flatnonzero(there) + 1, said + renamed(features.columns, names))
    for j, column in enumerate(names):
        columns.add(column, features.iloc[:, j].loc[there])
    numbers, categories = (
        np.stack([*parts], axis=1) if parts else np.zeros((int(there.sum()), 0), kind)
        for parts, kind in ((columns.numbers.values(), np.float32), (columns.codes, np.int32))
    )
    if not numbers.size + categories.size:
        why = "; ".join(columns.all_notes()) or "there is none but the label"
        raise StudyError(f"there are no feature columns to learn from: {why}")
    counts, n, k = np.bincount(codes[there]), numbers.shape[1], categories.shape[1]
    width = f"{n} columns of numbers" + (f" and {k} of categories" if k else "")
    return Problem(
        numbers=numbers,
        categories=categories,
        labels=codes[there].astype(np.int32),
        number_names=tuple(columns.numbers),
        levels=columns.levels,
        class_names=class_names,
        description=f"{name}: {len(numbers)} rows, {width}, {len(counts)} classes with {counts.min()} to "
        f"{counts.max()} rows",
        notes=(*notes, *columns.all_notes()),
    )


def unique(names: Iterable[str]) -> list[str]:
    """Return names of which each is there once, as pandas reads them: a, a.1, a.2."""
    found: dict[str, None] = {}
    for name in names:
        tries = (f"{name}.{i}" if i else name for i in count())
        found[next(new for new in tries if new not in found)] = None
    return list(found)


def renamed(names: Iterable[Any], found: Sequence[str]) -> list[str]:
    """Return a note about columns that have another name now, if there are any."""
    changed = [new for name, new in zip(names, found, strict=True) if str(name) != new]
    return [f"columns of the same name, called now: {', '.join(changed)}"] if changed else []


def _classes(labels: Any) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """Return the labels as codes [N], -1 where missing, the names of the classes, and notes."""
    array, notes = np.asarray(labels), []
    if array.ndim == 2 and array.shape[1] > 1:
        hot = array.astype(np.float64) if array.dtype.kind in "biuf" else np.full(array.shape, np.nan)
        if not (np.isin(hot, (0.0, 1.0)).all() and (hot.sum(axis=1) == 1.0).all()):
            got = f"got {list(array.shape)}"
            raise StudyError(f"expected labels [N] or one-hot [N, C], a single 1 in every row; {got}")
        notes.append(f"the labels are one-hot, of {array.shape[1]} classes")
        array = np.asarray(labels.columns if isinstance(labels, pd.DataFrame) else range(array.shape[1]))
        labels = array[hot.argmax(axis=1)]
    elif array.ndim not in (1, 2):
        raise StudyError(f"expected labels [N] or one-hot [N, C], got {list(array.shape)}")
    column = pd.Series(np.ravel(labels) if array.ndim == 2 else labels).reset_index(drop=True)
    if column.dtype.kind in "Mm":
        raise StudyError("the labels are dates; expected classes")
    codes, found = pd.factorize(column)
    levels = pd.Series(found).astype("str")
    numbers = _parsed(levels)
    if column.dtype.kind != "b" and len(levels) and np.isfinite(numbers).all():
        which, values = pd.factorize(numbers, sort=True)
        names = [str(int(x)) if x.is_integer() and abs(x) < 2**53 else str(x) for x in values.tolist()]
    else:
        which, values = pd.factorize(levels, sort=True)
        names = [str(value) for value in values]
    rows = int((codes >= 0).sum())
    if not rows:
        raise StudyError("no row has a label")
    if len(names) == 1:
        raise StudyError(f"there is one class only, {names[0]!r}; expected two or more")
    if len(names) > MOST_CLASSES or 2 * len(names) > rows:
        raise StudyError(
            f"the labels have {len(names)} different values in {rows} rows; that is an identifier or a "
            f"quantity, not a class (expected at most {MOST_CLASSES} classes, 2 rows each on average)"
        )
    return np.append(which, -1)[codes], tuple(names), notes


def _parsed(levels: pd.Series) -> np.ndarray:
    """Return the numbers that texts are, NaN for each that is none."""
    return np.asarray(pd.to_numeric(np.asarray(levels, object), errors="coerce"), np.float64)


@dataclass
class _Columns:
    """The columns that are numbers, those that are categories, and the notes about the rest."""

    rows: np.ndarray  # the numbers of the data's rows, from 1
    notes: list[str]
    numbers: dict[str, np.ndarray] = field(default_factory=dict)  # float32, standardised
    codes: list[np.ndarray] = field(default_factory=list)
    levels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    grouped: dict[str, list[str]] = field(default_factory=dict)  # columns by what is said of them

    def all_notes(self) -> list[str]:
        """Return one sentence for each thing that is to be said."""
        found = list(self.notes)
        for reason, names in self.grouped.items():
            more = f" and {len(names) - MOST_NAMED} more" * (len(names) > MOST_NAMED)
            found.append(f"{reason}: {', '.join(names[:MOST_NAMED])}{more}")
        return found

    def add(self, name: str, column: pd.Series) -> None:
        """Add what a column of a table is."""
        kind, types = column.dtype, pd.api.types
        if name.startswith(("Unnamed: ", "__index_level_")):
            self._note("left out, a saved row index or without a name", name)
        elif column.isna().all():
            self._note("left out, every cell is missing", name)
        elif isinstance(kind, pd.CategoricalDtype) or types.is_bool_dtype(kind):
            self._category(name, *pd.factorize(column.astype("str")))
        elif types.is_datetime64_any_dtype(kind):
            times = pd.to_datetime(column, utc=True).dt.as_unit("us")
            self._note("dates, read as seconds since 1970 in UTC", name)
            self._number(name, np.where(times.isna(), np.nan, times.astype("int64") / 1e6))
        elif types.is_timedelta64_dtype(kind):
            self._number(name, column.dt.total_seconds().to_numpy(np.float64))
        elif types.is_numeric_dtype(kind):
            self._number(name, column.to_numpy(np.float64, na_value=np.nan))
        else:
            self._text(name, *pd.factorize(column.astype("str")))

    def _text(self, name: str, codes: np.ndarray, found: Any) -> None:
        """Add text: numbers if its cells are, dates if all are, else a category."""
        levels = pd.Series(found, dtype="str")
        grouped = levels.map(lambda x: re.fullmatch(THOUSANDS, x) is not None).to_numpy(bool)
        values = _parsed(levels.where(~grouped, levels.str.replace(",", "")))
        other = levels[np.isnan(values)]
        words = other[other.map(lambda x: any(map(str.isalnum, x)))]
        if not len(words) and len(other) < len(levels):
            if grouped.any():
                self._note("read as numbers, with commas between thousands", name)
            if len(other):
                self._note("missing, marks among numbers", f"{name} ({', '.join(map(repr, other))})")
            return self._number(name, np.append(values, np.nan)[codes])
        if len(words) == len(levels) and levels.str.fullmatch(ISO_DATE).all():
            dates = pd.to_datetime(levels, format="ISO8601", utc=True, errors="coerce")
            if not dates.isna().any():
                return self.add(name, dates.reindex(codes))
        if len(other) < len(levels):
            self._note("not read as numbers, text among them", f"{name} ({words.iloc[0]!r})")
        return self._category(name, codes, levels)

    def _number(self, name: str, values: np.ndarray) -> None:
        present, row = values[~np.isnan(values)], np.isinf(values).argmax()
        if np.isinf(values[row]):
            where = f"column {name!r} is infinite in data row {self.rows[row]}"
            raise StudyError(f"{where}; expected finite numbers or missing cells")
        full = len(present) == len(values)
        if not len(present):
            return self._note("left out, every cell is missing", name)
        if full and present.min() == present.max():
            return self._note("left out, constant", name)
        if full and len(present) > FEW and np.ptp(values - self.rows) == 0:
            return self._note("left out, it counts the rows", name)
        values = values / (np.abs(present).max() or 1.0)  # the squares of the largest floats are none
        values = (values - np.nanmean(values)) / (np.nanstd(values) or 1.0)
        self.numbers[name] = values.astype(np.float32)
        return self._missing(name, len(values) - len(present))

    def _category(self, name: str, codes: np.ndarray, found: Any) -> None:
        """Add a category: codes [rows], -1 where missing, of levels."""
        counts = np.bincount(codes[codes >= 0], minlength=len(found))
        if len(found) == 1 and counts[0] == len(codes):
            return self._note("left out, constant", name)
        if len(found) > FEW and 2 * len(found) > counts.sum():
            return self._note("left out, an identifier or free text, most rows differ", name)
        levels = np.asarray(found, str)
        kept = np.lexsort((levels, -counts))[:MOST_LEVELS]
        if len(kept) < len(levels):
            self.notes.append(
                f"column {name!r} has {len(levels)} different values: the {len(kept)} most frequent are its "
                f"levels, the others ({counts.sum() - counts[kept].sum()} rows) count as missing"
            )
        kept = sorted(kept, key=lambda level: levels[level])
        new = np.zeros(len(levels) + 1, np.int32)  # the last is the missing one
        new[kept] = np.arange(1, len(kept) + 1)
        self.codes.append(new[codes])
        self.levels[name] = tuple(levels[kept].tolist())
        return self._missing(name, int((codes < 0).sum()))

    def _missing(self, name: str, count: int) -> None:
        if count:
            self._note("missing cells", f"{name} {count}")

    def _note(self, reason: str, name: str) -> None:
        self.grouped.setdefault(reason, []).append(name)
