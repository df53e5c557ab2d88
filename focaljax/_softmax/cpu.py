"""The row statistics on CPU, where a reduction takes one operand.

XLA:CPU runs reductions of several operands scalar, so this is its form of what
:mod:`focaljax._softmax.statistics` reads in one pass. It is shaped by what that compiler does well, as
measured with JAX 0.10.2.

The competitors are summed without a maximum before: one read too. Only where ``sum exp(z)`` leaves the range
of the floats, as it shows itself, the maximum comes first; a few rows tell whether the first read would be in
vain.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from focaljax import _sharding
from focaljax._entries import every_row, is_class, is_known, most_rows
from focaljax._exact import shifted_exp

BLOCK = 2**18  # entries: 1 MB of float32
FAR = 2**16  # entries between two classes: then blocks of rows bring them together
APART = 2**10  # entries between two classes: then few classes are an expression, each a loop over the rows
CHAIN = 64  # classes of such an expression: 64 of them compile in 3 s, 150 in 7
LINE = 2**7  # the fewest entries of a class in a piece or a block
LARGE = 2**22  # entries: a look at some rows costs 0.1 s to compile, a sum in vain of fewer below 3 ms
SAMPLE = 8  # rows
SHARED = 2**6  # classes: sums of at least so many share stored numbers, 1.1 to 2 of the time of 32 to 4
STORED = 10  # last classes: exponentials of so many are stored, 0.7 to 0.9 of the time of two; of 9 1.7
MANY = 2**12  # classes: of so many only one run is weighed entry by entry


def rivals(logits: jax.Array, labels: jax.Array, *, axis: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``(top, rest, target)`` of some of the classes; 0 for a target that is not among them.

    `top` is the floor of the competitors' log-sum, so `rest` is from 1 to e; in rows whose sum is lost,
    and where the classes lie apart, it is the highest competitor.
    """
    if is_apart(logits, axis):
        return _by_class(logits, labels, axis)
    target = _at(labels, logits, axis)
    own = _Own.of(labels, logits, axis)
    if own.classes is None:
        top, rest = _by_maximum(logits, own, axis)
        return jnp.where(rest == 0, -jnp.inf, top), rest, target
    total = _sum_unless_lost(logits, labels, own, axis)
    size = jnp.log(total)
    known = _is_usual(size)
    top, rest = lax.cond(every_row(known), lambda: (total, total), lambda: _by_maximum(logits, own, axis))
    step = jnp.floor(jnp.where(known, size, 0))  # differences from it are exact, or too large to matter
    top = jnp.where(known, step, jnp.where(rest == 0, -jnp.inf, top))
    return top, jnp.where(known, jnp.maximum(total * jnp.exp(-step), 1), rest), target


def _is_usual(size):
    """Whether a log-sum is that of a finite sum whose terms below the smallest float do not count."""
    limit = -math.log(jnp.finfo(size.dtype).tiny)
    return jnp.abs(size - limit / 4) < limit * 3 / 4  # from -limit / 2 to limit; of NaN it is not


def _sum_unless_lost(logits, labels, own, axis):
    """`_sum_of_others`; infinite at once where a sample of a large batch says that it would be lost."""
    whole = functools.partial(_sum_of_others, logits, labels, own, axis)
    if not is_known(logits.shape) or logits.size < LARGE:
        return whole()
    dim = max(range(logits.ndim), key=lambda i: logits.shape[i] * (i != axis))  # the longest, of rows
    step = logits.shape[dim] // SAMPLE
    if dim == axis or step < 64:  # a sample of fewer would be most of them
        return whole()
    few = lax.slice_in_dim(logits, 0, None, step, dim)
    mine = lax.slice_in_dim(labels, 0, None, step, dim - (axis < dim))
    top = jnp.max(jnp.where(is_class(mine, few.shape, axis), -jnp.inf, few), axis)
    lost = most_rows(jnp.isfinite(top) & ~_is_usual(top))  # a row that is hidden may hold NaN
    return lax.cond(lost, lambda: jnp.full_like(logits, jnp.inf, shape=labels.shape), whole)


class _Own(NamedTuple):
    """One class of each row, as :meth:`bound`."""

    labels: jax.Array  # [rows]
    classes: jax.Array | None  # [1, classes]; then both are in steps whose square is infinite

    @classmethod
    def of(cls, labels, x, axis):
        if not _sharding.is_whole(x) or not _is_counted(x, axis):
            return cls(labels, None)
        step = 2.0 ** (jnp.finfo(x.dtype).maxexp // 2 + 1)
        shape = [n if i == axis else 1 for i, n in enumerate(x.shape)]
        return cls(labels.astype(x.dtype) * step, lax.broadcasted_iota(x.dtype, shape, axis) * step)

    def bound(self, x, axis):
        """0 at the class, infinity at all others; by arithmetic, as XLA:CPU stores what it selects."""
        if self.classes is None:
            return jnp.where(is_class(self.labels, x.shape, axis), jnp.zeros((), x.dtype), jnp.inf)
        away = self.classes - jnp.expand_dims(self.labels, axis)
        return away * away


def _sum_of_others(logits, labels, own, axis):
    """The sum of exp(z) over all classes but the labelled one."""
    if _is_far(logits, axis):

        def of_block(logits, labels):
            return _sum_but(own._replace(labels=labels), jnp.exp(logits), axis)

        return in_blocks(of_block, axis, logits, own.labels)
    width = _width(logits, axis)
    if width is None:
        return _sum_but(own, jnp.exp(logits), axis)
    *rows, classes = logits.shape
    each = (*rows, classes // width)
    # The barrier keeps XLA from taking the exponentials before the reshape: then it would store them.
    runs = lax.optimization_barrier(logits.reshape(math.prod(each), width))
    sums = jnp.sum(jnp.exp(runs), 1).reshape(each)
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)  # which holds `width`
    run = labels // width
    mine = jnp.take_along_axis(runs.reshape(*each, width), run[..., None, None], -2, mode="clip").squeeze(-2)
    last = len(rows)
    mine = _sum_but(_Own.of(labels - run * width, mine, last), jnp.exp(mine), last)
    return _sum_but(_Own.of(run, sums, last), sums, last) + jnp.where(_is_here(labels, logits, last), mine, 0)


def _is_far(logits, axis):
    return is_known(logits.shape) and math.prod(logits.shape[axis + 1 :]) >= FAR


def _sum_but(own, x, axis):
    """The sum of a positive x over `axis` without one entry."""
    return jnp.sum(jnp.minimum(x, own.bound(x, axis)), axis)


def _by_maximum(logits, own, axis):
    """``(top, rest)``, the maximum before the sum; without competitors the lowest number and 0."""
    lowest = jnp.finfo(logits.dtype).min

    def of_block(logits, labels):
        mine = own._replace(labels=labels)
        top = jnp.max(jnp.minimum(logits, mine.bound(logits, axis) + lowest), axis)
        top = jnp.maximum(top, lowest)
        # What two sums share is stored. Behind a barrier labels that are one constant crash jaxlib 0.10.2.
        # Here they are none, as XLA does not know that `top` is never below the lowest number.
        again = mine._replace(labels=jnp.where(top < lowest, 0, mine.labels))
        again = jax.tree.map(lax.optimization_barrier, again)
        return top, _sum_but(again, jnp.exp(logits - jnp.expand_dims(top, axis)), axis)

    if own.classes is None or _is_far(logits, axis):
        return in_blocks(of_block, axis, logits, own.labels)
    return of_block(logits, own.labels)


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
    most = max(2, min(classes * inner // BLOCK, inner // LINE))
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
