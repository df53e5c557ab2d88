"""Blocks of rows, and the row statistics of soft labels, on CPU, where a reduction takes one operand.

XLA:CPU runs reductions of several operands scalar, so this and :mod:`focaljax._softmax.cpu_rivals` are its
form of what :mod:`focaljax._softmax.statistics` reads in one pass. It is shaped by what that compiler does
well, as measured with JAX 0.10.2.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from focaljax import _sharding
from focaljax._entries import is_known
from focaljax._exact import shifted_exp

BLOCK = 2**18  # entries: 1 MB of float32
LINE = 2**7  # the fewest entries of a class in a piece or a block
SHARED = 2**6  # classes: sums of at least so many share stored numbers, 1.1 to 2 of the time of 32 to 4
STORED = 10  # last classes: exponentials of so many are stored, 0.7 to 0.9 of the time of two; of 9 1.7


def in_blocks(reduce: Callable[..., Any], axis: int, logits: jax.Array, *operands: Any) -> Any:
    """``reduce(logits, *operands)`` over some rows at a time.

    Operands and results have the rows of `logits`, with its `axis` or without it, or the same for all rows.

    XLA:CPU stores what it masks before it sums it, and reads far classes as whole lines of the cache; both of
    a block stay there. Where the rows may be sharded a block takes every n-th row, so that every device has
    its part of every block.
    """
    split, count = blocks(logits, axis)
    if count == 1:
        return reduce(logits, *operands)
    apart = _sharding.parts(logits) != 1

    def dim(rank):  # of the rows, in an array with or without `axis`
        return split - (axis < split and rank < logits.ndim)

    def part(x, k):
        at = dim(x.ndim)
        if x.shape[at] == 1:
            return x
        each = x.shape[at] // count
        folded = x.reshape(*x.shape[:at], *((each, count) if apart else (count, each)), *x.shape[at + 1 :])
        return lax.dynamic_index_in_dim(folded, k, at + apart, False)

    def block(k):
        return reduce(*jax.tree.map(lambda x: part(x, k), (logits, *operands)))

    def whole(x):
        at = dim(x.ndim - 1)
        return jnp.moveaxis(x, 0, at + apart).reshape(*x.shape[1 : at + 1], -1, *x.shape[at + 2 :])

    return jax.tree.map(whole, lax.map(block, jnp.arange(count)))


def blocks(logits: jax.Array, axis: int) -> tuple[int, int]:
    """A dimension of rows, and a divisor of it that makes blocks of about `BLOCK` entries.

    The first that gives the most blocks, so that none is made of pieces; `LINE` entries of the last dimension
    stay together. On a mesh a block has a row of each device, or as many of each: else it would be collected.
    """
    spec = jax.typeof(logits).sharding.spec  # of an explicit sharding, which a reshape must not split
    free = [i for i, name in enumerate(spec) if i != axis and name is None]
    if not free or not is_known(logits.shape):
        return axis, 1
    parts = max(1, _sharding.parts(logits))

    def count(i):
        size, line = logits.shape[i], LINE if i == logits.ndim - 1 else 1
        most = min(logits.size // BLOCK, size // line)
        size = size // parts if size % parts == 0 else size
        return max(n for n in range(1, max(1, min(most, size)) + 1) if size % n == 0)

    split = max(free, key=count)
    return split, count(split)


def is_cached(x: jax.Array, axis: int) -> bool:
    """Whether numbers of each entry that several sums share had better be stored, as they stay in the cache.

    Value and gradient of dense labels, [1024, 1000], take 0.8 of the time so. Of few classes XLA:CPU sums
    expressions of an entry faster than stored numbers.
    """
    return _is_small(x) and axis == x.ndim - 1 and x.shape[axis] >= SHARED


def _is_small(x):
    return is_known(x.shape) and x.size <= 2 * BLOCK


def peak(logits: jax.Array, *, axis: int) -> tuple[jax.Array, ...]:
    """``(top, excess)`` of some of the classes."""
    return in_blocks(lambda z: peak_and_powers(z, axis, stored=False)[:2], axis, logits)


def stores_powers(x: jax.Array, axis: int) -> bool:
    """Whether the exponentials of a block are taken once, for a sum and for the terms.

    Taken twice they cost the value of soft labels, [65536, 19] and [16384, 1000], 1.3 times as long, and
    pictures 1.1 times.
    """
    return _is_small(x) and (axis != x.ndim - 1 or x.shape[axis] >= STORED)


def peak_and_powers(logits: jax.Array, axis: int, *, stored: bool = True) -> tuple[jax.Array, ...]:
    """``(top, excess, powers)`` of a block; `powers` are ``exp(z - top)``, or 0 at the highest."""
    top = jnp.max(logits, axis)
    high = jnp.expand_dims(top, axis)
    # `==` and not `<`, as the maximum need not be NaN beside a NaN: XLA:CPU's vectors drop it.
    highest = logits == high
    powers = jnp.where(highest, 0, shifted_exp(logits, high))
    powers = lax.optimization_barrier(powers) if stored else powers
    # What a sum of floats reads is stored first, and of few classes that takes longer than to sum integers.
    counted = logits.dtype if is_cached(logits, axis) else jnp.int32
    ties = jnp.sum(highest, axis, dtype=counted).astype(logits.dtype)
    return top, jnp.sum(powers, axis) + (ties - 1), powers
