"""Converts what Keras passes to a loss or a metric."""

from typing import Any

import jax
import jax.numpy as jnp
from keras.src.backend import get_keras_mask  # it has no public name

from focaljax import _arguments


def examples(y_true: Any, y_pred: Any, indices: bool, ignored: int | None = None) -> tuple[Any, Any]:
    """Labels in the rank of the predictions: one may have a last axis of size 1 that the other lacks.

    Predictions [N] of labels [N, 1] are [N, 1], as in Keras. Class indices may be floating. Labels that are
    no JAX array stay so: their values are known, and checked before JAX narrows them.
    """
    values = _arguments.on_host(y_true)
    y_true, y_pred = jnp.asarray(y_true) if values is None else values, jnp.asarray(y_pred)
    if indices:
        if y_true.ndim == y_pred.ndim and y_true.shape[-1] == 1:
            y_true = y_true[..., 0]
        return _arguments.whole_numbers("y_true", y_true, ignored), y_pred
    if y_true.ndim == y_pred.ndim - 1 and y_pred.shape[-1] == 1:
        return y_true[..., None], y_pred
    if y_true.ndim == y_pred.ndim + 1 and y_true.shape[-1] == 1:
        return (y_true, y_pred[..., None]) if y_pred.ndim == 1 else (y_true[..., 0], y_pred)
    return y_true, y_pred


def mask(y_pred) -> jax.Array | None:
    """The mask that a layer attached to its output, True where an entry counts."""
    attached = get_keras_mask(y_pred)
    return None if attached is None else jnp.asarray(attached).astype(bool)


def plain(options: dict) -> dict:
    """A configuration in the types that JSON knows."""
    return {name: list(x) if isinstance(x, tuple) else x for name, x in options.items()}
