"""The row statistics on CPU, where a reduction takes one operand.

XLA:CPU runs reductions of several operands scalar, so this is its form of what :mod:`focaljax._statistics`
reads in one pass. It is shaped by what that compiler does well, as measured with JAX 0.10.2.

The competitors are summed without a maximum before: one read too. Only where ``sum exp(z)`` leaves the range
of the floats, as it shows itself, the maximum comes first.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from focaljax import _mesh
from focaljax._entries import any_row, is_class, is_known, shifted_exp

BLOCK = 2**20  # entries: 4 MB of float32, what the second-level caches of two cores hold
MANY = 2**12


def rivals(logits: jax.Array, labels: jax.Array, *, axis: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``(top, rest, target)`` of some of the classes; 0 for a target that is not among them.

    Here `top` need not be the highest competitor: the sum of exp(z - top) is at least 1, that is enough.
    """
    target, by_maximum = _at(labels, logits, axis), partial(_others_by_maximum, axis=axis)
    if not _mesh.is_whole(logits) or _too_many(logits, axis):
        return *_in_blocks(by_maximum, axis, logits, labels), target
    mass = _mass(logits, labels, axis)
    tiny = float(jnp.finfo(mass.dtype).tiny)
    wild = ~((mass > tiny**0.5) & (mass < 1 / tiny))  # the half of the range that loses nothing below a sum
    top, rest = lax.cond(
        any_row(wild),
        lambda *_: _in_blocks(by_maximum, axis, logits, labels),
        lambda *found: found,
        *_scaled(mass, tiny),
    )
    return top, rest, target


def _scaled(mass, tiny):
    """``(top, rest)`` with a whole number as `top`, from which differences are exact: 0 for all sums above 1."""
    top = jnp.floor(jnp.log(jnp.clip(mass, tiny, 1)))
    return top, jnp.maximum(mass * jnp.exp(-top), 1)


def _mass(logits, labels, axis):
    """The sum of exp(z) over all classes but the labelled one."""
    width = _width(logits, axis)
    if width is None:
        return _sum_but(labels, jnp.exp(logits), axis)
    *rows, classes = logits.shape
    # A barrier, as XLA else moves the exponential before the reshape, and stores it.
    runs = lax.optimization_barrier(logits.reshape(-1, width))
    sums = jnp.sum(jnp.exp(runs), -1).reshape(*rows, classes // width)
    run = labels // width
    runs = runs.reshape(*sums.shape, width)
    own = jnp.take_along_axis(runs, run[..., None, None], -2, mode="clip").squeeze(-2)
    return _sum_but(run, sums, -1) + _sum_but(labels - run * width, jnp.exp(own), -1)


def _sum_but(index, x, axis):
    """The sum of a positive x over `axis` without one entry.

    By arithmetic, as XLA:CPU stores what it selects before it sums it: the minimum of x and of a distance that
    is 0 at the index and beyond the range elsewhere.
    """
    step = float(jnp.finfo(x.dtype).tiny) ** -0.5
    entries = lax.broadcasted_iota(
        x.dtype, [n if i == axis % x.ndim else 1 for i, n in enumerate(x.shape)], axis % x.ndim
    )
    away = entries * step - jnp.expand_dims(index.astype(x.dtype) * step, axis)
    return jnp.sum(jnp.minimum(x, away * away), axis)


def _others_by_maximum(logits, labels, axis):
    """``(top, rest)``, a mask of all classes before either."""
    others = jnp.where(is_class(labels, logits.shape, axis), -jnp.inf, logits)
    top = jnp.max(others, axis)
    shift = jnp.where(top == -jnp.inf, 0, top)
    return top, jnp.sum(jnp.exp(others - jnp.expand_dims(shift, axis)), axis)


def _width(logits, axis):
    """How many classes make a run, of which only the label's is read twice. None where runs do not pay."""
    classes = logits.shape[axis]
    if axis != logits.ndim - 1 or classes < MANY:
        return None
    runs = max(n for n in range(1, math.isqrt(classes) // 3 + 1) if classes % n == 0)
    return classes // runs if runs >= 8 else None  # the classes of a vocabulary may be a prime number


def _too_many(logits, axis):
    """Whether the classes have no number of their own in floats, or none at all yet."""
    classes = logits.shape[axis]
    return not is_known((classes,)) or classes > 2 ** jnp.finfo(logits.dtype).nmant


def _in_blocks(reduce, axis, logits, *rows):
    """``reduce(logits, *rows)`` over some rows at a time.

    XLA:CPU stores what it masks before it sums it; of a block that stays in the cache. A block takes every
    n-th row, so where the rows are sharded every device has its part of every block.
    """
    split, count = _blocks(logits, axis)
    if count == 1:
        return reduce(logits, *rows)
    row = split - (axis < split)  # the same dimension without `axis`
    dims = (split, *(row for _ in rows))
    parts = [_folded(x, i, count) for x, i in zip((logits, *rows), dims, strict=True)]

    def block(k):
        return reduce(
            *(lax.dynamic_index_in_dim(x, k, i + 1, False) for x, i in zip(parts, dims, strict=True))
        )

    shape = logits.shape[:axis] + logits.shape[axis + 1 :]
    return tuple(jnp.moveaxis(x, 0, row + 1).reshape(shape) for x in lax.map(block, jnp.arange(count)))


def _blocks(logits, axis):
    """The longest dimension of rows, and a divisor of it that makes blocks of about `BLOCK` entries."""
    spec = jax.typeof(logits).sharding.spec  # of an explicit sharding, which a reshape must not split
    free = [i for i, name in enumerate(spec) if i != axis and name is None]
    if not free or not is_known(logits.shape):
        return axis, 1
    split = max(free, key=lambda i: logits.shape[i])
    most = max(1, min(logits.size // BLOCK, logits.shape[split]))
    return split, max(n for n in range(1, most + 1) if logits.shape[split] % n == 0)


def _folded(x, dim, count):
    return x.reshape(*x.shape[:dim], -1, count, *x.shape[dim + 1 :])


def _at(labels, logits, axis):
    """The logit of each label; 0 where the label is no class."""
    if jax.typeof(logits).sharding.spec[axis] is not None:  # a gather would have to collect the classes
        return jnp.sum(jnp.where(is_class(labels, logits.shape, axis), logits, 0), axis)
    found = jnp.take_along_axis(logits, jnp.expand_dims(labels, axis), axis, mode="clip")
    return jnp.where(_is_here(labels, logits, axis), jnp.squeeze(found, axis), 0)


def _is_here(labels, logits, axis):
    return (labels >= 0) & (labels < logits.shape[axis])


def peak(logits: jax.Array, *, axis: int) -> tuple[jax.Array, ...]:
    """``(top, excess)`` of some of the classes."""

    def of_block(logits):
        top = jnp.max(logits, axis)
        high = jnp.expand_dims(top, axis)
        below = jnp.sum(jnp.where(logits < high, shifted_exp(logits, high), 0), axis)
        ties = jnp.sum((logits == high).astype(logits.dtype), axis)
        return top, below + (ties - 1)

    return _in_blocks(of_block, axis, logits)
