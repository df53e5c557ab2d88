"""The three focal cross-entropies as Keras metrics: means over a stream, exact beyond 2^24 examples.

Keras has the functions only. These classes hold what :mod:`focaljax.metrics` holds, in four variables, so a
mean is sum(w v) / sum(w) over all losses of an epoch. An entry that is masked or weighs 0 is silent, NaN too.
A callback that watches one knows that less is better.
"""

from typing import Any

import jax.numpy as jnp
import keras

from focaljax import metrics, reductions
from focaljax.keras import _batches

__all__ = [
    "BinaryFocalCrossentropy",
    "CategoricalFocalCrossentropy",
    "SparseCategoricalFocalCrossentropy",
]


class _Metric(_batches.Around, keras.metrics.Metric):
    """A Keras metric around one of ours."""

    _direction = "down"

    def __init__(self, given: dict[str, Any]) -> None:
        options = self._options(given)
        self._of(**options | {"dtype": None})  # our errors come before Keras'
        super().__init__(name=options["name"], dtype=options["dtype"])
        self._ours = self._of(**options | {"dtype": self.dtype})
        self._state = [
            self.add_variable((), "zeros", dtype=leaf.dtype.name, name=field)
            for field, leaf in vars(self._ours.init()).items()
        ]

    def update_state(self, y_true, y_pred, sample_weight=None) -> None:
        """Adds a batch to what was seen."""
        mask, y_pred = _batches.mask(y_pred), jnp.asarray(y_pred)
        y_true, y_pred = self._examples(y_true, y_pred)
        weights = reductions.masked(sample_weight, mask)
        state = self._ours.update(self._seen(), y_true, y_pred, weights)
        for variable, value in zip(self._state, vars(state).values(), strict=True):
            variable.assign(value)

    def result(self):
        """The mean of what was seen; 0 if nothing was."""
        return self._ours.result(self._seen())

    def _seen(self) -> metrics.MeanState:
        return metrics.MeanState(*(variable.value for variable in self._state))


@keras.saving.register_keras_serializable(package="focaljax", name="CategoricalFocalCrossentropyMetric")
class CategoricalFocalCrossentropy(_Metric):
    """The stream's mean of :func:`focaljax.categorical_focal_crossentropy`.

    Args:
      alpha, gamma, from_logits, label_smoothing, axis: As in the function; arrays become lists.
      name: A name for logs.
      dtype: "float32", or "float64" with `jax_enable_x64`; None is Keras' default.

    Raises:
      TypeError: An option has the wrong type.
      ValueError: An option is out of its range, or `dtype` is neither.

    Example:
      >>> import jax.numpy as jnp
      >>> metric = CategoricalFocalCrossentropy()
      >>> metric.update_state([[0, 1, 0], [0, 0, 1]], jnp.array([[0.05, 0.9, 0.05], [0.1, 0.85, 0.05]]))
      >>> print(f"{metric.result():.6f}")
      0.338088
    """

    _of = metrics.CategoricalFocalCrossentropy

    def __init__(
        self,
        alpha: Any = 0.25,
        gamma: Any = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        name: str = "categorical_focal_crossentropy",
        dtype: Any = None,
    ) -> None:
        """Checks the options and makes the variables."""
        super().__init__(locals())


@keras.saving.register_keras_serializable(package="focaljax", name="SparseCategoricalFocalCrossentropyMetric")
class SparseCategoricalFocalCrossentropy(_Metric):
    """The stream's mean of :func:`focaljax.sparse_categorical_focal_crossentropy`.

    Args:
      alpha, gamma, from_logits, ignore_class, axis: As in the function; arrays become lists.
      name: A name for logs.
      dtype: "float32", or "float64" with `jax_enable_x64`; None is Keras' default.

    Raises:
      TypeError: An option has the wrong type.
      ValueError: An option is out of its range, or `dtype` is neither.

    Example:
      >>> import jax.numpy as jnp
      >>> metric = SparseCategoricalFocalCrossentropy(ignore_class=-1)
      >>> metric.update_state([1, -1], jnp.array([[0.05, 0.9, 0.05], [0.1, 0.85, 0.05]]))
      >>> print(f"{metric.result():.6f}")
      0.000263
    """

    _of = metrics.SparseCategoricalFocalCrossentropy
    _indices = True

    def __init__(
        self,
        alpha: Any = 0.25,
        gamma: Any = 2.0,
        from_logits: bool = False,
        ignore_class: int | None = None,
        axis: int = -1,
        name: str = "sparse_categorical_focal_crossentropy",
        dtype: Any = None,
    ) -> None:
        """Checks the options and makes the variables."""
        super().__init__(locals())


@keras.saving.register_keras_serializable(package="focaljax", name="BinaryFocalCrossentropyMetric")
class BinaryFocalCrossentropy(_Metric):
    """The stream's mean of :func:`focaljax.binary_focal_crossentropy`.

    Args:
      apply_class_balancing, alpha, gamma, from_logits, label_smoothing, axis, ignore_class: As in the
        function. An example none of whose labels counts has weight 0.
      name: A name for logs.
      dtype: "float32", or "float64" with `jax_enable_x64`; None is Keras' default.

    Raises:
      TypeError: An option has the wrong type.
      ValueError: An option is out of its range, or `dtype` is neither.

    Example:
      >>> import jax.numpy as jnp
      >>> metric = BinaryFocalCrossentropy()
      >>> metric.update_state([1, 0], jnp.array([[0.5], [0.5]]))
      >>> print(f"{metric.result():.6f}")  # 0.5^2 log 2
      0.173287
    """

    _of = metrics.BinaryFocalCrossentropy

    def __init__(
        self,
        apply_class_balancing: bool = False,
        alpha: Any = 0.25,
        gamma: Any = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        name: str = "binary_focal_crossentropy",
        dtype: Any = None,
        ignore_class: int | None = None,
    ) -> None:
        """Checks the options and makes the variables."""
        super().__init__(locals())
