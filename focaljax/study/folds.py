"""Who trains, who says when to stop, who is held out: scikit-learn's stratified folds of every seed.

With K folds a seed makes K runs of every setting. Run k holds fold k out for testing, fold k + 1 (the
first after the last) for validation, and trains on the K - 2 others.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from sklearn.model_selection import StratifiedKFold

from focaljax.study.data import Problem
from focaljax.study.errors import StudyError

LEAST, USUAL = 3, 5
SMALL_BATCH, LARGE_BATCH, LARGE = 64, 256, 20_000  # rows of a step, and of the data where that changes
PART = 200  # steps at a time: a progress bar moves
MEASURED = 256  # rows at a time


class Picks(NamedTuple):
    """Which rows are taken, [..., steps, batch], and whether they count or fill: 1.0 or 0.0."""

    rows: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Folds:
    """The folds of S seeds, and what the training rows of each run look like.

    Attributes:
      seeds: S numbers.
      count: K.
      of: [S, N] uint16, the fold of each row.
      class_counts: [S, K, C] rows of each class that run k trains on.
      mean: [S, K, n] float32, over the training rows of run k, missing cells left out.
      scale: [S, K, n] float32, 1 / standard deviation of the same; 1 where they do not differ.
      missing: the columns of numbers that have missing cells, in any row.
    """

    seeds: tuple[int, ...]
    count: int
    of: np.ndarray
    class_counts: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    missing: tuple[int, ...]

    @property
    def steps(self) -> tuple[int, int, int]:
        """Parts of an epoch, steps of a part and rows of a step; few rows are left out."""
        rows = int(self.class_counts.sum(axis=-1).min())
        steps = max(1, round(rows / batch_size(self.of.shape[1])))
        parts = -(-steps // PART)
        steps = steps // parts
        return parts, steps, max(1, rows // (parts * steps))

    def training(self, epoch: int) -> Iterator[np.ndarray]:
        """Give the parts of an epoch: rows [S, K, steps, batch], made by seed and epoch alone."""
        parts, steps, batch = self.steps
        rows = np.empty((len(self.seeds), self.count, parts * steps * batch), np.int32)
        for s, seed in enumerate(self.seeds):
            shuffled = np.random.default_rng((seed, epoch)).permutation(self.of.shape[1])
            of = self.of[s, shuffled]
            for k in range(self.count):
                rows[s, k] = shuffled[_trains(of, k, self.count)][: rows.shape[-1]]
        yield from rows.reshape(*rows.shape[:2], parts, steps, batch).transpose(2, 0, 1, 3, 4)

    def roles(self, s: int, k: int) -> tuple[np.ndarray, ...]:
        """Return the rows that a run trains, validates and tests on."""
        of, last = self.of[s], validation_fold(k, self.count)
        return tuple(np.flatnonzero(mine) for mine in (_trains(of, k, self.count), of == last, of == k))

    def measuring(self) -> Picks:
        """Return all rows to validate and to test on, [2, S, K, ...]."""
        most = max(np.bincount(of).max() for of in self.of)
        steps = -(-most // MEASURED)
        batch = -(-most // steps)
        shape = (2, len(self.seeds), self.count, steps * batch)
        rows, counts = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        for s, k in np.ndindex(shape[1:3]):
            for role, mine in enumerate(self.roles(s, k)[1:]):
                rows[role, s, k, : len(mine)], counts[role, s, k, : len(mine)] = mine, 1.0
        return Picks(*(x.reshape(*shape[:3], steps, batch) for x in (rows, counts)))


def validation_fold(test, count: int):
    """Return the fold that says when to stop, for the fold that is held out."""
    return (test + 1) % count


def choose_count(problem: Problem, asked: int | None) -> tuple[int, list[str]]:
    """Return K and, if the rarest class forces fewer folds than usual, a sentence that says so."""
    counts = problem.class_counts
    rarest, name = int(counts.min()), problem.class_names[counts.argmin()]
    if rarest < (asked or LEAST):
        few = np.flatnonzero(counts < (asked or LEAST))
        more = f", and {len(few) - 1} more classes have too few" if len(few) > 1 else ""
        raise StudyError(
            f"class {name!r} has {rarest} row{'s' * (rarest != 1)}{more}; with {asked or LEAST} folds each "
            f"class needs at least {asked or LEAST} rows, one for every fold; join it with another"
        )
    if asked or rarest >= USUAL:
        return asked or USUAL, []
    return rarest, [f"{rarest} folds instead of {USUAL}, since class {name!r} has {rarest} rows"]


def deal(problem: Problem, seeds: Sequence[int], count: int) -> Folds:
    """Deal every row to one of `count` folds for each seed."""
    of = np.empty((len(seeds), len(problem.labels)), np.uint16)
    shape = (len(seeds), count)
    n = problem.numbers.shape[1]
    class_counts = np.empty((*shape, len(problem.class_names)), np.int64)
    mean, deviation = np.zeros((*shape, n)), np.zeros((*shape, n))
    for s, seed in enumerate(seeds):
        splits = StratifiedKFold(count, shuffle=True, random_state=seed).split(problem.labels, problem.labels)
        for k, (_, test) in enumerate(splits):
            of[s, test] = k
        for k in range(count):
            mine = _trains(of[s], k, count)
            class_counts[s, k] = np.bincount(problem.labels[mine], minlength=class_counts.shape[-1])
            with warnings.catch_warnings():  # a column may be missing in all of these rows
                warnings.filterwarnings("ignore", message="Mean of empty|Degrees of freedom")
                mean[s, k] = np.nanmean(problem.numbers[mine], axis=0, dtype=np.float64)
                deviation[s, k] = np.nanstd(problem.numbers[mine], axis=0, dtype=np.float64)
    differ = deviation > 1e-6  # NaN is not
    return Folds(
        seeds=tuple(seeds),
        count=count,
        of=of,
        class_counts=class_counts,
        mean=np.nan_to_num(mean).astype(np.float32),
        scale=np.where(differ, 1 / np.where(differ, deviation, 1.0), 1.0).astype(np.float32),
        missing=tuple(np.flatnonzero(np.isnan(problem.numbers).any(axis=0)).tolist()),
    )


def batch_size(rows: int) -> int:
    """Return about how many rows a step takes, of so many in the data."""
    return SMALL_BATCH if rows < LARGE else LARGE_BATCH


def epochs_for(rows: int, folds: int, steps: int) -> int:
    """Return how many epochs make about `steps` optimiser steps; at least 3."""
    return max(3, round(steps * batch_size(rows) * folds / (rows * (folds - 2))))


def _trains(of: np.ndarray, run: int, count: int) -> np.ndarray:
    """Return which rows of these folds a run trains on."""
    return (of != run) & (of != validation_fold(run, count))
