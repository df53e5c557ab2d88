"""Means over a stream of batches, to seven digits after a billion examples, and mostly to nine.

A metric is a frozen, hashable configuration; a :class:`MeanState`, a pytree of four scalars, holds what it
has seen. Its methods are pure: JAX may transform what closes over a metric, or take it as a static argument::

    metric = CategoricalFocalCrossentropy(gamma=2.0)
    update = jax.jit(metric.update, donate_argnums=0)
    state = metric.init()
    for batch in batches:
        state = update(state, batch.labels, batch.probabilities)
    mean = metric.result(state)

What holds for the whole file:

* The mean is sum(w v) / sum(w) over all losses v and weights w seen, and 0 when sum(w) is 0. A weight of
  exactly 0 silences its loss, NaN too; any other NaN stays in the mean.
* Each sum is a pair high + low of floats (double-float arithmetic), within a batch and from batch to batch.
  An addition of terms of one sign has a relative error of at most 3 u^2, 1.1e-14 in float32. Of 1e9
  examples in batches of 64 the bound is 1.7e-7; found were 3e-10 for batches that differ and 7e-9 for one
  batch again and again. A float32 total is wrong by a tenth there. Counts are exact to 2^46, not to 2^24.
* The pairs are float32, or float64 where that is JAX' default (`jax_enable_x64`), unless `dtype` says
  otherwise. The result has that dtype; ``float(high) + float(low)`` has twice its digits.
* Up to that error the order of merging is free: batches, runs and devices.
* A metric is not a loss: its derivative is 0, and a differentiated function may compute it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from focaljax import _arguments, _exact, _streams, reductions
from focaljax._arguments import Values
from focaljax.crossentropy import (
    binary_focal_crossentropy,
    categorical_focal_crossentropy,
    losses_of,
    sparse_categorical_focal_crossentropy,
)

__all__ = [
    "BinaryFocalCrossentropy",
    "CategoricalFocalCrossentropy",
    "Mean",
    "MeanState",
    "SparseCategoricalFocalCrossentropy",
    "binary_focal_crossentropy",
    "categorical_focal_crossentropy",
    "sparse_categorical_focal_crossentropy",
]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("total", "total_compensation", "weight", "weight_compensation"),
    meta_fields=(),
)
@dataclass(frozen=True)
class MeanState:
    """What a mean has seen: sum(w v) and sum(w), each a float and what its rounding left out.

    Example:
      >>> metric = BinaryFocalCrossentropy(gamma=0.0)
      >>> state = metric.update(metric.init(), [[1.0], [1.0]], jnp.array([[0.5], [0.25]]))
      >>> print(f"{state.weight}, {state.total:.4f}")  # 2 losses, log 2 + log 4
      2.0, 2.0794
    """

    total: jax.Array
    total_compensation: jax.Array
    weight: jax.Array
    weight_compensation: jax.Array


class _OfLosses(_streams.Stream[MeanState]):
    """What all means share."""

    _state = MeanState
    dtype: DTypeLike | None = None

    def _added(
        self, state: MeanState, losses: jax.Array, sample_weight: Values | None, where: Values | None
    ) -> MeanState:
        losses = losses.astype(state.total.dtype)
        weighted, weights = reductions.weigh(losses, sample_weight, where=where)
        if sample_weight is None and where is None:
            weight = _exact.count(losses.size, losses.dtype)
        else:
            weight = _exact.sum_all(weights)
        return _streams.merge(state, MeanState(*_exact.sum_all(weighted), *weight))

    def result(self, state: MeanState) -> jax.Array:
        """The mean of what was seen.

        Args:
          state: What was seen.

        Returns:
          sum(w v) / sum(w) in the dtype of `state`, its relative error at most 3 u; 0 if sum(w) is 0.

        Raises:
          TypeError: The state is of another kind.
          ValueError: The state has another shape.
        """
        state = self._own(state)
        nothing = state.weight == 0
        return jnp.where(nothing, 0, state.total / jnp.where(nothing, 1, state.weight))


class _Mean(_OfLosses):
    """The methods of a streaming mean; a subclass names its function and the options of that."""

    _function: ClassVar[Callable[..., jax.Array]]

    def _options(self) -> dict[str, Any]:
        names = (field.name for field in fields(cast(Any, self)))
        return {name: getattr(self, name) for name in names if name not in ("name", "dtype")}

    def update(
        self,
        state: MeanState,
        y_true: Values,
        y_pred: Values,
        sample_weight: Values | None = None,
        *,
        where: Values | None = None,
    ) -> MeanState:
        """The state that has also seen this batch.

        Args:
          state: What was seen before.
          y_true: Labels, as the function of the metric takes them.
          y_pred: Probabilities, or logits with ``from_logits=True``.
          sample_weight: Weights that broadcast to the losses as in :mod:`focaljax.reductions`.
          where: True where an example counts; for :class:`BinaryFocalCrossentropy`, where one of its labels
            does, in the shape of `y_pred`.

        Returns:
          A state in the dtype of `state`.

        Raises:
          TypeError: An argument has the wrong dtype, or the state is of another kind.
          ValueError: An argument has the wrong shape or range.
        """
        state = self._own(state)
        y_true, y_pred, sample_weight = _arguments.without_gradient(y_true, y_pred, sample_weight)
        losses, where = losses_of(type(self)._function, y_true, y_pred, where, self._options())
        return self._added(state, losses, sample_weight, where)


@dataclass(frozen=True)
class Mean(_OfLosses):
    """The stream's mean of losses that are there already, or of any other numbers.

    Attributes:
      name: A word for logs; it changes nothing.
      dtype: "float32", "float64", or None for JAX' default.

    Raises:
      ValueError: `dtype` is no dtype of a float.

    Example:
      >>> import jax.numpy as jnp
      >>> metric = Mean()
      >>> state = metric.update(metric.init(), jnp.array([1.0, 2.0]))
      >>> state = metric.update(state, jnp.array([3.0, jnp.nan]), where=jnp.array([True, False]))
      >>> f"{metric.result(state)}, {state.weight} examples"
      '2.0, 3.0 examples'
    """

    name: str = "mean"
    dtype: DTypeLike | None = None

    def update(
        self,
        state: MeanState,
        losses: Values,
        sample_weight: Values | None = None,
        *,
        where: Values | None = None,
    ) -> MeanState:
        """The state that has also seen these losses.

        Args:
          state: What was seen before.
          losses: Floating, any shape.
          sample_weight: Weights that broadcast to the losses as in :mod:`focaljax.reductions`.
          where: Booleans that broadcast to the losses, True where one counts.

        Returns:
          A state in the dtype of `state`.

        Raises:
          TypeError: An argument has the wrong dtype, or the state is of another kind.
          ValueError: An argument has the wrong shape.
        """
        state = self._own(state)
        losses, sample_weight = _arguments.without_gradient(losses, sample_weight)
        return self._added(state, _arguments.floating("losses", losses), sample_weight, where)


@dataclass(frozen=True)
class CategoricalFocalCrossentropy(_Mean):
    """The stream's mean of :func:`focaljax.categorical_focal_crossentropy`.

    Attributes:
      alpha, gamma, from_logits, label_smoothing, axis: As in the function; arrays become tuples.
      name: A word for logs; it changes nothing.
      dtype: "float32", "float64", or None for JAX' default.

    Raises:
      TypeError: An option has the wrong type, for example a traced one.
      ValueError: An option is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> metric = CategoricalFocalCrossentropy()
      >>> y_true = jnp.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
      >>> y_pred = jnp.array([[0.05, 0.9, 0.05], [0.1, 0.85, 0.05]])
      >>> [f"{loss:.6g}" for loss in categorical_focal_crossentropy(y_true, y_pred)]
      ['0.000263401', '0.675912']
      >>> state = metric.update(metric.init(), y_true, y_pred)
      >>> f"{metric.result(state):.6g}"
      '0.338088'
      >>> state = metric.update(state, y_true, y_pred, sample_weight=jnp.array([1.0, 0.0]))
      >>> f"{metric.result(state):.6g}"  # (2 * 0.000263401 + 0.675912) / 3
      '0.22548'

    References:
      Lin et al., "Focal Loss for Dense Object Detection", 2018, equation 5.
    """

    _function = staticmethod(categorical_focal_crossentropy)
    alpha: Values = 0.25
    gamma: Values = 2.0
    from_logits: bool = False
    label_smoothing: float = 0.0
    axis: int = -1
    name: str = "categorical_focal_crossentropy"
    dtype: DTypeLike | None = None


@dataclass(frozen=True)
class SparseCategoricalFocalCrossentropy(_Mean):
    """The stream's mean of :func:`focaljax.sparse_categorical_focal_crossentropy`.

    An example whose label is `ignore_class` has weight 0: the mean is over the others.

    Attributes:
      alpha, gamma, from_logits, ignore_class, axis: As in the function; arrays become tuples.
      name: A word for logs; it changes nothing.
      dtype: "float32", "float64", or None for JAX' default.

    Raises:
      TypeError: An option has the wrong type, for example a traced one.
      ValueError: An option is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> metric = SparseCategoricalFocalCrossentropy(ignore_class=-1)
      >>> y_pred = jnp.array([[0.05, 0.9, 0.05], [0.1, 0.85, 0.05]])
      >>> state = metric.update(metric.init(), jnp.array([1, -1]), y_pred)
      >>> f"{metric.result(state):.6g}"  # of the first example alone
      '0.000263401'

    References:
      Lin et al., "Focal Loss for Dense Object Detection", 2018, equation 5.
    """

    _function = staticmethod(sparse_categorical_focal_crossentropy)
    alpha: Values = 0.25
    gamma: Values = 2.0
    from_logits: bool = False
    ignore_class: int | None = None
    axis: int = -1
    name: str = "sparse_categorical_focal_crossentropy"
    dtype: DTypeLike | None = None


@dataclass(frozen=True)
class BinaryFocalCrossentropy(_Mean):
    """The stream's mean of :func:`focaljax.binary_focal_crossentropy`.

    Attributes:
      apply_class_balancing, alpha, gamma, from_logits, label_smoothing, axis, ignore_class: As in the
        function. An example none of whose labels counts has weight 0.
      name: A word for logs; it changes nothing.
      dtype: "float32", "float64", or None for JAX' default.

    Raises:
      TypeError: An option has the wrong type, for example a traced one.
      ValueError: An option is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> metric = BinaryFocalCrossentropy()
      >>> state = metric.update(metric.init(), jnp.array([[1.0], [0.0]]), jnp.array([[0.5], [0.5]]))
      >>> f"{metric.result(state):.6g}"  # 0.5^2 log 2
      '0.173287'

    References:
      Lin et al., "Focal Loss for Dense Object Detection", 2018, equations 4 and 5.
    """

    _function = staticmethod(binary_focal_crossentropy)
    apply_class_balancing: bool = False
    alpha: Values = 0.25
    gamma: Values = 2.0
    from_logits: bool = False
    label_smoothing: float = 0.0
    axis: int = -1
    name: str = "binary_focal_crossentropy"
    dtype: DTypeLike | None = None
    ignore_class: int | None = None
