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

from focaljax import _entries, _mesh, _modulation, _statistics


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def dense(
    logits: jax.Array, weights: jax.Array, gamma: jax.Array, axis: int, name: _mesh.AxisName | None = None
) -> jax.Array:
    """One loss per row; `weights` has the shape of `logits`, `gamma` may have size 1 along `axis`.

    A class of weight 0 adds nothing, even at a logit of -inf; a row of such classes, or one whose
    cotangent is 0, is silent whatever its logits hold. `name` is the mesh axis that shards the classes.
    """
    return _fwd(logits, weights, gamma, axis, name)[0]


def _fwd(logits, weights, gamma, axis, name):
    z = logits.astype(gamma.dtype)
    peak = _statistics.peak(z, axis, name)
    loss, *sums = _sums(z, weights, gamma, peak, axis, name)
    return jnp.squeeze(loss, axis), (logits, weights, gamma, peak, tuple(sums))


def _sums(z, weights, gamma, peak, axis, name):
    """The loss, and the pulls of the highest and of the lower classes."""
    same = _statistics.apart(peak)
    again = _statistics.apart(same)

    def pulls(peak):
        return _modulation.scaled(weights, _modulation.pull(_odds(z, peak, axis, name), gamma))

    return _statistics.sums(
        (
            _modulation.scaled(weights, _modulation.focal(_odds(z, peak, axis, name), gamma)),
            jnp.where(z == same.top, pulls(same), 0),
            jnp.where(z == again.top, 0, pulls(again)),
        ),
        axis,
        name,
    )


@partial(jax.jit, static_argnums=(0, 1), inline=True)  # eager gradients run one program too
def _bwd(axis, name, residuals, ct):
    logits, weights, gamma, peak, sums = residuals
    peak, sums = _statistics.apart((peak, sums))
    ct = jnp.expand_dims(ct, axis)
    silent = jnp.isnan(peak.excess) & ((ct == 0) | ((sums[0] == 0) & (sums[1] == 0)))
    z = jnp.where(silent, 0, logits.astype(gamma.dtype))
    peak = jax.tree.map(lambda x: jnp.where(silent, 0, x), peak)

    odds = _odds(z, peak, axis, name)
    focal = _modulation.focal(odds, gamma)
    pulls = _modulation.scaled(weights, _modulation.pull(odds, gamma))
    others = _statistics.all_but_own(pulls, z == peak.top, sums, peak.excess < 1)
    d_logits = _modulation.scaled(ct, odds.p * others - odds.q * pulls).astype(logits.dtype)
    # A class of weight 0 stays silent where its loss would be infinite: alpha * y sends this to both.
    d_weights = _modulation.scaled(ct, jnp.where((weights == 0) & jnp.isinf(focal), 0, focal))
    d_gamma = _modulation.scaled(weights * ct, _modulation.scaled(odds.log_q, focal))
    if gamma.shape[axis] == 1:
        d_gamma = jnp.sum(d_gamma, axis, keepdims=True)
    return d_logits, d_weights, d_gamma


def _odds(z, peak, axis, name):
    """The odds of every class against all the others."""
    return _modulation.along(_log_odds(z, peak, axis, name), lax.stop_gradient(_numbers(z, peak)))


def _numbers(z, peak):
    top, excess = peak
    gap, err = _entries.difference(z, top)
    total = 1 + excess
    p = jnp.exp(gap) * (1 + err) / total
    highest = z == top
    q = jnp.where(highest, excess / total, 1 - p)
    log_top = -jnp.log1p(excess)
    log_rest = jnp.where(excess < 1, jnp.log(excess) + log_top, -jnp.log1p(1 / excess))
    log_q = jnp.where(highest, log_rest, jnp.log1p(-p))
    return _modulation.complete(p, q, gap + (err + log_top), log_q)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _log_odds(z, peak, axis, name):
    """A carrier of the derivative ``du_k = dz_k - sum_{j != k} p_j / q_k dz_j``; its value is not used."""
    del peak, axis, name
    return z


@_log_odds.defjvp
def _log_odds_jvp(axis, name, primals, tangents):
    z, peak = primals
    dz = tangents[0]
    odds = _odds(z, peak, axis, name)
    rise, highest = odds.p * dz, z == peak.top
    sums = _statistics.split_sum(rise, highest, axis, name)
    others = _statistics.all_but_own(rise, highest, sums, peak.excess < 1)
    # 1 / q by its logarithm, whose derivative is bounded; q -> 0: there are no others.
    inverse = _modulation.power(jnp.where(odds.q > 0, odds.q, 1), odds.log_q, -jnp.ones_like(z))
    share = others * jnp.where(odds.q > 0, inverse, 0)
    return _log_odds(z, peak, axis, name), dz - share


dense.defvjp(_fwd, _bwd)
