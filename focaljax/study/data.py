"""The problem: rows of numbers and categories, one label each, as arrays or as memory-mapped files."""

from dataclasses import dataclass

import numpy as np


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
