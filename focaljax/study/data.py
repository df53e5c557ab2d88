"""The problem: rows of numbers and categories, one label each, as arrays or as memory-mapped files."""

from dataclasses import dataclass

import numpy as np

MOST_PER_DIGIT = 174  # the rarest digit of scikit-learn's has that many
LEAST_PER_DIGIT = 10


@dataclass(frozen=True)
class Problem:
    """A classification problem of N rows, n columns of numbers and k columns of categories.

    Attributes:
      numbers: [N, n] float32, an array or a memmap; NaN is a missing cell. Centred and scaled in float64
        over all rows, so that float32 keeps the digits that differ.
      categories: [N, k] int32, an array or a memmap; code 0 is a missing cell or a rare level, 1 and up
        are the levels.
      labels: [N] int32, from 0 to C - 1; every class has rows.
      number_names: n names.
      category_names: k names.
      levels: k tuples of names; code i of column j is levels[j][i], entry 0 the missing-or-rare one.
      class_names: C names, in the order of the labels.
      description: one sentence about where the rows come from, without its full stop.
      notes: sentences the user should read (columns dropped, cells missing), without their full stop.
    """

    numbers: np.ndarray
    categories: np.ndarray
    labels: np.ndarray
    number_names: tuple[str, ...]
    category_names: tuple[str, ...]
    levels: tuple[tuple[str, ...], ...]
    class_names: tuple[str, ...]
    description: str
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """N."""
        return len(self.labels)

    @property
    def classes(self) -> int:
        """C."""
        return len(self.class_names)


def rarest(counts: np.ndarray) -> np.ndarray:
    """Return the rarest third of the classes, at least one: indices, rarest last."""
    order = np.argsort(-counts, kind="stable")
    return order[-max(1, len(order) // 3) :]


def long_tailed_digits() -> Problem:
    """Return scikit-learn's 8 x 8 digits with a geometric tail: many zeros, hardly any nines."""
    from sklearn.datasets import load_digits

    pixels, labels = map(np.asarray, load_digits(return_X_y=True))
    counts = np.rint(np.geomspace(MOST_PER_DIGIT, LEAST_PER_DIGIT, 10)).astype(int)
    rows = np.sort(np.concatenate([np.flatnonzero(labels == k)[:n] for k, n in enumerate(counts)]))
    pixels = pixels[rows].astype(np.float64)
    scale = np.where(pixels.std(axis=0) > 0, pixels.std(axis=0), 1.0)
    return Problem(
        numbers=((pixels - pixels.mean(axis=0)) / scale).astype(np.float32),
        categories=np.zeros((len(rows), 0), np.int32),
        labels=labels[rows].astype(np.int32),
        number_names=tuple(f"pixel {i // 8},{i % 8}" for i in range(64)),
        category_names=(),
        levels=(),
        class_names=tuple("0123456789"),
        description=(
            f"scikit-learn's digits, made long-tailed: {len(rows)} rows, from {counts[0]} of digit 0 "
            f"down to {counts[-1]} of digit 9"
        ),
    )
