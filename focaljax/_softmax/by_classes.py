"""Linear + focal loss, some classes of all rows at a time.

Statistics of a chunk of classes merge with those of the others, so the first sweep over the kernel makes the
losses, or with smoothed labels the first two. The backward sweep computes each chunk's logits once more: four
matmuls, 8 N D C operations (10 with smoothed labels). Beside the results there are the logits of one chunk
and the sum of the gradient by x, in float32: nothing of the kernel's size.

Derivatives of higher order are those of :mod:`focaljax._softmax.by_rows`, the same function of the same
operands, as sums over the classes of one chunk cannot have them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from focaljax import _sharding
from focaljax._exact import wide
from focaljax._softmax import by_rows, dense, indexed, layer, statistics
from focaljax._softmax.by_rows import zeros
from focaljax._softmax.layer import Classes, Head, How, Rows


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def each(
    how: How, x: jax.Array, head: Head, labels: jax.Array, rows: Rows, classes: Classes | None
) -> jax.Array:
    """The loss of each row of `x`, [N, D]; operands as in :func:`focaljax._softmax.by_rows.total`."""
    return _forward(how, x, head, labels, rows, classes)[0]


def total(
    how: How, x: jax.Array, head: Head, labels: jax.Array, rows: Rows, classes: Classes | None
) -> jax.Array:
    """The sum of the losses."""
    return jnp.sum(each(how, x, head, labels, rows, classes))


def _each_fwd(how, *operands):
    losses, stats = _forward(how, *operands)
    return losses, (*operands, stats)


@partial(jax.jit, static_argnums=0, inline=True)
def _each_bwd(how, residuals, ct):
    dx, d_head, d_rows, d_classes = _backward(how, *residuals, ct)
    return dx, d_head, None, d_rows, d_classes


def _by_rows(how, x, head):
    """The same program in chunks of rows, with logits of about the same size."""
    return how._replace(chunk=max(1, x.shape[0] * how.chunk // head.kernel.shape[1]))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _forward(how, x, head, labels, rows, classes) -> Any:
    """The losses, and the statistics that the backward pass needs."""
    found = _of_integers if classes is None else _of_smoothed
    losses, lse, stats = found(how, x, head, labels, rows, classes)
    return losses + layer.penalty(rows, lse), stats


@_forward.defjvp
def _forward_jvp(how, primals, tangents):
    x, head, labels, *others = primals
    losses, stats = _forward(how, *primals)

    def again(x, head, *others):
        return by_rows.losses(_by_rows(how, x, head), x, head, labels, *others)

    floating = (*tangents[:2], *tangents[3:])
    rise = jax.jvp(again, (x, head, *others), floating)[1]
    return (losses, stats), (rise, jax.tree.map(jnp.zeros_like, stats))


def _of_integers(how, x, head, labels, rows, classes):
    """Losses, logsumexp and statistics without smoothing."""
    mine = _sharding.local(labels, head.kernel.shape[1], how.name)

    def step(merged, part, here):
        top, rest, target = statistics.rivals_part(_logits(x, part, how), here(mine), 1)
        return statistics.merge(merged, (top, jnp.where(rest > 0, rest - 1, 0), target)), ()

    (top, excess, target), _ = _chunks(step, _nothing(x, 2), head, how)
    part = (top, jnp.where(top == -jnp.inf, 0, 1 + excess), target)
    stats = statistics.rivals_of_all(part, labels, head.kernel.shape[1], how.name)
    return indexed.losses(stats, rows.weight, rows.term), layer.lse_of_rivals(stats), stats


def _of_smoothed(how, x, head, labels, rows, classes):
    """The same with it; the statistics are the peak of each row and the sums of what its classes pull."""

    def highest(merged, part, here):
        return statistics.merge(merged, statistics.peak_part(_logits(x, part, how), 1), exact=True), ()

    every = statistics.peak_of_all(_chunks(highest, _nothing(x, 1), head, how)[0], 1, how.name)
    peak = statistics.known(every, labels >= 0, 1)
    fold = _folds(how, head, labels)

    def step(sums, part, here):
        head, options = part
        weights, term = fold(here, rows, options, classes.smoothing)
        found = dense.sums(_logits(x, head, how), weights, term, peak, 1, None)
        return jax.tree.map(jnp.add, sums, found), ()

    none = zeros(peak.top, peak.top.dtype, like=x)
    sums = _chunks(step, (none, dense.Pulls(none, none)), (head, classes[:2]), how)[0]
    loss, totals = jax.tree.map(lambda each: _sharding.total(each, how.name), sums)
    return jnp.squeeze(loss, 1), layer.lse_of_peak(x, every, how.name), (every, peak, totals)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _backward(how, x, head, labels, rows, classes, stats, ct) -> Any:
    """The gradients of the sum of the losses weighed by `ct`."""
    x = layer.silenced(x, rows, ct)
    pull_back = _pull_integers if classes is None else _pull_smoothed
    start, pull, finish, lse = pull_back(how, x, head, labels, rows, classes, stats, ct)

    def step(sums, part, here):
        (head, _), (dx, others) = part, sums
        z = layer.logits(x, head, how)
        capped = layer.capped(z, how)
        dz, found, d_options = pull(capped, here, part)
        dz = dz + layer.d_penalty(capped, rows, lse, ct)
        more, d_kernel, d_bias = layer.d_head(x, head, z, dz, how)
        return (dx + more, jax.tree.map(jnp.add, others, found)), (Head(d_kernel, d_bias), d_options)

    options = None if classes is None else classes[:2]
    state = _chunks(step, (zeros(x, wide(x.dtype)), start), (head, options), how, results=True)
    (dx, found), (d_head, d_options) = state
    d_rows, d_smoothing = finish(found)
    d_classes = None if classes is None else Classes(d_options[0], d_options[1], d_smoothing)
    return dx.astype(x.dtype), d_head, layer.d_rows_of(rows, d_rows, lse, ct), d_classes


@_backward.defjvp
def _backward_jvp(how, primals, tangents):
    x, head, labels, rows, classes, _, ct = primals

    def again(x, head, rows, classes, ct):
        return by_rows.gradient(_by_rows(how, x, head), x, head, labels, rows, classes, ct)[1]

    floating = (*tangents[:2], *tangents[3:5], tangents[6])
    return _backward(how, *primals), jax.jvp(again, (x, head, rows, classes, ct), floating)[1]


class _Pull(NamedTuple):
    """How the chunks of a backward pass are made and gathered."""

    start: Any  # sums over the chunks, of none
    of_chunk: Callable  # (logits, here, part) -> gradient by the logits, summands, gradients by the options
    finish: Callable  # sums -> gradients by the rows and by the smoothing
    lse: jax.Array


def _pull_integers(how, x, head, labels, rows, classes, stats, ct):
    mine = _sharding.local(labels, head.kernel.shape[1], how.name)
    slope = indexed.slopes(stats, rows.weight, rows.term, ct)

    def of_chunk(z, here, part):
        del part
        return indexed.spread(z, here(mine), slope, stats, 1, None), (), None

    def finish(sums):
        del sums
        return Rows(slope.alpha, slope.term, None), None

    return _Pull((), of_chunk, finish, layer.lse_of_rivals(stats))


def _pull_smoothed(how, x, head, labels, rows, classes, stats, ct):
    every, peak, totals = stats
    fold = _folds(how, head, labels)

    def of_chunk(z, here, part):
        (weights, term), unfold = jax.vjp(partial(fold, here), rows, part[1], classes.smoothing)
        found = dense.gradients(z, weights, term, peak, totals, ct, 1, None)
        d_rows, d_options, d_smoothing = unfold((found.weights, found.term))
        return found.logits, (d_rows._replace(zeta=None), d_smoothing), d_options

    start = jax.tree.map(lambda x: zeros(x, x.dtype), (rows._replace(zeta=None), classes.smoothing))
    return _Pull(start, of_chunk, lambda sums: sums, layer.lse_of_peak(x, every, how.name))


def _folds(how, head, labels):
    """Returns ``fold(here, rows, options, smoothing)``: weights and term of the chunk that is `here`."""
    classes = head.kernel.shape[1]
    mine, count = _sharding.local(labels, classes, how.name), classes * _sharding.shards(how.name)

    def fold(here, rows, options, smoothing):
        return layer.folded(here(mine), rows, Classes(options[0], options[1], smoothing), count)

    return fold


def _logits(x, head, how):
    return layer.capped(layer.logits(x, head, how), how)


def _nothing(x, sums):
    """The statistics of no class: a top and `sums` numbers."""
    none = zeros(x[:, 0] if x.shape[1] else jnp.sum(x, 1), wide(x.dtype))
    return (none - jnp.inf, *(none for _ in range(sums)))


def _chunks(step, carry, arrays, how, results=False) -> Any:
    """``carry, results = step(carry, classes of the arrays, here)`` for chunk after chunk.

    Classes are the last axis of arrays and `results`, which have the shapes and dtypes of the arrays. What is
    left over is a smaller chunk: the kernel is never padded or copied. A chunk takes as many classes of every
    block, so where the classes are sharded every device has its part of it; `here(labels)` counts as the
    chunk does, and is no class of it for a label that lies elsewhere.
    """
    size = jax.tree.leaves(arrays)[0].shape[-1]
    blocks = how.blocks if size % how.blocks == 0 else 1
    length = size // blocks
    chunk = max(1, how.chunk // blocks)
    count, left = divmod(length, chunk)

    def body(state, start, width=chunk):
        carry, made = state

        def here(labels):
            within = labels % length - start
            mine = (labels >= 0) & (labels < size) & (within >= 0) & (within < width)
            return labels - start if blocks == 1 else jnp.where(mine, labels // length * width + within, -1)

        part = jax.tree.map(lambda x: joined(lax.dynamic_slice_in_dim(x, start, width, x.ndim - 1)), arrays)
        carry, found = step(carry, part, here)
        if results:
            made = jax.tree.map(
                lambda all, some: lax.dynamic_update_slice_in_dim(
                    all, some.astype(all.dtype).reshape(*all.shape[:-1], width), start, all.ndim - 1
                ),
                made,
                found,
            )
        return (carry, made), None

    def joined(x):
        return x if blocks == 1 else x.reshape(*x.shape[:-2], -1)

    if blocks > 1:
        arrays = jax.tree.map(lambda x: x.reshape(*x.shape[:-1], blocks, length), arrays)
    state = (carry, jax.tree.map(lambda x: zeros(x, x.dtype), arrays) if results else ())
    if count > 1:
        state, _ = lax.scan(body, state, chunk * jnp.arange(count, dtype=jnp.int32))
    elif count:
        state, _ = body(state, jnp.int32(0))
    if left:
        state, _ = body(state, jnp.int32(length - left), left)
    carry, made = state
    return carry, jax.tree.map(joined, made)


each.defvjp(_each_fwd, _each_bwd)
