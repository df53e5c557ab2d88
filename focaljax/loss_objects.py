"""The losses of Keras as objects: options, weights and a reduction in one call; frozen and hashable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self, cast

import jax
from jax.typing import DTypeLike

from focaljax import _arguments, _options, reductions
from focaljax._arguments import Reduction, Values
from focaljax.crossentropy import (
    binary_focal_crossentropy,
    categorical_focal_crossentropy,
    losses_of,
    sparse_categorical_focal_crossentropy,
)


class _Loss:
    """A frozen loss with its options: callable, reducing, and rebuilt from its configuration."""

    _function: ClassVar[Callable[..., jax.Array]]
    reduction: Reduction
    dtype: DTypeLike | None

    def __post_init__(self):
        """Checks the options."""
        _options.settle(self)

    def call(self, y_true: Values, y_pred: Values) -> jax.Array:
        """One loss per example, neither weighed nor reduced.

        Example:
          >>> import jax.numpy as jnp
          >>> loss = CategoricalFocalCrossentropy(gamma=0.0, alpha=1.0)
          >>> losses = loss.call([[1, 0], [1, 0]], jnp.array([[0.5, 0.5], [0.25, 0.75]]))
          >>> [round(float(x), 6) for x in losses / jnp.log(2)]
          [1.0, 2.0]
        """
        return type(self)._function(y_true, y_pred, **self._options())

    def counted(
        self, y_true: Values, y_pred: Values, where: Values | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """One loss per example, and where they count: what :func:`focaljax.reduce_loss` takes.

        Example:
          >>> import jax.numpy as jnp
          >>> loss = SparseCategoricalFocalCrossentropy(ignore_class=-1)
          >>> loss.counted(jnp.array([1, -1]), jnp.ones((2, 3)))[1]
          Array([ True, False], dtype=bool)
        """
        return losses_of(type(self)._function, y_true, y_pred, where, self._options())

    def _options(self) -> dict[str, Any]:
        return {name: x for name, x in vars(self).items() if name not in ("reduction", "name", "dtype")}

    def __call__(
        self,
        y_true: Values,
        y_pred: Values,
        sample_weight: Values | None = None,
        *,
        normalizer: Values | None = None,
        where: Values | None = None,
    ) -> jax.Array:
        """The losses of a batch, weighed and reduced by :func:`focaljax.reduce_loss`.

        `where` is True where an example counts; for :class:`BinaryFocalCrossentropy`, where one of its labels
        does, in the shape of `y_pred`: an example counts if one of its labels does.

        Example:
          >>> import jax.numpy as jnp
          >>> loss = CategoricalFocalCrossentropy(gamma=0.0, alpha=1.0)
          >>> loss([[1, 0], [1, 0]], jnp.array([[0.5, 0.5], [0.5, 0.5]]), normalizer=4) / jnp.log(2)
          Array(0.5, dtype=float32)
        """
        y_pred = _arguments.floating("y_pred", y_pred)
        y_pred = y_pred if self.dtype is None else y_pred.astype(self.dtype)
        losses, where = self.counted(y_true, y_pred, where)
        reduced = reductions.reduce_loss(
            losses, sample_weight, self.reduction, where=where, normalizer=normalizer
        )
        return reduced if self.dtype is None else reduced.astype(self.dtype)

    def get_config(self) -> dict[str, Any]:
        """All options by name, as plain Python values.

        Example:
          >>> import jax.numpy as jnp
          >>> config = BinaryFocalCrossentropy(gamma=jnp.array([1.0, 2.0])).get_config()
          >>> config["gamma"], config["reduction"]
          ((1.0, 2.0), 'sum_over_batch_size')
        """
        return {field.name: getattr(self, field.name) for field in fields(cast(Any, self))}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The loss that `get_config` described.

        Example:
          >>> import jax.numpy as jnp
          >>> loss = SparseCategoricalFocalCrossentropy(ignore_class=-1)
          >>> SparseCategoricalFocalCrossentropy.from_config(loss.get_config()) == loss
          True
        """
        return cls(**config)


@dataclass(frozen=True)
class CategoricalFocalCrossentropy(_Loss):
    """:func:`categorical_focal_crossentropy` as an object with a reduction.

    Attributes:
      alpha: Class weights, a known value; an array becomes a tuple.
      gamma: Focusing exponent, at least 0, likewise.
      from_logits: Whether `y_pred` holds logits.
      label_smoothing: In [0, 1].
      axis: The class axis.
      reduction: "sum_over_batch_size" or "mean", "mean_with_sample_weight", "sum", None or "none".
      name: A name for logs and configurations.
      dtype: The dtype `y_pred` is read in and the result has; None computes in at least float32.

    Raises:
      TypeError: An option has the wrong type.
      ValueError: An option is out of its range, or `reduction` is none of the above.

    Example:
      >>> import jax.numpy as jnp
      >>> y_true, y_pred = [[0, 1, 0], [0, 0, 1]], jnp.array([[0.05, 0.95, 0], [0.1, 0.8, 0.1]])
      >>> f"{CategoricalFocalCrossentropy()(y_true, y_pred):.5g}"
      '0.23315'
      >>> f"{CategoricalFocalCrossentropy(reduction='sum')(y_true, y_pred):.5g}"
      '0.46631'
      >>> [f"{x:.6g}" for x in CategoricalFocalCrossentropy(reduction=None)(y_true, y_pred)]
      ['3.20583e-05', '0.466273']
      >>> weights = jnp.array([0.3, 0.7])
      >>> f"{CategoricalFocalCrossentropy()(y_true, y_pred, sample_weight=weights):.5g}"
      '0.1632'

    References:
      `keras.losses.CategoricalFocalCrossentropy`.
    """

    _function = staticmethod(categorical_focal_crossentropy)
    alpha: Values = 0.25
    gamma: Values = 2.0
    from_logits: bool = False
    label_smoothing: float = 0.0
    axis: int = -1
    reduction: Reduction = "sum_over_batch_size"
    name: str = "categorical_focal_crossentropy"
    dtype: DTypeLike | None = None


@dataclass(frozen=True)
class SparseCategoricalFocalCrossentropy(_Loss):
    """:func:`sparse_categorical_focal_crossentropy` as an object with a reduction.

    A mean is over the examples that are not ignored, as in Keras' sparse cross-entropy.

    Attributes:
      alpha: Class weights, a known value; an array becomes a tuple.
      gamma: Focusing exponent, at least 0, likewise.
      from_logits: Whether `y_pred` holds logits.
      ignore_class: A label whose examples have the loss 0.
      axis: The class axis.
      reduction: "sum_over_batch_size" or "mean", "mean_with_sample_weight", "sum", None or "none".
      name: A name for logs and configurations.
      dtype: The dtype `y_pred` is read in and the result has; None computes in at least float32.

    Raises:
      TypeError: An option has the wrong type.
      ValueError: An option is out of its range, or `reduction` is none of the above.

    Example:
      >>> import jax.numpy as jnp
      >>> y_pred = jnp.array([[0.05, 0.95, 0], [0.1, 0.8, 0.1]])
      >>> f"{SparseCategoricalFocalCrossentropy(reduction='sum')([1, 2], y_pred):.5g}"
      '0.46631'
    """

    _function = staticmethod(sparse_categorical_focal_crossentropy)
    alpha: Values = 0.25
    gamma: Values = 2.0
    from_logits: bool = False
    ignore_class: int | None = None
    axis: int = -1
    reduction: Reduction = "sum_over_batch_size"
    name: str = "sparse_categorical_focal_crossentropy"
    dtype: DTypeLike | None = None


@dataclass(frozen=True)
class BinaryFocalCrossentropy(_Loss):
    """:func:`binary_focal_crossentropy` as an object with a reduction.

    Attributes:
      apply_class_balancing: Whether to weigh the label 1 by `alpha` and the label 0 by ``1 - alpha``.
      alpha: Weight of the label 1, a known value; it must stay 0.25 without `apply_class_balancing`.
      gamma: Focusing exponent, at least 0, likewise.
      from_logits: Whether `y_pred` holds logits.
      label_smoothing: In [0, 1].
      axis: The axis over which the losses are averaged.
      reduction: "sum_over_batch_size" or "mean", "mean_with_sample_weight", "sum", None or "none".
      name: A name for logs and configurations.
      dtype: The dtype `y_pred` is read in and the result has; None computes in at least float32.
      ignore_class: A label that does not count. A mean is over the examples of which one label does.

    Raises:
      TypeError: An option has the wrong type.
      ValueError: An option is out of its range, or `reduction` is none of the above.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = BinaryFocalCrossentropy(gamma=0.0)
      >>> round(float(loss([[1, 0]], jnp.array([[0.5, 0.5]])) / jnp.log(2)), 6)
      1.0

    References:
      `keras.losses.BinaryFocalCrossentropy`.
    """

    _function = staticmethod(binary_focal_crossentropy)
    apply_class_balancing: bool = False
    alpha: Values = 0.25
    gamma: Values = 2.0
    from_logits: bool = False
    label_smoothing: float = 0.0
    axis: int = -1
    reduction: Reduction = "sum_over_batch_size"
    name: str = "binary_focal_crossentropy"
    dtype: DTypeLike | None = None
    ignore_class: int | None = None
