"""Softmax losses of a layer's logits: what a row costs, and its pull-back.

A row has the loss ``sum_k w_k value_k + zeta * logsumexp(z)^2``. The first part is that of
:mod:`focaljax._softmax.indexed`, or for soft and smoothed labels of :mod:`focaljax._softmax.dense`; its
derivative by z is theirs, that of the second ``2 zeta logsumexp(z) p_k``.
"""

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from focaljax import _entries, _sharding
from focaljax._linear.layer import Classes, Fixed, How, Rows
from focaljax._odds import scaled
from focaljax._softmax import dense, indexed, statistics
from focaljax.terms import Term


class LinearAux(NamedTuple):
    """What a trainer logs of each example beside its loss; without a gradient.

    Attributes:
      correct: Whether no class has a higher logit than the label; of a soft label, than its first class.
        False where an example does not count.
      logsumexp: That of the logits, floating; 0 where an example does not count.

    Example:
      >>> from focaljax import linear_softmax_focal_loss
      >>> inputs, kernel, labels = jnp.eye(2), jnp.array([[2.0, 1.0], [2.0, 1.0]]), jnp.array([0, 1])
      >>> print(linear_softmax_focal_loss(inputs, kernel, labels, has_aux=True)[1].correct)
      [ True False]
    """

    correct: jax.Array
    logsumexp: jax.Array


def of_rows(z: jax.Array, fixed: Fixed, rows: Rows, classes: Classes | None, how: How) -> tuple:
    """Returns (losses, aux or None, pull-back to logits, rows and classes) of rows with all classes."""
    z = masked(z, fixed.kept)
    mine = fixed._replace(labels=_sharding.local(fixed.labels, z.shape[1], how.name))
    found = _of_integers if classes is None else _of_soft
    loss, lse, unpenalised = found(z, fixed, mine, rows, classes, how)

    def pull_back(ct):
        dz, d_rows, d_classes = unpenalised(ct)
        dz = dz + d_penalty(z, penalty_slope(rows, lse, ct, how), lse)
        return dz, d_rows_of(rows, d_rows, lse, ct), d_classes

    return loss + penalty(rows, lse), logged(seen(z, mine.labels, how), lse, how), pull_back


def masked(z: jax.Array, kept: jax.Array | None) -> jax.Array:
    """The logits, -inf for masked classes."""
    return z if kept is None else jnp.where(kept[None, :], z, -jnp.inf)


class Seen(NamedTuple):
    """What accuracy needs of some classes of each row; both None without `has_aux`."""

    highest: jax.Array | None  # logit; the `top` of the statistics may lie above it
    label: jax.Array | None  # its logit, of a soft label that of its first class; 0 if it is not among them


def seen(z: jax.Array, labels: jax.Array, how: How) -> Seen:
    """Highest logit and logit of the label; labels count from the first of these classes."""
    if not how.logs:
        return Seen(None, None)
    z = jax.lax.stop_gradient(z)
    own = _entries.is_class(labels if labels.ndim == 1 else labels[:, 0], z.shape, 1)
    return Seen(jnp.max(z, 1), jnp.sum(jnp.where(own, z, 0), 1))


def logged(seen: Seen, lse: jax.Array, how: How) -> LinearAux | None:
    """The `LinearAux` from what this device has seen; None without `has_aux`."""
    if seen.highest is None or seen.label is None:
        return None
    label, highest = _sharding.total(seen.label, how.name), _sharding.highest(seen.highest, how.name)
    return LinearAux(label >= highest, lse)


def _of_integers(z, fixed, mine, rows, classes, how) -> Any:
    """Returns (losses, logsumexp, pull-back) of class indices, without penalty."""
    del classes
    stats = statistics.rivals(z, fixed.labels, 1, how.name)
    loss = indexed.losses(stats, rows.weight, rows.term)

    def pull_back(ct):
        slope = indexed.slopes(stats, rows.weight, rows.term, ct, how.name)
        dz = indexed.spread(z, mine.labels, slope, stats, 1, how.name)
        return dz, Rows(slope.alpha, slope.term), None

    return loss, lse_of_rivals(stats), pull_back


def _of_soft(z, fixed, mine, rows, classes, how) -> Any:
    """Returns (losses, logsumexp, pull-back) of soft labels, without penalty."""
    (weights, term), unfold = jax.vjp(partial(folded, mine), rows, classes)
    every = statistics.peak(z, 1, how.name)
    peak = statistics.known(every, answered(fixed.labels, rows), 1)
    loss, totals = dense.sums(z, weights, term, peak, 1, how.name)

    def pull_back(ct):
        found = dense.gradients(z, weights, term, peak, totals, ct, 1, how.name)
        return found.logits, *unfold((found.weights, found.term))

    return jnp.squeeze(loss, 1), lse_of_peak(z, every, how.name), pull_back


def answered(labels: jax.Array, rows: Rows) -> jax.Array:
    """Rows all of whose labels are classes."""
    known = labels >= 0
    return known if rows.shares is None else jnp.all(known | (rows.shares == 0), 1)


def folded(fixed: Fixed, rows: Rows, classes: Classes) -> tuple[jax.Array, Term]:
    """Returns (weights, term) of every class; labels count from the first of these classes."""
    labels, kept, number = fixed
    alpha, shares = cast(jax.Array, classes.alpha), rows.shares
    shape = (labels.shape[0], alpha.shape[0])
    if shares is None:
        label = _entries.is_class(labels, shape, 1).astype(rows.weight.dtype)
    else:
        label = jnp.zeros(shape, shares.dtype)
        for k in range(labels.shape[1]):
            label += jnp.where(_entries.is_class(labels[:, k], shape, 1), shares[:, k, None], 0)
    smoothed = label
    if classes.smoothing is not None:
        smoothed = label * (1 - classes.smoothing) + classes.smoothing / number
    if kept is not None:  # but a labelled class that takes no part has an infinite loss
        smoothed = jnp.where(kept[None, :] | (label > 0), smoothed, 0)
    weights = rows.weight[:, None] * (alpha[None, :] * smoothed)
    return weights, jax.tree.map(lambda r, c: r[:, None] + c[None, :], rows.term, classes.term)


# The penalty of large logits, the z-loss.


def lse_of_rivals(stats: statistics.Rivals) -> jax.Array:
    """The logsumexp of all classes, from the statistics of the target and the others."""
    alone = stats.rest == 0
    others = stats.top + jnp.log(jnp.where(alone, 1, stats.rest))
    target = jnp.where(jnp.isnan(stats.target), -jnp.inf, stats.target)  # no class: all are others
    return jnp.where(alone, target, jnp.logaddexp(target, others))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def lse_of_peak(z: jax.Array, peak: statistics.Peak, name: _sharding.AxisName | None) -> jax.Array:
    """The logsumexp from the peak, whose statistics are constants to derivatives."""
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


def penalty_slope(rows: Rows, lse: jax.Array, ct: jax.Array, how: How) -> jax.Array | None:
    """Derivative of the penalties, weighed by `ct`, by their logsumexp; None without a zeta."""
    return None if rows.zeta is None else _sharding.cotangent(scaled(2 * rows.zeta * ct, lse), how.name)


def d_penalty(z: jax.Array, slope: jax.Array | None, lse: jax.Array) -> jax.Array:
    """Derivative of the penalties by the logits of some classes."""
    if slope is None:
        return jnp.zeros((), z.dtype)
    return scaled(slope[:, None], jnp.exp(z - lse[:, None]))


def d_rows_of(rows: Rows, of_loss: Rows, lse: jax.Array, ct: jax.Array) -> Rows:
    """Adds the derivative by zeta; a non-finite derivative by a weight of 0 becomes 0."""
    weight = _hidden(rows.weight, of_loss.weight)
    zeta = None if rows.zeta is None else _hidden(rows.zeta, scaled(ct, lse * lse))
    return of_loss._replace(weight=weight, zeta=zeta)


def _hidden(weight, x):
    return jnp.where((weight == 0) & ~jnp.isfinite(x), 0, x)
