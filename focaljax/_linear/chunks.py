"""Chunks of rows and of classes: the loops, and how each chunk lies on a mesh."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from focaljax import _sharding
from focaljax._linear import layer
from focaljax._linear.layer import Classes, Fixed, Head, How


def zeros(x: jax.Array, dtype: Any, like: jax.Array | None = None) -> jax.Array:
    """Zeros of the shape of `x` that vary over the same mesh axes as `x` or `like`."""
    return _sharding.vary(jnp.zeros(x.shape, dtype), _sharding.varying(x if like is None else like))


def of_rows(
    step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, arrays: Any, chunk: Any, *, in_order: bool
) -> Any:
    """``carry, results = step(carry, rows of the arrays)`` for chunk after chunk of rows; results by row.

    A chunk takes every n-th row, so where the rows are sharded every device has its part of every chunk. On
    one device it takes rows that follow each other, `in_order`: results of the size of the logits are then
    in order too. What is left over is a smaller chunk.
    """
    size = jax.tree.leaves(arrays)[0].shape[0]
    if not isinstance(size, int):
        return _unknown_rows(step, carry, arrays, chunk, size)
    count, left = divmod(size, chunk)
    if count == 0 or (count == 1 and not left):
        return step(carry, arrays)
    carry, found = _whole_chunks(step, carry, arrays, chunk, count, in_order)
    if left:
        carry, last = step(carry, jax.tree.map(lambda x: x[count * chunk :], arrays))
        found = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), found, last)
    return carry, found


def _unknown_rows(step, carry, arrays, chunk, size):
    """`of_rows` for a symbolic `size` of an exported program: silent rows fill up the last chunk."""
    count = size // chunk + 1

    def filled(x):
        more = jnp.zeros((count * chunk - size, *x.shape[1:]), x.dtype)
        return jnp.concatenate([x, _sharding.vary(more, _sharding.varying(x))])

    carry, found = _whole_chunks(step, carry, jax.tree.map(filled, arrays), chunk, count, in_order=False)
    return carry, jax.tree.map(lambda y: y[:size], found)


def _whole_chunks(step, carry, arrays, chunk, count, in_order):
    """Scans over the first `count` chunks of the arrays."""

    def parts(x):
        x = x[: count * chunk]
        if in_order:
            return x.reshape(count, chunk, *x.shape[1:])
        # Laid out once: without the barrier a TPU does it anew inside each matmul of a chunk.
        return lax.optimization_barrier(jnp.moveaxis(x.reshape(chunk, count, *x.shape[1:]), 1, 0))

    def joined(y):
        y = y if in_order else jnp.moveaxis(y, 0, 1)
        return y.reshape(count * chunk, *y.shape[2:])

    carry, found = lax.scan(step, carry, jax.tree.map(parts, arrays))
    return carry, jax.tree.map(joined, found)


class Chunk(NamedTuple):
    """Some of the classes, as operands of a layer with only these."""

    head: Head  # cast
    fixed: Fixed
    classes: Classes | None


def sweep(
    step: Callable[[Any, Chunk], tuple[Any, Any]],
    carry: Any,
    how: How,
    x: jax.Array,
    head: Head,
    fixed: Fixed,
    classes: Classes | None,
    results: Any = (),
) -> Any:
    """``carry, results = step(carry, chunk)`` for chunk after chunk of classes.

    `results` are arrays to be filled: the classes are their last axis.
    """
    mine = _sharding.local(fixed.labels, head.kernel.shape[1], how.name)

    def body(carry, part, here):
        head, kept, options = part
        some = None if classes is None else Classes(options[0], options[1], classes.smoothing)
        fixed_here = Fixed(here(mine), kept, fixed.number)
        return step(carry, Chunk(layer.cast(x, head, kept), fixed_here, some))

    options = None if classes is None else (classes.alpha, classes.term)
    return of_classes(body, carry, (head, fixed.kept, options), how, results)


def of_classes(
    step: Callable[[Any, Any, Callable], tuple[Any, Any]],
    carry: Any,
    arrays: Any,
    how: How,
    results: Any = (),
) -> Any:
    """``carry, results = step(carry, classes of the arrays, here)`` for chunk after chunk of classes.

    Classes are the last axis of the arrays and of the `results`, which are arrays to be filled. What is left
    over is a smaller chunk: the kernel is never padded or copied. A chunk takes as many classes of every
    block, so where the classes are sharded every device has its part of it; `here(labels)` counts as the
    chunk does, and is no class of it for a label that lies elsewhere.
    """
    size = jax.tree.leaves(arrays)[0].shape[-1]
    blocks = how.blocks if size % how.blocks == 0 else 1
    length = size // blocks
    chunk = max(1, how.chunk // blocks)
    count, left = divmod(length, chunk)

    def body(state, start, width=chunk):
        carry, made = state

        def here(labels):
            within = labels % length - start
            mine = (labels >= 0) & (labels < size) & (within >= 0) & (within < width)
            return labels - start if blocks == 1 else jnp.where(mine, labels // length * width + within, -1)

        part = jax.tree.map(lambda x: joined(lax.dynamic_slice_in_dim(x, start, width, x.ndim - 1)), arrays)
        carry, found = step(carry, part, here)

        def filled(all, some):
            some = some.astype(all.dtype).reshape(*all.shape[:-1], width)
            return lax.dynamic_update_slice_in_dim(all, some, start, all.ndim - 1)

        return (carry, jax.tree.map(filled, made, found)), None

    def in_blocks(x):
        return x if blocks == 1 else x.reshape(*x.shape[:-1], blocks, length)

    def joined(x):
        return x if blocks == 1 else x.reshape(*x.shape[:-2], -1)

    arrays = jax.tree.map(in_blocks, arrays)
    state = (carry, jax.tree.map(in_blocks, results))
    if count > 1:
        state, _ = lax.scan(body, state, chunk * jnp.arange(count, dtype=jnp.int32))
    elif count:
        state, _ = body(state, jnp.int32(0))
    if left:
        state, _ = body(state, jnp.int32(length - left), left)
    carry, made = state
    return carry, jax.tree.map(joined, made)
