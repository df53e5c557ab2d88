"""A linear layer, its logits and its derivatives: what all linear losses share.

With ``z = cap tanh((x W + b) / cap)`` an operation takes all classes of some rows at a time, or some classes
of all rows. Its operands are the same in every form: x [N, D], in whose dtype the matmuls are, with sums in
float32; the `Head`; what is `Fixed`; options of `Rows`; and options of `Classes` or None. Inside
`jax.shard_map` the last four may be those of this device's shard of the classes.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from focaljax import _sharding
from focaljax._exact import wide
from focaljax._odds import scaled
from focaljax.terms import Term

# Rows of the kernel whose gradient is written at a time. Else a v6e writes all of it transposed, for a faster
# matmul, and copies it: 2.2 GB and 3 of 44 ms more, by the schedule of [8192, 4096] x [4096, 131072].
PART = 1024


class How(NamedTuple):
    """Static options; changing one recompiles."""

    chunk: int  # rows, or classes
    group: int  # rows whose logits' gradient is stored, for one sum of the kernel's gradient
    cap: float | None
    precision: Any  # of the matmuls
    name: _sharding.AxisName | None  # the mesh axis that shards the classes
    blocks: int = 1  # of classes, of which a chunk of classes takes equal parts
    logs: bool = False  # whether the :class:`LinearAux` of the rows are made


class Head(NamedTuple):
    """Kernel and bias of the layer."""

    kernel: jax.Array  # [D, C]
    bias: jax.Array | None  # [C]


class Fixed(NamedTuple):
    """Operands without a gradient."""

    labels: jax.Array  # class indices from the first of all devices' classes, [N] or [N, L]; -1 is no class
    kept: jax.Array | None  # [C], which classes take part; None is all
    number: jax.Array  # how many take part, of all devices


class Rows(NamedTuple):
    """Options per row; None if the loss has no such option."""

    weight: jax.Array  # multiplies the loss
    term: Term
    alpha: jax.Array | None = None  # of a sigmoid loss, where it is no weight; that of the class is added
    zeta: jax.Array | None = None  # of the penalty of large logits
    shares: jax.Array | None = None  # [N, L]: how much of a soft label each of its classes is

    def silent(self, ct: jax.Array) -> jax.Array:
        """Rows whose gradient is 0 whatever their loss is, for the cotangent `ct`."""
        silent = self.weight * ct == 0
        return silent if self.zeta is None else silent & (self.zeta * ct == 0)


class Classes(NamedTuple):
    """Options per class, if every class has a term."""

    alpha: jax.Array | None
    term: Term  # its options are added to those of the row
    smoothing: jax.Array | None  # a scalar


def cast(x: jax.Array, head: Head, kept: jax.Array | None) -> Head:
    """The layer with its kernel in the dtype of the matmul, and 0 for masked classes."""
    kernel, bias = head
    if kept is not None:  # 0 times NaN would be NaN
        kernel = jnp.where(kept[None, :], kernel, 0)
        bias = None if bias is None else jnp.where(kept, bias, 0)
    return Head(kernel.astype(x.dtype), bias)


def logits(x: jax.Array, head: Head, how: How) -> jax.Array:
    """The logits before their cap, in at least float32; `head` is cast."""
    z = product(x, head.kernel, (1, 0), how)
    return z if head.bias is None else z + head.bias.astype(z.dtype)[None, :]


def capped(z: jax.Array, how: How) -> jax.Array:
    """``cap * tanh(z / cap)``, or the logits as they are."""
    return z if how.cap is None else _soft_cap(z, how.cap)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _soft_cap(z, cap):
    return cap * jnp.tanh(z / cap)


@_soft_cap.defjvp
def _soft_cap_jvp(cap, primals, tangents):
    return _soft_cap(primals[0], cap), _steepness(primals[0] / cap) * tangents[0]


def _steepness(x):
    """``sech(x)^2 = 1 - tanh(x)^2`` without cancellation."""
    decay = jnp.exp(-2 * jnp.abs(x))
    return 4 * decay / ((1 + decay) * (1 + decay))


def d_logits(
    z: jax.Array, dz: jax.Array, head: Head, kept: jax.Array | None, how: How
) -> tuple[jax.Array, jax.Array | None]:
    """The gradients by the logits before their cap, in the dtype of the matmuls, and by the bias.

    `dz` is that by the capped logits, `z` are the logits before their cap; `head` is cast.
    """
    if how.cap is not None:
        dz = scaled(dz, _steepness(z / how.cap))
    if kept is not None:
        dz = jnp.where(kept[None, :], dz, 0)
    return dz.astype(head.kernel.dtype), None if head.bias is None else jnp.sum(dz, 0)


def d_operands(
    x: jax.Array, kernel: jax.Array, dz: jax.Array, how: How, *, stored: bool, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """The gradients by x, wide, and by the kernel, in `dtype`, from that by the logits.

    Where that is not `stored`, XLA makes it again, exponentials and all, for each tile of each matmul:
    slower, but on a v5p 0.5 GB less for [1024, 131072].
    """
    dz = lax.optimization_barrier(dz) if stored else dz
    width, dx = x.shape[1], product(dz, kernel, (1, 1), how)
    if dtype == wide(x.dtype) or width % PART or width == PART:
        return dx, product(x, dz, (0, 0), how).astype(dtype)

    def d_part(part):
        return product(part, dz, (0, 0), how).astype(dtype)

    parts = jnp.moveaxis(x.reshape(x.shape[0], -1, PART), 1, 0)
    return dx, lax.map(d_part, parts).reshape(width, -1)


def product(x: jax.Array, y: jax.Array, axes: tuple[int, int], how: How) -> jax.Array:
    """The product of two matrices, summed over one axis of each in at least float32."""
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(x, y, dimensions, how.precision, wide(x.dtype))


def silenced(x: jax.Array, rows: Rows, ct: jax.Array) -> jax.Array:
    """`x` with 0 for NaN and infinity in rows without a gradient, since 0 * NaN is NaN."""
    silent = rows.silent(ct) & ~jnp.all(jnp.isfinite(x), 1)
    return jnp.where(silent[:, None], 0, x)


def kept_dtype(dtype: Any) -> Any:
    """Storage dtype of gradients that wait for their cotangent: a small one must not be lost in float16."""
    return jnp.float32 if dtype == jnp.float16 else dtype


def rounded(gradients: Any, like: Any, waits: bool) -> Any:
    """The gradients in the dtypes of their operands, or in the storage dtype if they wait."""

    def one(gradient, like):
        return gradient.astype(kept_dtype(like.dtype) if waits else like.dtype)

    return jax.tree.map(one, gradients, like)
