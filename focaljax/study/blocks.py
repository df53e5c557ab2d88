"""Reading: rows come in blocks of one fixed size, so that one compiled program takes any number of them.

A problem that fits into one block is that block, in every epoch. A longer one is cut into chunks of
neighbouring rows; each epoch deals the chunks to blocks anew. So a block mixes rows from all over the
file, while the file is read in long pieces. The program shuffles the rows inside a block.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from focaljax.study.data import Problem
from focaljax.study.folds import NOWHERE, Folds

MOST_ROWS = 16_384
MOST_CELLS = 2**24  # 64 MiB
CHUNKS = 64  # per block


class Block(NamedTuple):
    """B rows: numbers [B, n], categories [B, k], labels [B] and the fold of each row per seed, [S, B]."""

    numbers: Any
    categories: Any
    labels: Any
    folds: Any


@dataclass(frozen=True)
class Reader:
    """Reads the rows of a problem with their folds in `count` blocks of `size` rows."""

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

    def shuffled(self, epoch: int, start: int = 0) -> Iterator[Block]:
        """The blocks of one epoch from number `start` on; which rows meet changes with the epoch."""
        order = np.arange(CHUNKS * self.count)
        if self.count > 1:
            order = np.random.default_rng(epoch).permutation(order)
        for chunks in order.reshape(self.count, CHUNKS)[start:]:
            yield self._read(chunks)

    def in_order(self) -> Iterator[Block]:
        """All rows, in the order of the file."""
        for chunks in np.arange(CHUNKS * self.count).reshape(self.count, CHUNKS):
            yield self._read(chunks)

    def most_in_fold(self) -> int:
        """Return how many rows of one fold a block in the order of the file can have, at most."""
        if self.count == 1:
            return int(self.folds.class_counts.sum(axis=-1).max())
        # Of each class one of K rows, and one more at either end of the stretch.
        return min(self.size, self.size // self.folds.count + 2 * self.problem.classes)

    def _read(self, chunks: Iterable[int]) -> Block:
        problem, rows, total = self.problem, self.problem.rows, CHUNKS * self.count
        block = Block(
            np.zeros((self.size, problem.numbers.shape[1]), np.float32),
            np.zeros((self.size, problem.categories.shape[1]), np.int32),
            np.zeros(self.size, np.int32),
            np.full((len(self.folds.seeds), self.size), NOWHERE, np.uint8),
        )
        end = 0
        for chunk in chunks:
            source = slice(chunk * rows // total, (chunk + 1) * rows // total)
            start, end = end, end + source.stop - source.start
            block.numbers[start:end] = problem.numbers[source]
            block.categories[start:end] = problem.categories[source]
            block.labels[start:end] = problem.labels[source]
            block.folds[:, start:end] = self.folds.of[source].T
        return block
