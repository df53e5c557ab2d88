"""The three focal cross-entropies as Keras metrics: means over a stream, exact beyond 2^24 examples.

Keras has the functions only. These classes hold what :mod:`focaljax.metrics` holds, in four variables, so a
mean is sum(w v) / sum(w) over all losses of an epoch. An entry that is masked or weighs 0 is silent, NaN too.
A callback that watches one knows that less is better.
"""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import keras

from focaljax import metrics, reductions
from focaljax.keras import _batches

__all__ = [
    "BinaryFocalCrossentropy",
    "CategoricalFocalCrossentropy",
    "SparseCategoricalFocalCrossentropy",
]


class _Metric(keras.metrics.Metric):
    """A Keras metric around one of ours."""

    _of: ClassVar[Any]
    _direction = "down"

    def __init__(self, options: dict[str, Any], name: str, dtype: Any) -> None:
        self._of(**options)  # our errors come before Keras'
        super().__init__(name=name, dtype=dtype)
        self._metric = self._of(**options, name=name, dtype=self.dtype)
        self._state = [
            self.add_variable((), "zeros", dtype=leaf.dtype.name, name=field)
            for field, leaf in vars(self._metric.init()).items()
        ]

    def update_state(self, y_true, y_pred, sample_weight=None) -> None:
        """Adds a batch to what was seen."""
        mask, y_pred = _batches.mask(y_pred), jnp.asarray(y_pred)
        indices = isinstance(self, SparseCategoricalFocalCrossentropy)
        ignored = vars(self._metric).get("ignore_class")
        y_true, y_pred = _batches.examples(y_true, y_pred, indices, ignored)
        weights = reductions.masked(sample_weight, mask)
        state = self._metric.update(self._seen(), y_true, y_pred, weights)
        for variable, value in zip(self._state, vars(state).values(), strict=True):
            variable.assign(value)

    def result(self):
        """The mean of what was seen; 0 if nothing was."""
        return self._metric.result(self._seen())

    def get_config(self) -> dict[str, Any]:
        """All options by name; `from_config` rebuilds the metric from them.

        Example:
          >>> metric = BinaryFocalCrossentropy(gamma=1.0)
          >>> again = BinaryFocalCrossentropy.from_config(metric.get_config())
          >>> again.get_config()["gamma"], again.get_config() == metric.get_config()
          (1.0, True)
        """
        names = [field.name for field in dataclasses.fields(self._metric)]
        return _batches.plain({name: getattr(self._metric, name) for name in names})

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
        options = {"alpha": alpha, "gamma": gamma, "from_logits": from_logits}
        super().__init__(options | {"label_smoothing": label_smoothing, "axis": axis}, name, dtype)


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
        options = {"alpha": alpha, "gamma": gamma, "from_logits": from_logits}
        super().__init__(options | {"ignore_class": ignore_class, "axis": axis}, name, dtype)


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
        options = {"apply_class_balancing": apply_class_balancing, "alpha": alpha, "gamma": gamma}
        options |= {"from_logits": from_logits, "label_smoothing": label_smoothing, "axis": axis}
        options |= {"ignore_class": ignore_class}
        super().__init__(options, name, dtype)
