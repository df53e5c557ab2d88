"""The soft-label operation on CPU: its statistics, its loss and its slope, with few arrays of logits size.

It is shaped by what XLA:CPU does, as measured with JAX 0.10.2. A sum over the classes becomes a kernel that
computes what it sums, unless a selection or a comparison is among it: that would be stored before. So masks
are arithmetic here. What two such kernels have in common would be stored too, be it a row spread over the
classes. So each is given rows of its own (:func:`_own`).

Only the highest class may have a complement q that is lost in ``1 - p``, or be more than 1 / 2 of a sum. Its
q is the least of all, so it is a lower bound for the others; from the sums it is masked.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from focaljax import _mesh
from focaljax._entries import any_row, is_known

FEW = 32  # classes: so short a loop XLA:CPU vectorises with a mask too
LARGE = 1e6  # a loss from here on may be that of an impossible class


def pays(logits: jax.Array, axis: int) -> bool:
    """Whether the classes are so many, and so near to each other, that these forms are faster."""
    classes = logits.shape[axis]
    return axis == logits.ndim - 1 and is_known((classes,)) and classes > FEW and _mesh.is_whole(logits)


def peak(logits: jax.Array, *, axis: int) -> tuple[jax.Array, jax.Array]:
    """``(top, excess)`` of some of the classes."""
    top = jnp.max(logits, axis, keepdims=True)
    high, base, large = _own(1, top, top, _base(top), _large(top))
    below = _sum(jnp.minimum(jnp.exp(logits - base), (high - logits) * large), axis)
    high, one, large = _own(2, top, top, 1, _large(top))
    lower = _sum(jnp.minimum((high - logits) * large, one), axis)
    excess = below / _highest(top) + (logits.shape[axis] - 1 - lower)
    return jnp.squeeze(top, axis), jnp.squeeze(excess, axis)


def loss(
    z: jax.Array,
    weights: jax.Array,
    gamma: jax.Array,
    top: jax.Array,
    excess: jax.Array,
    *,
    axis: int,
    plain: Callable[[], jax.Array],
) -> jax.Array:
    """``sum_k w_k * q_k^gamma * (-log p_k)``; from `plain` where a class with a weight may be impossible."""
    high, log_total, bound, one, most = _own(
        3, top, top, jnp.log1p(excess), excess / (1 + excess), 1 - _margin(z), jnp.finfo(z.dtype).max
    )
    nll = jnp.minimum((high - z) + log_total, most)
    q = jnp.maximum(one - jnp.exp(-nll), bound)
    found = _sum(weights * nll * jnp.power(q, gamma), axis)
    silent = (top == -jnp.inf) & (found == 0)
    lost = ~((jnp.abs(found) < LARGE) & (jnp.isfinite(top) | silent))
    return lax.cond(any_row(lost), lambda x: jnp.where(lost, plain(), x), lambda x: x, found)


def slope(
    z: jax.Array,
    weights: jax.Array,
    gamma: jax.Array,
    top: jax.Array,
    excess: jax.Array,
    ct: jax.Array,
    *,
    axis: int,
) -> jax.Array:
    """The gradient by z; of a row that is silent or has no softmax, 0 or NaN."""
    inverse = 1 / (_highest(top) * (1 + excess))
    bound = jnp.maximum(excess / (1 + excess), jnp.finfo(z.dtype).tiny)
    nll = (top - z) + jnp.log1p(excess)
    q = jnp.maximum((1 - _margin(z)) - jnp.exp(-nll), bound)
    rise = gamma * (jnp.exp(z - _base(top)) * inverse * jnp.minimum(nll, 1e3))  # p = 0 at more
    # The division comes last, as XLA:CPU stores a quotient and would compute all else again and again.
    pulls = weights * jnp.power(q, gamma) * (q + rise) / q

    alone = jnp.where(excess < 1, top, jnp.inf)  # a highest class that is no more than others is one of them
    own, one, large = _own(5, top, alone, 1, _large(top))
    low = _sum(pulls * jnp.minimum((own - z) * large, one), axis)
    own, one, large = _own(6, top, alone, 1, _large(top))
    high = _sum(pulls * (one - jnp.minimum((own - z) * large, one)), axis)

    rows = (_base(top), alone, _large(top), low, high, ct, inverse, bound)
    base, own, large, low, high, slope, inverse, bound = _own(7, top, *rows)
    p = jnp.exp(z - base) * inverse
    lower = jnp.minimum((own - z) * large, 1)
    # p * (all - own) - q * own = p * all - own, where p is at most 1/2
    found = slope * (p * (low + lower * high) - pulls * (lower + (1 - lower) * bound))

    undefined = ~jnp.isfinite(excess)

    def mended(x):
        none = jnp.all(weights == 0, axis, keepdims=True)
        return jnp.where((ct == 0) | (undefined & none), 0, jnp.where(undefined, jnp.nan, x))

    return lax.cond(any_row(undefined | (ct == 0)), mended, lambda x: x, found)


def _base(top):
    """A whole number near which no difference from a logit is rounded; see `indexed`."""
    return jnp.where(jnp.isfinite(top), jnp.rint(jnp.minimum(top, jnp.maximum(top - 64, 0))), 0)


def _highest(top):
    """The exponential of the highest class, from its `_base`."""
    return jnp.exp(jnp.where(jnp.isfinite(top), top - _base(top), 0))


def _large(x):
    """What makes any difference of numbers of this dtype more than any exponential from a `_base`."""
    return float(jnp.finfo(x.dtype).max) / 2


def _margin(x):
    """More than the rounding of a highest p, so that the bound decides on its q."""
    return 2 * float(jnp.finfo(x.dtype).eps)


def _own(k, top, *rows):
    """The same rows, for kernel k alone; `k` itself where there is no softmax."""
    defined = jnp.isfinite(top)
    return [jnp.where(defined, x, jnp.asarray(k, top.dtype)) for x in rows]


def _sum(x, axis):
    return jnp.sum(x, axis, keepdims=True)
