"""Rows or classes, and how many per chunk."""

import math
from typing import Any, NamedTuple

from focaljax import _arguments, _sharding
from focaljax._arguments import Layer

LEAST = 512  # rows or classes of a chunk
SUMS = 2**32  # bytes of a float32 sum of the kernel's size
TYPICAL = (8192, 1024, 32768)  # what a symbolic N, D or C of an exported program counts as


class Limits(NamedTuple):
    """Bytes of the float32 logits of a chunk on a device; and whether classes are chunked if they can be."""

    rows: int
    classes: int
    prefers_classes: bool


# With a softmax rows cost three matmuls, classes four; but each chunk of rows also reads the kernel and reads
# and writes a float32 sum of its size, which fewer rows than LEAST do not pay for; and the sum must have
# room. A sigmoid has three matmuls in both, and by classes no such sum. On a mesh it is always rows: chunks
# of sharded classes each sum their gradient by the inputs over the devices, chunks of rows have rows of it.
SOFTMAX = Limits(rows=2**29, classes=2**25, prefers_classes=False)
SIGMOID = Limits(rows=2**29, classes=2**25, prefers_classes=True)


def plan(layer: Layer, strategy: str | None, chunk: int | None, limits: Limits) -> tuple[Any, int]:
    """Returns ("rows" or "classes", size of a chunk)."""
    sizes = (math.prod(layer.logits.shape[:-1]), *layer.kernel.shape)
    rows, width, classes = (n if isinstance(n, int) else m for n, m in zip(sizes, TYPICAL, strict=True))
    shares, one = devices(layer), layer.logits.dtype.itemsize
    fit = {"rows": limits.rows // (one * classes), "classes": limits.classes // (one * max(1, rows))}
    if strategy is None:
        large = one * width * classes > SUMS or fit["rows"] < min(LEAST, rows)
        preferred = limits.prefers_classes and isinstance(sizes[2], int)
        strategy = "classes" if (large or preferred) and shares == 1 else "rows"
    size = sizes[0 if strategy == "rows" else 2]
    _arguments.size_of_chunks(strategy, size)
    if chunk is None and strategy == "rows":  # logits of no more than the kernel's gradient takes
        chunk = _even(size, shares * max(128, min(fit["rows"], max(1024, width))))
    elif chunk is None:
        chunk = shares * max(LEAST, fit["classes"] // 128 * 128)  # whole tiles
    return strategy, max(1, min(chunk, size)) if isinstance(size, int) else chunk


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
