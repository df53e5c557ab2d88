"""NumPy's .npz: one array of features, one of labels, read from the archive a few rows at a time."""

import tempfile
import zipfile
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from focaljax.study.errors import StudyError
from focaljax.study.tables.cells import TEXT, TRUTH, Cells, Chunk, Known, Numbers, Words, rows_at_a_time

PAIRS = (("x", "y"), ("X", "y"), ("features", "labels"), ("data", "target"))
# RuntimeError: encrypted, or a compression that Python does not know
DAMAGED = (OSError, EOFError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile)


@dataclass(frozen=True)
class Header:
    """What an array of the archive says about itself."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool


class Arrays:
    """The arrays `features` [N, F] and `labels` [N] of an .npz file; None takes the first of PAIRS it has."""

    def __init__(
        self, path: Path, features: str | None, labels: str | None, scratch: Path, rows: int | None = None
    ) -> None:
        """Read the headers of both and check them; `rows` is how many a chunk has."""
        self.path = path
        self._scratch = scratch
        names = self._members()
        x, y = _choose(path, names, features, labels)
        self._features, self._labels = self._header(x), self._header(y)
        self.label = y
        self._check()
        self.columns = (*(f"{x}[{j}]" for j in range(self._features.shape[1])), y)
        self.typed = True
        self.row_index: tuple[str, ...] = ()
        others = [name for name in names if name not in (x, y)]
        said = f"the features are the array {x!r}, the labels {y!r}" if None in (features, labels) else ""
        left = f"left out, other arrays of the file: {', '.join(others)}" if others else ""
        self.notes = tuple(note for note in (said, left) if note)
        self._rows = rows or rows_at_a_time(len(self.columns))

    def state(self) -> object:
        """The size and the time of the file, which arrays of it are read, and who named them."""
        known = self.path.stat()
        return [known.st_size, known.st_mtime_ns, self._features.name, self._labels.name, self.notes]

    def chunks(self, columns: Sequence[str], known: Known) -> Iterator[Chunk]:
        """Give the rows; the arrays themselves say the kinds."""
        position = {name: j for j, name in enumerate(self.columns)}
        wanted = [(name, position[name]) for name in columns if name != self.label]
        try:
            with closing(self._blocks(self._features)) as xs, closing(self._blocks(self._labels)) as ys:
                for x, y in zip(xs, ys, strict=True):
                    features = np.ascontiguousarray(x.T, np.float64)
                    chunk: dict[str, Cells] = {name: Numbers(features[j]) for name, j in wanted}
                    yield chunk | {self.label: _labels(y)}
        except DAMAGED as error:
            raise self._unreadable(error) from None

    def _members(self) -> list[str]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        except DAMAGED as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> StudyError:
        return StudyError(f"{self.path} cannot be read as an .npz file: {' '.join(str(error).split())}")

    def _header(self, name: str) -> Header:
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as stream:
                return _read_header(name, stream)
        except DAMAGED as error:
            raise self._unreadable(error) from None

    def _check(self) -> None:
        x, y = self._features, self._labels
        for array in (x, y):
            if array.dtype.hasobject:
                raise StudyError(
                    f"{self.path}: array {array.name!r} holds pickled Python objects, which are not loaded; "
                    "expected numbers (labels: or text) of one dtype"
                )
        if x.dtype.kind not in "biuf":
            raise StudyError(f"{self.path}: the features {x.name!r} must be numbers, got {x.dtype}")
        if y.dtype.kind not in "biufUS":
            raise StudyError(
                f"{self.path}: the labels {y.name!r} must be integers, text or truth, got {y.dtype}"
            )
        for array, rank, words in ((x, 2, "[rows, features]"), (y, 1, "[rows]")):
            if len(array.shape) != rank:
                raise StudyError(
                    f"{self.path}: expected {array.name!r} of shape {words}, got {list(array.shape)}"
                )
        if x.shape[0] != y.shape[0]:
            raise StudyError(
                f"{self.path}: expected as many labels as rows of features, got {y.shape[0]} in {y.name!r} "
                f"and {x.shape[0]} in {x.name!r}"
            )

    def _blocks(self, array: Header) -> Generator[np.ndarray, None, None]:
        """The rows of an array, some at a time."""
        if array.fortran_order and len(array.shape) == 2:
            yield from self._transposed_blocks(array)
            return
        width = int(np.prod(array.shape[1:], dtype=np.int64))
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{array.name}.npy") as stream:
            _read_header(array.name, stream)
            for first in range(0, array.shape[0], self._rows):
                rows = min(self._rows, array.shape[0] - first)
                data = stream.read(rows * width * array.dtype.itemsize)
                yield np.frombuffer(data, array.dtype).reshape(rows, *array.shape[1:])

    def _transposed_blocks(self, array: Header) -> Generator[np.ndarray, None, None]:
        """The rows of an array that lies column by column, from a copy on disk: archives cannot seek."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder, zipfile.ZipFile(self.path) as archive:
            whole = np.load(archive.extract(f"{array.name}.npy", folder), mmap_mode="r")
            for first in range(0, array.shape[0], self._rows):
                yield np.array(whole[first : first + self._rows])
            del whole  # before its file


def _read_header(name: str, stream) -> Header:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    else:
        shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(stream)
    return Header(name, shape, dtype, fortran_order)


def _choose(path: Path, names: Sequence[str], features: str | None, labels: str | None) -> tuple[str, str]:
    """The names of the two arrays, as asked or by custom."""
    has = f"it has: {', '.join(names) or 'none'}"
    for name in (features, labels):
        if name is not None and name not in names:
            raise StudyError(f"{path} has no array {name!r}; {has}")
    for x, y in PAIRS:
        x, y = features or x, labels or y
        if x in names and y in names and x != y:
            return x, y
    if features is not None and features == labels:
        raise StudyError(f"{path}: array {features!r} cannot be both the features and the labels")
    pairs = ", ".join(f"{x} and {y}" for x, y in PAIRS)
    raise StudyError(f"{path} has none of the usual pairs of arrays ({pairs}); {has}; name them")


def _labels(values: np.ndarray) -> Cells:
    if values.dtype.kind == "b":
        return Words(values.astype(np.int64), ["False", "True"], TRUTH)
    if values.dtype.kind in "US":
        levels, codes = np.unique(values, return_inverse=True)
        return Words(
            codes, [level.decode() if isinstance(level, bytes) else level for level in levels.tolist()], TEXT
        )
    return Numbers(values.astype(np.float64))
