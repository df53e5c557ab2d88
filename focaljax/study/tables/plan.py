"""What each column of a table becomes, what is left out and why, and which tables are no problem to study."""

from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np

from focaljax.study.errors import StudyError
from focaljax.study.tables.cells import DATE, NUMBER, TEXT, Known, Source
from focaljax.study.tables.moments import Moments
from focaljax.study.tables.survey import MOST_COUNTED, Column, Levels, Survey, survey

MOST_CLASSES = 100
MOST_LEVELS = 100  # of one column; the others are too rare to learn from, and are one
FEW = 20  # so many different values in so few rows are no sign of an identifier
MOST_NAMED = 5
LEAST_INEXACT = 2**53  # of integers as float64
NO_LEVEL = "missing or rare"


@dataclass(frozen=True)
class Plan:
    """How to read the rows: which columns become what.

    Attributes:
      rows: how many there are with a label.
      numbers, categories: the names of the columns.
      which: [n] where in `moments` each of `numbers` is.
      moments: of all columns.
      levels: for each category its levels, the first of them NO_LEVEL.
      classes: the values of the label, in the order of their codes.
      class_names, class_counts: of the classes.
      known: how to read the text of each column, the label's too.
      notes: what is left out, what is missing, what was decided.
    """

    rows: int
    numbers: tuple[str, ...]
    categories: tuple[str, ...]
    which: np.ndarray
    moments: Moments
    levels: tuple[tuple[str, ...], ...]
    classes: tuple
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    known: Known
    notes: tuple[str, ...]


def make(source: Source, label: str, drop: Sequence[str], least_rows: int) -> Plan:
    """Read the source once, twice if a column has numbers and text, and decide."""
    index = [name for name in source.row_index if name != label and name not in drop]
    columns = [name for name in source.columns if name not in drop and name not in index]
    notes = [*source.notes]
    if drop:
        notes.append(f"left out as asked: {', '.join(drop)}")
    if index:
        notes.append(f"left out, a saved row index or without a name: {', '.join(index)}")
    found = survey(source, columns, label)
    if found.rows + found.unlabelled[0] == 0:
        raise StudyError(f"{source.path} has columns but no rows")
    if found.unlabelled[0]:
        count, first = found.unlabelled
        notes.append(f"left out, rows without a label: {count} (the first is data row {first})")
    classes, counts = _classes(source, found, label, least_rows)
    features = _Features(source, found)
    notes += features.notes
    words = [
        f"{name} ({c.word!r})" for name, c in found.columns.items() if name != label and c.number and c.word
    ]
    if words:
        notes.append(f"not read as numbers, text among them: {', '.join(words)}")
    marks = [f"{name} ({', '.join(map(repr, marks))})" for name, marks in found.known.missing.items()]
    if marks:
        notes.append(f"missing, marks among numbers: {', '.join(marks)}")
    notes += _missing(found, {*features.numbers, *features.categories})
    return Plan(
        rows=found.rows,
        numbers=tuple(features.numbers),
        categories=tuple(features.categories),
        which=np.array([found.features.index(name) for name in features.numbers], np.intp),
        moments=found.moments,
        levels=tuple(features.categories.values()),
        classes=classes,
        class_names=tuple(map(_class_name, classes)),
        class_counts=counts,
        known=Known(
            {name: column.kind or TEXT for name, column in found.columns.items()}, found.known.missing
        ),
        notes=tuple(notes),
    )


class _Features:
    """The columns that are numbers, the categories with their levels, and the notes about the rest."""

    def __init__(self, source: Source, found: Survey) -> None:
        self.numbers: list[str] = []
        self.categories: dict[str, tuple[str, ...]] = {}
        self.rare: list[str] = []
        self.out: dict[str, list[str]] = {}
        dates = []
        for j, name in enumerate(found.features):
            column = found.columns[name]
            if column.kind is None:
                self._leave_out("every cell is missing", name)
            elif column.kind in (NUMBER, DATE):
                row = found.moments.infinite[j]
                if row:
                    raise StudyError(
                        f"{source.path}: column {name!r} is infinite in data row {row}; expected finite "
                        "numbers or missing cells"
                    )
                self._number(name, j, found)
                dates += [name] * (column.kind == DATE and name in self.numbers)
            else:
                self._category(name, column.levels, found.rows)
        self.notes = [f"left out, {reason}: {', '.join(names)}" for reason, names in self.out.items()]
        if dates:
            self.notes.append(f"dates, read as seconds since 1970 in UTC: {', '.join(dates)}")
        self.notes += self.rare
        if not self.numbers and not self.categories:
            why = "; ".join(self.notes) or "it has the label column only"
            raise StudyError(f"{source.path} has no feature columns to learn from: {why}")

    def _leave_out(self, reason: str, name: str) -> None:
        self.out.setdefault(reason, []).append(name)

    def _number(self, name: str, j: int, found: Survey) -> None:
        m, count = found.moments, int(found.moments.count[j])
        if count == 0:
            self._leave_out("every cell is missing", name)
        elif m.low[j] == m.high[j] and count == found.rows:
            self._leave_out("constant", name)
        elif m.counting[j] and count == found.rows and count > FEW:
            self._leave_out("it counts the rows", name)
        else:
            self.numbers.append(name)

    def _category(self, name: str, levels: Levels, rows: int) -> None:
        counts = levels.counts
        if counts is None:
            self._leave_out(f"an identifier or free text, more than {MOST_COUNTED} different values", name)
        elif not counts:
            self._leave_out("every cell is missing", name)
        elif len(counts) == 1 and levels.cells == rows:
            self._leave_out("constant", name)
        elif len(counts) > FEW and 2 * len(counts) > levels.cells:
            self._leave_out("an identifier or free text, most rows differ", name)
        else:
            kept = sorted(counts, key=lambda level: (-counts[level], level))[:MOST_LEVELS]
            if len(kept) < len(counts):
                others = levels.cells - sum(counts[level] for level in kept)
                self.rare.append(
                    f"column {name!r} has {len(counts)} different values: the {len(kept)} most frequent are "
                    f"its levels, the others ({others} rows) count as missing"
                )
            self.categories[name] = (NO_LEVEL, *sorted(kept))


def _missing(found: Survey, names: Container[str]) -> list[str]:
    """One note with the number of missing cells in each of these columns, if there are any."""
    listed = []
    for j, name in enumerate(found.features):
        column = found.columns[name]
        is_number = column.kind in (NUMBER, DATE)
        missing = found.rows - (found.moments.count[j] if is_number else column.levels.cells)
        if missing and name in names:
            listed.append(f"{name} {missing}")
    return [f"missing cells, of {found.rows}: {', '.join(listed)}"] if listed else []


def _classes(source: Source, found: Survey, label: str, least_rows: int) -> tuple[tuple, tuple[int, ...]]:
    """The values of the label and their counts, if they are classes with enough rows each."""
    column = found.columns[label]
    what = f"{source.path}: label column {label!r}"
    if not found.rows:
        raise StudyError(f"{what} has no value in any row")
    if found.label_infinite and column.kind == NUMBER:
        raise StudyError(f"{what} is infinite in data row {found.label_infinite}; expected classes")
    counts = column.levels.counts or {}
    no_class = _no_class(column, found.rows)
    if no_class:
        raise StudyError(
            f"{what} has {no_class}; that is an identifier or a quantity, not a class (expected at most "
            f"{MOST_CLASSES} classes, 2 rows each on average)"
        )
    if len(counts) == 1:
        name = _class_name(next(iter(counts)))
        raise StudyError(f"{what} has one class only, {name!r}; expected two or more")
    few = sorted((count, value) for value, count in counts.items() if count < least_rows)
    if few:
        named = [f"{_class_name(value)!r} has {count}" for count, value in few]
        more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
        raise StudyError(
            f"{what}: each class needs at least {least_rows} rows, one for every fold; "
            f"class {', '.join(named[:MOST_NAMED])}{more}; join it with another or leave its rows out"
        )
    classes = tuple(sorted(counts))
    return classes, tuple(counts[value] for value in classes)


def _no_class(column: Column, rows: int) -> str:
    """What the label has that classes have not; empty if they may be classes."""
    counts = column.levels.counts
    if column.kinds == {DATE}:
        return "dates"
    if counts is None:
        return f"more than {MOST_COUNTED} different values in {rows} rows"
    if len(counts) > MOST_CLASSES or 2 * len(counts) > rows:
        return f"{len(counts)} different values in {rows} rows"
    if column.kind == NUMBER and max(map(abs, counts)) >= LEAST_INEXACT:
        return f"numbers beyond {LEAST_INEXACT}, which float64 does not tell apart"
    return ""


def _class_name(value: float | str) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
