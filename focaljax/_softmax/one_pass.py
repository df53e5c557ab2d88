"""The row statistics on accelerators: one read of the logits, in their own dtype.

A reduction that merges ENTRIES (:func:`focaljax._softmax.statistics.merge`) is bound by its arithmetic on a
TPU: some twenty vector operations for each, where the memory leaves room for ten. Here entries meet in blocks
first: the maximum of a block, one exponential per entry, and one merge per block.

The blocks are those of the memory. A TPU keeps an array in tiles of 8 rows and 128 classes, so that a block
of classes with the same place in `BLOCK` neighbouring tiles is a view. Slices of whole tiles serve where the
tiles do not divide the classes, unless the compiler may split them over devices: it would gather them. GPUs
have no tiles: there the slices are even, 200 of 1000 classes and not 128, for 0.5 to 0.9 of a value's time.

What is summed or merged of a row goes through ONE reduction of several operands. On GPUs two of them are one
complex number (:func:`_packed`).
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from focaljax._entries import is_class, is_known
from focaljax._exact import below, wide
from focaljax._sharding import parts

BLOCK = 8  # classes that meet before they are merged
FEW = 32  # classes, each in planes of its own: all of them meet
ROWS, LANES = 8, 128  # of a tile
# Classes: sums for each lane are stored in between, 0.1 passes at most. Value and gradient of smoothed
# labels, [8192, 32768], take 0.6 of a v5p's time in bfloat16 so, as both of its cores share the sums; and
# on a v6e in float32 7 s to compile, not 29.
MANY = 2**14

Part = tuple[jax.Array, ...]


class _Blocks(NamedTuple):
    """Classes that meet: the i-th `entries` of all blocks; the blocks of a row lie along `axes`."""

    entries: list[jax.Array]
    axes: tuple[int, ...]
    place: Callable[[jax.Array], tuple[jax.Array, jax.Array | None]]  # a label's block, and entry of several


def rivals(logits: jax.Array, labels: jax.Array, *, axis: int, on_gpu: bool = False) -> Part:
    """``(top, rest, target)`` of some of the classes; 0 for a target that is not among them."""
    form = _entries if on_gpu and logits.ndim - axis > 2 else _form(logits, axis, on_gpu)
    blocks = form(logits, axis)  # on an H100 planes of pixels would take 2.8 passes, not 1.9
    of = [(_target_beside(x.entries, *x.place(labels), on_gpu), x.axes) for x in blocks]
    top, rest, target = _reduced(of, (0, 0), _add, labels.shape, on_gpu)
    return jnp.where(rest == 0, -jnp.inf, top), rest, target


def peak(logits: jax.Array, *, axis: int, on_gpu: bool = False) -> Part:
    """``(top, excess)`` of some of the classes; without one above -inf, -inf and 0."""
    # What devices have of a row XLA would all-reduce, of one operand; GPUs can only add so, and XLA aborts.
    pack = on_gpu and parts(logits) == 1
    form = _entries if on_gpu and not pack else _form(logits, axis, on_gpu)  # the tops would be stored
    of = [(_highest(x.entries), x.axes) for x in form(logits, axis)]
    top, excess = _reduced(of, (-1,), _join, logits.shape[:axis] + logits.shape[axis + 1 :], pack)
    none = excess < 0  # inside a part that weighs nothing has the excess -1
    return jnp.where(none, -jnp.inf, top), jnp.where(none, 0, excess)


def sums(*terms: jax.Array, axis: int, on_gpu: bool = False) -> Part:
    """The sum of each term over the classes.

    Of rows in one dimension one core of a v5p would make the sums, not both. They are in groups only where
    tiles divide the classes: to group the rows of others XLA moves them, 20 passes instead of 7. Of `MANY`
    classes the tiles are added first, and then their lanes.
    """
    if on_gpu and is_packed(terms[0], axis):
        return _unpacked(*_added(_packed(*terms), axis))
    shape, split = terms[0].shape, parts(terms[0])
    last = not on_gpu and 0 < axis == len(shape) - 1 and split and is_known(shape)
    if not last or shape[-2] % (ROWS * split) or shape[-1] % LANES:
        return _added(terms, axis)
    lanes = split == 1 and shape[-1] >= MANY  # else the compiler, which may split the classes, moves them
    tiles = (shape[-1] // LANES, LANES) if lanes else shape[-1:]
    found = _added([x.reshape(*shape[:-2], -1, ROWS, *tiles) for x in terms], axis + 1)
    found = _added(found, axis + 1) if lanes else found
    return tuple(x.reshape(shape[:-1]) for x in found)


def _added(terms, axis):
    zeros = tuple(jnp.zeros((), x.dtype) for x in terms)
    return tuple(lax.reduce(tuple(terms), zeros, lambda x, y: tuple(map(lax.add, x, y)), (axis,)))


def is_packed(x: jax.Array, axis: int) -> bool:
    """Whether GPUs make two sums together: a value alone of pictures would take up to 1.8 of its time."""
    return axis == x.ndim - 1


def _form(logits, axis, on_gpu):
    """The blocks of classes that a shape has, on as many devices as the compiler may use."""
    split, after = parts(logits), logits.ndim - 1 - axis
    if not split or not is_known(logits.shape):
        return _entries
    if after > 1:  # in float32 value and gradient move more bytes so
        return _planes if split == 1 and logits.dtype.itemsize < 4 else _entries
    if after or not axis or logits.shape[-2] % (ROWS * split):
        return _entries
    if logits.shape[-1] % (BLOCK * LANES * split) == 0:
        return _tiles
    if split != 1 or logits.shape[-1] < 2 * LANES:
        return _entries
    return _even if on_gpu else _columns


def _entries(logits, axis):
    return [_Blocks([logits], (axis,), lambda labels: (is_class(labels, logits.shape, axis), None))]


def _tiles(logits, axis):
    del axis
    *lead, rows, classes = logits.shape
    count = classes // (BLOCK * LANES)
    tiles = logits.reshape(*lead, rows // ROWS, ROWS, count, BLOCK, LANES)
    shape = (*tiles.shape[:-2], LANES)

    def place(labels):
        labels = labels.reshape(*lead, rows // ROWS, ROWS, 1, 1)
        first = lax.broadcasted_iota(labels.dtype, shape, len(shape) - 2) * (BLOCK * LANES)
        first += lax.broadcasted_iota(labels.dtype, shape, len(shape) - 1)
        member = labels // LANES % BLOCK
        return first == labels - member * LANES, member

    return [_Blocks([tiles[..., i, :] for i in range(BLOCK)], (len(shape) - 2, len(shape) - 1), place)]


def _planes(logits, axis):
    classes = logits.shape[axis]
    block = classes if classes <= FEW else BLOCK
    return _slices(logits, axis, block, classes // block)


def _columns(logits, axis):
    classes = logits.shape[axis]
    block = min(BLOCK, classes // LANES)
    return _slices(logits, axis, block, classes // (block * LANES) * LANES)


def _even(logits, axis):
    """Four to eight slices, of whole groups of eight classes, with as few classes left as can be."""
    classes = logits.shape[axis]

    def over(block):
        return classes - classes // (block * ROWS) * (block * ROWS)

    block = min(range(BLOCK, BLOCK // 2 - 1, -1), key=over)
    return _slices(logits, axis, block, (classes - over(block)) // block)


def _slices(logits, axis, block, width):
    """Blocks of that many slices of the classes, of that width; and the classes left over, one by one."""
    slices = [lax.slice_in_dim(logits, i * width, (i + 1) * width, axis=axis) for i in range(block)]

    def place(labels):
        member = jnp.clip(labels // width, 0, block - 1)  # a class left over is beyond the last slice
        return is_class(labels - member * width, slices[0].shape, axis), jnp.expand_dims(member, axis)

    found, over = [_Blocks(slices, (axis,), place)], block * width
    if over == logits.shape[axis]:
        return found
    (rest,) = _entries(lax.slice_in_dim(logits, over, logits.shape[axis], axis=axis), axis)
    return [*found, rest._replace(place=lambda labels: rest.place(labels - over))]


def _target_beside(
    entries: Sequence[jax.Array], own: jax.Array, member: jax.Array | None, on_gpu: bool
) -> Part:
    """The `rivals` of blocks; the `member` of the `own` block is the target.

    A row has one `member`: no entry needs a comparison with the label. On a TPU it changes places with the
    first entry: 0.7 of a v6e's scheduled cycles in bfloat16. XLA:GPU makes many kernels of that.
    """
    entries = [z.astype(wide(z.dtype)) for z in entries]  # widened here: before, the whole would be stored so
    lowest = jnp.finfo(entries[0].dtype).min  # finite, so that no block needs a guard
    if member is None:
        (z,), others = entries, jnp.where(own, -jnp.inf, entries[0])
        rest = jnp.where(others == -jnp.inf, 0, jnp.ones_like(z))
        return lax.max(others, lowest), rest, jnp.where(own, z, 0)
    (first, *more), here = entries, [member == i for i in range(len(entries))]
    target = first
    for hit, z in zip(here[1:], more, strict=True):
        target = jnp.where(hit, z, target)

    if on_gpu:
        others = [jnp.where(own & hit, -jnp.inf, z) for hit, z in zip(here, entries, strict=True)]
    else:
        others = [jnp.where(own, -jnp.inf, target)]
        others += [jnp.where(hit, first, z) for hit, z in zip(here[1:], more, strict=True)]
    top = lax.max(in_pairs(lax.max, others), lowest)
    return top, in_pairs(lax.add, [jnp.exp(x - top) for x in others]), jnp.where(own, target, 0)


def _highest(entries: Sequence[jax.Array]) -> Part:
    """The `peak` of blocks; those at the top are counted, so that what lies beside them is not rounded."""
    entries = [z.astype(wide(z.dtype)) for z in entries]
    top = lax.max(in_pairs(lax.max, entries), jnp.finfo(entries[0].dtype).min)
    if len(entries) == 1:
        return top, jnp.where(entries[0] == -jnp.inf, -jnp.ones_like(top), 0)
    hits = [x == top for x in entries]
    lower = [jnp.where(hit, -jnp.inf, x) for hit, x in zip(hits, entries, strict=True)]
    second = lax.max(in_pairs(lax.max, lower), jnp.finfo(top.dtype).min)
    beside = in_pairs(lax.add, [jnp.exp(x - second) for x in lower])
    ties = in_pairs(lax.add, [jnp.where(hit, jnp.ones_like(top), 0) for hit in hits])
    return top, _fall(second, top) * beside + (ties - 1)


def in_pairs(op: Callable, xs: list[jax.Array]) -> jax.Array:
    """A sum or a maximum of arrays, in pairs that need not wait for each other."""
    while len(xs) > 1:
        xs = [op(x, y) for x, y in zip(xs[::2], xs[1::2], strict=False)] + xs[len(xs) // 2 * 2 :]
    return xs[0]


def _reduced(
    of: list[tuple[Part, tuple[int, ...]]], none: tuple, add: Callable, shape: tuple, pack: bool
) -> Part:
    """The part of each row from those of blocks along some axes; beside the lowest top there is `none`."""
    dtype = of[0][0][0].dtype
    start = tuple(jnp.array(x, dtype) for x in (jnp.finfo(dtype).min, *none))

    def packed(part, axes):
        def step(x, y):
            return _packed(*add(_unpacked(*x), _unpacked(*y)))

        return _unpacked(*lax.reduce(_packed(*part), _packed(*start), step, axes))

    def row(part, axes):
        found = packed(part, axes) if pack else lax.reduce(part, start, add, axes)
        return tuple(x.reshape(shape) for x in found)

    return functools.reduce(add, [row(*one) for one in of])


def _packed(first: jax.Array, second: jax.Array, *others: jax.Array) -> Part:
    """Two numbers as a complex one: XLA:GPU stores what operands of a reduction share, or makes it for each.

    For [8192, 32768] in bfloat16 an H100 so reads the logits once for the statistics of integer labels, not
    twice; the sums of dense labels take 0.4 of the instructions.
    """
    return lax.complex(first, second), *others


def _unpacked(pair: jax.Array, *others: jax.Array) -> Part:
    return lax.real(pair), lax.imag(pair), *others


def _join(left: Part, right: Part) -> Part:
    """Merges the peaks of parts with finite tops: `statistics.merge` without its guards."""
    top, ahead = lax.max(left[0], right[0]), left[0] >= right[0]
    high, low = jnp.where(ahead, left[1], right[1]), jnp.where(ahead, right[1], left[1])
    return top, high + _fall(lax.min(left[0], right[0]), top) * (1 + low)


def _fall(low, top):
    """``exp(low - top)`` to its last bits, of a finite `top`."""
    gap, err = below(low, top)
    return jnp.exp(gap) * (1 + err)


def _add(left: Part, right: Part) -> Part:
    """Merges parts with finite tops and sums of at least 0: `statistics.merge` without its guards."""
    top = lax.max(left[0], right[0])
    weight = jnp.exp(lax.min(left[0], right[0]) - top)
    ahead = left[0] >= right[0]
    high, low = jnp.where(ahead, left[1], right[1]), jnp.where(ahead, right[1], left[1])
    return top, high + weight * low, left[2] + right[2]
