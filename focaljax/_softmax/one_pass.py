"""The row statistics on accelerators: one read of the logits, in their own dtype.

A reduction that merges ENTRIES (:func:`focaljax._softmax.statistics.merge`) is bound by its arithmetic on a
TPU: some twenty vector operations for each, where the memory leaves room for ten. Here entries meet in blocks
first: the maximum of a block, one exponential per entry, and one merge per block.

The blocks are those of the memory. A TPU keeps an array in tiles of 8 rows and 128 classes, so that a block
of classes with the same place in `BLOCK` neighbouring tiles is a view. Slices of whole tiles serve where the
tiles do not divide the classes, unless the compiler may split them over devices: it would gather them.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from focaljax._entries import is_class, is_known
from focaljax._exact import wide
from focaljax._sharding import parts

BLOCK = 8  # classes that meet before they are merged
FEW = 32  # classes, each in planes of its own: all of them meet
ROWS, LANES = 8, 128  # of a tile

Part = tuple[jax.Array, jax.Array, jax.Array]


def rivals(logits: jax.Array, labels: jax.Array, *, axis: int) -> Part:
    """``(top, rest, target)`` of some of the classes; 0 for a target that is not among them."""
    top, rest, target = _form(logits, axis)(logits, labels, axis)
    return jnp.where(rest == 0, -jnp.inf, top), rest, target


def _form(logits, axis):
    """The blocks of classes that a shape has, on as many devices as the compiler may use."""
    split, after = parts(logits), logits.ndim - 1 - axis
    if not split or not is_known(logits.shape):
        return _of_entries
    if after > 1:  # in float32 value and gradient move more bytes so
        return _of_planes if split == 1 and logits.dtype.itemsize < 4 else _of_entries
    if after or not axis or logits.shape[-2] % (ROWS * split):
        return _of_entries
    if logits.shape[-1] % (BLOCK * LANES * split) == 0:
        return _of_tiles
    return _of_columns if split == 1 and logits.shape[-1] >= 2 * LANES else _of_entries


def _of_entries(logits, labels, axis):
    return _reduced(_leaf(logits, is_class(labels, logits.shape, axis)), (axis,))


def _of_tiles(logits, labels, axis):
    del axis
    *lead, rows, classes = logits.shape
    count = classes // (BLOCK * LANES)
    tiles = logits.reshape(*lead, rows // ROWS, ROWS, count, BLOCK, LANES)
    labels = labels.reshape(*lead, rows // ROWS, ROWS, 1, 1)
    shape = (*tiles.shape[:-2], LANES)
    first = lax.broadcasted_iota(labels.dtype, shape, len(shape) - 2) * (BLOCK * LANES)
    first += lax.broadcasted_iota(labels.dtype, shape, len(shape) - 1)
    member = labels // LANES % BLOCK
    block = _block([tiles[..., i, :] for i in range(BLOCK)], first == labels - member * LANES, member)
    found = _reduced(block, (len(shape) - 2, len(shape) - 1))
    return tuple(x.reshape(*lead, rows) for x in found)


def _of_planes(logits, labels, axis):
    classes = logits.shape[axis]
    block = classes if classes <= FEW else BLOCK
    return _of_slices(logits, labels, axis, block, classes // block)


def _of_columns(logits, labels, axis):
    classes = logits.shape[axis]
    block = min(BLOCK, classes // LANES)
    return _of_slices(logits, labels, axis, block, classes // (block * LANES) * LANES)


def _of_slices(logits, labels, axis, block, width):
    """The statistics of `block` slices of the classes, of that width, and of the classes left over."""
    slices = [lax.slice_in_dim(logits, i * width, (i + 1) * width, axis=axis) for i in range(block)]
    member = labels // width
    own = is_class(labels - member * width, slices[0].shape, axis)
    found = _reduced(_block(slices, own, jnp.expand_dims(member, axis)), (axis,))
    if block * width == logits.shape[axis]:
        return found
    rest = lax.slice_in_dim(logits, block * width, logits.shape[axis], axis=axis)
    return _add(found, _of_entries(rest, labels - block * width, axis))


def _leaf(logits, own):
    """The statistics of single entries."""
    z = logits.astype(wide(logits.dtype))
    others = jnp.where(own, -jnp.inf, z)
    top = lax.max(others, jnp.finfo(z.dtype).min)
    return top, jnp.where(others == -jnp.inf, 0, jnp.ones_like(z)), jnp.where(own, z, 0)


def _block(entries: Sequence[jax.Array], own: jax.Array, member: jax.Array) -> Part:
    """The statistics of blocks, of one entry of each list; the `member` of the `own` block is the target.

    A row has one `member`: no entry needs a comparison with the label. On a TPU what replaces it comes from
    the target: 0.8 of a v6e's scheduled cycles in bfloat16. XLA:GPU makes many kernels of that.
    """
    entries = [z.astype(wide(z.dtype)) for z in entries]  # widened here: before, the whole would be stored so
    here = [member == i for i in range(len(entries))]
    target = jnp.zeros_like(entries[0])
    for hit, z in zip(here, entries, strict=True):
        target = jnp.where(hit, z, target)

    def chained(here, entries, own, target):
        other = jnp.where(own, -jnp.inf, target)
        return [jnp.where(hit, other, z) for hit, z in zip(here, entries, strict=True)]

    def masked(here, entries, own, target):
        del target
        return [jnp.where(own & hit, -jnp.inf, z) for hit, z in zip(here, entries, strict=True)]

    others = lax.platform_dependent(here, entries, own, target, tpu=chained, default=masked)
    # Finite, so that no block needs a guard: of -inf alone it has the rest 0.
    top = lax.max(_tree(lax.max, others), jnp.finfo(target.dtype).min)
    return top, _tree(lax.add, [jnp.exp(x - top) for x in others]), jnp.where(own, target, 0)


def _tree(op: Callable, xs: list[jax.Array]) -> jax.Array:
    while len(xs) > 1:
        xs = [op(x, y) for x, y in zip(xs[::2], xs[1::2], strict=False)] + xs[len(xs) // 2 * 2 :]
    return xs[0]


def _reduced(part: Part, axes: tuple[int, ...]) -> Part:
    dtype = part[0].dtype
    none = (jnp.array(jnp.finfo(dtype).min, dtype), jnp.zeros((), dtype), jnp.zeros((), dtype))
    top, rest, target = lax.reduce(part, none, _add, axes)
    return top, rest, target


def _add(left: Part, right: Part) -> Part:
    """Merges parts with finite tops and sums of at least 0: `statistics.merge` without its guards."""
    top = lax.max(left[0], right[0])
    weight = jnp.exp(lax.min(left[0], right[0]) - top)
    ahead = left[0] >= right[0]
    high, low = jnp.where(ahead, left[1], right[1]), jnp.where(ahead, right[1], left[1])
    return top, high + weight * low, left[2] + right[2]
