"""Focal loss of soft labels: every class of a row carries a term of its own weight.

``L = sum_k w_k * q_k^gamma * (-log p_k)`` is linear in the weights ``w = alpha * y``. With
``A_k = w_k * pull(u_k)``, where ``-q_k * A_k`` is the slope of term k along its own log-odds,

    dL/dz_k = p_k * sum_{c != k} A_c - q_k * A_k

For p_k <= 1/2 the sum over all classes may be taken and ``p_k * A_k`` given back without harm. Only the
highest class can be above 1/2; its own term is left out of the sum from the start, as the highest is left
out of `excess`, so neither q nor the gradient is ever the difference of two numbers near 1.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from focaljax import _modulation, _statistics


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def dense(logits: jax.Array, weights: jax.Array, gamma: jax.Array, axis: int) -> jax.Array:
    """One loss per row; `weights` has the shape of `logits`, `gamma` may have size 1 along `axis`.

    A class of weight 0 adds nothing, even at a logit of -inf; a row of such classes, or one whose
    cotangent is 0, is silent whatever its logits hold.
    """
    return _fwd(logits, weights, gamma, axis)[0]


def _fwd(logits, weights, gamma, axis):
    z = logits.astype(gamma.dtype)
    peak = _statistics.peak(z, axis)
    odds = _odds(z, peak, axis)
    loss = jnp.sum(_modulation.scaled(weights, _modulation.focal(odds, gamma)), axis)
    pulls = _split(_modulation.scaled(weights, _modulation.pull(odds, gamma)), z, peak, axis)
    return loss, (logits, weights, gamma, peak, pulls)


def _bwd(axis, residuals, ct):
    logits, weights, gamma, peak, pulls = residuals
    high, low = (jnp.expand_dims(x, axis) for x in pulls)
    ct = jnp.expand_dims(ct, axis)
    silent = jnp.expand_dims(jnp.isnan(peak.excess), axis) & ((ct == 0) | ((high == 0) & (low == 0)))
    z = jnp.where(silent, 0, logits.astype(gamma.dtype))
    peak = jax.tree.map(lambda x: jnp.where(jnp.squeeze(silent, axis), 0, x), peak)

    odds = _odds(z, peak, axis)
    focal = _modulation.focal(odds, gamma)
    own = _modulation.scaled(weights, _modulation.pull(odds, gamma))
    highest = z == jnp.expand_dims(peak.top, axis)
    d_logits = jnp.where(
        highest,
        odds.p * (low + (high - own)) - odds.q * own,
        odds.p * (low + high) - own,
    )
    d_weights = _modulation.scaled(ct, focal)
    d_gamma = _modulation.scaled(weights * ct, focal * odds.log_q)
    if gamma.shape[axis] == 1:
        d_gamma = jnp.sum(d_gamma, axis, keepdims=True)
    return _modulation.scaled(ct, d_logits).astype(logits.dtype), d_weights, d_gamma


def _split(x, z, peak, axis):
    """Sums over the highest classes and over the others."""
    highest = z == jnp.expand_dims(peak.top, axis)
    return jnp.sum(jnp.where(highest, x, 0), axis), jnp.sum(jnp.where(highest, 0, x), axis)


def _odds(z, peak, axis):
    """The odds of every class against all the others."""
    return _modulation.along(_log_odds(z, peak, axis), lax.stop_gradient(_numbers(z, peak, axis)))


def _numbers(z, peak, axis):
    top, excess = (jnp.expand_dims(x, axis) for x in peak)
    gap, err = _statistics.difference(z, top)
    total = 1 + excess
    p = jnp.exp(gap) * (1 + err) / total
    highest = z == top
    q = jnp.where(highest, excess / total, 1 - p)
    log_top = -jnp.log1p(excess)
    ratio = jnp.minimum(excess, 1) / jnp.maximum(excess, 1)  # of the smaller to the larger part
    log_rest = jnp.where(excess < 1, jnp.log(excess) + log_top, -jnp.log1p(ratio))
    log_q = jnp.where(highest, log_rest, jnp.log1p(-p))
    return _modulation.complete(p, q, gap + (err + log_top), log_q)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _log_odds(z, peak, axis):
    """A carrier of the derivative ``du_k = dz_k - sum_{j != k} p_j / q_k dz_j``; its value is not used."""
    del peak, axis
    return z


@_log_odds.defjvp
def _log_odds_jvp(axis, primals, tangents):
    z, peak = primals
    dz = tangents[0]
    odds = _odds(z, peak, axis)
    high, low = (jnp.expand_dims(x, axis) for x in _split(odds.p * dz, z, peak, axis))
    highest = z == jnp.expand_dims(peak.top, axis)
    others = jnp.where(highest, low + (high - odds.p * dz), low + high - odds.p * dz)
    return _log_odds(z, peak, axis), dz - jnp.where(odds.q > 0, others / jnp.where(odds.q > 0, odds.q, 1), 0)


dense.defvjp(_fwd, _bwd)
