"""What our Keras losses and metrics share: the object that they are around, and what Keras passes."""

from dataclasses import fields
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
from keras.src.backend import get_keras_mask  # it has no public name

from focaljax import _arguments


class Around:
    """A Keras object around one of ours, a frozen dataclass, whose options it takes by the same names."""

    _of: ClassVar[Any]
    _indices: ClassVar[bool] = False
    _ours: Any

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        """What the caller gave, by the names of our object; `given` is ``locals()`` of a constructor."""
        return {field.name: given[field.name] for field in fields(self._of)}

    def get_config(self) -> dict[str, Any]:
        """All options by name, in the types that JSON knows; `from_config` makes the object from them.

        Example:
          >>> from focaljax.keras import losses
          >>> loss = losses.SparseCategoricalFocalCrossentropy(gamma=1.0)
          >>> again = losses.SparseCategoricalFocalCrossentropy.from_config(loss.get_config())
          >>> again.get_config()["gamma"], again.get_config() == loss.get_config()
          (1.0, True)
        """
        options = self._options(vars(self._ours)) | {"dtype": cast(Any, self).dtype}
        return {name: list(x) if isinstance(x, tuple) else x for name, x in options.items()}

    def _examples(self, y_true: Any, y_pred: Any) -> tuple[Any, Any]:
        """Labels in the rank of the predictions: one may have a last axis of size 1 that the other lacks.

        Predictions [N] of labels [N, 1] are [N, 1], as in Keras. Class indices may be floating. Labels that
        are no JAX array stay so: their values are known, and checked before JAX narrows them.
        """
        values = _arguments.on_host(y_true)
        y_true, y_pred = jnp.asarray(y_true) if values is None else values, jnp.asarray(y_pred)
        if self._indices:
            if y_true.ndim == y_pred.ndim and y_true.shape[-1] == 1:
                y_true = y_true[..., 0]
            return _arguments.whole_numbers("y_true", y_true, self._ours.ignore_class), y_pred
        if y_true.ndim == y_pred.ndim - 1 and y_pred.shape[-1] == 1:
            return y_true[..., None], y_pred
        if y_true.ndim == y_pred.ndim + 1 and y_true.shape[-1] == 1:
            return (y_true, y_pred[..., None]) if y_pred.ndim == 1 else (y_true[..., 0], y_pred)
        return y_true, y_pred


def mask(y_pred) -> jax.Array | None:
    """The mask that a layer attached to its output, True where an entry counts."""
    attached = get_keras_mask(y_pred)
    return None if attached is None else jnp.asarray(attached).astype(bool)
