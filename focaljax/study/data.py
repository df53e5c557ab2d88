"""The problem: rows of numbers and categories, one label each, made of what users have.

Every column of a table is a feature. Numbers, and dates as seconds, are centred and scaled in float64 before
they become float32; truth values and text are categories. Text whose cells are numbers is numbers, also with
thousands separators; marks like "?" among them, without a letter or digit, are missing. Nothing is left out
in silence: the problem's notes name every column and row that is.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from focaljax.study.errors import StudyError

MOST_CLASSES = 1000
MOST_LEVELS = 100  # of one column; the others are too rare to learn from, and are one
FEW = 20  # so many different values in so few rows are no sign of an identifier
MOST_NAMED = 5
NO_LEVEL = "missing or rare"
ISO_DATE = r"\d{4}[-/]\d\d[-/]\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?(?:Z|[+-]\d\d:?\d\d)?)?"
THOUSANDS = re.compile(r"\s*[-+]?\d{1,3}(?:,\d{3})+(?:\.\d*)?\s*")
MOST_PER_DIGIT, LEAST_PER_DIGIT = 174, 10  # the rarest digit of scikit-learn's has 174


@dataclass(frozen=True)
class Problem:
    """A classification problem of N rows, n columns of numbers and k columns of categories.

    Attributes:
      numbers: [N, n] float32, centred and scaled over all rows; NaN is a missing cell.
      categories: [N, k] int32; code 0 is a missing cell or a rare level, 1 and up are the levels.
      labels: [N] int32, from 0 to C - 1; every class has rows.
      number_names: n names.
      levels: of each column of categories, by its name, what its codes mean; the first is NO_LEVEL.
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
    def rows(self) -> int:
        """N."""
        return len(self.labels)

    @property
    def class_counts(self) -> np.ndarray:
        """[C] rows of each class."""
        return np.bincount(self.labels, minlength=len(self.class_names))


def rarest(counts: np.ndarray) -> np.ndarray:
    """Return the rarest third of the classes, at least one: indices, rarest last."""
    order = np.argsort(-counts, kind="stable")
    return order[-max(1, len(order) // 3) :]


def long_tailed_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's 8 x 8 digits with a geometric tail: many zeros, hardly any nines."""
    from sklearn.datasets import load_digits

    pixels, labels = map(np.asarray, load_digits(return_X_y=True))
    counts = np.rint(np.geomspace(MOST_PER_DIGIT, LEAST_PER_DIGIT, 10)).astype(int)
    rows = np.sort(np.concatenate([np.flatnonzero(labels == k)[:n] for k, n in enumerate(counts)]))
    return pixels[rows].reshape(-1, 8, 8), labels[rows]


def unique(names: Iterable[str]) -> list[str]:
    """Return names of which each is there once, as pandas makes them: a, a.1, a.2."""
    seen: dict[str, int] = {}
    found: list[str] = []
    for name in names:
        new = name
        while new in seen:
            new, seen[name] = f"{name}.{seen[name]}", seen[name] + 1
        seen[new] = 1
        found.append(new)
    return found


def renamed(names: Iterable[Any], found: Sequence[str]) -> list[str]:
    """Return a note about columns that have another name now, if there are any."""
    changed = [new for name, new in zip(names, found, strict=True) if str(name) != new]
    return [f"columns of the same name, called now: {', '.join(changed)}"] if changed else []


def make(features: Any, labels: Any, name: str = "the data", notes: Sequence[str] = ()) -> Problem:
    """Return the problem of predicting labels from features.

    Args:
      features: a DataFrame, or an array [N, ...] of numbers, each of whose entries is a column.
      labels: [N] or [N, 1] of any kind, or one-hot [N, C].
      name: what the features are called in sentences.
      notes: sentences about how they were read.

    Raises:
      StudyError: there is nothing to learn, or it is no classification problem.
    """
    classes = _Classes(labels)
    if not isinstance(features, pd.DataFrame):
        features = np.asarray(features)
        if features.ndim < 2 or features.dtype.kind not in "biuf":
            raise StudyError(
                f"expected features [N, ...] of numbers, got {features.dtype} {list(features.shape)}"
            )
        features = features.reshape(len(features), -1)
    if len(features) != len(classes.codes):
        raise StudyError(
            f"expected as many labels as rows of features, got {len(classes.codes)} and {len(features)}"
        )
    there = classes.codes >= 0
    if not there.all():
        first = int(np.argmin(there)) + 1
        classes.notes.append(
            f"left out, rows without a label: {(~there).sum()} (the first is data row {first})"
        )
    columns = _Columns()
    if isinstance(features, pd.DataFrame):
        names = unique(map(str, features.columns))
        columns.notes += renamed(features.columns, names)
        for j, column in enumerate(names):
            columns.add(column, features.iloc[:, j], there)
    else:
        columns.matrix(features, there)
    numbers, categories = columns.arrays(int(there.sum()))
    counts, n, k = np.bincount(classes.codes[there]), numbers.shape[1], categories.shape[1]
    said = f"{n} columns of numbers" + (f" and {k} of categories" if k else "")
    said = f"{len(numbers)} rows, {said}, {len(counts)} classes with {counts.min()} to {counts.max()} rows"
    return Problem(
        numbers=numbers,
        categories=categories,
        labels=classes.codes[there].astype(np.int32),
        number_names=tuple(columns.numbers),
        levels=columns.levels,
        class_names=classes.names,
        description=f"{name}: {said}",
        notes=(*notes, *classes.notes, *columns.all_notes()),
    )


class _Classes:
    """The labels as codes [N], -1 where missing, and the names of the classes."""

    def __init__(self, labels: Any) -> None:
        self.notes: list[str] = []
        array = np.asarray(labels)
        if array.ndim == 2 and array.shape[1] > 1:
            self._one_hot(array, list(labels.columns) if isinstance(labels, pd.DataFrame) else None)
            return
        if array.ndim not in (1, 2):
            raise StudyError(f"expected labels [N] or one-hot [N, C], got shape {list(array.shape)}")
        column = pd.Series(labels if array.ndim == 1 else array[:, 0]).reset_index(drop=True)
        codes, found = pd.factorize(column, use_na_sentinel=True)
        if column.dtype.kind in "Mm":
            raise StudyError("the labels are dates; expected classes")
        values = pd.Series(found)
        numbers = pd.to_numeric(values.astype("str"), errors="coerce").to_numpy(np.float64)
        if len(values) and column.dtype.kind != "b" and np.isfinite(numbers).all():
            which, levels = pd.factorize(numbers, sort=True)
            names = [str(int(x)) if x.is_integer() and abs(x) < 2**53 else str(x) for x in levels.tolist()]
        else:
            which, levels = pd.factorize(values.astype("str"), sort=True)
            names = [str(level) for level in levels]
        self.codes = np.append(which, -1)[codes]
        self.names = tuple(names)
        self._check()

    def _one_hot(self, array: np.ndarray, names: list | None) -> None:
        hot = array.astype(np.float64) if array.dtype.kind in "biuf" else np.full(array.shape, 0.5)
        if not (np.isin(hot, (0.0, 1.0)).all() and (hot.sum(axis=1) == 1.0).all()):
            raise StudyError(
                f"expected labels [N] or one-hot [N, C], a single 1 in every row; got {list(array.shape)}"
            )
        used = np.flatnonzero(hot.any(axis=0))
        self.codes = np.searchsorted(used, hot.argmax(axis=1))
        self.names = tuple(str(names[k] if names else k) for k in used)
        self.notes.append(f"the labels are one-hot, of {array.shape[1]} classes")
        if len(used) < array.shape[1]:
            self.notes.append(f"left out, classes without rows: {array.shape[1] - len(used)}")
        self._check()

    def _check(self) -> None:
        rows, count = int((self.codes >= 0).sum()), len(self.names)
        if not rows:
            raise StudyError("no row has a label")
        if count == 1:
            raise StudyError(f"there is one class only, {self.names[0]!r}; expected two or more")
        if count > MOST_CLASSES or 2 * count > rows:
            raise StudyError(
                f"the labels have {count} different values in {rows} rows; that is an identifier or a quantity, "
                f"not a class (expected at most {MOST_CLASSES} classes, 2 rows each on average)"
            )


@dataclass
class _Columns:
    """The columns that are numbers, those that are categories, and the notes about the rest."""

    numbers: dict[str, np.ndarray] = field(default_factory=dict)  # float32, standardised
    codes: list[np.ndarray] = field(default_factory=list)
    levels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    grouped: dict[str, list[str]] = field(default_factory=dict)  # columns by what is said of them
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def note(self, reason: str, name: str) -> None:
        self.grouped.setdefault(reason, []).append(name)

    def matrix(self, features: np.ndarray, there: np.ndarray) -> None:
        """Add all entries of an array [N, F]."""
        for j in range(features.shape[1]):
            self._number(f"x[{j}]", features[there, j].astype(np.float64), there)

    def add(self, name: str, column: pd.Series, there: np.ndarray) -> None:
        """Add what a column of a table is."""
        column = column.loc[there] if not there.all() else column
        if name.startswith("Unnamed: "):
            return self.note("left out, a saved row index or without a name", name)
        if column.isna().all():
            return self.note("left out, every cell is missing", name)
        kind = column.dtype
        if isinstance(kind, pd.CategoricalDtype) or pd.api.types.is_bool_dtype(kind):
            return self._category(name, *pd.factorize(column.astype("str")))
        if pd.api.types.is_datetime64_any_dtype(kind):
            self.note("dates, read as seconds since 1970 in UTC", name)
            return self._number(name, _seconds(column), there)
        if pd.api.types.is_timedelta64_dtype(kind):
            return self._number(name, column.dt.total_seconds().to_numpy(np.float64), there)
        if pd.api.types.is_numeric_dtype(kind):
            values = column.to_numpy(np.float64, na_value=np.nan)
            counts = len(values) > FEW and not np.isnan(values).any() and bool((np.diff(values) == 1).all())
            return (
                self.note("left out, it counts the rows", name)
                if counts
                else self._number(name, values, there)
            )
        return self._text(name, column.astype("str"), there)

    def _text(self, name: str, column: pd.Series, there: np.ndarray) -> None:
        """Add text: numbers if its cells are, dates if all are, else a category."""
        codes, found = pd.factorize(column)
        levels = pd.Series(found, dtype="str")
        grouped = levels.map(lambda x: THOUSANDS.fullmatch(x) is not None).to_numpy(bool)
        plain = levels.where(~grouped, levels.str.replace(",", ""))
        values = pd.to_numeric(plain, errors="coerce").to_numpy(np.float64)
        other = levels[np.isnan(values)]
        words = other[other.map(lambda x: any(map(str.isalnum, x)))]
        if not len(words) and len(other) < len(levels):
            if grouped.any():
                self.note("read as numbers, with commas between thousands", name)
            if len(other):
                self.notes.append(
                    f"missing, marks among numbers: {name} ({', '.join(map(repr, other[:MOST_NAMED]))})"
                )
            return self.add(name, pd.Series(np.append(values, np.nan)[codes]), np.ones(len(codes), bool))
        if len(words) == len(levels) and levels.str.fullmatch(ISO_DATE).all():
            dates = pd.to_datetime(levels, format="ISO8601", utc=True, errors="coerce")
            if not dates.isna().any():
                return self.add(name, dates.reindex(codes), np.ones(len(codes), bool))
        if len(words) < len(levels) and not np.isnan(values).all():
            self.note("not read as numbers, text among them", f"{name} ({words.iloc[0]!r})")
        return self._category(name, codes, levels)

    def _number(self, name: str, values: np.ndarray, there: np.ndarray) -> None:
        """Add numbers [rows]; `there` says which rows of the data they are."""
        if np.isinf(values).any():
            row = np.flatnonzero(there)[np.isinf(values).argmax()] + 1 if there.sum() == len(values) else "?"
            raise StudyError(
                f"column {name!r} is infinite in data row {row}; expected finite numbers or missing cells"
            )
        filled = ~np.isnan(values)
        present = values[filled]
        if not present.size:
            return self.note("left out, every cell is missing", name)
        if present.size == len(values) and present.min() == present.max():
            return self.note("left out, constant", name)
        values = values / (np.abs(present).max() or 1.0)  # the squares of the largest floats are none
        deviation = np.nanstd(values) or 1.0
        self.numbers[name] = ((values - np.nanmean(values)) / deviation).astype(np.float32)
        return self._count(name, len(values) - present.size)

    def _category(self, name: str, codes: np.ndarray, found: Any) -> None:
        """Add a category: codes [rows], -1 where missing, of levels."""
        counts = np.bincount(codes[codes >= 0], minlength=len(found))
        if len(found) == 1 and counts[0] == len(codes):
            return self.note("left out, constant", name)
        if len(found) > FEW and 2 * len(found) > counts.sum():
            return self.note("left out, an identifier or free text, most rows differ", name)
        levels = np.asarray(found, object)
        kept = np.lexsort((levels.astype(str), -counts))[:MOST_LEVELS]
        if len(kept) < len(levels):
            self.notes.append(
                f"column {name!r} has {len(levels)} different values: the {len(kept)} most frequent are its "
                f"levels, the others ({counts.sum() - counts[kept].sum()} rows) count as missing"
            )
        kept = sorted(kept, key=lambda level: str(levels[level]))
        new = np.zeros(len(levels) + 1, np.int32)  # the last is the missing one
        new[kept] = np.arange(1, len(kept) + 1)
        self.codes.append(new[codes])
        self.levels[name] = (NO_LEVEL, *map(str, levels[kept]))
        return self._count(name, int((codes < 0).sum()))

    def _count(self, name: str, missing: int) -> None:
        if missing:
            self.missing.append(f"{name} {missing}")

    def arrays(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Return numbers [rows, n] and categories [rows, k]."""
        if not self.numbers and not self.codes:
            why = "; ".join(self.all_notes()) or "there is none but the label"
            raise StudyError(f"there are no feature columns to learn from: {why}")
        numbers = (
            np.stack([*self.numbers.values()], axis=1) if self.numbers else np.zeros((rows, 0), np.float32)
        )
        codes = np.stack(self.codes, axis=1) if self.codes else np.zeros((rows, 0), np.int32)
        return numbers, codes

    def all_notes(self) -> list[str]:
        """Return one sentence for each thing that is to be said."""
        said = [f"{reason}: {_listed(names)}" for reason, names in self.grouped.items()]
        missing = [f"missing cells: {_listed(self.missing)}"] if self.missing else []
        return [*said, *self.notes, *missing]


def _seconds(column: pd.Series) -> np.ndarray:
    """Return seconds since 1970 [rows], NaN where missing; UTC if there is no zone."""
    times = pd.to_datetime(column, utc=True).dt.as_unit("us")
    return np.where(times.isna(), np.nan, times.astype("int64") / 1e6)


def _listed(names: Sequence[str], most: int = 30) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
