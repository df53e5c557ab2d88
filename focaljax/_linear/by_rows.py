"""Linear losses, all classes of some rows at a time.

The gradients of a sum are made while the logits are there: three matmuls, 6 N D C operations. What the sum is
multiplied by afterwards, its cotangent, multiplies the gradients. The cotangents of single losses are not
known in time, so there the backward pass computes the logits again: 8 N D C.

Beside the results there are the float32 logits of one chunk, and the gradient of the logits of a group of
chunks in the dtype of the matmuls. If that is not all rows, there is a float32 sum of the kernel's gradient
too, read and written for each group.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from focaljax._exact import wide
from focaljax._linear import chunks, layer
from focaljax._linear.chunks import zeros
from focaljax._linear.layer import Fixed, Head, How


def losses(of_rows: Any, how: How, x: jax.Array, head: Head, fixed: Fixed, rows: Any, classes: Any) -> Any:
    """The loss and the `LinearAux` of each row, by ``of_rows(z, fixed, rows, classes, how)``."""

    def step(nothing, part):
        x, labels, rows = part
        z = layer.capped(layer.logits(x, head, how), how)
        return nothing, of_rows(z, fixed._replace(labels=labels), rows, classes, how)[:2]

    head = _cast(x, head, fixed.kept)
    return chunks.of_rows(step, (), (x, fixed.labels, rows), how.chunk, in_order=how.group > how.chunk)[1]


def gradient(
    of_rows: Any,
    how: How,
    x: jax.Array,
    head: Head,
    fixed: Fixed,
    rows: Any,
    classes: Any,
    ct: jax.Array,
    waits: bool = False,
) -> Any:
    """Returns ((losses, aux), gradients of ``sum(ct * losses)``)."""

    def of_chunk(sums, part):
        x, labels, rows, ct = part
        z = layer.logits(x, narrow, how)
        here = fixed._replace(labels=labels)
        losses, logs, pull_back = of_rows(layer.capped(z, how), here, rows, classes, how)
        dz, d_rows, d_classes = pull_back(ct)
        dz, d_bias = layer.d_logits(z, dz, narrow, fixed.kept, how)
        return jax.tree.map(jnp.add, sums, (d_bias, d_classes)), (losses, logs, d_rows, dz)

    def of_group(sums, part):
        d_kernel, others = sums
        part = (layer.silenced(part[0], part[2], part[3]), *part[1:])
        others, found = chunks.of_rows(of_chunk, others, part, how.chunk, in_order=stored)
        losses, logs, d_rows, dz = found
        dx, more = layer.d_operands(part[0], narrow.kernel, dz, how, stored=stored, dtype=dtype)
        return (d_kernel + more, others), (losses, logs, d_rows, layer.rounded(dx, part[0], waits))

    stored = how.group > how.chunk  # so one device has all rows
    dtype = wide(x.dtype)
    if stored and how.group == x.shape[0]:  # one group: there is nothing to sum
        dtype = layer.kept_dtype(head.kernel.dtype) if waits else head.kernel.dtype
    narrow = _cast(x, head, fixed.kept)
    others = jax.tree.map(partial(zeros, dtype=wide(x.dtype)), (head.bias, classes))
    start, arrays = (zeros(head.kernel, dtype), others), (x, fixed.labels, rows, ct)
    sums, found = chunks.of_rows(of_group, start, arrays, how.group, in_order=stored)
    (d_kernel, (d_bias, d_classes)), (losses, logs, d_rows, dx) = sums, found
    d_head = Head(_gathered(d_kernel), d_bias)  # or each chunk's would be summed over devices
    return (losses, logs), (dx, layer.rounded(d_head, head, waits), d_rows, d_classes)


def _cast(x, head, kept):
    """The layer, cast and gathered over D once for all chunks."""
    head = layer.cast(x, head, kept)
    return head._replace(kernel=_gathered(head.kernel))


def _gathered(x):
    """`x` with its first axis unsharded on a mesh of Auto axes; elsewhere unchanged."""
    mesh = jax.typeof(x).sharding.mesh
    if mesh.size == 1 or AxisType.Auto not in mesh.axis_types:
        return x
    spec = PartitionSpec(None, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1))
    return lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
