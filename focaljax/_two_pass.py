"""The row statistics where a reduction takes one operand: a pass for the maximum and one for the sum.

XLA:CPU runs reductions of several operands scalar, so this is its form of what :mod:`focaljax._statistics`
reads in one pass. It is shaped by what that compiler does well, as measured with JAX 0.10.2.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from focaljax import _mesh
from focaljax._entries import is_class, is_known, shifted_exp

BLOCK = 2**20  # entries: 4 MB of float32, what the second-level caches of two cores hold
FEW = 256  # classes: fewer are masked one by one
LONG = 2**15  # classes: of longer rows it stores what it exponentiates, at eight times the time


def rivals(logits: jax.Array, labels: jax.Array, *, axis: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``(top, rest, target)`` of some of the classes; 0 for a target that is not among them."""
    target, width = _at(labels, logits, axis), _width(logits, axis)
    if width is None:
        top, rest = _in_blocks(partial(_others_by_mask, axis=axis), axis, logits, labels)
    else:
        top, rest = _others_by_runs(logits, labels, target, width)
    return top, rest, target


def _others_by_mask(logits, labels, axis):
    """``(top, rest)``, a mask of all classes before either."""
    others = jnp.where(is_class(labels, logits.shape, axis), -jnp.inf, logits)
    top = jnp.max(others, axis)
    return top, jnp.sum(jnp.exp(others - jnp.expand_dims(_or_zero(top), axis)), axis)


def _others_by_runs(logits, labels, target, width):
    """The same over the last axis, where only one run of `width` classes of each row needs a mask.

    The sum is over all classes, clamped at `top`: so the target adds at most 1 to a rest of at least 1, and
    to take it back cancels nothing.
    """
    *rows, classes = logits.shape
    runs = logits.reshape(*rows, classes // width, width)
    run = labels // width
    own = jnp.take_along_axis(runs, run[..., None, None], -2, mode="clip").squeeze(-2)
    others = (_highest_but(run, jnp.max(runs, -1)), _highest_but(labels - run * width, own))
    top = jnp.maximum(*others)
    shift = _or_zero(top)
    if classes > LONG:  # run by run, as rows of their own
        shifts = jnp.broadcast_to(shift[..., None], runs.shape[:-1]).reshape(-1, 1)
        totals = jnp.sum(_clamped_exp(runs.reshape(-1, width), shifts), -1)
        total = jnp.sum(totals.reshape(runs.shape[:-1]), -1)
    else:
        total = jnp.sum(_clamped_exp(logits, shift[..., None]), -1)
    taken = jnp.where(_is_here(labels, logits, -1), _clamped_exp(target, shift), 0)
    return top, jnp.where(top == -jnp.inf, 0, jnp.maximum(total - taken, 1))


def _highest_but(index, x):
    """The maximum over the last axis of x without one entry; with it if the index is none."""
    return jnp.max(jnp.where(is_class(index, x.shape, x.ndim - 1), -jnp.inf, x), -1)


def _clamped_exp(x, top):
    return jnp.exp(jnp.minimum(x, top) - top)


def _or_zero(top):
    return jnp.where(top == -jnp.inf, 0, top)


def _width(logits, axis):
    """How many classes make a run, about as many as there are runs. None where runs do not pay."""
    classes = logits.shape[axis]
    usable = axis == logits.ndim - 1 and is_known((classes,)) and _mesh.is_whole(logits)
    if not usable or classes < FEW:
        return None
    runs = max(n for n in range(1, math.isqrt(classes) + 1) if classes % n == 0)
    return classes // runs if runs >= 8 else None  # the classes of a vocabulary may be a prime number


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
