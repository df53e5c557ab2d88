"""The Keras reading of probabilities: normalise, clip, weigh.

Keras divides by the sum over the classes, clips to [1e-7, 1 - 1e-7] and does not normalise again. Away
from the clip ``1 - p`` is exact for the p that was given, so plain differentiation is stable here; at the
clip the loss is constant and its gradient 0, which is why logits are the better input.
"""

import jax
import jax.numpy as jnp

from focaljax import _modulation, _statistics

EPSILON = 1e-7  # keras.config.epsilon()


def dense(probs: jax.Array, weights: jax.Array, gamma: jax.Array, axis: int) -> jax.Array:
    """One loss per row of class probabilities; see `_ops.dense`."""
    p = _normalised(probs.astype(gamma.dtype), jnp.all(weights == 0, axis, keepdims=True), axis)
    return jnp.sum(_modulation.scaled(weights, _focal(p, 1 - p, gamma)), axis)


def indexed(probs: jax.Array, labels: jax.Array, alpha: jax.Array, gamma: jax.Array, axis: int) -> jax.Array:
    """One loss per row, of the labelled class; see `_ops.indexed`."""
    p = _normalised(probs.astype(gamma.dtype), jnp.expand_dims(alpha == 0, axis), axis)
    own = _statistics.is_class(labels, probs.shape, axis)
    target = jnp.sum(jnp.where(own, p, 0), axis)
    target = jnp.where(jnp.any(own, axis), target, 0.5)  # no such class: alpha is NaN or 0
    return _modulation.scaled(alpha, _focal(target, 1 - target, gamma))


def sigmoid(probs: jax.Array, labels: jax.Array, weights: jax.Array, gamma: jax.Array) -> jax.Array:
    """One loss per probability of an independent label; see `_ops.sigmoid`."""
    probs = probs.astype(gamma.dtype)
    p = _clipped(jnp.where((weights == 0) & jnp.isnan(probs), 0.5, probs))
    wrong = labels * (1 - p) + (1 - labels) * p
    bce = -(labels * jnp.log(p) + (1 - labels) * jnp.log1p(-p))
    return weights * jnp.power(wrong, gamma) * bce


def _focal(p, q, gamma):
    return jnp.power(q, gamma) * -jnp.log(p)


def _normalised(probs, silent, axis):
    total = jnp.sum(probs, axis, keepdims=True)
    usable = jnp.isfinite(total) & (total != 0)
    probs = jnp.where(silent & ~usable, 1, probs)  # a row of weight 0 is silent whatever it holds
    return _clipped(probs / jnp.sum(probs, axis, keepdims=True))


def _clipped(p):
    return jnp.clip(p, EPSILON, 1 - EPSILON)
