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

from focaljax import _modulation, _statistics


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def indexed(logits: jax.Array, labels: jax.Array, alpha: jax.Array, gamma: jax.Array, axis: int) -> jax.Array:
    """One loss per row; `labels`, `alpha` and `gamma` have the shape of `logits` without `axis`.

    A row whose `alpha` or whose cotangent is 0 is silent, whatever its logits hold.
    """
    return _fwd(logits, labels, alpha, gamma, axis)[0]


def _fwd(logits, labels, alpha, gamma, axis):
    stats = _statistics.rivals(logits.astype(gamma.dtype), labels, axis)
    loss = _modulation.scaled(alpha, _modulation.focal(_odds(stats), gamma))
    return loss, (logits, labels, alpha, gamma, stats)


@partial(jax.jit, static_argnums=0, inline=True)  # eager gradients run one program too
def _bwd(axis, residuals, ct):
    logits, labels, alpha, gamma, stats = residuals
    odds = _odds(stats)
    focal = _modulation.focal(odds, gamma)
    slope = -_modulation.scaled(alpha * ct, odds.q * _modulation.pull(odds, gamma))
    silent = (slope == 0) & jnp.isnan(odds.p)
    z = jnp.where(jnp.expand_dims(silent, axis), 0, logits.astype(gamma.dtype))
    stats = jax.tree.map(lambda x: jnp.where(silent, 0, x), stats)

    own = _statistics.is_class(labels, logits.shape, axis)
    shares = _shares(jnp.where(own, -jnp.inf, z), stats, axis)
    slope = jnp.expand_dims(slope, axis)
    d_logits = jnp.where(own, slope, -slope * shares).astype(logits.dtype)
    d_alpha = _modulation.scaled(ct, focal)
    d_gamma = _modulation.scaled(alpha * ct, _modulation.scaled(odds.log_q, focal))
    return d_logits, None, d_alpha, d_gamma


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _shares(others, stats, axis):
    """The softmax of the competitors among themselves; 0 without one."""
    inverse = jnp.where(stats.rest > 0, 1 / jnp.where(stats.rest > 0, stats.rest, 1), 0)
    top, inverse = jnp.expand_dims(stats.top, axis), jnp.expand_dims(inverse, axis)
    return _statistics.shifted_exp(others, top) * inverse


@_shares.defjvp
def _shares_jvp(axis, primals, tangents):
    """``dr_k = r_k * sum_{j != k} r_j (dz_k - dz_j)``; the highest, as r -> 1, is left out of its sums."""
    others, stats = primals
    dz = tangents[0]
    r = _shares(others, stats, axis)
    highest = others == jnp.expand_dims(stats.top, axis)
    alone = jnp.sum(highest.astype(others.dtype), axis, keepdims=True) == 1
    mass, rise = (
        _statistics.all_but_own(x, highest, _statistics.split_sum(x, highest, axis), alone)
        for x in (r, r * dz)
    )
    return r, r * (mass * dz - rise)


def _odds(stats):
    gap, err = _statistics.difference(stats.target, stats.top)
    u = gap - jnp.log(jnp.where(stats.rest > 0, stats.rest, 1))
    numbers = _modulation.odds_from_gap(gap, err, stats.rest)
    return _modulation.along(u, lax.stop_gradient(numbers))


indexed.defvjp(_fwd, _bwd)
