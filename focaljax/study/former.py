"""The problem and its splits: rows, labels and, for each seed, who trains and who is held out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TEST_PER_DIGIT = 60
MOST_PER_DIGIT = 110
IMBALANCE = 50.0


@dataclass(frozen=True)
class Problem:
    """A classification problem, and how many rows of each class train and are held out.

    Attributes:
      features: [N, F] float32.
      labels: [N] int32, from 0 to C - 1.
      class_names: C names, in the order of the labels.
      numeric: [F] bool, the features to standardise (the others are one-hot columns).
      train_counts: [C] rows of each class to train on.
      test_counts: [C] rows of each class to hold out.
      description: one sentence about where the rows come from.
      notes: sentences the user should read (columns dropped, rows left out).
    """

    features: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    numeric: np.ndarray
    train_counts: np.ndarray
    test_counts: np.ndarray
    description: str
    notes: tuple[str, ...] = ()

    @property
    def rare(self) -> np.ndarray:
        """The rarest third of the classes, at least one: indices, rarest last."""
        order = np.argsort(-self.train_counts, kind="stable")
        return order[-max(1, len(order) // 3) :]


@dataclass(frozen=True)
class Splits:
    """One split per seed (S seeds); the same for every setting, so that differences are paired.

    Attributes:
      seeds: [S] int.
      train: [S, n_train] int32, rows of the problem.
      test: [S, n_test] int32, rows of the problem.
      mean: [S, F] float32, of the training rows (0 for one-hot columns).
      scale: [S, F] float32, 1 / standard deviation of the training rows (1 for one-hot columns).
    """

    seeds: np.ndarray
    train: np.ndarray
    test: np.ndarray
    mean: np.ndarray
    scale: np.ndarray


def long_tailed_digits() -> Problem:
    """Return scikit-learn's 8 x 8 digits with a geometric tail: many zeros, hardly any nines."""
    from sklearn.datasets import load_digits

    features, labels = load_digits(return_X_y=True)
    tail = MOST_PER_DIGIT * IMBALANCE ** (-np.arange(10) / 9)
    train_counts = np.rint(tail).astype(np.int64)
    return Problem(
        features=np.asarray(features, np.float32),
        labels=np.asarray(labels, np.int32),
        class_names=tuple("0123456789"),
        numeric=np.ones(features.shape[1], bool),
        train_counts=train_counts,
        test_counts=np.full(10, TEST_PER_DIGIT),
        description=(
            "scikit-learn's digits, made long-tailed: training rows per digit fall from "
            f"{train_counts[0]} (digit 0) to {train_counts[-1]} (digit 9); held-out rows: "
            f"{TEST_PER_DIGIT} per digit, balanced"
        ),
    )


def split(problem: Problem, seeds: Sequence[int]) -> Splits:
    """Draw one stratified split per seed and the training statistics that standardise it."""
    drawn = [_draw(problem, seed) for seed in seeds]
    statistics = [_statistics(problem, train) for train, _ in drawn]
    return Splits(
        seeds=np.asarray(seeds),
        train=np.stack([train for train, _ in drawn]),
        test=np.stack([test for _, test in drawn]),
        mean=np.stack([mean for mean, _ in statistics]),
        scale=np.stack([scale for _, scale in statistics]),
    )


def _draw(problem: Problem, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    train, test = [], []
    for k, (n_train, n_test) in enumerate(zip(problem.train_counts, problem.test_counts, strict=True)):
        rows = rng.permutation(np.flatnonzero(problem.labels == k)).astype(np.int32)
        test.append(rows[:n_test])
        train.append(rows[n_test : n_test + n_train])
    return np.concatenate(train), np.concatenate(test)


def _statistics(problem: Problem, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = problem.features[train].astype(np.float64)
    mean = np.where(problem.numeric, rows.mean(axis=0), 0.0)
    deviation = rows.std(axis=0)
    # A feature that is constant in this split's training rows says nothing: leave its scale alone.
    usable = problem.numeric & (deviation > 1e-6)
    scale = np.where(usable, 1.0 / np.where(usable, deviation, 1.0), 1.0)
    return mean.astype(np.float32), scale.astype(np.float32)
