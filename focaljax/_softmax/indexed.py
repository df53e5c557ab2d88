"""Loss of integer labels: only the labelled class of each row carries a term.

With `u` the log-odds of the target against all its competitors, a row has the loss ``alpha * value`` of its
term at ``p = sigmoid(u)``, and

    dL/dz_t = -alpha * q * pull        dL/dz_j = -dL/dz_t * exp(z_j - top) / rest    (j != t)

Three steps: the statistics of a row (one read of the logits), its term (:func:`losses`, :func:`slopes`;
numbers of rows only), and the spread of the slope over the logits (one read, which is overwritten).
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from focaljax import _entries, _exact, _forms, _odds, _sharding
from focaljax._odds import scaled
from focaljax._softmax import cpu_rivals, statistics
from focaljax._softmax.statistics import Rivals
from focaljax.terms import Term, by_options, value_of

NEAR = 2.0**11  # a top from which `z - top` is exact, or its exponential 0 even in float64


class Slopes(NamedTuple):
    """The gradients of a row that follow from its statistics alone."""

    target: jax.Array  # dL/dz_t; NaN where the row has no answer but should have one
    silent: jax.Array  # rows without an answer whose weight or cotangent is 0
    alpha: jax.Array
    term: Term  # by each option


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def indexed(
    logits: jax.Array,
    labels: jax.Array,
    alpha: jax.Array,
    term: Term,
    axis: int,
    name: _sharding.AxisName | None = None,
) -> jax.Array:
    """One loss per row.

    `labels`, `alpha` and the options of `term` have the shape of `logits` without `axis`. A row whose `alpha`
    or whose cotangent is 0 is silent, whatever its logits and its label hold. `name` is the mesh axis that
    shards the classes; the labels count from the first of all.
    """
    return losses(statistics.rivals(logits, labels, axis, name), alpha, term)


def _fwd(logits, labels, alpha, term, axis, name):
    stats = statistics.rivals(logits, labels, axis, name, _is_shared(logits, axis, name))
    return losses(stats, alpha, term), (logits, labels, alpha, term, stats)


@partial(jax.jit, static_argnums=(0, 1), inline=True)  # eager gradients run one program too
def _bwd(axis, name, residuals, ct):
    logits, labels, alpha, term, stats = residuals
    shared, exact = _is_shared(logits, axis, name), logits.dtype == alpha.dtype
    rows = _entries.apart(stats)  # what the loss and its slope share are kernels on CPU, each number its own
    slope = slopes(rows, alpha, term, ct, name)
    labels, stats = (labels, stats) if shared else (_entries.apart(labels), rows)
    mine = _sharding.local(labels, logits.shape[axis], name)
    d_logits = spread(logits.astype(alpha.dtype), mine, slope, stats, axis, name, exact, shared)
    return d_logits.astype(logits.dtype), None, slope.alpha, slope.term


def _is_shared(logits, axis, name):
    """Whether the loss and its gradient take the same exponentials on CPU: each once."""
    return name is None and cpu_rivals.shares(logits, axis)


@_sharding.traced_once()
def losses(stats: Rivals, alpha: jax.Array, term: Term) -> jax.Array:
    """The loss of each row; NaN in an undefined row unless its weight is 0."""
    stats, undefined = statistics.settled(stats)
    loss = scaled(alpha, value_of(term, odds_of(stats)))
    return jnp.where(undefined, jnp.where(alpha == 0, 0, jnp.nan), loss)


def slopes(
    stats: Rivals, alpha: jax.Array, term: Term, ct: jax.Array, name: _sharding.AxisName | None
) -> Slopes:
    """The gradients of ``sum(ct * losses)`` that follow from the statistics."""
    stats, undefined = statistics.settled(stats)
    odds = odds_of(stats)
    silent = undefined & ((alpha == 0) | (ct == 0))
    ct = jnp.where(undefined, jnp.where(silent, 0, jnp.nan), ct)

    def weighted(x):  # ct * alpha may overflow where x is 0
        return scaled(ct, scaled(alpha, x))

    value = value_of(term, odds)
    return Slopes(
        target=_sharding.cotangent(-weighted(odds.q * term.pull(odds)), name),
        silent=silent,
        alpha=scaled(ct, jnp.where((alpha == 0) & jnp.isinf(value), 0, value)),
        term=jax.tree.map(weighted, by_options(term, odds)),
    )


def odds_of(stats: Rivals) -> _odds.Odds:
    """The odds of the target against all its competitors; `stats` are settled."""
    gap, err = _exact.difference(stats.target, stats.top)
    u = gap - jnp.log(jnp.where(stats.rest > 0, stats.rest, 1))
    return _odds.along(u, lax.stop_gradient(_odds.odds_from_gap(gap, err, stats.rest)))


def spread(
    z: jax.Array,
    labels: jax.Array,
    slope: Slopes,
    stats: Rivals,
    axis: int,
    name: _sharding.AxisName | None,
    exact: bool = True,
    shared: bool = False,
) -> jax.Array:
    """The gradient by the logits of some classes, from which `labels` count; 0 in silent rows.

    Where it will be rounded to a narrow dtype it need not be `exact`, for less arithmetic. `shared` as in
    :func:`focaljax._softmax.statistics.rivals`.
    """
    return _spread(z, labels, slope.silent, slope.target, stats, axis, name, exact, shared)


@partial(jax.custom_jvp, nondiff_argnums=(5, 6, 7, 8))
def _spread(z, labels, silent, slope, stats, axis, name, exact, shared):
    """`slope` at the target and its opposite shared out among the competitors; nothing where `silent`."""
    on_cpu = partial(_spread_of_shared if shared else _spread_on_cpu, axis=axis)
    by_mask = partial(_spread_by_mask, axis=axis, name=name, exact=exact)

    def like(z, labels, silent, slope, stats):
        return z + jnp.expand_dims(slope + stats.top, axis)

    return _forms.of_platform(z, labels, silent, slope, stats, like=like, cpu=on_cpu, default=by_mask)


@_spread.defjvp
def _spread_jvp(axis, name, exact, shared, primals, tangents):
    del shared
    return jax.jvp(partial(_spread_by_mask, axis=axis, name=name, exact=exact), primals, tangents)


def _spread_by_mask(z, labels, silent, slope, stats, *, axis, name, exact):
    stats = statistics.settled(stats)[0]
    own = _entries.is_class(labels, z.shape, axis)
    z = jnp.where(jnp.expand_dims(silent, axis), -jnp.inf, z)  # with `own` it would be a mask of all shards
    others = jnp.where(own, -jnp.inf, z)
    slope = jnp.expand_dims(slope, axis)
    return jnp.where(own, slope, -slope * _shares(others, stats, axis, name, exact))


def _spread_of_shared(z, labels, silent, slope, stats, *, axis):
    """`_spread` for XLA:CPU, of the exponentials that the statistics are a sum of."""
    share = cpu_rivals.powers(z, labels, stats.top, axis) * jnp.expand_dims(_inverse(stats.rest), axis)
    slope, silent = (jnp.expand_dims(x, axis) for x in (slope, silent))
    return jnp.where(_entries.is_class(labels, z.shape, axis), slope, jnp.where(silent, 0, -slope * share))


def _spread_on_cpu(z, labels, silent, slope, stats, *, axis):
    """`_spread` for XLA:CPU: from a base whose differences are exact, and with one selection."""
    del silent
    base, inverse = _scale(statistics.settled(stats)[0])

    def share(z, slope, base, inverse):
        # A competitor is at most 65 above `base`. What may be more, or NaN, has the slope 0: a target and the
        # rows that are silent. 0 * inf is NaN.
        rise = z - base
        return -slope * (jnp.exp(jnp.where(rise < 80, rise, 80)) * inverse)

    if cpu_rivals.is_apart(z, axis):
        # A loop stores what it reads: else it would be made again for each class.
        classes, of_class = z.shape[axis], math.prod(z.shape[axis + 1 :])
        each, mine, *rows = (x.reshape(-1, of_class) for x in (z, labels, slope, base, inverse))

        def written(i):
            example, k = i // classes, (i % classes).astype(labels.dtype)
            own = [x[example] for x in rows]
            return jnp.where(mine[example] == k, own[0], share(each[i], *own))

        return lax.map(written, jnp.arange(len(each))).reshape(z.shape)
    rows = [jnp.expand_dims(x, axis) for x in (slope, base, inverse)]
    return jnp.where(_entries.is_class(labels, z.shape, axis), rows[0], share(z, *rows))


def _scale(stats):
    """``(base, inverse)``: the share of a competitor is ``exp(z - base) * inverse``.

    A rounded difference d makes exp(d) wrong by |d| u. So it is not taken from `top` but from a whole number
    `base`, 0 for a `top` from 0 to 64, whose difference from a competitor has no more bits than the
    competitor: exact, but for shares below exp(-64) and then within 16 u.
    """
    top = stats.top
    base = jnp.rint(jnp.minimum(top, jnp.maximum(top - 64, 0)))
    base = jnp.where(top < NEAR, base, top)  # from 2^30 on, `top - 64` may round to `top - 128`
    base = jnp.where(base == -jnp.inf, 0, base)
    return base, _inverse(stats.rest * jnp.exp(top - base))


def _inverse(total):
    """``1 / total``, or 0 where there is no competitor."""
    return 1 / jnp.where(total > 0, total, jnp.inf)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def _shares(others, stats, axis, name, exact):
    """The softmax of the competitors among themselves; 0 without one.

    From `top` itself, as the exponential of a TPU is wrong by |x| u; the difference is made exact (TwoDiff).
    """
    del name
    top, inverse = (jnp.expand_dims(x, axis) for x in (stats.top, _inverse(stats.rest)))
    top = jnp.where(top == -jnp.inf, 0, top)
    return (_exact.shifted_exp(others, top) if exact else jnp.exp(others - top)) * inverse


@_shares.defjvp
def _shares_jvp(axis, name, exact, primals, tangents):
    """``dr_k = r_k * sum_{j != k} r_j (dz_k - dz_j)``; the highest, as r -> 1, is left out of its sums."""
    others, stats = primals
    dz = tangents[0]
    r = _shares(others, stats, axis, name, exact)
    highest = others == _sharding.highest(jnp.max(others, axis, keepdims=True), name)
    alone = statistics.row_sum(highest.astype(others.dtype), axis, name) == 1
    mass, rise = (
        statistics.all_but_own(x, highest, statistics.split_sum(x, highest, axis, name), alone)
        for x in (r, r * dz)
    )
    return r, r * (mass * dz - rise)


indexed.defvjp(_fwd, _bwd)
