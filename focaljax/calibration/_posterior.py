"""The posteriors that a focal-trained model determines: the inverse of the loss at its minimum."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from focaljax import _arguments
from focaljax._arguments import Values
from focaljax._exact import wide
from focaljax._odds import Odds, along, complete
from focaljax.terms import Term


def log_posterior(
    logits: Values,
    *,
    gamma: Values = 2.0,
    term: Term | None = None,
    alpha: Values | None = None,
    axis: int = -1,
) -> jax.Array:
    r"""Log-probabilities of the classes, from the logits of a model trained by softmax focal loss.

    Where p = softmax(logits) minimises the expected loss at an input with class posteriors eta,

    .. math:: \eta_k \propto \frac{p_k}{\alpha_k \, (1 - p_k)^\gamma \, (1 + \gamma \varphi_k)},
              \qquad \varphi_k = \frac{-p_k \log p_k}{1 - p_k}

    because every eta_k times the slope of its term is the same there. Of another `term` it is
    ``p_k / (alpha_k * pull_k)``. The most probable class stays so if alpha is the same for all; with
    ``gamma=0`` and no alpha these are the log-probabilities of the softmax. The result is a set of logits
    too: calibrate or threshold it like any other.

    It inverts the loss, not the training: a model that has not reached the minimum, or learned noise, keeps
    its own errors. After :func:`focaljax.sigmoid_focal_loss` take the two logits ``[0, z]`` and
    ``alpha=[1 - alpha, alpha]``.

    Args:
      logits: Floating, the logits of one class each along `axis`; -inf is a class that cannot occur.
      gamma: The exponent of the training, at least 0; a scalar, ``[C]`` or ``[..., 1]``.
      term: The term of the training, if it was another than focal loss; `gamma` is then left out.
      alpha: The class weights of the training, above 0, likewise; None for 1. Without them what comes
        back are posteriors under alpha-weighted priors.
      axis: The class axis.

    Returns:
      Log-probabilities, of the shape of the logits and in at least float32; differentiable, as often as you
      like, in logits, gamma and alpha.

    Raises:
      TypeError: An argument has the wrong dtype.
      ValueError: A shape, the axis or a known value is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> logits = jnp.log(jnp.array([0.6, 0.4]))
      >>> print([f"{p:.4f}" for p in jnp.exp(log_posterior(logits, gamma=0.0))])
      ['0.6000', '0.4000']
      >>> print([f"{p:.4f}" for p in jnp.exp(log_posterior(logits, gamma=1.0))])
      ['0.6724', '0.3276']
      >>> by_hand = jnp.array([0.6 / (0.4 - 0.6 * jnp.log(0.6)), 0.4 / (0.6 - 0.4 * jnp.log(0.4))])
      >>> print([f"{p:.4f}" for p in by_hand / by_hand.sum()])
      ['0.6724', '0.3276']

    References:
      Charoenphakdee et al., "On Focal Loss for Class-Posterior Probability Estimation: A Theoretical
      Perspective", 2021 (https://arxiv.org/abs/2011.09172), the transformation
      Psi of the softmax; alpha follows from the same argument.
    """
    logits, axis = _arguments.logits("logits", logits, axis)
    dtype = wide(logits.dtype)
    option = functools.partial(
        _arguments.option, like=logits, like_name="logits", axis=axis, dtype=dtype, classes=logits.shape[axis]
    )
    term = _arguments.term(term, gamma, option)
    if alpha is not None:
        _arguments.positive("alpha", alpha)
        alpha = option("alpha", alpha)
    return _log_posterior(logits.astype(dtype), term, alpha, axis)


@functools.partial(jax.jit, static_argnames="axis", inline=True)
def _log_posterior(logits, term, alpha, axis):
    odds = _odds(logits, axis)
    log_eta = odds.log_p - term.log_pull(odds)
    if alpha is not None:
        log_eta = log_eta - jnp.log(alpha)
    # A gap beyond all others may overflow to inf here: it is certain, not NaN.
    return jax.nn.log_softmax(jnp.minimum(log_eta, jnp.finfo(log_eta.dtype).max / 4), axis)


def _odds(logits: jax.Array, axis: int) -> Odds:
    """Odds of every class against all others, with q > 0 and log q to its last bits."""
    indices = lax.broadcasted_iota(jnp.int32, logits.shape, axis)
    top = indices == jnp.expand_dims(lax.argmax(logits, axis, jnp.int32), axis)
    # The highest logit by its index, not as a maximum: at ties that one would have another derivative.
    below = logits - jnp.sum(jnp.where(top, logits, 0), axis, keepdims=True)
    alive = jnp.any(~top & (below > -jnp.inf), axis, keepdims=True)
    others = jnp.where(top, -jnp.inf, jnp.where(alive, below, 0))
    others = jnp.where(top & ~alive, 0, others)  # no competitor: any finite number, selected away below
    log_rest = jax.nn.logsumexp(others, axis, keepdims=True)
    log_total = jnp.where(alive, jnp.logaddexp(0.0, log_rest), 0)
    log_p = below - log_total
    p = jnp.exp(log_p)
    log_q = jnp.where(top, jnp.where(alive, log_rest - log_total, 0), jnp.log1p(-jnp.where(top, 0, p)))
    q = jnp.where(top & ~alive, 0, jnp.exp(log_q))
    odds = complete(p, q, log_p, log_q)._replace(log_q=log_q)
    return along(log_p - log_q, odds)
