"""The second pass: rows become arrays on disk, whole or not at all, and are found again by a later run."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from focaljax.study.data import Problem
from focaljax.study.errors import StudyError
from focaljax.study.tables import plan
from focaljax.study.tables.cells import Cells, Chunk, Numbers, Source, Words, seconds
from focaljax.study.tables.survey import numbered

FORMAT = 1  # of the files in the folder: a new number when what they hold changes
ARRAYS = ("numbers", "categories", "labels")
NAMES = "problem.json"


def read(source: Source, label: str, drop: Sequence[str], scratch: Path, least_rows: int) -> Problem:
    """Return the problem of the source, encoded in a folder of `scratch` or found there."""
    key = _key(source, label, drop, least_rows)
    folder = scratch / f"table-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    found = _load(folder, key)
    if found is not None:
        return found
    made = plan.make(source, label, drop, least_rows)
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        partial.mkdir(parents=True)
        _write(source, label, made, partial)
        if _key(source, label, drop, least_rows) != key:
            raise StudyError(f"{source.path} changed while it was read")
        (partial / NAMES).write_text(_names(source, label, made, key), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        partial.rename(folder)
    except OSError as error:
        raise StudyError(f"{scratch} cannot hold the encoded rows: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    found = _load(folder, key)
    if found is None:
        raise StudyError(f"{folder} was changed while it was read")
    return found


def _key(source: Source, label: str, drop: Sequence[str], least_rows: int) -> str:
    """All that the encoded rows depend on; sizes and times stand for the bytes of the file."""
    return json.dumps([FORMAT, str(source.path.absolute()), source.state(), label, sorted(drop), least_rows])


def _load(folder: Path, key: str) -> Problem | None:
    """The problem that lies in the folder; None if there is none, or not this."""
    try:
        said = json.loads((folder / NAMES).read_text(encoding="utf-8"))
        if said.pop("key") != key:
            return None
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    except (OSError, ValueError):
        return None
    return Problem(
        **arrays,
        number_names=tuple(said["number_names"]),
        category_names=tuple(said["category_names"]),
        levels=tuple(map(tuple, said["levels"])),
        class_names=tuple(said["class_names"]),
        description=said["description"],
        notes=tuple(said["notes"]),
    )


def _names(source: Source, label: str, made: plan.Plan, key: str) -> str:
    """All of the problem that is not an array."""
    low, high = min(made.class_counts), max(made.class_counts)
    each = f"{low} rows each" if low == high else f"{low} to {high} rows each"
    return json.dumps(
        {
            "key": key,
            "number_names": made.numbers,
            "category_names": made.categories,
            "levels": made.levels,
            "class_names": made.class_names,
            "description": (
                f"{source.path.name}: {made.rows} rows, {len(made.numbers)} columns of numbers and "
                f"{len(made.categories)} of categories, {len(made.classes)} classes of {label!r} with {each}"
            ),
            "notes": made.notes,
        }
    )


def _write(source: Source, label: str, made: plan.Plan, folder: Path) -> None:
    """Write the three arrays, row by row in the order of the file."""
    columns = [name for name in source.columns if name in {label, *made.numbers, *made.categories}]
    classes = {value: code for code, value in enumerate(made.classes)}
    tables = {
        name: {level: code for code, level in enumerate(levels[1:], start=1)}
        for name, levels in zip(made.categories, made.levels, strict=True)
    }
    with (
        _Rows(folder / "numbers.npy", np.float32, (made.rows, len(made.numbers))) as numbers,
        _Rows(folder / "categories.npy", np.int32, (made.rows, len(made.categories))) as categories,
        _Rows(folder / "labels.npy", np.int32, (made.rows,)) as labels,
    ):
        for _, chunk in numbered(source, columns, made.known):
            chunk = _labelled(chunk, label)
            labels.add(_codes(chunk[label], classes))
            rows = len(chunk[label].present)
            numbers.add(_side_by_side(_numbers(chunk, made), rows))
            categories.add(
                _side_by_side([_codes(chunk[name], table) for name, table in tables.items()], rows)
            )
    if labels.rows != made.rows:
        raise StudyError(f"{source.path} changed while it was read")


def _labelled(chunk: Chunk, label: str) -> Chunk:
    """Only the rows that have a label."""
    present = chunk[label].present
    if present.all():
        return chunk
    rows = np.flatnonzero(present)
    return {name: cells.take(rows) for name, cells in chunk.items()}


def _numbers(chunk: Chunk, made: plan.Plan) -> list[np.ndarray]:
    """The columns of numbers and dates, centred and scaled."""
    values = []
    for name in made.numbers:
        cells = chunk[name]
        if isinstance(cells, Words):
            of_levels = seconds(cells.levels)
            if of_levels is None:
                raise StudyError(f"column {name!r} changed while it was read: it had nothing but dates")
            values.append(cells.numbers(of_levels))
        else:
            values.append(cells.values)
    return [*made.moments.standardise(made.which, np.stack(values))] if values else []


def _side_by_side(columns: Sequence[np.ndarray], rows: int) -> np.ndarray:
    return np.stack(columns, axis=1) if columns else np.empty((rows, 0))


def _codes(cells: Cells, table: dict) -> np.ndarray:
    """The code of each cell, [rows] int32; 0 for a level that has none, and for a missing cell."""
    if isinstance(cells, Numbers):
        found, where = np.unique(cells.values, return_inverse=True)
        return np.array([table.get(value, 0) for value in found.tolist()], np.int32)[where]
    levels = np.asarray(cells.levels, object).tolist()
    return np.array([*(table.get(level, 0) for level in levels), 0], np.int32)[cells.codes]


class _Rows:
    """A .npy file that grows by rows, so that none of it is in memory; closed when it is on the disk."""

    def __init__(self, path: Path, dtype: type, shape: tuple[int, ...]) -> None:
        self.rows = 0
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._file = path.open("wb")

    def __enter__(self) -> "_Rows":
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        return self

    def add(self, rows: np.ndarray) -> None:
        """Append rows."""
        self.rows += len(rows)
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)

    def __exit__(self, *error: object) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
