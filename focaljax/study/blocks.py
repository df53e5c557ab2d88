"""Reading: rows come in blocks of one fixed size, so that one compiled program takes any number of them.

A problem that fits into one block is that block, in every epoch. A longer one is cut into chunks of
neighbouring rows; each epoch deals the chunks to blocks anew. So a block mixes rows from all over the
file, while the file is read in long pieces. With each block comes which of its rows each run takes, in
minibatches: to train on, shuffled by seed, epoch and block alone, so that all settings see the same; or to
measure, validation and test rows.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from focaljax.study.data import Problem
from focaljax.study.folds import NOWHERE, Folds, validation_fold

MOST_ROWS = 16_384
MOST_CELLS = 2**24  # 64 MiB
CHUNKS = 64  # per block
SMALL_BATCH, LARGE_BATCH, LARGE = 64, 256, 20_000  # rows of a step, and of the data where that changes
MEASURED = 128  # rows at a time


class Block(NamedTuple):
    """B rows: numbers [B, n], categories [B, k] and labels [B]."""

    numbers: Any
    categories: Any
    labels: Any


class Picks(NamedTuple):
    """Which rows of a block a run takes, [..., steps, batch], and whether they count or fill: 1.0 or 0.0."""

    rows: Any
    counts: Any


@dataclass(frozen=True)
class Reader:
    """Reads the rows of a problem with their folds, at most `most` at a time."""

    problem: Problem
    folds: Folds
    most: int = MOST_ROWS

    @property
    def count(self) -> int:
        """How many blocks an epoch has."""
        columns = self.problem.numbers.shape[1] + self.problem.categories.shape[1]
        most = max(1, min(self.most, MOST_CELLS // columns))
        return -(-self.problem.rows // most)

    @property
    def size(self) -> int:
        """B: what the largest block needs; in a smaller one the last rows are in no fold."""
        if self.count == 1:
            return self.problem.rows
        return CHUNKS * -(-self.problem.rows // (CHUNKS * self.count))

    @property
    def steps(self) -> tuple[int, int]:
        """Steps per block and rows per step: equal batches that leave out fewer rows than there are steps."""
        rows = self.problem.rows // self.count * (self.folds.count - 2) // self.folds.count
        steps = max(1, round(rows / batch_size(self.problem.rows)))
        return steps, max(1, rows // steps)

    @property
    def measuring_steps(self) -> tuple[int, int]:
        """The same for measuring; no row is left out."""
        if self.count == 1:
            most = int(self.folds.class_counts.sum(axis=-1).max())
        else:  # of each class one of K rows, and one more at either end of a stretch of the file
            most = self.size // self.folds.count + 2 * self.problem.classes
        steps = -(-most // MEASURED)
        return steps, -(-most // steps)

    def training(self, epoch: int, start: int = 0) -> Iterator[tuple[Block, Picks]]:
        """The blocks of an epoch from number `start` on, and the picks [S, K, ...] to train on."""
        order = np.arange(CHUNKS * self.count)
        if self.count > 1:
            order = np.random.default_rng(epoch).permutation(order)
        steps, held_out = self.steps, _held_out(self.folds.count)
        for number, chunks in enumerate(order.reshape(self.count, CHUNKS)[start:], start):
            block, folds = self._read(chunks)
            shuffled = [
                np.random.default_rng((s, epoch, number)).permutation(self.size) for s in self.folds.seeds
            ]
            picks = [
                [_pick(rows[~np.isin(of[rows], [*out, NOWHERE])], steps) for out in held_out.T]
                for of, rows in zip(folds.T, shuffled, strict=True)
            ]
            yield block, _stack(picks)

    def measuring(self) -> Iterator[tuple[Block, Picks]]:
        """All blocks in the order of the file, and the picks [2, S, K, ...] to validate and to test on."""
        steps = self.measuring_steps
        for chunks in np.arange(CHUNKS * self.count).reshape(self.count, CHUNKS):
            block, folds = self._read(chunks)
            picks = [
                [[_pick(np.flatnonzero(of == fold), steps) for fold in role] for of in folds.T]
                for role in _held_out(self.folds.count)
            ]
            yield block, _stack(picks)

    def _read(self, chunks: Iterable[int]) -> tuple[Block, np.ndarray]:
        """Return a block and the folds of its rows [B, S]."""
        problem, rows, total = self.problem, self.problem.rows, CHUNKS * self.count
        block = Block(
            np.zeros((self.size, problem.numbers.shape[1]), np.float32),
            np.zeros((self.size, problem.categories.shape[1]), np.int32),
            np.zeros(self.size, np.int32),
        )
        folds = np.full((self.size, len(self.folds.seeds)), NOWHERE, np.uint8)
        end = 0
        for chunk in chunks:
            source = slice(chunk * rows // total, (chunk + 1) * rows // total)
            start, end = end, end + source.stop - source.start
            for target, array in zip((*block, folds), (*_arrays(problem), self.folds.of), strict=True):
                target[start:end] = array[source]
        return block, folds


def batch_size(rows: int) -> int:
    """Return about how many rows a step takes, of so many in the data."""
    return SMALL_BATCH if rows < LARGE else LARGE_BATCH


def epochs_for(rows: int, folds: int, steps: int) -> int:
    """Return how many epochs make about `steps` optimiser steps; at least 3."""
    return max(3, round(steps * batch_size(rows) * folds / (rows * (folds - 2))))


def _arrays(problem: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return problem.numbers, problem.categories, problem.labels


def _held_out(count: int) -> np.ndarray:
    """Return [2, K], the validation and the test fold of each run."""
    runs = np.arange(count)
    return np.stack([validation_fold(runs, count), runs])


def _pick(rows: np.ndarray, shape: tuple[int, int]) -> Picks:
    """Return the first of these rows in minibatches, and row 0 without weight where there are too few."""
    size = shape[0] * shape[1]
    filled = np.zeros(size, np.int32)
    filled[: len(rows)] = rows[:size]
    return Picks(filled.reshape(shape), (np.arange(size) < len(rows)).astype(np.float32).reshape(shape))


def _stack(picks: list) -> Picks:
    """Return nested lists of picks as one."""
    if isinstance(picks, Picks):
        return picks
    return Picks(*(np.stack(parts) for parts in zip(*map(_stack, picks), strict=True)))
