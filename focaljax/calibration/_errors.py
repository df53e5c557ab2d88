"""Calibration errors as streams: sums per bin of confidence, as pairs, merged like those of the metrics."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from focaljax import _exact, _odds, _sharding, _streams
from focaljax._arguments import Values
from focaljax.calibration._examples import examples, flat


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=(
        "count",
        "count_compensation",
        "confidence",
        "confidence_compensation",
        "correct",
        "correct_compensation",
    ),
    meta_fields=(),
)
@dataclass(frozen=True)
class CalibrationState:
    """Per bin, and per class where there are several: sums of w, w p and w [p's class is the label].

    Each is a float and what its rounding left out, as in :mod:`focaljax.metrics`.

    Example:
      >>> metric = ExpectedCalibrationError(bins=2)
      >>> state = metric.update(metric.init(), [0, 1], jnp.array([[0.75, 0.25], [0.75, 0.25]]))
      >>> print(state.count, state.confidence, state.correct)  # 2 in the upper bin, 1 of them right
      [0. 2.] [0.  1.5] [0. 1.]
    """

    count: jax.Array
    count_compensation: jax.Array
    confidence: jax.Array
    confidence_compensation: jax.Array
    correct: jax.Array
    correct_compensation: jax.Array


class Reliability(NamedTuple):
    """A reliability diagram: per bin the share of examples, mean confidence and accuracy (NaN if empty).

    Example:
      >>> metric = ExpectedCalibrationError(bins=2)
      >>> state = metric.update(metric.init(), [0, 1], jnp.array([[0.75, 0.25], [0.75, 0.25]]))
      >>> share, confidence, accuracy = metric.reliability(state)
      >>> print(share, confidence, accuracy)
      [0. 1.] [ nan 0.75] [nan 0.5]
    """

    share: jax.Array
    confidence: jax.Array
    accuracy: jax.Array


class _CalibrationError(_streams.Stream[CalibrationState]):
    """The methods of both errors; a subclass says whose confidence is binned."""

    bins: int
    from_logits: bool
    ignore_class: int | None
    axis: int
    dtype: DTypeLike | None

    _state = CalibrationState

    @property
    def _classes(self) -> tuple[int, ...]:
        """Number of classes with bins of their own; 0 if only the predicted class is binned."""
        return ()

    @property
    def _shape(self) -> tuple[int, ...]:
        return (*self._classes, self.bins)

    def update(
        self,
        state: CalibrationState,
        y_true: Values,
        y_pred: Values,
        sample_weight: Values | None = None,
    ) -> CalibrationState:
        """The state that has also seen this batch.

        Args:
          state: What was seen before.
          y_true: Class indices, integer, of the shape of `y_pred` without `axis`.
          y_pred: Probabilities, taken as they are, or logits with ``from_logits=True``.
          sample_weight: Weights that broadcast to the labels as in :mod:`focaljax.reductions`.

        Returns:
          A state in the dtype of `state`.

        Raises:
          TypeError: An argument has the wrong dtype, or the state is of another kind.
          ValueError: An argument has the wrong shape or range, or the state has other bins or classes.
        """
        state = self._own(state)
        names = ("y_pred", "y_true", "ignore_class")
        seen = examples(y_pred, y_true, sample_weight, self.ignore_class, self.axis, names)
        if self._classes not in ((), (classes := seen.x.shape[-1],)):
            raise ValueError(f"`y_pred` must have {self._classes[0]} classes, got {classes}.")
        dtype = state.count.dtype

        def binned(seen):
            x, labels, weights = flat(seen)
            x, weights = x.astype(dtype), weights.astype(dtype)
            return _binned(x, labels, weights, self.bins, self.from_logits, not self._classes)

        return _streams.merge(state, _sharding.automatic(binned, seen, PartitionSpec()))

    def result(self, state: CalibrationState) -> jax.Array:
        """The calibration error of what was seen; of a class-wise one, the mean over the classes.

        Args:
          state: What was seen.

        Returns:
          A scalar in [0, 1] in the dtype of `state`; 0 if nothing was seen.

        Raises:
          TypeError: The state is of another kind.
          ValueError: The state has other bins or classes.
        """
        return _error(self._own(state))

    def reliability(self, state: CalibrationState) -> Reliability:
        """The reliability diagram of what was seen: draw accuracy over confidence, or both over the bins.

        Args:
          state: What was seen.

        Returns:
          Share, confidence and accuracy, each [bins] or [C, bins].

        Raises:
          TypeError: The state is of another kind.
          ValueError: The state has other bins or classes.

        Example:
          >>> metric = ClasswiseCalibrationError(2, bins=2)
          >>> state = metric.update(metric.init(), [0, 1], jnp.array([[0.75, 0.25], [0.75, 0.25]]))
          >>> print(metric.reliability(state).accuracy)  # of those that say p <= 1/2, and above
          [[nan 0.5]
           [0.5 nan]]
        """
        return _reliability(self._own(state))


@dataclass(frozen=True)
class ExpectedCalibrationError(_CalibrationError):
    """How far the probability of the predicted class is from being right: ECE, in equal bins.

    ``sum_b (n_b / n) |accuracy_b - confidence_b|`` over the bins (0, 1/B], (1/B, 2/B], ..., as a stream.

    Attributes:
      bins: B. The error depends on it: compare only what has the same.
      from_logits: Whether `y_pred` holds logits.
      ignore_class: A label whose examples do not count.
      axis: The class axis.
      name: A word for logs; it changes nothing.
      dtype: "float32", "float64", or None for JAX' default.

    Raises:
      TypeError: An option has the wrong type, for example a traced one.
      ValueError: `bins` is below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> metric = ExpectedCalibrationError(bins=10)
      >>> y_pred = jnp.array([[0.6, 0.4], [0.6, 0.4], [0.9, 0.1], [0.9, 0.1]])
      >>> state = metric.update(metric.init(), jnp.array([0, 1, 0, 0]), y_pred)
      >>> print(f"{metric.result(state):.4f}")  # |1/2 - 0.6| / 2 + |2/2 - 0.9| / 2
      0.1000
      >>> print(metric.reliability(state).accuracy[jnp.array([5, 8])])
      [0.5 1. ]

    References:
      Guo et al., "On Calibration of Modern Neural Networks", 2017 (https://arxiv.org/abs/1706.04599),
      equation 3.
    """

    bins: int = 15
    from_logits: bool = False
    ignore_class: int | None = None
    axis: int = -1
    name: str = "expected_calibration_error"
    dtype: DTypeLike | None = None


@dataclass(frozen=True)
class ClasswiseCalibrationError(_CalibrationError):
    """The same for the probability of every class, predicted or not, as the mean over the classes.

    ``mean_c sum_b (n_bc / n) |share of c among them - their mean p_c|``: it sees the rare classes too.

    Attributes:
      num_classes: C.
      bins: B, equal ones: (0, 1/B], (1/B, 2/B], ...
      from_logits: Whether `y_pred` holds logits.
      ignore_class: A label whose examples do not count.
      axis: The class axis.
      name: A word for logs; it changes nothing.
      dtype: "float32", "float64", or None for JAX' default.

    Raises:
      TypeError: An option has the wrong type, for example a traced one.
      ValueError: `bins` or `num_classes` is below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> metric = ClasswiseCalibrationError(2, bins=10)
      >>> y_pred = jnp.array([[0.6, 0.4], [0.6, 0.4], [0.9, 0.1], [0.9, 0.1]])
      >>> state = metric.update(metric.init(), jnp.array([0, 1, 0, 0]), y_pred)
      >>> print(f"{metric.result(state):.4f}")  # the same gaps seen from both classes
      0.1000

    References:
      Kull et al., "Beyond temperature scaling", 2019 (https://arxiv.org/abs/1910.12656), equation 2.
    """

    num_classes: int
    bins: int = 15
    from_logits: bool = False
    ignore_class: int | None = None
    axis: int = -1
    name: str = "classwise_calibration_error"
    dtype: DTypeLike | None = None

    @property
    def _classes(self) -> tuple[int, ...]:
        return (self.num_classes,)


@functools.partial(jax.jit, inline=True)
def _error(state):
    # share |accuracy - confidence| = |sum correct - sum confidence| / n: empty bins need no rule.
    gap = (state.correct - state.confidence) + (state.correct_compensation - state.confidence_compensation)
    n = jnp.sum(state.count, -1)
    return jnp.mean(jnp.sum(jnp.abs(gap), -1) / jnp.where(n == 0, 1, n))


@functools.partial(jax.jit, inline=True)
def _reliability(state):
    n = jnp.sum(state.count, -1, keepdims=True)
    some = jnp.where(state.count == 0, jnp.nan, state.count)
    share = state.count / jnp.where(n == 0, 1, n)
    return Reliability(share, state.confidence / some, state.correct / some)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _binned(p, y, weights, bins, from_logits, top):
    """The state of one batch."""
    if from_logits:
        p = jax.nn.softmax(p, axis=-1)
    if top:
        right = (lax.argmax(p, 1, y.dtype) == y).astype(p.dtype)
        p = jnp.max(p, -1)
    else:
        right = (lax.broadcasted_iota(y.dtype, p.shape, 1) == y[:, None]).astype(p.dtype)
        weights = jnp.broadcast_to(weights[:, None], p.shape)
    edges = jnp.asarray([i / bins for i in range(1, bins)], p.dtype)
    edges = edges.reshape((1,) * p.ndim + (-1,))
    lowest = jnp.full((*(1,) * p.ndim, 1), -jnp.inf, p.dtype)
    lower, upper = jnp.concatenate([lowest, edges], -1), jnp.concatenate([edges, -lowest], -1)
    each = p[..., None]
    inside = ((each > lower) & (each <= upper)) | jnp.isnan(each)  # NaN in every bin: it stays seen

    def sums(x):
        return _exact.sum_over(jnp.where(inside, x[..., None], 0), (0,))

    return CalibrationState(
        *sums(weights), *sums(_odds.scaled(weights, p)), *sums(_odds.scaled(weights, right))
    )
