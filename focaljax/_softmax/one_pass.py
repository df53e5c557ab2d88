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
from focaljax._exact import two_sum, wide
from focaljax._sharding import parts

BLOCK = 8  # classes that meet before they are merged
FEW = 32  # classes, each in planes of its own: all of them meet
ROWS, LANES = 8, 128  # of a tile

Part = tuple[jax.Array, ...]


def rivals(logits: jax.Array, labels: jax.Array, *, axis: int) -> Part:
    """``(top, rest, target)`` of some of the classes; 0 for a target that is not among them."""
    top, rest, target = _form(logits, axis)(logits, labels, axis)
    return jnp.where(rest == 0, -jnp.inf, top), rest, target


def peak(logits: jax.Array, *, axis: int, on_gpu: bool = False) -> Part:
    """``(top, excess)`` of some of the classes; without one above -inf, -inf and 0.

    XLA:GPU would store the tops of float32 blocks, an eighth of the logits: on an H200 of views
    of tiles, on an H100 of all, where a value took 1.2 of its time.
    """
    form = _form(logits, axis)
    if on_gpu and form in (_of_tiles, _of_columns):
        narrow = logits.dtype.itemsize < 4 and parts(logits) == 1
        form = _of_columns if narrow else _of_entries
    top, excess = form(logits, None, axis)
    none = excess < 0  # inside a part that weighs nothing has the excess -1
    return jnp.where(none, -jnp.inf, top), jnp.where(none, 0, excess)


def over_classes(terms: Part, none: Part, merge: Callable, axis: int) -> Part:
    """`lax.reduce` over the classes. Of rows in one dimension one core of a v5p would make it, not both."""
    shape, split = terms[0].shape, parts(terms[0])
    last = 0 < axis == len(shape) - 1 and split and is_known(shape)
    if not last or shape[-2] % (ROWS * split) or shape[-1] % LANES:
        return tuple(lax.reduce(terms, none, merge, (axis,)))
    tiles = tuple(x.reshape(*shape[:-2], -1, ROWS, shape[-1]) for x in terms)
    return tuple(x.reshape(shape[:-1]) for x in lax.reduce(tiles, none, merge, (axis + 1,)))


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
    own = None if labels is None else is_class(labels, logits.shape, axis)
    return _reduced(_leaf(logits, own), (axis,))


def _of_tiles(logits, labels, axis):
    del axis
    *lead, rows, classes = logits.shape
    count = classes // (BLOCK * LANES)
    tiles = logits.reshape(*lead, rows // ROWS, ROWS, count, BLOCK, LANES)
    shape, own, member = (*tiles.shape[:-2], LANES), None, None
    if labels is not None:
        labels = labels.reshape(*lead, rows // ROWS, ROWS, 1, 1)
        first = lax.broadcasted_iota(labels.dtype, shape, len(shape) - 2) * (BLOCK * LANES)
        first += lax.broadcasted_iota(labels.dtype, shape, len(shape) - 1)
        member = labels // LANES % BLOCK
        own = first == labels - member * LANES
    block = _block([tiles[..., i, :] for i in range(BLOCK)], own, member)
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
    own, member, later = None, None, None
    if labels is not None:
        member, later = labels // width, labels - block * width
        own = is_class(labels - member * width, slices[0].shape, axis)
        member = jnp.expand_dims(member, axis)
    found = _reduced(_block(slices, own, member), (axis,))
    if block * width == logits.shape[axis]:
        return found
    rest = _of_entries(lax.slice_in_dim(logits, block * width, logits.shape[axis], axis=axis), later, axis)
    return (_add if labels is not None else _join)(found, rest)


def _leaf(logits, own):
    """The statistics of single entries."""
    z = logits.astype(wide(logits.dtype))
    if own is None:
        return lax.max(z, jnp.finfo(z.dtype).min), jnp.where(z == -jnp.inf, -jnp.ones_like(z), 0)
    others = jnp.where(own, -jnp.inf, z)
    top = lax.max(others, jnp.finfo(z.dtype).min)
    return top, jnp.where(others == -jnp.inf, 0, jnp.ones_like(z)), jnp.where(own, z, 0)


def _block(entries: Sequence[jax.Array], own: jax.Array | None, member: jax.Array | None) -> Part:
    """The statistics of blocks, of one entry of each list; the `member` of the `own` block is the target.

    Without a target the highest entries weigh a whole number, so that what lies beside them is not rounded.

    A row has one `member`: no entry needs a comparison with the label. On a TPU what replaces it comes from
    the target: 0.8 of a v6e's scheduled cycles in bfloat16. XLA:GPU makes many kernels of that.
    """
    entries = [z.astype(wide(z.dtype)) for z in entries]  # widened here: before, the whole would be stored so
    if own is None:
        top = lax.max(_tree(lax.max, entries), jnp.finfo(entries[0].dtype).min)
        highest = [x == top for x in entries]
        beside = [jnp.where(hit, 0, _fall(x, top)) for hit, x in zip(highest, entries, strict=True)]
        ties = _tree(lax.add, [jnp.where(hit, jnp.ones_like(top), 0) for hit in highest])
        return top, _tree(lax.add, beside) + (ties - 1)
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
    lowest, zero = jnp.array(jnp.finfo(dtype).min, dtype), jnp.zeros((), dtype)
    if len(part) == 2:
        return tuple(lax.reduce(part, (lowest, zero - 1), _join, axes))
    return tuple(lax.reduce(part, (lowest, zero, zero), _add, axes))


def _join(left: Part, right: Part) -> Part:
    """Merges the peaks of parts with finite tops: `statistics.merge` without its guards."""
    top, ahead = lax.max(left[0], right[0]), left[0] >= right[0]
    high, low = jnp.where(ahead, left[1], right[1]), jnp.where(ahead, right[1], left[1])
    return top, high + _fall(lax.min(left[0], right[0]), top) * (1 + low)


def _fall(low, top):
    """``exp(low - top)`` to its last bits, of a finite `top`: one guard less than `_exact.shifted_exp`."""
    gap = low - top
    _, err = two_sum(jnp.where(gap == -jnp.inf, top, low), -top)
    return jnp.exp(gap) * (1 + err)


def _add(left: Part, right: Part) -> Part:
    """Merges parts with finite tops and sums of at least 0: `statistics.merge` without its guards."""
    top = lax.max(left[0], right[0])
    weight = jnp.exp(lax.min(left[0], right[0]) - top)
    ahead = left[0] >= right[0]
    high, low = jnp.where(ahead, left[1], right[1]), jnp.where(ahead, right[1], left[1])
    return top, high + weight * low, left[2] + right[2]
