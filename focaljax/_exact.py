"""Sums without rounding loss: each is a pair high + low of floats, with high = the sum rounded to one float.

An addition of terms of one sign has a relative error of at most 3 u^2 (1.1e-14 in float32). Streams of
counts and of weights are held so, within a batch and from batch to batch: where a float32 count stops at
2^24 and an int32 one wraps at 2^31, a pair of float32 is exact to 2^46.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Pair = tuple[jax.Array, jax.Array]


def wide(dtype: Any) -> Any:
    """The dtype of the arithmetic: at least float32."""
    return dtype if jnp.dtype(dtype).itemsize >= 4 else jnp.dtype(jnp.float32)


def add(x: Pair, y: Pair) -> Pair:
    """``x + y``, for one sign with a relative error below 3 u^2 (Joldes et al. 2017, alg. 5)."""
    plain, error = two_sum(x[0], y[0])
    high, low = _fast_two_sum(plain, error + (x[1] + y[1]))
    finite = jnp.isfinite(plain)  # inf - inf is NaN: an infinite sum has no rounding error
    return jnp.where(finite, high, plain), jnp.where(finite, low, 0)


def two_sum(a: jax.Array, b: jax.Array) -> Pair:
    """``a + b`` and its rounding error, exactly (Knuth 1969, section 4.2.2)."""
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


def difference(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``x - y`` and its rounding error, exactly; the error of an infinite difference is 0, never NaN."""
    gap = x - y
    finite = lax.stop_gradient(jnp.isfinite(gap))
    x, y = (jnp.where(finite, lax.stop_gradient(one), 0) for one in (x, y))
    return gap, two_sum(x, -y)[1]


def below(x: jax.Array, top: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The `difference`, of an x up to a finite `top`: two operations less, 7.6 bundles of a v5e for 8.0."""
    gap = x - top
    return gap, two_sum(jnp.where(gap == -jnp.inf, top, x), -top)[1]


def shifted_exp(logits: jax.Array, top: jax.Array) -> jax.Array:
    """``exp(logits - top)`` to the last bit, also where the difference itself is rounded."""
    gap, err = difference(logits, jnp.where(top == -jnp.inf, 0, top))
    return jnp.exp(gap) * (1 + err)


def _fast_two_sum(a: jax.Array, b: jax.Array) -> Pair:
    """``a + b`` and its rounding error for ``|a| >= |b|`` (Dekker 1971)."""
    total = a + b
    return total, b - (total - a)


def sum_all(terms: jax.Array) -> Pair:
    """The sum of all terms; under sharding only one pair per device is sent."""
    return sum_over(terms, tuple(range(terms.ndim)))


def sum_over(terms: jax.Array, axes: tuple[int, ...]) -> Pair:
    """The sums over some axes."""
    return sum_pairs((terms, jnp.zeros_like(terms)), axes)


def sum_pairs(terms: Pair, axes: tuple[int, ...]) -> Pair:
    """The sums of pairs over some axes."""
    zero = jnp.zeros((), terms[0].dtype)
    high, low = lax.reduce(terms, (zero, zero), add, axes)
    return high, low


def sum_by(terms: jax.Array, groups: jax.Array, number: int) -> Pair:
    """The sum of each group, [number], of terms [N] in groups [N]; a group outside [0, number) is left out.

    The terms are sorted by group and scanned, O(N log N): no array of [N, number], and no order of a
    scatter in the result.
    """
    if not terms.size:
        return jnp.zeros(number, terms.dtype), jnp.zeros(number, terms.dtype)
    order = jnp.argsort(groups)
    groups, terms = groups[order], terms[order]
    first = jnp.concatenate([jnp.ones(1, bool), groups[1:] != groups[:-1]])

    def double(k, sums):
        """Adds to each the sum that ends 2^k before it, unless its own begins later."""
        start, high, low = sums
        earlier, *far = (_delayed(x, 1 << k) for x in sums)
        more, rest = add((far[0], far[1]), (high, low))
        return start | earlier, jnp.where(start, high, more), jnp.where(start, low, rest)

    # A loop, as an associative scan would be a program of log N parts.
    doublings = max(terms.size - 1, 1).bit_length()
    _, high, low = lax.fori_loop(0, doublings, double, (first, terms, jnp.zeros_like(terms)))
    each = jnp.arange(number, dtype=groups.dtype)
    last = jnp.searchsorted(groups, each, side="right") - 1  # -1 before the first group
    there = (last >= 0) & (groups[last] == each)
    return jnp.where(there, high[last], 0), jnp.where(there, low[last], 0)


def _delayed(x: jax.Array, by: jax.Array) -> jax.Array:
    """``x[i - by]``, and 0 before there is one."""
    return lax.dynamic_slice(jnp.concatenate([jnp.zeros_like(x), x]), (x.size - by,), x.shape)


def count(number: int, dtype: Any) -> Pair:
    """A Python integer as a pair."""
    high = np.asarray(number, dtype)
    return jnp.asarray(high), jnp.asarray(number - int(high), dtype)


def counts(numbers: jax.Array, dtype: Any) -> Pair:
    """Integers from 0 to 2^31 - 1: 16 bits and 15 bits are exact in every float, and so is their pair."""
    low = (numbers & 0xFFFF).astype(dtype)
    return _fast_two_sum((numbers >> 16).astype(dtype) * 2**16, low)
