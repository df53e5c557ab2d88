"""Elementwise helpers: is this entry the label's, is any flag set, compute this again."""

from collections.abc import Callable, Sequence
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


def zeros(x: jax.Array, dtype: Any) -> jax.Array:
    """Zeros of the shape and the sharding of `x`; `jnp.zeros_like` keeps only the shape since JAX 0.12."""
    return jnp.where(False, lax.stop_gradient(x).astype(dtype), 0)


def is_known(shape: Sequence[int]) -> bool:
    """Whether all sizes are numbers: those of an exported program may be symbols."""
    return all(isinstance(n, int) for n in shape)


@jax.custom_batching.custom_vmap
def of_every_row(numbers: jax.Array) -> jax.Array:
    """The sum of integers; under vmap of the whole batch, so that a `cond` on it stays a branch.

    To reduce flags takes XLA:CPU (JAX 0.10.2) 0.2 s to compile, and integers 0.01 s.
    """
    return jnp.sum(numbers, dtype=jnp.int32)


@of_every_row.def_vmap
def _of_every_row_of_batch(size, batched, numbers):
    del size, batched
    return of_every_row(numbers), False


def every_row(flags: jax.Array) -> jax.Array:
    """Whether all flags are set, also those of a batch under vmap."""
    return of_every_row(~flags) == 0


def most_rows(flags: jax.Array) -> jax.Array:
    """Whether more flags are set than not, of those of a batch under vmap all together."""
    return of_every_row(jnp.where(flags, 1, -1)) > 0


def by_platform(*operands: Any, known: str | None = None, **forms: Callable[..., Any]) -> Any:
    """`lax.platform_dependent`, with derivatives; where the platform is `known`, its form at once."""
    if known is None:
        return lax.platform_dependent(*operands, **forms)
    return forms.get(known, forms["default"])(*operands)


def apart(x: Any, *, cpu: bool = True, gpu: bool = True, known: str | None = None) -> Any:
    """Identity that blocks common-subexpression elimination, on the platforms where that pays.

    XLA stores what two kernels share, an array of logits size. On CPU and GPU it does so even where computing
    it again costs less. TPUs decide better.
    """
    on_cpu, on_gpu = (lax.optimization_barrier if pays else _same for pays in (cpu, gpu))
    return by_platform(x, known=known, cpu=on_cpu, tpu=_same, default=on_gpu)


def _same(x):
    return x
