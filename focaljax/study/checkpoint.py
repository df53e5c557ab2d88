"""An unfinished study on disk: its options, and how far it has come, so that it can go on.

It lies in a folder beside the report, with what the reading of the data left there. The state is one
NumPy file that is replaced in one go: an interruption at any time leaves the one before it. A stop that
is asked for (Ctrl-C, SIGTERM) waits for the end of a block and saves it.
"""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from focaljax.study.errors import StudyError
from focaljax.study.train import Progress

EVERY = 30.0  # seconds


class Unfinished:
    """The folder of one unfinished study."""

    def __init__(self, out: Path) -> None:
        """Name the folder that belongs to the report `out`; nothing is made yet."""
        self.folder = out.absolute().parent / f".{out.absolute().name}.unfinished"
        self._options, self._state = self.folder / "options.json", self.folder / "state.npz"
        self._saved = time.monotonic()

    @property
    def saved(self) -> bool:
        """Whether there is something to go on with."""
        return self._state.is_file()

    def begin(self, options: dict[str, Any], resume: bool, overwrite: bool) -> None:
        """Make the folder, or find in it what was begun with the same options.

        Raises:
          StudyError: There is nothing to resume, it has other options, or it would be lost.
        """
        if not resume:
            if self.saved and not overwrite:
                raise StudyError(
                    f"an unfinished run is in {self.folder}: go on with the same command and --resume, or "
                    "start anew with --overwrite"
                )
            self.discard()
            try:
                self.folder.mkdir(parents=True)
                self._options.write_text(json.dumps(options, indent=1), encoding="utf-8")
            except OSError as error:
                raise StudyError(f"{self.folder} cannot be written: {error}") from None
            return
        if not self.saved:
            raise StudyError(f"there is nothing to resume: {self.folder} has no unfinished run")
        begun, now = json.loads(self._options.read_text(encoding="utf-8")), json.loads(json.dumps(options))
        differing = [name for name in {**begun, **now} if begun.get(name) != now.get(name)]
        if differing:
            said = "; ".join(f"{n} was {begun.get(n)!r}, is {now.get(n)!r}" for n in differing)
            raise StudyError(f"--resume needs what the run was begun with: {said}")

    def save(self, progress: Progress) -> None:
        """Write how far the runs have come, in one go."""
        leaves = map(np.asarray, jax.tree.leaves(progress))
        partial = self._state.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez(file, *leaves)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self._state)
        self._saved = time.monotonic()

    def save_if_due(self, progress: Progress) -> None:
        """Save if that was long ago."""
        if time.monotonic() - self._saved >= EVERY:
            self.save(progress)

    def load(self, like: Progress) -> Progress:
        """Return what was saved, in the structure of a study that has not begun."""
        try:
            with np.load(self._state) as file:
                leaves = [file[name] for name in file.files]
            loaded: Progress = jax.tree.unflatten(jax.tree.structure(like), leaves)
        except (OSError, ValueError) as error:
            raise StudyError(f"{self._state} cannot be read: {error}") from None
        return loaded._replace(epoch=int(loaded.epoch), block=int(loaded.block))

    def discard(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Stop:
    """Whether somebody asked to stop."""

    asked = False


@contextmanager
def stopping() -> Iterator[Stop]:
    """While inside, let Ctrl-C and SIGTERM set a mark instead of cutting a step in two; a second one cuts."""
    stop, before = Stop(), {}

    def mark(number: int, frame: object) -> None:
        stop.asked = True
        signal.signal(number, before[signal.Signals(number)])

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, mark) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
