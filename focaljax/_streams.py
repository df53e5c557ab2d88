"""Streams: states of exact sums, and how those of batches, runs and devices merge.

A state is a pytree whose leaves alternate: high, low, high, low. States merge leaf by leaf.
"""

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any, ClassVar, Generic, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from focaljax import _arguments, _exact, _options, _sharding
from focaljax._sharding import AxisName

State = TypeVar("State")


class Stream(Generic[State]):
    """Base of all streams; a subclass is a frozen dataclass of options with `update` and `result`."""

    _state: ClassVar[Any]
    dtype: DTypeLike | None
    update: Callable[..., State]
    result: Callable[[State], jax.Array]

    def __post_init__(self) -> None:
        """Checks the options."""
        _options.settle(self)

    @property
    def _shape(self) -> tuple[int, ...]:
        """The shape of each sum."""
        return ()

    def _own(self, state: State) -> State:
        """The state, checked to be one of this object."""
        return _options.state(state, self._state, self._shape)

    def init(self, axis_name: AxisName | None = None) -> State:
        """The state that has seen nothing, its fields in separate buffers: it can be donated.

        States go through pickle; and through `flax.serialization`, which knows them once ``focaljax.nnx`` is
        imported.

        Args:
          axis_name: Mesh axis or axes of a `jax.shard_map` around the call over which the state will differ:
            a state that is carried through `jax.lax.scan` there has one type from the start.

        Returns:
          Zeros in the dtype of the object.

        Raises:
          ValueError: `dtype` is neither float32 nor, with `jax_enable_x64`, float64; or `axis_name` names no
            axis around the call.

        Example:
          >>> from focaljax.class_weights import ClassCounts
          >>> print(ClassCounts(2).init().count)
          [0. 0.]
        """
        dtype = _arguments.sum_dtype("dtype", self.dtype)
        names = frozenset(_sharding.names(_arguments.summed_axis(axis_name)))
        zeros = (jnp.zeros(self._shape, dtype) for _ in fields(self._state))
        return self._state(*(_sharding.vary(x, names) for x in zeros))

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
          TypeError: The states have different dtypes, or one is of another object.
          ValueError: A state has another shape, or `axis_name` names no axis around the call.

        Example:
          >>> from focaljax.class_weights import ClassCounts
          >>> counter = ClassCounts(2)
          >>> morning, evening = (counter.update(counter.init(), jnp.array(x)) for x in ([0, 1], [1, 1]))
          >>> print(counter.result(counter.merge(morning, evening)))
          [1. 3.]
        """
        return merge(*map(self._own, states or (self.init(),)), axis_name=axis_name)


def merge(*states: State, axis_name: AxisName | None = None) -> State:
    """What all states have seen, at least one of them; `axis_name` merges over mesh axes too."""
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(states)}
    if len(dtypes) > 1:
        raise TypeError(f"`states` must have one dtype, got {' and '.join(sorted(dtypes))}.")
    axis_name = _arguments.summed_axis(axis_name)
    merged = functools.reduce(_merge, states)
    return merged if axis_name is None else _merge_over(merged, axis_name)


@functools.partial(jax.jit, inline=True)
def _merge(a: State, b: State) -> State:
    return _map(_exact.add, a, b)


def _merge_over(state: State, axis_name: AxisName) -> State:
    """Each device fills a row of its own, the other rows are 0."""
    here = jnp.arange(lax.axis_size(axis_name)) == lax.axis_index(axis_name)

    def rows(x: jax.Array) -> jax.Array:
        return jnp.where(here.reshape(-1, *(1,) * x.ndim), x[None], 0)

    # x + 0 + ... + 0 is exact, and the type of a psum says that all devices hold the same.
    every = lax.psum(jax.tree.map(rows, state), axis_name)
    return _map(lambda pair: _exact.sum_pairs(pair, (0,)), every)


def _map(function, *states: State) -> State:
    """`function` of the pairs of each state."""
    pairs = []
    for state in states:
        leaves = jax.tree.leaves(state)
        pairs.append(list(zip(leaves[::2], leaves[1::2], strict=True)))
    made = [leaf for group in zip(*pairs, strict=True) for leaf in function(*group)]
    return jax.tree.unflatten(jax.tree.structure(states[0]), made)
