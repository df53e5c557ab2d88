"""The user's own table: a CSV file and the name of its label column become a problem, or an error.

Numbers are standardised: first here in float64, so that float32 keeps their digits, then with each
split's own training rows. Text becomes one-hot columns. Nothing is repaired in silence: what is
dropped is noted, and what cannot be used is an error that names its column and row.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from focaljax.study.former import Problem
from focaljax.study.errors import StudyError

HELD_OUT = 0.3
MAX_CLASSES = 100
MAX_LEVELS = 100
MAX_FEATURES = 5000
LEAST_ROWS = 2


def read_problem(path: Path, label: str | None, drop: Sequence[str], max_rows: int) -> Problem:
    """Return the problem of predicting column `label` from the other columns of a CSV file."""
    frame = _read(path)
    columns = ", ".join(map(str, frame.columns))
    if label is None:
        raise StudyError(f"--csv needs --label COLUMN; {path} has the columns: {columns}")
    for name in (label, *drop):
        if name not in frame.columns:
            raise StudyError(f"{path} has no column {name!r}; it has: {columns}")
    if label in drop:
        raise StudyError(f"column {label!r} cannot be both --label and --drop")
    index = [c for c in frame.columns if c.startswith("Unnamed:") and c not in (label, *drop)]
    frame = frame.drop(columns=[*drop, *index])
    _check_cells(frame)
    labels, names = _labels(label, frame[label].to_numpy())
    notes = [f"left out as asked: {', '.join(drop)}"] if drop else []
    if index:
        notes.append(f"columns without a name left out, as a saved row index: {', '.join(index)}")
    if len(frame) > max_rows:
        notes.append(f"of {len(frame)} rows a stratified sample is used (--max-rows {max_rows})")
        rows = _sample(labels, max_rows)
        frame, labels = frame.iloc[rows], labels[rows]
    features, numeric = _features(frame.drop(columns=label), notes)
    counts = np.bincount(labels)
    test_counts = np.clip(np.rint(HELD_OUT * counts).astype(np.int64), 1, counts - 1)
    return Problem(
        features=features,
        labels=labels,
        class_names=names,
        numeric=numeric,
        train_counts=counts - test_counts,
        test_counts=test_counts,
        description=(
            f"{path.name}: {len(frame)} rows, {features.shape[1]} features, {len(names)} classes "
            f"of {label!r} with {counts.min()} to {counts.max()} rows each; {HELD_OUT:.0%} of each "
            "class is held out"
        ),
        notes=tuple(notes),
    )


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise StudyError(f"there is no file {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header
            frame = pd.read_csv(path, encoding="utf-8-sig", index_col=False, low_memory=False)
    except pd.errors.EmptyDataError:
        raise StudyError(f"{path} is empty") from None
    except (OSError, EOFError, ValueError, pd.errors.ParserWarning) as error:
        reason = " ".join(str(error).split())
        raise StudyError(f"{path} cannot be read as comma-separated values: {reason}") from None
    if frame.empty:
        raise StudyError(f"{path} has a header but no rows")
    return frame


def _check_cells(frame: pd.DataFrame) -> None:
    for name, column in frame.items():
        missing = np.flatnonzero(column.isna())
        if missing.size:
            raise StudyError(
                f"column {name!r} has {missing.size} empty or NaN cells, the first in data row "
                f"{missing[0] + 1}; fill them, or leave the column out with --drop"
            )
        if column.dtype.kind == "f" and np.isinf(column).any():
            row = np.flatnonzero(np.isinf(column))[0] + 1
            raise StudyError(f"column {name!r} is infinite in data row {row}")


def _labels(column: str, cells: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    codes, values = pd.factorize(cells, sort=True)
    names = tuple(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
    counts = np.bincount(codes)
    if len(names) == 1:
        raise StudyError(f"label column {column!r} has one class only: {names[0]!r}")
    if 2 * len(names) > len(codes) or len(names) > MAX_CLASSES:
        raise StudyError(
            f"label column {column!r} has {len(names)} different values in {len(codes)} rows; "
            f"that is an identifier or a quantity, not a class (at most {MAX_CLASSES} classes, "
            "2 rows each on average)"
        )
    if counts.min() < LEAST_ROWS:
        raise StudyError(
            f"class {names[counts.argmin()]!r} of column {column!r} has {counts.min()} row; "
            f"each class needs at least {LEAST_ROWS}, one to train on and one to hold out"
        )
    return codes.astype(np.int32), names


def _sample(labels: np.ndarray, max_rows: int) -> np.ndarray:
    """Choose about `max_rows` rows, the same share of every class but 10 at least, if it can."""
    rng = np.random.default_rng(0)
    rows = []
    for k, count in enumerate(np.bincount(labels)):
        size = min(count, max(10, round(max_rows * count / len(labels))))
        rows.append(rng.choice(np.flatnonzero(labels == k), size, replace=False))
    return np.sort(np.concatenate(rows))


def _features(frame: pd.DataFrame, notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return features [N, F] and which of them are numeric; note what was dropped."""
    constant = [str(name) for name, column in frame.items() if len(column.unique()) == 1]
    if constant:
        notes.append(f"constant columns dropped: {', '.join(constant)}")
    blocks, numeric = [], []
    for _, column in frame.drop(columns=constant).items():
        is_number = pd.api.types.is_numeric_dtype(column) and column.dtype.kind != "b"
        block = _centred(column) if is_number else _one_hot(column)
        blocks.append(block)
        numeric += [is_number] * block.shape[1]
    if not blocks:
        raise StudyError("no feature columns are left: the table needs one that is not constant")
    if len(numeric) > MAX_FEATURES:
        raise StudyError(f"the table makes {len(numeric)} features, more than {MAX_FEATURES}")
    return np.concatenate(blocks, axis=1), np.asarray(numeric)


def _centred(column: pd.Series) -> np.ndarray:
    values = column.to_numpy(np.float64)
    values = values / np.abs(values).max()  # so that no square overflows
    deviation = values.std() or 1.0  # 0 for integers that differ only beyond float64
    return ((values - values.mean()) / deviation).astype(np.float32)[:, None]


def _one_hot(column: pd.Series) -> np.ndarray:
    codes, levels = pd.factorize(column)
    if len(levels) > MAX_LEVELS:
        raise StudyError(
            f"text column {column.name!r} has {len(levels)} different values, more than "
            f"{MAX_LEVELS}; if it is an identifier, leave it out with --drop"
        )
    return np.eye(len(levels), dtype=np.float32)[codes]
