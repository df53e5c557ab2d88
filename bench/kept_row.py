"""Kernels of Pallas that keep the row: every logit is read once, every gradient is written once.

XLA has no kernel that reduces a row and then uses the row again, so value and gradient read the logits twice:
3 passes. Here whole rows lie in a TPU's VMEM or in a GPU's registers, and it is 2. But the gradient is stored
before its cotangent is known:

- a kernel is that of the mean, whose cotangent is one number. In ``jax.value_and_grad(mean)`` that is the
  constant 1, and XLA leaves the product out: 2 passes;
- any other cotangent, as of a scaled loss or of one loss per row, multiplies what is stored: one more read
  and write, 4 passes. On a TPU that product may become a part of the matmuls that follow.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu, triton

from focaljax._exact import below
from focaljax._softmax import indexed, statistics
from focaljax._softmax.one_pass import in_pairs
from focaljax.terms import Focal

LANES, ROWS = 128, 32  # of a tile here: four registers of float32
TOGETHER = 32  # tiles that have one maximum
BLOCK = 2**22  # bytes of rows that are kept; VMEM has two blocks of logits and two of their gradient
VMEM = 32 * 2**20  # bytes, where the smallest chip has 64 MiB
WARP = 4096  # entries of a row for each warp of a GPU; every warp repeats the arithmetic of the row
LOWEST = float(jnp.finfo(jnp.float32).min)  # finite, so that -inf below it weighs nothing


def on_chip(logits: jax.Array, labels: jax.Array, gamma: float, gradient: bool) -> tuple[jax.Array, ...]:
    """The mean and, if it is wanted, its gradient, by the kernel of the platform that it is compiled for."""
    tpu_run, gpu_run = (partial(run, gamma=gamma, gradient=gradient) for run in (on_tpu, on_gpu))
    return lax.platform_dependent(logits, labels, tpu=tpu_run, cuda=gpu_run)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def mean(logits: jax.Array, labels: jax.Array, gamma: float, run: Callable[..., Any] = on_chip) -> jax.Array:
    """The mean focal loss of logits [N, C], float32 or bfloat16, and labels [N]."""
    return run(logits, labels, gamma, gradient=False)[0]


def _fwd(logits, labels, gamma, run):
    return run(logits, labels, gamma, gradient=True)


def _bwd(gamma, run, gradient, ct):
    del gamma, run
    return ct.astype(gradient.dtype) * gradient, None


mean.defvjp(_fwd, _bwd)


def _term(top, rest, target, label, classes, gamma):
    """The loss of a row and its slope at the target, in the project's own arithmetic."""
    part = jnp.where(rest == 0, -jnp.inf, top), rest, target
    stats, undefined = statistics.settled(statistics.rivals_of_all(part, label, classes, None))
    term, odds = Focal(gamma), indexed.odds_of(stats)
    return [jnp.where(undefined, jnp.nan, x) for x in (term.value(odds), -odds.q * term.pull(odds))]


def _share(slope, rest):
    """What a competitor's exponential is multiplied by for its gradient."""
    return -slope / jnp.where(rest > 0, rest, 1)


def _exp(z, top, dtype):
    """``exp(z - top)``; a gradient in bfloat16 does not show that the difference is rounded."""
    if dtype != jnp.float32:
        return jnp.exp(z - top)
    gap, err = below(z, top)
    return jnp.exp(gap) * (1 + err)


# NVIDIA's GPUs, through Triton: a row in the registers of its warps.


def on_gpu(
    logits: jax.Array, labels: jax.Array, gamma: float, gradient: bool, interpret: bool = False
) -> tuple[jax.Array, ...]:
    """The mean and, if it is wanted, its gradient; a row of 131072 does not fit into registers."""
    n, classes = logits.shape
    width = 1 << (classes - 1).bit_length()  # Triton's arrays are powers of two
    row, block = pl.BlockSpec((1,), lambda i: (i,)), pl.BlockSpec((1, width), lambda i: (i, 0))
    loss, *found = pl.pallas_call(
        partial(_gpu_kernel, shape=(n, classes), gamma=gamma),
        grid=(n,),
        in_specs=[row, block],
        out_specs=[row] + [block] * gradient,
        out_shape=[jax.ShapeDtypeStruct((n,), jnp.float32)] + [_like(logits)] * gradient,
        compiler_params=triton.CompilerParams(num_warps=max(1, width // WARP)),
        interpret=interpret,
        name="kept_row",
    )(labels, logits)
    return jnp.mean(loss), *found


def _like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _gpu_kernel(label, logits, loss, *gradient, shape, gamma):
    (n, classes), mine = shape, label[...][:, None]
    place = lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    known, own = place < classes, place == mine
    z = triton.load(logits.at[...], mask=known, other=-jnp.inf).astype(jnp.float32)
    others = jnp.where(own, -jnp.inf, z)
    top = jnp.maximum(jnp.max(others, 1, keepdims=True), LOWEST)
    exps = _exp(others, top, logits.dtype)
    rest, target = (jnp.sum(x, 1, keepdims=True) for x in (exps, jnp.where(own, z, 0)))
    value, slope = _term(top, rest, target, mine, classes, gamma)
    loss[...] = value[:, 0]
    for dz in gradient:
        found = jnp.where(own, slope / n, _share(slope, rest) / n * exps)
        triton.store(dz.at[...], found.astype(dz.dtype), mask=known)


# TPUs: blocks of rows in VMEM.


def on_tpu(
    logits: jax.Array, labels: jax.Array, gamma: float, gradient: bool, interpret: bool = False
) -> tuple[jax.Array, ...]:
    """The mean and, if it is wanted, its gradient; N is a multiple of 128.

    The classes lie along the lanes of a tile; if 128 does not divide them along its sublanes, as XLA lays an
    array of many rows: otherwise it would copy the logits and their gradient.
    """
    (n, classes), axis = logits.shape, int(logits.shape[1] % LANES == 0)
    if n % LANES:
        raise ValueError(f"expected a multiple of {LANES} rows, got {n}")
    room = BLOCK // (pl.cdiv(classes, LANES) * LANES * logits.dtype.itemsize)
    least = 32 // logits.dtype.itemsize if axis else LANES  # rows of one tile in memory
    rows = math.gcd(n, max(least, min(512, 2 ** room.bit_length() // 2)))
    tile = (min(rows, ROWS), LANES) if axis else (ROWS, LANES)
    size, z = pl.cdiv(classes, tile[axis]) * tile[axis], logits if axis else logits.T
    block = (
        pl.BlockSpec((rows, size), lambda i: (i, 0)) if axis else pl.BlockSpec((size, rows), lambda i: (0, i))
    )
    total, *found = pl.pallas_call(
        partial(_tpu_kernel, shape=(n, classes), rows=rows, tile=tile, axis=axis, gamma=gamma),
        grid=(n // rows,),
        in_specs=[pl.BlockSpec((n // LANES, LANES), lambda i: (0, 0)), block],
        out_specs=[pl.BlockSpec((8, LANES), lambda i: (i, 0))] + [block] * gradient,
        out_shape=[jax.ShapeDtypeStruct((8 * n // rows, LANES), jnp.float32)] + [_like(z)] * gradient,
        compiler_params=tpu.CompilerParams(dimension_semantics=("parallel",), vmem_limit_bytes=VMEM),
        interpret=interpret,
        name="kept_row",
    )(labels.astype(jnp.int32).reshape(-1, LANES), z)
    return jnp.sum(total[::8, 0]) / n, *(dz if axis else dz.T for dz in found)


def _tpu_kernel(labels, logits, sums, *gradient, shape, rows, tile, axis, gamma):
    """One block: the sum of its losses, and the gradient of the mean; the rows of a tile at a time."""
    (n, classes), at_once, block = shape, tile[1 - axis], pl.program_id(0) * rows

    def of_rows(group, total):
        first = group * at_once
        mine = pl.ds(pl.multiple_of(first, at_once), at_once)
        row = labels[pl.ds((block + first) // LANES, 1), :]
        label = _column(row, (block + first) % LANES, tile) if axis else row
        ahead = label - lax.broadcasted_iota(jnp.int32, tile, axis)
        over = partial(_over_tiles, logits, mine, ahead, classes, axis)
        top, rest, target = over(_add, (jnp.full(tile, LOWEST), jnp.zeros(tile), jnp.zeros(tile)))
        highest = jnp.max(top, axis, keepdims=True)
        rest = jnp.sum(rest * jnp.exp(top - highest), axis, keepdims=True)
        target = jnp.sum(target, axis, keepdims=True)
        loss, slope = _term(highest, rest, target, label, classes, gamma)
        if gradient:
            parts = slope / n, _share(slope, rest) / n, highest
            over(partial(_write, gradient[0], [jnp.broadcast_to(x, tile) for x in parts]), None)
        return total + loss

    none = jnp.zeros((at_once, 1) if axis else (1, at_once))
    sums[...] = jnp.broadcast_to(jnp.sum(lax.fori_loop(0, rows // at_once, of_rows, none)), sums.shape)


def _column(row, first, tile):
    """Of labels along the lanes those from `first` on, as a column."""
    here = lax.broadcasted_iota(jnp.int32, tile, 1) == first + lax.broadcasted_iota(jnp.int32, tile, 0)
    return jnp.sum(jnp.where(here, jnp.broadcast_to(row, tile), 0), 1, keepdims=True)


def _over_tiles(logits, mine, ahead, classes, axis, step, carry):
    """``step(carry, tiles)`` of TOGETHER tiles at a time, each with its place, logits and which is the label.

    Beyond the last class the logits are -inf, which weighs nothing.
    """
    width = ahead.shape[axis]

    def some(first, count, carry):
        tiles = []
        for start in (first + width * i for i in range(count)):
            place = (mine, pl.ds(start, width)) if axis else (pl.ds(start, width), mine)
            z = logits[place].astype(jnp.float32)
            if isinstance(start, int) and start + width > classes:
                z = jnp.where(lax.broadcasted_iota(jnp.int32, z.shape, axis) < classes - start, z, -jnp.inf)
            tiles.append((place, z, ahead == start))
        return step(carry, tiles)

    span = TOGETHER * width
    whole, rest = divmod(classes, span)
    carry = lax.fori_loop(0, whole, lambda i, x: some(pl.multiple_of(i * span, span), TOGETHER, x), carry)
    return some(whole * span, pl.cdiv(rest, width), carry) if rest else carry


def _add(carry, tiles):
    """The highest competitor, the sum of exponentials below it and the target, for each place in a tile."""
    top, rest, target = carry
    for _, z, own in tiles:
        target = jnp.where(own, z, target)
    others = [jnp.where(own, -jnp.inf, z) for _, z, own in tiles]
    highest = jnp.maximum(top, in_pairs(jnp.maximum, others))
    added = in_pairs(jnp.add, [jnp.exp(z - highest) for z in others])
    return highest, rest * jnp.exp(top - highest) + added, target


def _write(gradient, parts, carry, tiles):
    """The slope at the target, its opposite shared out among the competitors."""
    slope, share, top = parts
    for place, z, own in tiles:
        found = jnp.where(own, slope, share * _exp(z, top, gradient.dtype))
        gradient[place] = found.astype(gradient.dtype)
    return carry
