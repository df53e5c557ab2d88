"""Linear softmax losses, some classes of all rows at a time.

Statistics of a chunk of classes merge with those of the others, so the first sweep over the kernel makes the
losses, or with soft labels the first two. The backward sweep computes each chunk's logits once more: four
matmuls, 8 N D C operations (10 with soft labels). Beside the results there are the logits of one chunk
and the sum of the gradient by x, in float32: nothing of the kernel's size.

Derivatives of higher order are those of :mod:`focaljax._linear.by_rows`, the same function of the same
operands, as sums over the classes of one chunk cannot have them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from focaljax import _sharding
from focaljax._exact import wide
from focaljax._linear import by_rows, chunks, layer, softmax
from focaljax._linear.chunks import zeros
from focaljax._linear.form import Form, form, summed
from focaljax._linear.layer import Classes, Head, Rows
from focaljax._softmax import dense, indexed, statistics


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _each(how, x, head, fixed, rows, classes) -> Any:
    return _forward(how, x, head, fixed, rows, classes)[:2]


def _each_fwd(how, *operands):
    losses, logs, stats = _forward(how, *operands)
    return (losses, logs), (*operands, stats)


@partial(jax.jit, static_argnums=0, inline=True)
def _each_bwd(how, residuals, ct):
    dx, d_head, d_rows, d_classes = _backward(how, *residuals, ct[0])
    return dx, d_head, None, d_rows, d_classes


def _by_rows(how, x, head):
    """Options of the program in chunks of rows, with chunks of about the same bytes."""
    chunk = max(1, x.shape[0] * how.chunk // head.kernel.shape[1])
    return how._replace(chunk=chunk, group=chunk, logs=False)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _forward(how, x, head, fixed, rows, classes) -> Any:
    """Returns (losses, aux or None, statistics for the backward pass)."""
    found = _of_integers if classes is None else _of_soft
    losses, seen, lse, stats = found(how, x, head, fixed, rows, classes)
    return losses + softmax.penalty(rows, lse), softmax.logged(seen, lse, how), stats


@_forward.defjvp
def _forward_jvp(how, primals, tangents):
    x, head, fixed, *others = primals
    losses, logs, stats = _forward(how, *primals)

    def again(x, head, *others):
        return by_rows.losses(softmax.of_rows, _by_rows(how, x, head), x, head, fixed, *others)[0]

    floating = (*tangents[:2], *tangents[3:])
    rise = jax.jvp(again, (x, head, *others), floating)[1]
    return (losses, logs, stats), (rise, *jax.tree.map(_no_tangent, (logs, stats)))


def _no_tangent(x):
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return jnp.zeros_like(x) if floating else np.zeros(x.shape, jax.dtypes.float0)


def _of_integers(how, x, head, fixed, rows, classes):
    """Returns (losses, `Seen`, logsumexp, statistics) of class indices."""

    def part_of(z, labels):
        top, rest, target = statistics.rivals_part(z, labels, 1)
        return top, jnp.where(rest > 0, rest - 1, 0), target

    (top, excess, target), seen = _merged(part_of, statistics.merge, 2, how, x, head, fixed, classes)
    part = (top, jnp.where(top == -jnp.inf, 0, 1 + excess), target)
    stats = statistics.rivals_of_all(part, fixed.labels, head.kernel.shape[1], how.name)
    return indexed.losses(stats, rows.weight, rows.term), seen, softmax.lse_of_rivals(stats), stats


def _merged(part_of, merge, sums, how, x, head, fixed, classes):
    """Returns (statistics of this device's classes, a top and `sums` sums; `Seen`)."""
    none = zeros(x[:, 0] if x.shape[1] else jnp.sum(x, 1), wide(x.dtype))

    def step(state, chunk):
        merged, (highest, label) = state
        z = _logits(x, chunk, how)
        seen = softmax.seen(z, chunk.fixed.labels, how)
        if how.logs:
            seen = softmax.Seen(jnp.maximum(highest, seen.highest), label + seen.label)
        return (merge(merged, part_of(z, chunk.fixed.labels)), seen), ()

    nothing = softmax.Seen(none - jnp.inf, none) if how.logs else softmax.Seen(None, None)
    start = ((none - jnp.inf, *(none for _ in range(sums))), nothing)
    return chunks.sweep(step, start, how, x, head, fixed, classes)[0]


def _of_soft(how, x, head, fixed, rows, classes):
    """Returns (losses, `Seen`, logsumexp, statistics) of soft labels."""

    def part_of(z, labels):
        del labels
        return statistics.peak_part(z, 1)

    merge = partial(statistics.merge, exact=True)
    part, seen = _merged(part_of, merge, 1, how, x, head, fixed, classes)
    every = statistics.peak_of_all(part, 1, how.name)
    peak = statistics.known(every, softmax.answered(fixed.labels, rows), 1)

    def step(sums, chunk):
        weights, term = softmax.folded(chunk.fixed, rows, chunk.classes)
        found = dense.sums(_logits(x, chunk, how), weights, term, peak, 1, None)
        return jax.tree.map(jnp.add, sums, found), ()

    none = zeros(peak.top, peak.top.dtype, like=x)
    sums, _ = chunks.sweep(step, (none, dense.Pulls(none, none)), how, x, head, fixed, classes)
    loss, totals = jax.tree.map(lambda each: _sharding.total(each, how.name), sums)
    return jnp.squeeze(loss, 1), seen, softmax.lse_of_peak(x, every, how.name), (every, peak, totals)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _backward(how, x, head, fixed, rows, classes, stats, ct) -> Any:
    """Gradients of ``sum(ct * losses)``."""
    x = layer.silenced(x, rows, ct)
    pull_back = _pull_integers if classes is None else _pull_soft
    start, pull, finish, lse = pull_back(how, x, rows, classes, stats, ct)
    slope = softmax.penalty_slope(rows, lse, ct, how)

    def step(sums, chunk):
        dx, others = sums
        z = layer.logits(x, chunk.head, how)
        capped = softmax.masked(layer.capped(z, how), chunk.fixed.kept)
        dz, found, d_options = pull(capped, chunk)
        dz = dz + softmax.d_penalty(capped, slope, lse)
        dz, d_bias = layer.d_logits(z, dz, chunk.head, chunk.fixed.kept, how)
        more, d_kernel = layer.d_operands(x, chunk.head.kernel, dz, how, stored=True, dtype=wide(x.dtype))
        return (dx + more, jax.tree.map(jnp.add, others, found)), (Head(d_kernel, d_bias), d_options)

    options = None if classes is None else (classes.alpha, classes.term)
    made = jax.tree.map(lambda x: zeros(x, x.dtype), (head, options))
    start = (zeros(x, wide(x.dtype)), start)
    (dx, found), (d_head, d_options) = chunks.sweep(step, start, how, x, head, fixed, classes, made)
    d_rows, d_smoothing = finish(found)
    d_classes = None if classes is None else Classes(d_options[0], d_options[1], d_smoothing)
    return dx.astype(x.dtype), d_head, softmax.d_rows_of(rows, d_rows, lse, ct), d_classes


@_backward.defjvp
def _backward_jvp(how, primals, tangents):
    x, head, fixed, rows, classes, _, ct = primals

    def again(x, head, rows, classes, ct):
        how_by_rows = _by_rows(how, x, head)
        return by_rows.gradient(softmax.of_rows, how_by_rows, x, head, fixed, rows, classes, ct)[1]

    floating = (*tangents[:2], *tangents[3:5], tangents[6])
    return _backward(how, *primals), jax.jvp(again, (x, head, rows, classes, ct), floating)[1]


class _Pull(NamedTuple):
    """Steps of a backward pass over chunks of classes."""

    start: Any  # sums over the chunks, of none
    of_chunk: Callable  # (logits, chunk) -> gradient by the logits, summands, gradients by the options
    finish: Callable  # sums -> gradients by the rows and by the smoothing
    lse: jax.Array


def _pull_integers(how, x, rows, classes, stats, ct):
    del x, classes
    slope = indexed.slopes(stats, rows.weight, rows.term, ct, how.name)

    def of_chunk(z, chunk):
        return indexed.spread(z, chunk.fixed.labels, slope, stats, 1, None), (), None

    def finish(sums):
        del sums
        return Rows(slope.alpha, slope.term), None

    return _Pull((), of_chunk, finish, softmax.lse_of_rivals(stats))


def _pull_soft(how, x, rows, classes, stats, ct):
    every, peak, totals = stats
    ct = _sharding.cotangent(ct, how.name)

    def of_chunk(z, chunk):
        (weights, term), unfold = jax.vjp(partial(softmax.folded, chunk.fixed), rows, chunk.classes)
        found = dense.gradients(z, weights, term, peak, totals, ct, 1, None)
        d_rows, (*d_options, d_smoothing) = unfold((found.weights, found.term))
        return found.logits, (d_rows._replace(zeta=None), d_smoothing), tuple(d_options)

    start = jax.tree.map(lambda x: zeros(x, x.dtype), (rows._replace(zeta=None), classes.smoothing))
    return _Pull(start, of_chunk, lambda sums: sums, softmax.lse_of_peak(x, every, how.name))


def _logits(x, chunk, how):
    z = layer.capped(layer.logits(x, chunk.head, how), how)
    return softmax.masked(z, chunk.fixed.kept)


_each.defvjp(_each_fwd, _each_bwd)
FORMS = {
    "rows": form(partial(by_rows.losses, softmax.of_rows), partial(by_rows.gradient, softmax.of_rows)),
    "classes": Form(summed(_each), _each),
}
