"""focaljax' metrics in the form of clu: classes for `clu.metrics.Collection`, and whatever speaks like it.

    @flax.struct.dataclass
    class Metrics(clu.metrics.Collection):
        focal: focaljax.clu.metric_class(SparseCategoricalFocalCrossentropy(from_logits=True))

    metrics = metrics.merge(Metrics.single_from_model_output(logits=logits, labels=labels))

Neither clu nor Flax is imported: what counts there is the form.
"""

import functools
from dataclasses import dataclass
from typing import Any, Protocol, Self

import jax
from jax.typing import ArrayLike

__all__ = ["metric_class"]


class _Stream(Protocol):
    """What the metrics of focaljax have in common: :mod:`focaljax.metrics`, :mod:`focaljax.calibration`."""

    def init(self) -> Any: ...
    def update(self, state: Any, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any: ...
    def merge(self, *states: Any) -> Any: ...
    def result(self, state: Any) -> jax.Array: ...


def metric_class(metric: _Stream, y_pred: str = "logits", y_true: str = "labels") -> type:
    """A class whose instances are states: `empty`, `from_model_output`, `merge`, `reduce`, `compute`.

    Args:
      metric: A metric of :mod:`focaljax.metrics` or :mod:`focaljax.calibration`.
      y_pred: The keyword of `from_model_output` that holds the predictions.
      y_true: The keyword of `from_model_output` that holds the labels.

    Returns:
      A class, a pytree of one leaf per field of the state. `from_model_output` also takes `mask`, which clu
      gives to every metric: True, or 1, where an example counts; and leaves other keywords alone.

    Example:
      >>> import jax.numpy as jnp
      >>> from focaljax.metrics import SparseCategoricalFocalCrossentropy
      >>> Focal = metric_class(SparseCategoricalFocalCrossentropy(from_logits=True))
      >>> batch = {"logits": jnp.zeros((2, 3)), "labels": jnp.array([0, 2]), "mask": jnp.array([1, 0])}
      >>> seen = Focal.empty().merge(Focal.from_model_output(**batch))
      >>> print(f"{seen.compute():.4f}")  # 0.25 (2/3)^2 log 3
      0.1221
    """

    @functools.partial(jax.tree_util.register_dataclass, data_fields=("state",), meta_fields=())
    @dataclass(frozen=True)
    class State:
        """What a metric of focaljax has seen, in the form of clu."""

        state: Any

        @classmethod
        def empty(cls) -> Self:
            """What has seen nothing."""
            return cls(metric.init())

        @classmethod
        def from_model_output(cls, *, mask: ArrayLike | None = None, **output: Any) -> Self:
            """What has seen one batch."""
            return cls(metric.update(metric.init(), output[y_true], output[y_pred], mask))

        def merge(self, other: Self) -> Self:
            """What has seen both."""
            return type(self)(metric.merge(self.state, other.state))

        def reduce(self) -> Self:
            """What has seen all along the first axis, which clu gathers over devices."""
            first, rest = (jax.tree.map(lambda x, part=part: x[part], self) for part in (0, slice(1, None)))
            return jax.lax.scan(lambda seen, one: (seen.merge(one), None), first, rest)[0]

        def compute(self) -> jax.Array:
            """The result for what was seen."""
            return metric.result(self.state)

    return State
