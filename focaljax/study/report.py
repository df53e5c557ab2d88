"""The report folder: page, numbers and pictures, complete or not there at all.

All of it is made in memory first, then written into a fresh folder beside the target (or inside it, if it
exists) and moved, so that an error leaves nothing half-written. Overwriting replaces the report's own files
and never deletes another.
"""

import json
import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from focaljax.study import page, pictures
from focaljax.study.errors import StudyError
from focaljax.study.outcome import Outcome

PAGE = "report.html"


def check_folder(folder: Path, overwrite: bool) -> None:
    """Raise now what would otherwise stop the report after the training."""
    if folder.exists() and not folder.is_dir():
        raise StudyError(f"--out {folder} is a file, not a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise StudyError(
            f"the folder {folder} is not empty; choose another with --out, or replace the report "
            "in it with --overwrite"
        )
    parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise StudyError(f"--out {folder} cannot be made: {parent} is not a writable folder")


def save(
    outcome: Outcome, folder: Path, overwrite: bool = False, meanwhile: AbstractContextManager | None = None
) -> Path:
    """Write the report into a new or empty folder, with `meanwhile` held as files appear; return the page."""
    check_folder(folder, overwrite)
    files = make(outcome)
    with meanwhile or nullcontext():
        write(folder, files, overwrite)
    return folder / PAGE


def make(outcome: Outcome) -> dict[str, bytes]:
    """Return the files of the report, by their names."""
    numbers = outcome.numbers()
    # Strict JSON: a number that is not finite is an error here, never a NaN in the file.
    text = json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False)
    return {
        PAGE: page.make(outcome, numbers).encode(),
        "report.json": f"{text}\n".encode(),
        "results.csv": outcome.runs.to_csv(index=False).encode(),
        **pictures.make(outcome),
    }


def write(folder: Path, files: dict[str, bytes], overwrite: bool) -> None:
    """Write files into a fresh folder, then move it to `folder` in one go."""
    check_folder(folder, overwrite)
    name = f".{folder.absolute().name}-{os.getpid()}.partial"
    partial = (folder if folder.is_dir() else folder.absolute().parent) / name
    try:
        partial.mkdir(parents=True)
        for file, content in files.items():
            (partial / file).write_bytes(content)
        if folder.is_dir():
            for file in files:
                os.replace(partial / file, folder / file)
        else:
            partial.rename(folder)
    except OSError as error:
        raise StudyError(f"the report cannot be written: {error}; what it says is above") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
