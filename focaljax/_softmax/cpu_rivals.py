"""The row statistics of the class-index losses on CPU.

With its gradient a value shares the exponentials below the maximum of the row, as XLA:CPU stores them where
the gradient will be. A value alone stores nothing of the size of the logits; of a large batch it reads them
once: its competitors are summed without a maximum before, which comes first only where ``sum exp(z)`` leaves
the range of the floats, as it shows itself. A few rows tell whether that read would be in vain.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from focaljax import _sharding
from focaljax._entries import every_row, is_class, is_known, most_rows
from focaljax._exact import wide
from focaljax._softmax import cpu

FAR = 2**16  # entries between two classes: then blocks of rows bring them together
APART = 2**10  # entries between two classes: then few classes are an expression, each a loop over the rows
CHAIN = 64  # classes of such an expression: 64 of them compile in 3 s, 150 in 7
LARGE = 2**22  # entries: fewer stay in the cache, so the maximum comes first; of more some rows are asked
SAMPLE = 8  # rows
MANY = 2**12  # classes: of so many only one run is weighed entry by entry
ROOM = 16  # below the smallest q that is a float: what is exp(-16) of it and counts beside it
WHOLE = 2.0**20  # a highest logit beyond which a number some 80 below it need not be whole


def rivals(
    logits: jax.Array, labels: jax.Array, *, axis: int, shared: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``(top, rest, target)`` of some of the classes; 0 for a target that is not among them.

    `top` is the whole number above the log-sum of the competitors: no gap to it is longer than that to them;
    in rows whose sum is lost, and where the classes lie apart, it is the highest competitor. If they are
    `shared` with a gradient, `rest` is the sum of :func:`powers`. Competitors so far below the target that q
    is below the smallest float may count as none.
    """
    if is_apart(logits, axis):
        return _by_class(logits, labels, axis)
    target, own = _at(labels, logits, axis), _Own.of(labels, logits, axis)
    if shared:
        top = _below_highest(logits, axis)
        return top, jnp.sum(powers(logits, labels, top, axis), axis), target
    if own.classes is None:
        top, rest = _by_maximum(logits, own, axis)
        return jnp.where(rest == 0, -jnp.inf, top), rest, target
    base = _base(_below_highest(logits, axis)) if _is_moderate(logits) else None
    total = _sum_unless_lost(logits, labels, own, axis, base)
    start = 0 if base is None else base
    size = jnp.log(total)
    usual = _is_usual(size)
    gone = (size < 0) & (target - start > ROOM + _limit(size) / 2)
    known = usual | gone
    top, rest = lax.cond(every_row(known), lambda: (total, total), lambda: _by_maximum(logits, own, axis))
    whole = start + jnp.ceil(jnp.where(usual, size, 0))  # differences are exact, or too large to matter
    top = jnp.where(usual, whole, jnp.where(gone | (rest == 0), -jnp.inf, top))
    rest = jnp.where(usual, total * jnp.exp(start - whole), jnp.where(gone, 0, rest))
    return top, rest, target


def shares(logits: jax.Array, axis: int) -> bool:
    """Whether value and gradient take each exponential once, for XLA to store it where the gradient will be.

    So they take 0.6 of the time at [1024, 1000] and 0.9 at [16384, 1000]. In 16 bits the gradient is no
    place for exponentials, and those of a large batch would need memory of their own.
    """
    fits = logits.dtype == wide(logits.dtype) or _is_moderate(logits)
    return _is_alone(logits) and fits and not _is_far(logits, axis) and not is_apart(logits, axis)


def _is_moderate(logits):
    """Whether all logits stay in the cache of one device, so that two reads of them are nearly one."""
    return _is_alone(logits) and logits.size < LARGE


def _is_alone(logits):
    """Whether the logits lie on one device, in a shape of known numbers of which none is 0."""
    return is_known(logits.shape) and logits.size > 0 and _sharding.parts(logits) == 1


def _below_highest(logits, axis):
    """A whole number at least 16 below the highest logit, the label's too, which XLA:CPU finds soonest.

    It is 0 for one from 16 to `reach`, some 80 in float32, for which sums of exponentials are finite.
    """
    high = jnp.max(logits, axis)
    floor = jnp.floor(high)
    reach = math.floor(math.log(jnp.finfo(logits.dtype).max / logits.shape[axis]) - 3)
    top = jnp.maximum(jnp.ceil(high - reach), jnp.minimum(jnp.minimum(2 * floor + 1, floor - ROOM), 0))
    return jnp.where(jnp.abs(high) < WHOLE, top, high)


def _base(top):
    """A whole number from which most differences have no more bits than their logit, 0 or the `top` itself.

    It is 0 for a highest logit from -`ROOM` to `reach`.
    """
    base = jnp.where((top > -2 * ROOM - 1) & (top < 0), 0, top)
    return jnp.where(base == -jnp.inf, 0, base)  # of a row without a finite logit


def powers(logits: jax.Array, labels: jax.Array, top: jax.Array, axis: int) -> jax.Array:
    """exp(z - top) of all classes but the labelled one, which has 0; `top` is that of `shared` statistics.

    The square of exp((z - base) / 2), with a factor between: exp(z - base) may be below the smallest float.
    """
    base = _base(top)
    base, factor = (jnp.expand_dims(x, axis) for x in (base, jnp.exp(base - top)))
    half = jnp.exp((logits - base) / 2)
    return jnp.where(is_class(labels, logits.shape, axis), 0, half * (half * factor))


def _is_usual(size):
    """Whether a log-sum is that of a finite sum whose terms below the smallest float do not count."""
    limit = _limit(size)
    return jnp.abs(size - limit / 4) < limit * 3 / 4  # from -limit / 2 to limit; of NaN it is not


def _limit(x):
    return -math.log(jnp.finfo(x.dtype).tiny)


def _sum_unless_lost(logits, labels, own, axis, base):
    """`_sum_of_others`; infinite at once where a sample of a large batch says that it would be lost."""
    whole = functools.partial(_sum_of_others, logits, labels, own, axis, base)
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


def _sum_of_others(logits, labels, own, axis, base):
    """The sum of exp(z - base), or of exp(z) without a base, over all classes but the labelled one."""
    if _is_far(logits, axis):

        def of_block(logits, labels):
            return _sum_but(own._replace(labels=labels), jnp.exp(logits), axis)

        return cpu.in_blocks(of_block, axis, logits, own.labels)

    def exp(x, base, axis):
        return jnp.exp(x if base is None else x - jnp.expand_dims(base, axis))

    width = _width(logits, axis)
    if width is None:
        return _sum_but(own, exp(logits, base, axis), axis)
    *rows, classes = logits.shape
    each = (*rows, classes // width)
    # The barrier keeps XLA from taking the exponentials before the reshape: then it would store them.
    runs = lax.optimization_barrier(logits.reshape(math.prod(each), width))
    of_runs = None if base is None else lax.optimization_barrier(jnp.repeat(base, classes // width))
    sums = jnp.sum(exp(runs, of_runs, 1), 1).reshape(each)
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)  # which holds `width`
    run = labels // width
    mine = jnp.take_along_axis(runs.reshape(*each, width), run[..., None, None], -2, mode="clip").squeeze(-2)
    last = len(rows)
    mine = _sum_but(_Own.of(labels - run * width, mine, last), exp(mine, base, last), last)
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
        return cpu.in_blocks(of_block, axis, logits, own.labels)
    return of_block(logits, own.labels)


def is_apart(logits: jax.Array, axis: int) -> bool:
    """Whether few classes lie far apart, on one device: the pixels of a picture whose channels come first.

    Then each class is an array of its own, and a loop runs over the rows, as XLA:CPU vectorises it.
    """
    shape = logits.shape
    return _is_alone(logits) and shape[axis] <= CHAIN and math.prod(shape[axis + 1 :]) >= APART


def _by_class(logits, labels, axis):
    """``(top, rest, target)``, each one expression of all classes.

    It is taken of some rows at a time, as XLA:CPU stores what comes out of a loop. Of all at once it would
    store each exponential, for `rest` has several uses.
    """
    classes, inner = logits.shape[axis], math.prod(logits.shape[axis + 1 :])
    most = max(2, min(classes * inner // cpu.BLOCK, inner // cpu.LINE))
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


def _at(labels, logits, axis):
    """The logit of each label; 0 where the label is no class."""
    if jax.typeof(logits).sharding.spec[axis] is not None:  # a gather would have to collect the classes
        return jnp.sum(jnp.where(is_class(labels, logits.shape, axis), logits, 0), axis)
    there = jnp.clip(labels, 0, logits.shape[axis] - 1)  # checkify looks at indices before their mode does
    found = jnp.take_along_axis(logits, jnp.expand_dims(there, axis), axis, mode="clip")
    return jnp.where(_is_here(labels, logits, axis), jnp.squeeze(found, axis), 0)


def _is_here(labels, logits, axis):
    return (labels >= 0) & (labels < logits.shape[axis])
