"""The three focal losses as Keras losses, by Keras' names, options and defaults.

What holds for the whole file:

* They run focaljax' operations: exact from logits, where Keras clips; alpha per class follows `axis`.
* `sample_weight`, `class_weight` and masks are those of `fit`; an entry that is masked or weighs 0 is
  silent, NaN too, and a mean is over the entries that are not masked.
* Mixed precision: the arithmetic is in at least float32, whatever the outputs of the model are.
* They are registered as ``focaljax>...``: a saved model comes back with the same class and all options,
  `dtype` included.
"""

from typing import Any, cast

import keras

import focaljax
from focaljax import reductions
from focaljax.keras import _batches

__all__ = [
    "BinaryFocalCrossentropy",
    "CategoricalFocalCrossentropy",
    "SparseCategoricalFocalCrossentropy",
]


class _Loss(_batches.Around, keras.losses.Loss):
    """A Keras loss around one of ours."""

    def __init__(self, given: dict[str, Any]) -> None:
        options = self._options(given)
        self._ours = self._of(**options | {"dtype": None})  # our errors come before Keras'
        name, reduction = options["name"], cast(str, options["reduction"])
        super().__init__(name=name, reduction=reduction, dtype=options["dtype"])

    def call(self, y_true, y_pred):
        """One loss per example, neither weighed nor reduced.

        Example:
          >>> import jax.numpy as jnp
          >>> loss = CategoricalFocalCrossentropy(gamma=0.0, alpha=1.0)
          >>> losses = loss.call([[1, 0], [1, 0]], jnp.array([[0.5, 0.5], [0.25, 0.75]]))
          >>> [round(float(x), 6) for x in losses / jnp.log(2)]
          [1.0, 2.0]
        """
        return self._ours.call(*self._examples(y_true, y_pred))

    def __call__(self, y_true, y_pred, sample_weight=None):
        """The losses of a batch, weighed, masked and reduced."""
        where = _batches.mask(y_pred)
        y_true, y_pred = self._examples(y_true, y_pred)
        losses, counted = self._ours.counted(y_true, y_pred)
        if where is None:
            where = counted
        elif counted is not None:
            where = where & counted
        return reductions.reduce_loss(losses, sample_weight, self._ours.reduction, where=where).astype(
            self.dtype
        )


@keras.saving.register_keras_serializable(package="focaljax")
class CategoricalFocalCrossentropy(_Loss):
    """:func:`focaljax.categorical_focal_crossentropy` for `model.compile(loss=...)`.

    Args:
      alpha, gamma, from_logits, label_smoothing, axis: As in the function; arrays become lists.
      reduction: "sum_over_batch_size" or "mean", "mean_with_sample_weight", "sum", None or "none".
      name: A name for logs.
      dtype: The dtype of the result; None is Keras' default.

    Raises:
      TypeError: An option has the wrong type.
      ValueError: An option is out of its range, or `reduction` is none of the above.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = CategoricalFocalCrossentropy()
      >>> print(f"{loss([[0, 1, 0], [0, 0, 1]], jnp.array([[0.05, 0.95, 0], [0.1, 0.8, 0.1]])):.5f}")
      0.23315

    References:
      `keras.losses.CategoricalFocalCrossentropy`.
    """

    _of = focaljax.CategoricalFocalCrossentropy

    def __init__(
        self,
        alpha: Any = 0.25,
        gamma: Any = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str = "categorical_focal_crossentropy",
        dtype: Any = None,
    ) -> None:
        """Checks the options."""
        super().__init__(locals())


@keras.saving.register_keras_serializable(package="focaljax")
class SparseCategoricalFocalCrossentropy(_Loss):
    """:func:`focaljax.sparse_categorical_focal_crossentropy` for `model.compile(loss=...)`.

    Keras has none of class indices. They may be floating, as Keras makes them, and have a last axis of 1. One
    that is no whole number has the loss NaN.

    Args:
      alpha, gamma, from_logits, ignore_class, axis: As in the function; arrays become lists.
      reduction: "sum_over_batch_size" or "mean", "mean_with_sample_weight", "sum", None or "none".
      name: A name for logs.
      dtype: The dtype of the result; None is Keras' default.

    Raises:
      TypeError: An option has the wrong type.
      ValueError: An option is out of its range, or `reduction` is none of the above.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = SparseCategoricalFocalCrossentropy()
      >>> print(f"{loss([1, 2], jnp.array([[0.05, 0.95, 0], [0.1, 0.8, 0.1]])):.5f}")
      0.23315
    """

    _of = focaljax.SparseCategoricalFocalCrossentropy
    _indices = True

    def __init__(
        self,
        alpha: Any = 0.25,
        gamma: Any = 2.0,
        from_logits: bool = False,
        ignore_class: int | None = None,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str = "sparse_categorical_focal_crossentropy",
        dtype: Any = None,
    ) -> None:
        """Checks the options."""
        super().__init__(locals())


@keras.saving.register_keras_serializable(package="focaljax")
class BinaryFocalCrossentropy(_Loss):
    """:func:`focaljax.binary_focal_crossentropy` for `model.compile(loss=...)`.

    Args:
      apply_class_balancing, alpha, gamma, from_logits, label_smoothing, axis, ignore_class: As in the
        function. A mean is over the examples of which one label counts.
      reduction: "sum_over_batch_size" or "mean", "mean_with_sample_weight", "sum", None or "none".
      name: A name for logs.
      dtype: The dtype of the result; None is Keras' default.

    Raises:
      TypeError: An option has the wrong type.
      ValueError: An option is out of its range, or `reduction` is none of the above.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = BinaryFocalCrossentropy(gamma=0.0)
      >>> print(f"{loss([1, 0], jnp.array([[0.5], [0.5]])):.4f}")  # log 2
      0.6931

    References:
      `keras.losses.BinaryFocalCrossentropy`.
    """

    _of = focaljax.BinaryFocalCrossentropy

    def __init__(
        self,
        apply_class_balancing: bool = False,
        alpha: Any = 0.25,
        gamma: Any = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str = "binary_focal_crossentropy",
        dtype: Any = None,
        ignore_class: int | None = None,
    ) -> None:
        """Checks the options."""
        super().__init__(locals())
