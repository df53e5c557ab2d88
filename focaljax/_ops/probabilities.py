"""The Keras reading of probabilities: normalise, clip, weigh.

Keras divides by the sum over the classes, clips to [1e-7, 1 - 1e-7] and does not normalise again. Away
from the clip ``1 - p`` is exact for the p that was given, so plain differentiation is stable here; at the
clip the loss is constant and its gradient 0, which is why logits are the better input.
"""

import jax
import jax.numpy as jnp

from focaljax import _entries, _modulation

EPSILON = 1e-7  # keras.config.epsilon()


def dense(probs: jax.Array, weights: jax.Array, gamma: jax.Array, axis: int) -> jax.Array:
    """One loss per row of class probabilities; see `_ops.dense`."""
    p, defined = _normalised(probs.astype(gamma.dtype), axis)
    loss = jnp.sum(_modulation.scaled(weights, _focal(p, gamma)), axis)
    return jnp.where(defined | jnp.all(weights == 0, axis), loss, jnp.nan)


def indexed(probs: jax.Array, labels: jax.Array, alpha: jax.Array, gamma: jax.Array, axis: int) -> jax.Array:
    """One loss per row, of the labelled class; see `_ops.indexed`."""
    p, defined = _normalised(probs.astype(gamma.dtype), axis)
    own = _entries.is_class(labels, probs.shape, axis)
    target = jnp.sum(jnp.where(own, p, 0), axis)
    target = jnp.where(jnp.any(own, axis), target, 0.5)  # no such class: alpha is NaN or 0
    loss = _modulation.scaled(alpha, _focal(target, gamma))
    return jnp.where(defined | (alpha == 0), loss, jnp.nan)


def sigmoid(probs: jax.Array, labels: jax.Array, weights: jax.Array, gamma: jax.Array) -> jax.Array:
    """One loss per probability of an independent label; see `_ops.sigmoid`."""
    defined = jnp.isfinite(probs)
    p = _clipped(jnp.where(defined, probs.astype(gamma.dtype), 0.5))
    wrong = labels * (1 - p) + (1 - labels) * p
    bce = -(labels * jnp.log(p) + (1 - labels) * jnp.log1p(-p))
    return jnp.where(defined | (weights == 0), weights * jnp.power(wrong, gamma) * bce, jnp.nan)


def _focal(p, gamma):
    return jnp.power(1 - p, gamma) * -jnp.log(p)


def _clipped(p):
    return jnp.clip(p, EPSILON, 1 - EPSILON)


def _normalised(probs, axis):
    """The clipped probabilities of each row, and whether it has any.

    A row without (NaN, infinite, or all 0) is replaced before it can spoil a gradient: its loss is NaN,
    and silent where a weight of 0 takes it away.
    """
    total = jnp.sum(probs, axis, keepdims=True)
    defined = jnp.isfinite(total) & (total != 0)
    probs = jnp.where(defined, probs, 1)
    return _clipped(probs / jnp.sum(probs, axis, keepdims=True)), jnp.squeeze(defined, axis)
