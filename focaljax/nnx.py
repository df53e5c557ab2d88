"""focaljax' metrics in Flax NNX: one class that drops into `nnx.MultiMetric`.

In use::

    metrics = nnx.MultiMetric(
        accuracy=nnx.metrics.Accuracy(),
        focal=focaljax.nnx.Metric(SparseCategoricalFocalCrossentropy(from_logits=True)),
    )
    metrics.update(logits=logits, labels=labels)

Flax is imported when this module is, and not before; `flax.serialization` then knows the states of all
streams. (`nnx.metrics.Average` of a batch's mean loss counts each batch as 1, however many examples it has;
this one is the mean over the examples.)
"""

from dataclasses import fields
from typing import Any

import jax
from flax import nnx, serialization
from jax.typing import ArrayLike

from focaljax import calibration, class_weights, metrics, reductions
from focaljax._streams import Stream

__all__ = ["Metric"]


def _serialized(kind):
    """Registers a class of states."""
    names = [field.name for field in fields(kind)]

    def restored(state, found):
        del state
        return kind(**found)

    serialization.register_serialization_state(
        kind, lambda state: {name: getattr(state, name) for name in names}, restored
    )


for kind in (metrics.MeanState, class_weights.CountState, calibration.CalibrationState):
    _serialized(kind)


class Metric(nnx.Metric):
    """A metric of :mod:`focaljax.metrics` or :mod:`focaljax.calibration` that updates in place.

    Each field of its state is an `nnx.metrics.MetricState`, so it goes through `nnx.jit`, `nnx.split` and
    checkpoints like any other.

    Args:
      metric: The metric, for example ``SparseCategoricalFocalCrossentropy(from_logits=True)``.
      y_pred: The keyword of `update` that holds the predictions; give "probabilities", or whatever yours is
        called, where they are not logits.
      y_true: The keyword of `update` that holds the labels.
      sample_weight: The keyword of `update` that may hold weights.

    Raises:
      TypeError: `update` lacks the labels or the predictions.

    Example:
      >>> import jax.numpy as jnp
      >>> from focaljax.metrics import SparseCategoricalFocalCrossentropy
      >>> metrics = nnx.MultiMetric(focal=Metric(SparseCategoricalFocalCrossentropy(from_logits=True)))
      >>> metrics.update(logits=jnp.zeros((2, 3)), labels=jnp.array([0, 2]))
      >>> print(f"{metrics.compute()['focal']:.4f}")  # 0.25 (2/3)^2 log 3
      0.1221
      >>> print(metrics.focal.state().weight)
      2.0
      >>> metrics.focal.reset()
      >>> print(metrics.focal.compute())
      0.0
    """

    def __init__(
        self,
        metric: Stream[Any],
        y_pred: str = "logits",
        y_true: str = "labels",
        sample_weight: str = "sample_weight",
    ) -> None:
        """Makes the variables."""
        self.metric = metric
        self.names = (y_true, y_pred, sample_weight)
        self.fields = tuple(vars(metric.init()))
        for field, value in vars(metric.init()).items():
            setattr(self, field, nnx.metrics.MetricState(value))

    def reset(self) -> None:
        """Forgets what was seen."""
        self._hold(self.metric.init())

    def update(self, *, mask: ArrayLike | None = None, **batch: ArrayLike) -> None:
        """Adds a batch, by the keywords given at the start; what other metrics need is left alone.

        Args:
          mask: True, or 1, where an example counts, as `nnx.MultiMetric` hands it to all its metrics.
          **batch: The labels, the predictions, and perhaps weights.
        """
        y_true, y_pred, sample_weight = self.names
        for name in (y_true, y_pred):
            if name not in batch:
                raise TypeError(f"`{name}` must be a keyword of `update`, got {sorted(batch)}.")
        weights = reductions.masked(batch.get(sample_weight), mask)
        self._hold(self.metric.update(self.state(), batch[y_true], batch[y_pred], weights))

    def compute(self) -> jax.Array:
        """The result for what was seen."""
        return self.metric.result(self.state())

    def state(self) -> Any:
        """What was seen, as the plain state of the metric: merge it, or reduce it over a mesh."""
        return type(self.metric.init())(*(getattr(self, field)[...] for field in self.fields))

    def _hold(self, state: Any) -> None:
        for field in self.fields:
            getattr(self, field)[...] = getattr(state, field)
