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


def _bwd(axis, residuals, ct):
    logits, labels, alpha, gamma, stats = residuals
    odds = _odds(stats)
    focal = _modulation.focal(odds, gamma)
    slope = -_modulation.scaled(alpha * ct, odds.q * _modulation.pull(odds, gamma))
    push = -jnp.where(stats.rest > 0, slope / jnp.where(stats.rest > 0, stats.rest, 1), 0)
    silent = (slope == 0) & jnp.isnan(odds.p)
    slope, push, silent, top = (jnp.expand_dims(x, axis) for x in (slope, push, silent, stats.top))

    z = jnp.where(silent, 0, logits.astype(gamma.dtype))
    competitors = push * _statistics.shifted_exp(z, jnp.where(silent, 0, top))
    own = _statistics.is_class(labels, logits.shape, axis)
    d_logits = jnp.where(own, slope, competitors).astype(logits.dtype)
    d_alpha = _modulation.scaled(ct, focal)
    d_gamma = _modulation.scaled(alpha * ct, focal * odds.log_q)
    return d_logits, None, d_alpha, d_gamma


def _odds(stats):
    gap, err = _statistics.difference(stats.target, stats.top)
    u = gap - jnp.log(jnp.where(stats.rest > 0, stats.rest, 1))
    numbers = _modulation.odds_from_gap(gap, err, stats.rest)
    return _modulation.along(u, lax.stop_gradient(numbers))


indexed.defvjp(_fwd, _bwd)
