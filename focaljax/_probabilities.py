"""The Keras reading of probabilities: normalise, clip, weigh.

Keras divides by the sum over the classes, clips to [1e-7, 1 - 1e-7] and does not normalise again. Away
from the clip ``1 - p`` is exact for the p that was given, so plain differentiation is stable here; at the
clip the loss is constant and its gradient 0, which is why logits are the better input.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from focaljax import _entries
from focaljax._odds import complete, scaled
from focaljax.terms import Term

EPSILON = 1e-7  # keras.config.epsilon()


def dense(probs: jax.Array, weights: jax.Array, term: Term, axis: int) -> jax.Array:
    """One loss per row of class probabilities; see `_softmax.dense`."""
    p, defined = _normalised(probs.astype(weights.dtype), axis)
    loss = jnp.sum(scaled(weights, _value(term, p)), axis)
    return _where_defined(defined, loss, jnp.all(weights == 0, axis))


def indexed(probs: jax.Array, labels: jax.Array, alpha: jax.Array, term: Term, axis: int) -> jax.Array:
    """One loss per row, of the labelled class; see `_softmax.indexed`."""
    p, defined = _normalised(probs.astype(alpha.dtype), axis)
    own = _entries.is_class(labels, probs.shape, axis)
    known = jnp.any(own, axis)
    target = jnp.where(known, jnp.sum(jnp.where(own, p, 0), axis), 0.5)
    return _where_defined(defined & known, scaled(alpha, _value(term, target)), alpha == 0)


def sigmoid(answers: Callable, probs: jax.Array, fixed: Any, moving: Any) -> jax.Array:
    """One loss per probability of an independent label; see `_sigmoid`."""
    yes, no, weights, term = answers(probs, fixed, moving)
    defined = jnp.isfinite(probs)
    p = _clipped(jnp.where(defined, probs.astype(weights.dtype), 0.5))
    wrong = yes * (1 - p) + no * p
    bce = -(yes * jnp.log(p) + no * jnp.log1p(-p))
    return _where_defined(defined, weights * jnp.power(wrong, term.gamma) * bce, weights == 0)


def _value(term, p):
    return term.value(complete(p, 1 - p, jnp.log(p), jnp.log1p(-p)))


def _where_defined(defined, loss, silent):
    """NaN in undefined rows, or 0 where their weight is 0."""
    return jnp.where(defined, loss, jnp.where(silent, 0, jnp.nan))


def _clipped(p):
    return jnp.clip(p, EPSILON, 1 - EPSILON)


def _normalised(probs, axis):
    """The clipped probabilities of each row, and whether it has any.

    A row without (NaN, infinite, or all 0) is replaced before it can spoil a gradient.
    """
    total = jnp.sum(probs, axis, keepdims=True)
    defined = jnp.isfinite(total) & (total != 0)
    probs = jnp.where(defined, probs, 1)
    return _clipped(probs / jnp.sum(probs, axis, keepdims=True)), jnp.squeeze(defined, axis)
