"""What is asked of entries: whether their class is the label, whether any of them; and to be made again."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

MANY = 128  # labels of one row: the comparisons of so many are one kernel with what uses them


def is_class(labels: jax.Array, shape: Sequence[int], axis: int) -> jax.Array:
    """Where the class index of an array of `shape` equals the label: an iota, never a one-hot array."""
    index = lax.broadcasted_iota(labels.dtype, [n if i == axis else 1 for i, n in enumerate(shape)], axis)
    return index == jnp.expand_dims(labels, axis)


def is_any_class(labels: jax.Array, shape: Sequence[int], axis: int) -> jax.Array:
    """Where the class index is one of the labels along the last axis of `labels`."""
    each = jnp.moveaxis(labels, -1, 0)
    if not len(each):
        return jnp.zeros(shape, bool)

    def add(hot, one):
        return hot | is_class(one, shape, axis), None

    return lax.scan(add, is_class(each[0], shape, axis), each[1:], unroll=MANY)[0]


def is_known(shape: Sequence[int]) -> bool:
    """Whether all sizes are numbers; an exported program may leave some to be known later."""
    return all(isinstance(n, int) for n in shape)


@jax.custom_batching.custom_vmap
def any_row(flags: jax.Array) -> jax.Array:
    """Whether any flag is set; one answer for a whole batch, so that a condition runs one of its branches."""
    return jnp.any(flags)


@any_row.def_vmap
def _any_of_batch(size, batched, flags):
    del size, batched
    return any_row(flags), False


def apart(x: Any) -> Any:
    """The same numbers; nothing is made in common of what is made of `x` and of them.

    What two kernels share XLA stores, an array of logits size, on CPU and GPU also where computing it again
    costs less. TPUs decide better.
    """
    return lax.platform_dependent(x, tpu=lambda x: x, default=lax.optimization_barrier)
