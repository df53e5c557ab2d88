"""Linear losses, all classes of some rows at a time.

The gradients of a sum are made while the logits are there: three matmuls, 6 N D C operations. What the sum is
multiplied by afterwards, its cotangent, multiplies the gradients. The cotangents of single losses are not
known in time, so there the backward pass computes the logits again: 8 N D C.

Beside the results there are the logits of one chunk and the sum of the kernel's gradient, in float32.
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
    return chunks.of_rows(step, (), (x, fixed.labels, rows), how.chunk)[1]


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

    def step(sums, part):
        x, labels, rows, ct = part
        x = layer.silenced(x, rows, ct)
        z = layer.logits(x, narrow, how)
        here = fixed._replace(labels=labels)
        losses, logs, pull_back = of_rows(layer.capped(z, how), here, rows, classes, how)
        dz, d_rows, d_classes = pull_back(ct)
        dx, d_head = layer.d_head(x, narrow, fixed.kept, z, dz, how, stored=False)
        sums = jax.tree.map(jnp.add, sums, (d_head, d_classes))
        return sums, (losses, logs, layer.rounded(dx, x, waits), d_rows)

    narrow = _cast(x, head, fixed.kept)
    start = jax.tree.map(partial(zeros, dtype=wide(x.dtype)), (head, classes))
    arrays = (x, fixed.labels, rows, ct)
    (d_head, d_classes), (losses, logs, dx, d_rows) = chunks.of_rows(step, start, arrays, how.chunk)
    d_head = d_head._replace(kernel=_gathered(d_head.kernel))  # or each chunk's would be summed over devices
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
