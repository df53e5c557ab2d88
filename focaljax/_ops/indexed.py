"""Focal loss of integer labels: only the labelled class of each row carries a term.

With `u` the log-odds of the target against all its competitors the loss of a row is
``alpha * q^gamma * (-log p)`` at ``p = sigmoid(u)``, and

    dL/dz_t = -alpha * q * pull(u)        dL/dz_j = -dL/dz_t * exp(z_j - top) / rest    (j != t)

The logits are read once for the statistics and once, to be overwritten, for the gradient.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from focaljax import _entries, _mesh, _modulation, _statistics

FEW = 32  # classes: so short a loop XLA:CPU vectorises with a mask too


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def indexed(
    logits: jax.Array,
    labels: jax.Array,
    alpha: jax.Array,
    gamma: jax.Array,
    axis: int,
    name: _mesh.AxisName | None = None,
) -> jax.Array:
    """One loss per row; `labels`, `alpha` and `gamma` have the shape of `logits` without `axis`.

    A row whose `alpha` or whose cotangent is 0 is silent, whatever its logits hold. `name` is the mesh axis
    that shards the classes; the labels count from the first of all.
    """
    return _fwd(logits, labels, alpha, gamma, axis, name)[0]


def _fwd(logits, labels, alpha, gamma, axis, name):
    stats = _statistics.rivals(logits.astype(gamma.dtype), labels, axis, name)
    loss = _modulation.scaled(alpha, _modulation.focal(_odds(stats), gamma))
    return loss, (logits, labels, alpha, gamma, stats)


@partial(jax.jit, static_argnums=(0, 1), inline=True)  # eager gradients run one program too
def _bwd(axis, name, residuals, ct):
    logits, labels, alpha, gamma, stats = residuals
    labels = _statistics.apart(labels)
    slope, silent, d_alpha, d_gamma = _of_rows(alpha, gamma, stats, ct)
    stats = jax.tree.map(lambda x: jnp.where(silent, 0, x), stats)
    z, labels = logits.astype(gamma.dtype), _mesh.local(labels, logits.shape[axis], name)
    d_logits = _spread(z, labels, silent, slope, stats, axis, name).astype(logits.dtype)
    return d_logits, None, d_alpha, d_gamma


def _of_rows(alpha, gamma, stats, ct):
    """What the statistics alone decide: the slope of each target, the silent rows, d alpha and d gamma."""
    odds = _odds(stats)
    focal = _modulation.focal(odds, gamma)
    slope = -_modulation.scaled(alpha * ct, odds.q * _modulation.pull(odds, gamma))
    silent = (slope == 0) & jnp.isnan(odds.q)
    d_gamma = _modulation.scaled(alpha * ct, _modulation.scaled(odds.log_q, focal))
    return slope, silent, _modulation.scaled(ct, focal), d_gamma


@partial(jax.custom_jvp, nondiff_argnums=(5, 6))
def _spread(z, labels, silent, slope, stats, axis, name):
    """`slope` at the target and its opposite shared out among the competitors; nothing where `silent`."""
    return lax.platform_dependent(
        z,
        labels,
        silent,
        slope,
        stats,
        cpu=partial(_spread_on_cpu, axis=axis, name=name),
        default=partial(_spread_by_mask, axis=axis, name=name),
    )


@_spread.defjvp
def _spread_jvp(axis, name, primals, tangents):
    return jax.jvp(partial(_spread_by_mask, axis=axis, name=name), primals, tangents)


def _spread_by_mask(z, labels, silent, slope, stats, *, axis, name):
    own = _entries.is_class(labels, z.shape, axis)
    z = jnp.where(jnp.expand_dims(silent, axis), -jnp.inf, z)  # with `own` it would be a mask of all shards
    others = jnp.where(own, -jnp.inf, z)
    slope = jnp.expand_dims(slope, axis)
    return jnp.where(own, slope, -slope * _shares(others, stats, axis, name))


def _spread_on_cpu(z, labels, silent, slope, stats, *, axis, name):
    """The same where masks are not free: XLA:CPU overlaps the memory accesses of short loops only."""
    # A scatter would have to be told where its result lies, and what sizes its indices have.
    if any(jax.typeof(z).sharding.spec) or not _entries.is_known(z.shape):
        return _spread_by_mask(z, labels, silent, slope, stats, axis=axis, name=name)
    base, inverse = _scale(stats)
    quiet = _entries.any_row(silent)
    few = z.shape[axis] <= FEW
    if few:  # what comes out of a condition is stored; else the loop over the classes would make it each time
        slope, inverse = lax.cond(
            quiet,
            lambda *rows: [jnp.where(silent, 0, x) for x in rows],
            lambda *rows: [*rows],
            slope,
            inverse,
        )
    silent, slope, base, inverse = (jnp.expand_dims(x, axis) for x in (silent, slope, base, inverse))
    spread = -slope * (jnp.exp(z - base) * inverse)
    if few:
        spread = jnp.where(_entries.is_class(labels, z.shape, axis), slope, spread)
    else:
        at = jnp.expand_dims(jnp.where(labels < 0, z.shape[axis], labels), axis)  # dropped, not from the end
        spread = jnp.put_along_axis(spread, at, slope, axis, inplace=False, mode="drop")
    return lax.cond(quiet, lambda x: jnp.where(silent, 0, x), lambda x: x, spread)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _shares(others, stats, axis, name):
    """The softmax of the competitors among themselves; 0 without one."""
    del name
    base, inverse = (jnp.expand_dims(x, axis) for x in _scale(stats))
    return jnp.exp(others - base) * inverse


def _scale(stats):
    """``(base, inverse)``: the share of a competitor is ``exp(z - base) * inverse``.

    A rounded difference d makes exp(d) wrong by |d| u. So it is not taken from `top` but from a whole number
    `base`, 0 for a `top` from 0 to 64, whose difference from a competitor has no more bits than the
    competitor: exact, but for shares below exp(-64) and then within 16 u.
    """
    base = jnp.rint(jnp.minimum(stats.top, jnp.maximum(stats.top - 64, 0)))
    base = jnp.where(base == -jnp.inf, 0, base)
    total = stats.rest * jnp.exp(stats.top - base)
    return base, jnp.where(stats.rest > 0, 1 / jnp.where(stats.rest > 0, total, 1), 0)


@_shares.defjvp
def _shares_jvp(axis, name, primals, tangents):
    """``dr_k = r_k * sum_{j != k} r_j (dz_k - dz_j)``; the highest, as r -> 1, is left out of its sums."""
    others, stats = primals
    dz = tangents[0]
    r = _shares(others, stats, axis, name)
    highest = others == _mesh.highest(jnp.max(others, axis, keepdims=True), name)
    alone = _statistics.row_sum(highest.astype(others.dtype), axis, name) == 1
    mass, rise = (
        _statistics.all_but_own(x, highest, _statistics.split_sum(x, highest, axis, name), alone)
        for x in (r, r * dz)
    )
    return r, r * (mass * dz - rise)


def _odds(stats):
    gap, err = _entries.difference(stats.target, stats.top)
    u = gap - jnp.log(jnp.where(stats.rest > 0, stats.rest, 1))
    numbers = _modulation.odds_from_gap(gap, err, stats.rest)
    return _modulation.along(u, lax.stop_gradient(numbers))


indexed.defvjp(_fwd, _bwd)
