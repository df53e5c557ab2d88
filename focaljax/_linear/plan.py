"""Rows or classes, how many per chunk, and of how many rows the logits' gradient is stored."""

import math
from typing import Any, NamedTuple

from focaljax import _arguments, _sharding
from focaljax._arguments import Layer

LEAST = 512  # rows or classes of a chunk
MEMORY = 2**32  # bytes that are stored on a device beside operands and results, if the caller does not say
TYPICAL = (8192, 1024, 32768)  # what a symbolic N, D or C of an exported program counts as
# Rows of a chunk whose logits' gradient is stored in 16 bits. So many are worth reading the kernel. By the
# schedules of [8192, 4096] x [4096, 131072] 256 took 1.25 of the time on a v6e, 1.02 and 1.09 on a v5e and an
# H100, as there reading the kernel takes longer than the matmul; and 1024 took 1.03 on a v6e, elsewhere 1.00.
HALF = 512


class Limits(NamedTuple):
    """Bytes of the float32 logits of a chunk on a device; and whether classes are chunked if they can be."""

    rows: int
    classes: int
    prefers_classes: bool


# With a softmax rows cost three matmuls, classes four; but rows store more: the gradient of all logits in
# the dtype of the matmul, or that of a group of rows and a sum of the kernel's gradient, which is read and
# written for each group. Fewer rows than LEAST do not pay for that. A sigmoid has three matmuls in both, and
# by classes stores neither. On a mesh it is always rows: chunks of sharded classes each sum their gradient by
# the inputs over the devices, chunks of rows have rows of it.
SOFTMAX = Limits(rows=2**29, classes=2**25, prefers_classes=False)
SIGMOID = Limits(rows=2**29, classes=2**25, prefers_classes=True)


class Plan(NamedTuple):
    """What is chunked, and how."""

    strategy: Any  # "rows" or "classes"
    chunk: Any  # rows or classes
    group: Any  # rows, at least a chunk of them


def plan(layer: Layer, strategy: str | None, chunk: int | None, memory: int | None, limits: Limits) -> Plan:
    """The fastest of what the memory has room for."""
    sizes = (math.prod(layer.logits.shape[:-1]), *layer.kernel.shape)
    rows, width, classes = (n if isinstance(n, int) else m for n, m in zip(sizes, TYPICAL, strict=True))
    shares, one, narrow = devices(layer), layer.logits.dtype.itemsize, layer.inputs.dtype.itemsize
    room = memory or MEMORY
    fit = {"rows": min(limits.rows, room // 4) // (one * classes)}
    fit["classes"] = min(limits.classes, room // 4) // (one * max(1, rows))
    # Logits in 32 bits cost as much as their gradient: then it takes their place, chunk by chunk.
    stores = (narrow < one or memory is not None) and _is_alone(layer) and isinstance(sizes[0], int)
    most = max(128, min(fit["rows"], HALF if stores and narrow < one else max(1024, width)))
    summed, of_chunk = one * width * classes, one * classes * min(most if chunk is None else chunk, rows)
    # The kernel's gradient comes last of all: until then its place holds the logits of a chunk.
    whole = stores and narrow * classes * rows + max(0, of_chunk - narrow * width * classes) <= room
    if strategy is None:
        large = not whole and (summed > room or fit["rows"] < min(LEAST, rows))
        preferred = limits.prefers_classes and isinstance(sizes[2], int)
        strategy = "classes" if (large or preferred) and shares == 1 else "rows"
    size = sizes[0 if strategy == "rows" else 2]
    _arguments.size_of_chunks(strategy, size)
    if chunk is None and strategy == "rows":
        chunk = _even(size, shares * most)
    elif chunk is None:
        chunk = shares * max(LEAST, fit["classes"] // 128 * 128)  # whole tiles
    chunk = max(1, min(chunk, size)) if isinstance(size, int) else chunk
    group = chunk
    if stores and strategy == "rows":
        more = max(0, room - summed - of_chunk) // (narrow * classes)
        group = max(chunk, rows if whole else _even(rows, more // chunk * chunk or chunk))
    return Plan(strategy, chunk, group)


def _is_alone(layer: Layer) -> bool:
    """Whether one device has all rows that it sees."""
    return _sharding.is_whole(layer.inputs) and _sharding.parts(layer.inputs) == 1


def _even(size: Any, chunk: int) -> int:
    """A slightly smaller chunk that divides the rows, or nearly does."""
    if not isinstance(size, int) or chunk >= size:
        return chunk
    least = -(-size // chunk)
    even = [n for n in range(least, 2 * least) if size % n == 0]
    return size // even[0] if even else -(-size // least)


def devices(layer: Layer) -> int:
    """Number of devices that the compiler spreads the work over: without the axes of `shard_map`."""
    mesh = _sharding.mesh_of(layer[:3])
    return math.prod(mesh.shape[name] for name in mesh.axis_names if name not in mesh.manual_axes)
