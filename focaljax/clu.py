"""focaljax' metrics as metrics of clu: for `clu.metrics.Collection`, metrax, and whatever is built on them.

In use::

    @flax.struct.dataclass
    class Metrics(clu.metrics.Collection):
        focal: focaljax.clu.metric_class(SparseCategoricalFocalCrossentropy(from_logits=True))

    metrics = metrics.merge(Metrics.single_from_model_output(logits=logits, labels=labels))

clu is imported when this module is, and not before.
"""

import functools
from dataclasses import dataclass
from typing import Any, Self

import clu.metrics
import jax
from jax.typing import ArrayLike

from focaljax import reductions
from focaljax._streams import Stream

__all__ = ["metric_class"]


def metric_class(
    metric: Stream[Any],
    y_pred: str = "logits",
    y_true: str = "labels",
    sample_weight: str = "sample_weight",
) -> type[clu.metrics.Metric]:
    """A class of clu metrics whose instances are states of a metric of focaljax.

    It has all that clu asks for: `empty`, `from_model_output`, `from_fun`, `from_output`, `merge`, `reduce`,
    `compute` and `compute_value`.

    Args:
      metric: A metric of :mod:`focaljax.metrics` or :mod:`focaljax.calibration`.
      y_pred: The keyword of `from_model_output` that holds the predictions; metrax says "predictions".
      y_true: The keyword of `from_model_output` that holds the labels.
      sample_weight: The keyword of `from_model_output` that may hold weights; metrax says "sample_weights".

    Returns:
      A class, a pytree with the leaves of the state. Its `from_model_output` also takes `mask`, which clu
      gives to every metric: True, or 1, where an example counts; and leaves other keywords alone.

    Raises:
      TypeError: `from_model_output` lacks the labels or the predictions. (`from_output` hands over a single
        output, so it always does: take `from_fun`.)

    Example:
      >>> import jax.numpy as jnp
      >>> from focaljax.metrics import SparseCategoricalFocalCrossentropy
      >>> Focal = metric_class(SparseCategoricalFocalCrossentropy(from_logits=True))
      >>> batch = {"logits": jnp.zeros((2, 3)), "labels": jnp.array([0, 2]), "mask": jnp.array([1, 0])}
      >>> seen = Focal.empty().merge(Focal.from_model_output(**batch))
      >>> print(f"{seen.compute():.4f}")  # 0.25 (2/3)^2 log 3
      0.1221
      >>> Head = Focal.from_fun(lambda head, labels, **_: {"logits": head, "labels": labels})
      >>> print(f"{Head.from_model_output(head=jnp.zeros((1, 3)), labels=jnp.array([0])).compute():.4f}")
      0.1221
    """

    @functools.partial(jax.tree_util.register_dataclass, data_fields=("state",), meta_fields=())
    @dataclass(frozen=True)
    class State(clu.metrics.Metric):
        """What a metric of focaljax has seen, as a metric of clu."""

        state: Any

        @classmethod
        def empty(cls) -> Self:
            """What has seen nothing."""
            return cls(metric.init())

        @classmethod
        def from_model_output(cls, *outputs: Any, mask: ArrayLike | None = None, **output: Any) -> Self:
            """What has seen one batch."""
            if outputs:
                raise TypeError(f"`{y_pred}`, `{y_true}` must be keywords, got {len(outputs)} by position.")
            for name in (y_pred, y_true):
                if name not in output:
                    raise TypeError(f"`{name}` must be a keyword of the outputs, got {sorted(output)}.")
            weights = reductions.masked(output.get(sample_weight), mask)
            return cls(metric.update(metric.init(), output[y_true], output[y_pred], weights))

        def merge(self, other: Any) -> Self:
            """What has seen both."""
            return type(self)(metric.merge(self.state, other.state))

        def compute(self) -> jax.Array:
            """The result for what was seen."""
            return metric.result(self.state)

    return State
