"""What Keras hands to a loss or a metric, as focaljax wants it."""

from typing import Any

import jax
import jax.numpy as jnp
from keras.src.backend import get_keras_mask  # it has no public name

from focaljax import _arguments


def labels(y_true: Any, y_pred: Any, indices: bool, ignored: int | None = None) -> Any:
    """Keras' labels: class indices may be floating and have a last axis of 1, binary ones may lack it.

    What is no JAX array stays so: its values are known, and checked before JAX narrows them.
    """
    values = _arguments.on_host(y_true)
    y_true = jnp.asarray(y_true) if values is None else values
    if indices:
        if y_true.ndim == y_pred.ndim and y_true.shape[-1] == 1:
            y_true = y_true[..., 0]
        return _arguments.whole_numbers("y_true", y_true, ignored)
    if y_true.ndim == y_pred.ndim - 1 and y_pred.shape[-1] == 1:
        y_true = y_true[..., None]
    return y_true


def mask(y_pred) -> jax.Array | None:
    """The mask that a layer attached to its output, True where an entry counts."""
    attached = get_keras_mask(y_pred)
    return None if attached is None else jnp.asarray(attached).astype(bool)


def plain(options: dict) -> dict:
    """A configuration in the types that JSON knows."""
    return {name: list(x) if isinstance(x, tuple) else x for name, x in options.items()}
