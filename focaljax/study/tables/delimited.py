"""Comma-separated values: chunks of rows as pandas reads them, and all that can be wrong with such a file."""

import csv
import itertools
import lzma
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from pandas.io.common import get_handle

from focaljax.study.errors import StudyError
from focaljax.study.tables.cells import DATE, NUMBER, TEXT, Chunk, Known, Unread, of_series, rows_at_a_time

ENCODING = "utf-8-sig"  # UTF-8, with Excel's mark at the start or without
TYPES = {NUMBER: "float64", TEXT: "str", DATE: "str"}  # truth values are found as such in any chunk
PROBE = 2**16  # characters that tell how long a row is
LONGEST_CELL = 2**31 - 1
CHARACTERS_AT_A_TIME = 2**24
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError, ImportError)


class Delimited:
    """A CSV file, compressed or not: UTF-8, commas, a header, quotes where a cell has commas or lines."""

    def __init__(self, path: Path, rows: int | None = None) -> None:
        """Read the header and check it; `rows` is how many a chunk has."""
        self.path = path
        self.typed = False
        self.notes: tuple[str, ...] = ()
        with self._errors(), self._text() as file:
            header = next(_lines(file), None)
            probe = file.read(PROBE)
        if header is None:
            raise StudyError(f"{path} is empty; expected a header and rows")
        self.columns = tuple(name or _unnamed(j, header) for j, name in enumerate(header))
        self.row_index = tuple(name for name in self.columns if name.startswith("Unnamed: "))
        twice = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if twice:
            raise StudyError(f"{path} has more than one column {twice[0]!r}; expected each name once")
        a_row = max(1, len(probe) // max(1, probe.count("\n")))
        self._rows = rows or max(1, min(rows_at_a_time(len(header)), CHARACTERS_AT_A_TIME // a_row))

    def state(self) -> object:
        """The size and the time of the file."""
        known = self.path.stat()
        return [known.st_size, known.st_mtime_ns]

    def chunks(self, columns: Sequence[str], known: Known) -> Iterator[Chunk]:
        """Give the rows; the first time, while no kinds are known, look for rows that are too short too."""
        checked = bool(known.kinds)
        for frame in self._frames(list(columns) if checked else None, known):
            read = {str(name): column for name, column in frame.items()}
            if not checked and read[self.columns[-1]].hasnans:
                self._check_lengths()
                checked = True
            yield Unread(columns, lambda name, read=read: of_series(read[name], known.kinds.get(name)))

    def _frames(self, columns: list[str] | None, known: Known) -> Iterator[pd.DataFrame]:
        read = self.columns if columns is None else columns
        kinds = {name: known.kinds[name] for name in read if known.kinds.get(name) in TYPES}
        with self._errors():
            reader = pd.read_csv(
                self.path,
                header=0,
                names=list(self.columns),
                usecols=columns,
                dtype={name: TYPES[kind] for name, kind in kinds.items()},
                na_values={name: list(marks) for name, marks in known.missing.items() if name in read},
                index_col=False,
                encoding=ENCODING,
                low_memory=False,
                chunksize=self._rows,
            )
        # pandas parses the next chunk while this one is looked at: it lets go of the interpreter's lock.
        with reader, ThreadPoolExecutor(1) as ahead:
            with self._errors():
                frame = next(reader, None)
            while frame is not None:
                following = ahead.submit(next, reader, None)
                yield frame
                with self._errors():
                    frame = following.result()

    def _check_lengths(self) -> None:
        """Refuse a row with fewer cells than the header: pandas would call the cells at its end missing."""
        with self._errors(), self._text() as file:
            for row, cells in enumerate(itertools.islice(_lines(file), 1, None), 1):
                if len(cells) < len(self.columns):
                    raise StudyError(
                        f"{self.path}: data row {row} has {len(cells)} cells; expected {len(self.columns)}, "
                        "as the header has"
                    )

    @contextmanager
    def _text(self) -> Iterator:
        """The text, for Python's csv: without its limit on the length of a cell, which pandas has not."""
        limit = csv.field_size_limit(LONGEST_CELL)
        try:
            with get_handle(self.path, "r", encoding=ENCODING, compression="infer") as handles:
                yield handles.handle
        finally:
            csv.field_size_limit(limit)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Tell what pandas, the decoders and the disk have to say as what is wrong with the file."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)
                yield
        except UnicodeDecodeError as error:
            raise StudyError(
                f"{self.path} is not UTF-8 text: {error.reason}, byte {error.object[error.start]:#04x}; "
                "save it as UTF-8"
            ) from None
        except pd.errors.ParserWarning:
            raise StudyError(
                f"{self.path} has rows with more cells than the header, which has {len(self.columns)}"
            ) from None
        except (*DAMAGED, ValueError, csv.Error) as error:
            reason = " ".join(str(error).split())
            raise StudyError(f"{self.path} cannot be read as comma-separated values: {reason}") from None


def _lines(file: Iterable[str]) -> Iterator[list[str]]:
    """The header and the rows, without the blank lines that pandas skips."""
    return (cells for cells in csv.reader(file) if len(cells) > 1 or "".join(cells).strip())


def _unnamed(position: int, header: Sequence[str]) -> str:
    """What pandas calls a column without a name."""
    name = f"Unnamed: {position}"
    return f"{name}.1" if name in header else name
