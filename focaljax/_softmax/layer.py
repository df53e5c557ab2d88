"""What both forms of linear + focal loss share: the layer, its derivatives, and the losses of whole rows.

A form takes all classes of some rows at a time (:mod:`focaljax._softmax.by_rows`), or some classes of all
rows (:mod:`focaljax._softmax.by_classes`). With ``z = cap tanh((x W + b) / cap)`` a row has the loss

    sum_k w_k value_k + zeta * logsumexp(z)^2

The first part is that of :mod:`focaljax._softmax.indexed`, or with smoothed labels of
:mod:`focaljax._softmax.dense`; its derivative by z is theirs, that of the second ``2 zeta logsumexp(z) p_k``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from focaljax import _entries, _sharding
from focaljax._exact import wide
from focaljax._odds import scaled
from focaljax._softmax import dense, indexed, statistics
from focaljax.terms import Term


class How(NamedTuple):
    """What chooses the program."""

    chunk: int  # rows, or classes
    cap: float | None
    precision: Any  # of the matmuls
    name: _sharding.AxisName | None  # the mesh axis that shards the classes
    blocks: int = 1  # of classes, of which a chunk of classes takes equal parts


class Head(NamedTuple):
    """The layer."""

    kernel: jax.Array  # [D, C]
    bias: jax.Array | None  # [C]


class Rows(NamedTuple):
    """One entry per row; without weight and zeta a row is silent."""

    weight: jax.Array
    term: Term
    zeta: jax.Array | None


class Classes(NamedTuple):
    """What smoothed labels have besides: one entry per class."""

    alpha: jax.Array  # times the weight of the row
    term: Term  # its options are added to those of the row
    smoothing: jax.Array  # a scalar


def logits(x: jax.Array, head: Head, how: How) -> jax.Array:
    """The logits before their cap, in at least float32; the matmul is in the dtype of `x`."""
    z = product(x, head.kernel.astype(x.dtype), (1, 0), how)
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


def d_head(
    x: jax.Array, head: Head, z: jax.Array, dz: jax.Array, how: How
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """The gradients by x, kernel and bias: wide, of what is here.

    `dz` is that by the capped logits, `z` are the logits before their cap.
    """
    if how.cap is not None:
        dz = scaled(dz, _steepness(z / how.cap))
    narrow = dz.astype(x.dtype)  # or the matmuls would be in float32
    dx = product(narrow, head.kernel.astype(x.dtype), (1, 1), how)
    return dx, product(x, narrow, (0, 0), how), None if head.bias is None else jnp.sum(dz, 0)


def product(x: jax.Array, y: jax.Array, axes: tuple[int, int], how: How) -> jax.Array:
    """The product of two matrices, summed over one axis of each in at least float32."""
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(x, y, dimensions, how.precision, wide(x.dtype))


def silenced(x: jax.Array, rows: Rows, ct: jax.Array) -> jax.Array:
    """`x` without the NaN and infinity of rows that have no gradient: 0 times these would be NaN."""
    silent = (rows.weight * ct == 0) & ~jnp.all(jnp.isfinite(x), 1)
    if rows.zeta is not None:
        silent &= rows.zeta * ct == 0
    return jnp.where(silent[:, None], 0, x)


def of_rows(
    z: jax.Array, labels: jax.Array, rows: Rows, classes: Classes | None, how: How
) -> tuple[jax.Array, Callable[[jax.Array], tuple[jax.Array, Rows, Classes | None]]]:
    """The losses of rows of all classes; and their pull-back to logits, rows and classes."""
    found = (
        _of_integers(z, labels, rows, how) if classes is None else _of_smoothed(z, labels, rows, classes, how)
    )
    loss, lse, unpenalised = found

    def pull_back(ct):
        dz, d_rows, d_classes = unpenalised(ct)
        return dz + d_penalty(z, rows, lse, ct), d_rows_of(rows, d_rows, lse, ct), d_classes

    return loss + penalty(rows, lse), pull_back


def _of_integers(z, labels, rows, how):
    """Losses, logsumexp and pull-back without smoothing and penalty."""
    stats = statistics.rivals(z, labels, 1, how.name)
    loss = indexed.losses(stats, rows.weight, rows.term)

    def pull_back(ct):
        slope = indexed.slopes(stats, rows.weight, rows.term, ct)
        dz = indexed.spread(z, _sharding.local(labels, z.shape[1], how.name), slope, stats, 1, how.name)
        return dz, Rows(slope.alpha, slope.term, None), None

    return loss, lse_of_rivals(stats), pull_back


def _of_smoothed(z, labels, rows, classes, how):
    """The same with smoothing."""
    mine, count = _sharding.local(labels, z.shape[1], how.name), z.shape[1] * _sharding.shards(how.name)
    (weights, term), unfold = jax.vjp(lambda r, c: folded(mine, r, c, count), rows, classes)
    every = statistics.peak(z, 1, how.name)
    peak = statistics.known(every, labels >= 0, 1)
    loss, totals = dense.sums(z, weights, term, peak, 1, how.name)

    def pull_back(ct):
        found = dense.gradients(z, weights, term, peak, totals, ct, 1, how.name)
        return found.logits, *unfold((found.weights, found.term))

    return jnp.squeeze(loss, 1), lse_of_peak(z, every, how.name), pull_back


def folded(labels: jax.Array, rows: Rows, classes: Classes, count: int) -> tuple[jax.Array, Term]:
    """Weight and term of every class of some, of `count` in all; the labels count from their first."""
    shape = (labels.shape[0], classes.alpha.shape[0])
    smoothing = classes.smoothing
    own = _entries.is_class(labels, shape, 1)
    label = jnp.where(own, 1 - smoothing + smoothing / count, smoothing / count)
    weights = rows.weight[:, None] * (classes.alpha[None, :] * label)
    return weights, jax.tree.map(lambda r, c: r[:, None] + c[None, :], rows.term, classes.term)


# The penalty of large logits, the z-loss.


def lse_of_rivals(stats: statistics.Rivals) -> jax.Array:
    """The logarithm of the sum over all classes, from the statistics of the target and the others."""
    alone = stats.rest == 0
    others = stats.top + jnp.log(jnp.where(alone, 1, stats.rest))
    target = jnp.where(jnp.isnan(stats.target), -jnp.inf, stats.target)  # no class: all are others
    return jnp.where(alone, target, jnp.logaddexp(target, others))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def lse_of_peak(z: jax.Array, peak: statistics.Peak, name: _sharding.AxisName | None) -> jax.Array:
    """The same from the highest class, whose statistics are constants to derivatives."""
    del z, name
    return jnp.squeeze(peak.top + jnp.log1p(peak.excess), 1)


@lse_of_peak.defjvp
def _lse_of_peak_jvp(name, primals, tangents):
    z, peak = primals
    lse = lse_of_peak(z, peak, name)
    rise = statistics.row_sum(jnp.exp(z - lse[:, None]) * tangents[0], 1, name)
    return lse, jnp.squeeze(rise, 1)


def penalty(rows: Rows, lse: jax.Array) -> jax.Array:
    """``zeta * lse^2``, or 0 without a zeta."""
    return jnp.zeros_like(lse) if rows.zeta is None else scaled(rows.zeta, lse * lse)


def d_penalty(z: jax.Array, rows: Rows, lse: jax.Array, ct: jax.Array) -> jax.Array:
    """The derivative by the logits of some classes."""
    if rows.zeta is None:
        return jnp.zeros((), z.dtype)
    slope = scaled(2 * rows.zeta * ct, lse)
    return scaled(slope[:, None], jnp.exp(z - lse[:, None]))


def d_rows_of(rows: Rows, of_loss: Rows, lse: jax.Array, ct: jax.Array) -> Rows:
    """Adds the derivative by zeta; a weight of 0 hides what is not finite, which alpha would make NaN."""
    weight = _hidden(rows.weight, of_loss.weight)
    zeta = None if rows.zeta is None else _hidden(rows.zeta, scaled(ct, lse * lse))
    return Rows(weight, of_loss.term, zeta)


def _hidden(weight, x):
    return jnp.where((weight == 0) & ~jnp.isfinite(x), 0, x)
