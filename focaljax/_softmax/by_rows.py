"""Linear + focal loss, all classes of some rows at a time.

`total` makes the gradients of a sum while it has the logits: three matmuls, 6 N D C operations. What the
sum is multiplied by afterwards, its cotangent, multiplies the gradients. The cotangents of single losses
(`each`) are not known in time, so there the backward pass computes the logits again: 8 N D C.

Beside the results there are the logits of one chunk and the sum of the kernel's gradient, in float32.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from focaljax import _sharding
from focaljax._exact import wide
from focaljax._softmax import layer
from focaljax._softmax.layer import Classes, Head, How, Rows


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def total(
    how: How, x: jax.Array, head: Head, labels: jax.Array, rows: Rows, classes: Classes | None
) -> jax.Array:
    """The sum of the losses of all rows of `x`, [N, D]; no work for gradients unless it is differentiated.

    `classes` is for smoothed labels. With a mesh axis in `how`, `head` and `classes` are those of this
    device's shard, and so is its part of the gradient by `x`.
    """
    return jnp.sum(losses(how, x, head, labels, rows, classes))


def _total_fwd(how, x, head, labels, rows, classes):
    ones = jnp.ones_like(rows.weight)
    losses, gradients = gradient(how, x, head, labels, rows, classes, ones, kept=True)
    like = jax.tree.map(lambda x: jnp.zeros((0,), x.dtype), (x, head, rows, classes))
    return jnp.sum(losses), (gradients, like)


@partial(jax.jit, static_argnums=0, inline=True)
def _total_bwd(how, residuals, ct):
    gradients, like = residuals
    scaled = jax.tree.map(lambda g, x: (g.astype(ct.dtype) * ct).astype(x.dtype), gradients, like)
    dx, d_head, d_rows, d_classes = scaled
    return dx, d_head, None, d_rows, d_classes


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def each(
    how: How, x: jax.Array, head: Head, labels: jax.Array, rows: Rows, classes: Classes | None
) -> jax.Array:
    """The loss of each row."""
    return losses(how, x, head, labels, rows, classes)


def _each_fwd(how, x, head, labels, rows, classes):
    return losses(how, x, head, labels, rows, classes), (x, head, labels, rows, classes)


@partial(jax.jit, static_argnums=0, inline=True)
def _each_bwd(how, residuals, ct):
    x, head, labels, rows, classes = residuals
    dx, d_head, d_rows, d_classes = gradient(how, x, head, labels, rows, classes, ct)[1]
    return dx, d_head, None, d_rows, d_classes


def losses(how, x, head, labels, rows, classes):
    """The loss of each row."""

    def step(nothing, part):
        x, labels, rows = part
        z = layer.capped(layer.logits(x, head, how), how)
        return nothing, layer.of_rows(z, labels, rows, classes, how)[0]

    head = _cast(head, x)
    return _chunks(step, (), (x, labels, rows), how.chunk)[1]


def gradient(how, x, head, labels, rows, classes, ct, kept=False):
    """The losses, and the gradients of their sum weighed by `ct`; `kept` ones are rounded by `_kept`."""

    def step(sums, part):
        x, labels, rows, ct = part
        x = layer.silenced(x, rows, ct)
        z = layer.logits(x, narrow, how)
        losses, pull_back = layer.of_rows(layer.capped(z, how), labels, rows, classes, how)
        dz, d_rows, d_classes = pull_back(ct)
        dx, d_kernel, d_bias = layer.d_head(x, narrow, z, dz, how)
        sums = jax.tree.map(jnp.add, sums, (Head(d_kernel, d_bias), d_classes))
        return sums, (losses, rounded(dx, x), d_rows)

    def rounded(gradient, like):
        return gradient.astype(_kept(like.dtype) if kept else like.dtype)

    narrow = _cast(head, x)
    start = jax.tree.map(partial(zeros, dtype=wide(x.dtype)), (head, classes))
    (d_head, d_classes), (losses, dx, d_rows) = _chunks(step, start, (x, labels, rows, ct), how.chunk)
    d_head = d_head._replace(kernel=_gathered(d_head.kernel))  # or each chunk's would be summed over devices
    return losses, (dx, jax.tree.map(rounded, d_head, head), d_rows, d_classes)


def _kept(dtype):
    """What a gradient waits in for its cotangent: half the memory, where a small one is not lost by that."""
    return jnp.float32 if dtype == jnp.float16 else dtype


def _cast(head, x):
    """The kernel in the dtype of the matmul, and gathered over D, once for all chunks."""
    return head._replace(kernel=_gathered(head.kernel.astype(x.dtype)))


def _gathered(x):
    """Not sharded over the first axis, where the compiler shards on a mesh that is known; else as it is."""
    mesh = jax.typeof(x).sharding.mesh
    if mesh.size == 1 or AxisType.Auto not in mesh.axis_types:
        return x
    spec = PartitionSpec(None, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1))
    return lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def zeros(x, dtype, like=None):
    """As many, differing over the same mesh axes as those of `x` or `like`."""
    return _sharding.vary(jnp.zeros(x.shape, dtype), _sharding.varying(x if like is None else like))


def _chunks(step, carry, arrays, chunk):
    """``carry, results = step(carry, rows of the arrays)`` for chunk after chunk of rows; results by row.

    A chunk takes every n-th row, so where the rows are sharded every device has its part of every chunk.
    What is left over is a smaller chunk.
    """
    size = jax.tree.leaves(arrays)[0].shape[0]
    if not isinstance(size, int):
        return _unknown_chunks(step, carry, arrays, chunk, size)
    count, left = divmod(size, chunk)
    if count == 0 or (count == 1 and not left):
        return step(carry, arrays)
    carry, found = _whole_chunks(step, carry, arrays, chunk, count)
    if left:
        carry, last = step(carry, jax.tree.map(lambda x: x[count * chunk :], arrays))
        found = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), found, last)
    return carry, found


def _unknown_chunks(step, carry, arrays, chunk, size):
    """The same for a `size` that is a symbol of an exported program: silent rows fill up the last chunk."""
    count = size // chunk + 1

    def filled(x):
        more = jnp.zeros((count * chunk - size, *x.shape[1:]), x.dtype)
        return jnp.concatenate([x, _sharding.vary(more, _sharding.varying(x))])

    carry, found = _whole_chunks(step, carry, jax.tree.map(filled, arrays), chunk, count)
    return carry, jax.tree.map(lambda y: y[:size], found)


def _whole_chunks(step, carry, arrays, chunk, count):
    """The first `count` chunks of the arrays."""
    parts = jax.tree.map(lambda x: x[: count * chunk].reshape(chunk, count, *x.shape[1:]), arrays)

    def body(carry, k):
        return step(carry, jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, k, 1, False), parts))

    carry, found = lax.scan(body, carry, jnp.arange(count))
    return carry, jax.tree.map(lambda y: jnp.moveaxis(y, 0, 1).reshape(count * chunk, *y.shape[2:]), found)


total.defvjp(_total_fwd, _total_bwd)
each.defvjp(_each_fwd, _each_bwd)
