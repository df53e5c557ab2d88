"""Sums that do not forget: each is a pair high + low of floats, with high = the sum rounded to one float.

An addition of terms of one sign has a relative error of at most 3 u^2 (1.1e-14 in float32). Streams of
counts and of weights are held so, within a batch and from batch to batch: where a float32 count stops at
2^24 and an int32 one wraps at 2^31, a pair of float32 is exact to 2^46.

A state is a pytree whose leaves alternate: high, low, high, low. States merge leaf by leaf.
"""

import functools
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from focaljax._mesh import AxisName

Pair = tuple[jax.Array, jax.Array]
State = TypeVar("State")


def add(x: Pair, y: Pair) -> Pair:
    """``x + y``, for one sign with a relative error below 3 u^2 (Joldes et al. 2017, alg. 5)."""
    plain, error = _two_sum(x[0], y[0])
    high, low = _fast_two_sum(plain, error + (x[1] + y[1]))
    finite = jnp.isfinite(plain)  # inf - inf is NaN: an infinite sum has no rounding error
    return jnp.where(finite, high, plain), jnp.where(finite, low, 0)


def _two_sum(a: jax.Array, b: jax.Array) -> Pair:
    """``a + b`` and its rounding error, exactly (Knuth 1969, section 4.2.2)."""
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


def _fast_two_sum(a: jax.Array, b: jax.Array) -> Pair:
    """The same for ``|a| >= |b|`` (Dekker 1971)."""
    total = a + b
    return total, b - (total - a)


def sum_all(terms: jax.Array) -> Pair:
    """The sum of all terms; under sharding only one pair per device is sent."""
    return sum_over(terms, tuple(range(terms.ndim)))


def sum_over(terms: jax.Array, axes: tuple[int, ...]) -> Pair:
    """The sums over some axes."""
    return sum_pairs((terms, jnp.zeros_like(terms)), axes)


def sum_pairs(terms: Pair, axes: tuple[int, ...]) -> Pair:
    """The sums over some axes of what are pairs already."""
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
    """A Python integer."""
    high = np.asarray(number, dtype)
    return jnp.asarray(high), jnp.asarray(number - int(high), dtype)


def counts(numbers: jax.Array, dtype: Any) -> Pair:
    """Integers from 0 to 2^31 - 1: 16 bits and 15 bits are exact in every float, and so is their pair."""
    low = (numbers & 0xFFFF).astype(dtype)
    return _fast_two_sum((numbers >> 16).astype(dtype) * 2**16, low)


class Stream(Generic[State]):
    """What gathers a state of such sums; a subclass says how to begin, to see and to tell."""

    init: Callable[[], State]
    update: Callable[..., State]
    result: Callable[[State], jax.Array]

    def merge(self, *states: State, axis_name: AxisName | None = None) -> State:
        """The state that has seen all that these have seen; without states, nothing.

        Inside `jax.shard_map` or `jax.vmap`, `axis_name` merges over that axis too, and the result
        is the same on each device (``out_specs=P()``). Each device must bring its own share: a
        state that all of them hold would count once per device. So a replicated state takes in a
        sharded batch by::

            batch = metric.merge(metric.update(metric.init(), y_true, y_pred), axis_name="data")
            state = metric.merge(state, batch)

        Hosts that each saw examples of their own bring their states together by::

            every = jax.experimental.multihost_utils.process_allgather(state)
            of = lambda host: jax.tree.map(lambda x: x[host], every)
            state = metric.merge(*map(of, range(jax.process_count())))

        Args:
          *states: States of this object.
          axis_name: Mesh axis or axes whose devices hold different states.

        Returns:
          One state.

        Raises:
          TypeError: The states have different dtypes.

        Example:
          >>> from focaljax.class_weights import ClassCounts
          >>> counter = ClassCounts(2)
          >>> morning, evening = (counter.update(counter.init(), jnp.array(x)) for x in ([0, 1], [1, 1]))
          >>> print(counter.result(counter.merge(morning, evening)))
          [1. 3.]
        """
        return merge(*(states or (self.init(),)), axis_name=axis_name)


def merge(*states: State, axis_name: AxisName | None = None) -> State:
    """What all states have seen, at least one of them; `axis_name` merges over mesh axes too."""
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(states)}
    if len(dtypes) > 1:
        raise TypeError(f"`states` must have one dtype, got {' and '.join(sorted(dtypes))}.")
    merged = functools.reduce(_merge, states)
    return merged if axis_name is None else _merge_over(merged, axis_name)


def _merge(a: State, b: State) -> State:
    return _map(add, a, b)


def _merge_over(state: State, axis_name: AxisName) -> State:
    """Each device fills a row of its own, the other rows are 0."""
    here = jnp.arange(lax.axis_size(axis_name)) == lax.axis_index(axis_name)

    def rows(x: jax.Array) -> jax.Array:
        return jnp.where(here.reshape(-1, *(1,) * x.ndim), x[None], 0)

    # x + 0 + ... + 0 is exact, and the type of a psum says that all devices hold the same.
    every = lax.psum(jax.tree.map(rows, state), axis_name)
    return _map(lambda pair: sum_pairs(pair, (0,)), every)


def _map(function, *states: State) -> State:
    """`function` of the pairs of each state."""
    pairs = []
    for state in states:
        leaves = jax.tree.leaves(state)
        pairs.append(list(zip(leaves[::2], leaves[1::2], strict=True)))
    made = [leaf for group in zip(*pairs, strict=True) for leaf in function(*group)]
    return jax.tree.unflatten(jax.tree.structure(states[0]), made)
