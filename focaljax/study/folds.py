"""Who trains, who says when to stop, who is held out: stratified folds of every seed.

With K folds a seed makes K runs of every setting. Run k holds fold k out for testing, fold k + 1 (the
first after the last) for validation, and trains on the K - 2 others. Folds are dealt while the rows
are read once in order: of each class every K rows that follow each other go to K different folds, in
random order. So the folds are stratified to one row per class, in any stretch of the file to two, and
nothing of the size of the data is held in memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from focaljax.study.data import Problem
from focaljax.study.errors import StudyError

LEAST, USUAL = 3, 5
STRETCH = 16_384  # rows read at a time; numbers depend on it, so it is no option
NOWHERE = 255  # the fold of rows that only fill a block


@dataclass(frozen=True)
class Folds:
    """The folds of S seeds, and what the training rows of each run look like.

    Attributes:
      seeds: S numbers.
      count: K.
      of: [N, S] uint8, an array or a memmap: the fold of each row.
      class_counts: [S, K, C] rows of each class in each fold.
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
    def train_counts(self) -> np.ndarray:
        """Return [S, K, C], how many rows of each class run k trains on."""
        return np.einsum("kf,sfc->skc", _trains(self.count), self.class_counts)

    @property
    def test_share(self) -> float:
        """Return held-out rows per training row, which says how much the training sets overlap."""
        return 1 / (self.count - 2)


def validation_fold(test: Any, count: int) -> Any:
    """Return the fold that says when to stop, for the fold that is held out."""
    return (test + 1) % count


def choose_count(problem: Problem, asked: int | None) -> tuple[int, str | None]:
    """Return K and, if the rarest class forces fewer folds than usual, a sentence that says so."""
    counts = _class_counts(problem)
    rarest, name = int(counts.min()), problem.class_names[counts.argmin()]
    if rarest < (asked or LEAST):
        raise StudyError(
            f"class {name!r} has {rarest} row{'s' * (rarest != 1)}; with {asked or LEAST} folds each class "
            f"needs {asked or LEAST}: one to train on, one to stop by and one to hold out, at least"
        )
    if asked or rarest >= USUAL:
        return asked or USUAL, None
    return rarest, f"{rarest} folds instead of {USUAL}, since class {name!r} has {rarest} rows"


def deal(problem: Problem, seeds: Sequence[int], count: int, scratch: Path | None = None) -> Folds:
    """Deal every row to one of `count` folds for each seed; in a file of `scratch`, if it is given."""
    shape = (problem.rows, len(seeds))
    if scratch is None:
        of = np.empty(shape, np.uint8)
    else:
        of = np.lib.format.open_memmap(scratch / "folds.npy", "w+", np.uint8, shape)
    dealers = [_Dealer(seed, count, problem.classes) for seed in seeds]
    n, c = problem.numbers.shape[1], problem.classes
    class_counts = np.zeros((len(seeds), count, c), np.int64)
    sums = np.zeros((3, len(seeds), count, n))  # of 1, x and x^2 over the cells that are not missing
    missing = np.zeros(n, bool)
    for rows in stretches(problem.rows):
        labels, numbers = np.asarray(problem.labels[rows]), problem.numbers[rows].astype(np.float64)
        here = ~np.isnan(numbers)
        missing |= ~here.all(axis=0)
        numbers = np.where(here, numbers, 0.0)
        for s, dealer in enumerate(dealers):
            of[rows, s] = dealt = dealer.deal(labels)
            member = dealt[None, :] == np.arange(count)[:, None]
            np.add.at(class_counts[s], (dealt, labels), 1)
            for total, term in zip(sums[:, s], (here, numbers, numbers**2), strict=True):
                total += member.astype(np.float64) @ term
    # Only training folds are summed, rather than the others subtracted: held-out rows leave no trace.
    filled, first, second = np.einsum("kf,msfn->mskn", _trains(count).astype(np.float64), sums)
    mean = first / np.maximum(filled, 1)
    deviation = np.sqrt(np.maximum(second / np.maximum(filled, 1) - mean**2, 0.0))
    scale = np.where(deviation > 1e-6, 1 / np.where(deviation > 1e-6, deviation, 1.0), 1.0)
    return Folds(
        seeds=tuple(seeds),
        count=count,
        of=of,
        class_counts=class_counts,
        mean=mean.astype(np.float32),
        scale=scale.astype(np.float32),
        missing=tuple(np.flatnonzero(missing).tolist()),
    )


def stretches(rows: int) -> Iterator[slice]:
    """Cut rows into slices that can be read one after the other."""
    return (slice(start, min(start + STRETCH, rows)) for start in range(0, rows, STRETCH))


class _Dealer:
    """Deals the rows of one seed: to each class one permutation of the folds after the other."""

    def __init__(self, seed: int, count: int, classes: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.folds = np.arange(count, dtype=np.uint8)
        self.left = [self.folds[:0]] * classes  # what is left of each class's last permutation

    def deal(self, labels: np.ndarray) -> np.ndarray:
        dealt = np.empty(len(labels), np.uint8)
        for k, left in enumerate(self.left):
            mine = np.flatnonzero(labels == k)
            needed = max(0, -(-(len(mine) - len(left)) // len(self.folds)))
            fresh = self.rng.permuted(np.tile(self.folds, (needed, 1)), axis=1).ravel()
            cards = np.concatenate([left, fresh])
            dealt[mine], self.left[k] = cards[: len(mine)], cards[len(mine) :]
        return dealt


def _trains(count: int) -> np.ndarray:
    """Return [K, K], 1 where run k trains on fold f."""
    runs = np.arange(count)
    held_out = np.stack([runs, validation_fold(runs, count)])
    return np.all(held_out[:, :, None] != runs, axis=0).astype(np.int64)


def _class_counts(problem: Problem) -> np.ndarray:
    counts = np.zeros(problem.classes, np.int64)
    for rows in stretches(problem.rows):
        counts += np.bincount(problem.labels[rows], minlength=problem.classes)
    return counts
