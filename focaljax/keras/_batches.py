"""What Keras hands to a loss or a metric, as focaljax wants it."""

import jax
import jax.numpy as jnp
from keras.src.backend import get_keras_mask  # it has no public name

NO_CLASS = 2**31 - 1  # what a label becomes that is no whole number: its loss is NaN


def examples(y_true, y_pred, indices: bool) -> tuple[jax.Array, jax.Array]:
    """Labels in the rank of the predictions: either may have a last axis of size 1 that the other lacks.

    Predictions [N] of labels [N, 1] are [N, 1], as in Keras. Class indices may be floating.
    """
    y_true, y_pred = jnp.asarray(y_true), jnp.asarray(y_pred)
    if indices:
        if y_true.ndim == y_pred.ndim and y_true.shape[-1] == 1:
            y_true = y_true[..., 0]
        return _whole(y_true), y_pred
    if y_true.ndim == y_pred.ndim - 1 and y_pred.shape[-1] == 1:
        return y_true[..., None], y_pred
    if y_true.ndim == y_pred.ndim + 1 and y_true.shape[-1] == 1:
        return (y_true, y_pred[..., None]) if y_pred.ndim == 1 else (y_true[..., 0], y_pred)
    return y_true, y_pred


def _whole(labels: jax.Array) -> jax.Array:
    """Class indices as integers."""
    if not jnp.issubdtype(labels.dtype, jnp.floating):
        return labels if jnp.issubdtype(labels.dtype, jnp.integer) else labels.astype(jnp.int32)
    whole = (labels == jnp.round(labels)) & (jnp.abs(labels) < 2.0**31)
    return jnp.where(whole, labels, 0).astype(jnp.int32) + jnp.where(whole, 0, NO_CLASS)


def mask(y_pred) -> jax.Array | None:
    """The mask that a layer attached to its output, True where an entry counts."""
    attached = get_keras_mask(y_pred)
    return None if attached is None else jnp.asarray(attached).astype(bool)


def plain(options: dict) -> dict:
    """A configuration in the types that JSON knows."""
    return {name: list(x) if isinstance(x, tuple) else x for name, x in options.items()}
