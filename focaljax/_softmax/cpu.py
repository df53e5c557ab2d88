"""The row statistics on CPU, where a reduction takes one operand.

XLA:CPU runs reductions of several operands scalar, so this is its form of what
:mod:`focaljax._softmax.statistics` reads in one pass. It is shaped by what that compiler does well, as
measured with JAX 0.10.2.

The competitors are summed without a maximum before: one read too. Only where ``sum exp(z)`` leaves the range
of the floats, as it shows itself, the maximum comes first.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from focaljax import _sharding
from focaljax._entries import any_row, is_class, is_known
from focaljax._exact import shifted_exp

BLOCK = 2**20  # entries: 4 MB of float32, what the second-level caches of two cores hold
FAR = 2**16  # entries between two classes: then blocks of rows bring them together
APART = 2**10  # entries between two classes: then few classes are an expression, each a loop over the rows
CHAIN = 64  # classes of such an expression: 64 of them compile in 3 s, 150 in 7
PIECE = 2**18  # entries: 1 MB of float32
LINE = 2**7  # the fewest entries of a class in a piece
MANY = 2**12  # classes: of so many only one run is weighed entry by entry


def rivals(logits: jax.Array, labels: jax.Array, *, axis: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``(top, rest, target)`` of some of the classes; 0 for a target that is not among them.

    `top` is the floor of the competitors' log-sum, so `rest` is from 1 to e; in rows whose sum is lost,
    and where the classes lie apart, it is the highest competitor.
    """
    if is_apart(logits, axis):
        return _by_class(logits, labels, axis)
    target = _at(labels, logits, axis)
    if not _sharding.is_whole(logits) or not _is_counted(logits, axis):
        top, rest = _by_maximum(logits, labels, axis)
        return top, rest, target
    total = _sum_of_others(logits, labels, axis)
    tiny = float(jnp.finfo(total.dtype).tiny)
    lost = ~((total > tiny**0.5) & (total < 1 / tiny))  # within, no term below `tiny` would count

    def again(*sums):  # rows do not depend on each other
        found = zip(_by_maximum(logits, labels, axis), sums, strict=True)
        return tuple(jnp.where(lost, new, old) for new, old in found)

    top, rest = lax.cond(any_row(lost), again, lambda *sums: sums, *_normal(jnp.where(lost, 1, total)))
    return top, rest, target


def _normal(total):
    """``(top, rest)``; from a whole number differences are exact, or too large to matter."""
    top = jnp.floor(jnp.log(total))
    return top, jnp.maximum(total * jnp.exp(-top), 1)


def _sum_of_others(logits, labels, axis):
    """The sum of exp(z) over all classes but the labelled one."""
    if is_known(logits.shape) and math.prod(logits.shape[axis + 1 :]) >= FAR:
        return _in_blocks(lambda z, labels: _sum_but(labels, jnp.exp(z), axis), axis, logits, labels)
    width = _width(logits, axis)
    if width is None:
        return _sum_but(labels, jnp.exp(logits), axis)
    *rows, classes = logits.shape
    each = (*rows, classes // width)
    # The barrier keeps XLA from taking the exponentials before the reshape: then it would store them.
    runs = lax.optimization_barrier(logits.reshape(math.prod(each), width))
    sums = jnp.sum(jnp.exp(runs), 1).reshape(each)
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)  # which holds `width`
    run = labels // width
    own = jnp.take_along_axis(runs.reshape(*each, width), run[..., None, None], -2, mode="clip").squeeze(-2)
    last = len(rows)
    own = _sum_but(labels - run * width, jnp.exp(own), last)
    return _sum_but(run, sums, last) + jnp.where(_is_here(labels, logits, last), own, 0)


def _sum_but(index, x, axis):
    """The sum of a positive x over `axis` without one entry, each no more than 1 / tiny.

    By arithmetic, as XLA:CPU stores what it selects before it sums it: an entry is at most the square of its
    distance from the index, which is 0 there and large elsewhere.
    """
    step = float(jnp.finfo(x.dtype).tiny) ** -0.5
    entries = lax.broadcasted_iota(x.dtype, [n if i == axis else 1 for i, n in enumerate(x.shape)], axis)
    away = entries * step - jnp.expand_dims(index.astype(x.dtype) * step, axis)
    return jnp.sum(jnp.minimum(x, away * away), axis)


def _by_maximum(logits, labels, axis):
    """``(top, rest)``, with a mask of all classes before either."""

    def of_block(logits, labels):
        others = jnp.where(is_class(labels, logits.shape, axis), -jnp.inf, logits)
        top = jnp.max(others, axis)
        shift = jnp.where(top == -jnp.inf, 0, top)
        return top, jnp.sum(jnp.exp(others - jnp.expand_dims(shift, axis)), axis)

    return _in_blocks(of_block, axis, logits, labels)


def is_apart(logits: jax.Array, axis: int) -> bool:
    """Whether few classes lie far apart, on one device: the pixels of a picture whose channels come first.

    Then each class is an array of its own, and a loop runs over the rows, as XLA:CPU vectorises it.
    """
    shape = logits.shape
    few = is_known(shape) and logits.size > 0 and shape[axis] <= CHAIN
    return few and _sharding.parts(logits) == 1 and math.prod(shape[axis + 1 :]) >= APART


def _by_class(logits, labels, axis):
    """``(top, rest, target)``, each one expression of all classes.

    It is taken of some rows at a time, as XLA:CPU stores what comes out of a loop. Of all at once it would
    store each exponential, for `rest` has several uses.
    """
    classes, inner = logits.shape[axis], math.prod(logits.shape[axis + 1 :])
    most = max(2, min(classes * inner // PIECE, inner // LINE))
    count = max(n for n in range(1, most + 1) if inner % n == 0)  # pieces of the rows of one example
    z, own = logits.reshape(-1, inner // count), labels.reshape(-1, inner // count)

    def piece(i):
        first = i // count * count * classes + i % count
        entries = [
            (own[i] == k, lax.dynamic_index_in_dim(z, first + k * count, 0, False)) for k in range(classes)
        ]
        others = [jnp.where(hit, -jnp.inf, x) for hit, x in entries]
        top = functools.reduce(jnp.maximum, others)
        shift = jnp.where(top == -jnp.inf, 0, top)
        target = functools.reduce(lambda found, entry: jnp.where(*entry, found), entries, jnp.zeros_like(top))
        return top, sum(jnp.exp(x - shift) for x in others), target

    return jax.tree.map(lambda x: x.reshape(labels.shape), lax.map(piece, jnp.arange(len(own))))


def _is_counted(logits, axis):
    """Whether the number of classes is known and each index is exact in a float."""
    classes = logits.shape[axis]
    return is_known((classes,)) and classes <= 2 ** jnp.finfo(logits.dtype).nmant


def _width(logits, axis):
    """Classes per run, one run per row being read twice; None if runs do not pay."""
    classes = logits.shape[axis]
    if axis != logits.ndim - 1 or classes < MANY:
        return None
    runs = max(n for n in range(1, math.isqrt(classes) // 3 + 1) if classes % n == 0)
    return classes // runs if runs >= 8 else None  # the classes of a vocabulary may be a prime number


def _in_blocks(reduce, axis, logits, *rows):
    """``reduce(logits, *rows)`` over some rows at a time.

    XLA:CPU stores what it masks before it sums it, and reads far classes as whole lines of the cache; both of
    a block stay there. A block takes every n-th row, so where the rows are sharded every device has its part
    of every block.
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
    found = lax.map(block, jnp.arange(count))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, row + 1).reshape(shape), found)


def _blocks(logits, axis):
    """The longest dimension of rows, and a divisor of it that makes blocks of about `BLOCK` entries.

    On a mesh a block has a row of each device, or as many of each: else it would be collected.
    """
    spec = jax.typeof(logits).sharding.spec  # of an explicit sharding, which a reshape must not split
    free = [i for i, name in enumerate(spec) if i != axis and name is None]
    if not free or not is_known(logits.shape):
        return axis, 1
    split = max(free, key=lambda i: logits.shape[i])
    size, parts = logits.shape[split], max(1, _sharding.parts(logits))
    size = size // parts if size % parts == 0 else size
    most = max(1, min(logits.size // BLOCK, size))
    return split, max(n for n in range(1, most + 1) if size % n == 0)


def _folded(x, dim, count):
    return x.reshape(*x.shape[:dim], -1, count, *x.shape[dim + 1 :])


def _at(labels, logits, axis):
    """The logit of each label; 0 where the label is no class."""
    if jax.typeof(logits).sharding.spec[axis] is not None:  # a gather would have to collect the classes
        return jnp.sum(jnp.where(is_class(labels, logits.shape, axis), logits, 0), axis)
    there = jnp.clip(labels, 0, logits.shape[axis] - 1)  # checkify looks at indices before their mode does
    found = jnp.take_along_axis(logits, jnp.expand_dims(there, axis), axis, mode="clip")
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
