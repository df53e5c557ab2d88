"""What is asked of single entries: their class, and differences and exponentials to the last bit."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

MANY = 128  # labels of one row: the comparisons of so many are one kernel with what uses them


def difference(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``x - y`` and its rounding error, exactly (TwoDiff; Knuth 1969, section 4.2.2)."""
    gap = x - y
    back = gap - x
    err = (x - (gap - back)) - (y + back)
    return gap, lax.stop_gradient(jnp.where(jnp.isfinite(gap), err, 0))


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


def shifted_exp(logits: jax.Array, top: jax.Array) -> jax.Array:
    """``exp(logits - top)`` to the last bit, also where the difference itself is rounded."""
    gap, err = difference(logits, jnp.where(top == -jnp.inf, 0, top))
    return jnp.exp(gap) * (1 + err)


@jax.custom_batching.custom_vmap
def any_row(flags: jax.Array) -> jax.Array:
    """Whether any flag is set; one answer for a whole batch, so that a condition runs one of its branches."""
    return jnp.any(flags)


@any_row.def_vmap
def _any_of_batch(size, batched, flags):
    del size, batched
    return any_row(flags), False
