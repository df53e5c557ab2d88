"""Class weights: `alpha` from how often each class occurs, in an array of labels or in a stream of them.

In use::

    counts = jnp.bincount(labels, length=10)              # or, over batches and devices, ClassCounts
    losses = softmax_focal_loss_with_integer_labels(logits, labels, alpha=inverse_frequency(counts))

What holds for the whole file:

* **Normalisation.** `normalize` says what the weights add up to, over the classes that were seen:

  ==============  ===================================================================================
  ``"examples"``  sum_c n_c w_c = sum_c n_c: the mean over the examples is 1, so that the loss keeps its
                  scale and a learning rate its meaning. Inverse frequency is then scikit-learn's "balanced"
  ``"classes"``   sum_c w_c = C, the mean over the classes is 1 (Cui et al.)
  ``"sum"``       sum_c w_c = 1
  ``"max"``       the largest weight is 1: no class weighs more than without weights
  None            as they come
  ==============  ===================================================================================

* **A class never seen** has no inverse frequency. Its weight is `unseen`, 0 unless you say otherwise: an
  example of it would train nothing, rather than with an infinite weight. It takes no part in the
  normalisation: C above counts the classes that were seen. (scikit-learn raises an error instead.)
* **Exact counts.** :class:`ClassCounts` holds each count as a pair of floats, exact to 2^46 in float32 (an
  int32 count wraps at 2^31, a float32 one stops at 2^24). A plain array of counts is as exact as its dtype.
* The weights are floating, in the dtype of the counts and at least float32; integer counts give JAX' default
  float. Everything jits; `power`, `beta`, `unseen` and the counts may be traced.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike, DTypeLike

from focaljax import _arguments, _exact, _sharding, _streams
from focaljax._arguments import Normalization, Values

__all__ = ["ClassCounts", "CountState", "effective_number", "inverse_frequency"]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("count", "count_compensation"), meta_fields=()
)
@dataclass(frozen=True)
class CountState:
    """How often each class was seen, [C]: a float and what its rounding left out.

    Example:
      >>> counter = ClassCounts(2)
      >>> state = counter.update(counter.init(), [0, 1, 1])
      >>> print(state.count, state.count_compensation)
      [1. 2.] [0. 0.]
    """

    count: jax.Array
    count_compensation: jax.Array


@dataclass(frozen=True)
class ClassCounts(_streams.Stream[CountState]):
    """Counts the labels of a stream; its methods are those of :mod:`focaljax.metrics`, and as pure.

    Attributes:
      num_classes: C.
      ignore_index: A label that is not counted; it may lie outside [0, C).
      dtype: "float32", "float64", or None for JAX' default.

    Raises:
      TypeError: An option has the wrong type.
      ValueError: `num_classes` is below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> counter = ClassCounts(3, ignore_index=-1)
      >>> state = counter.update(counter.init(), jnp.array([0, 0, 1, -1]))
      >>> state = counter.update(state, jnp.array([0, 2]))
      >>> print(counter.result(state))
      [3. 1. 1.]
      >>> print([f"{w:.4f}" for w in inverse_frequency(state)])  # 5 / (3 n)
      ['0.5556', '1.6667', '1.6667']
    """

    num_classes: int
    ignore_index: int | None = None
    dtype: DTypeLike | None = None

    _state = CountState

    @property
    def _shape(self) -> tuple[int, ...]:
        return (self.num_classes,)

    def update(self, state: CountState, labels: Values, sample_weight: Values | None = None) -> CountState:
        """The state that has also seen these labels.

        Args:
          state: What was seen before.
          labels: Class indices in [0, C), integer, of any shape. A label outside is an error where it is a
            NumPy array or a list, and makes all counts NaN otherwise: a lost label would go unnoticed.
          sample_weight: What each label counts, of the shape of `labels` or one for all; None for 1. With
            weights the batch is sorted.

        Returns:
          A state in the dtype of `state`.

        Raises:
          TypeError: `labels` are not integer, the weights not real, or the state is of another kind.
          ValueError: The state has another number of classes, the weights have another shape, or there are
            2^31 labels or more.
        """
        state = self._own(state)
        labels, ignored = _arguments.class_indices("labels", labels, self.num_classes, self.ignore_index)
        if labels.size >= 2**31:
            raise ValueError(f"`labels` must be fewer than 2^31 in one update, got {labels.size}.")
        weights = sample_weight
        if weights is not None:
            weights = _arguments.weights("sample_weight", weights, labels.shape)
            weights = lax.stop_gradient(weights).astype(state.count.dtype)
        return _streams.merge(state, _counted(labels, weights, self.num_classes, ignored, state.count.dtype))

    def result(self, state: CountState) -> jax.Array:
        """The counts, [C], each rounded to one float.

        Args:
          state: What was seen.

        Returns:
          The counts in the dtype of `state`; ``float(count) + float(count_compensation)`` has them exactly.

        Raises:
          TypeError: The state is of another kind.
          ValueError: The state has another number of classes.
        """
        return self._own(state).count


@functools.partial(jax.jit, static_argnums=(2, 3, 4), inline=True)
def _counted(labels, weights, classes, ignored, dtype):
    """The state of one batch."""
    groups, known = labels, (labels >= 0) & (labels < classes)
    if ignored is not None:
        silent = labels == jnp.asarray(ignored, labels.dtype)
        groups, known = jnp.where(silent, classes, groups), known | silent
    groups = jnp.where(groups < 0, classes, groups)  # an index below 0 would count from the end

    def counted(operands):
        groups, weights = operands
        if weights is None:
            zeros = jnp.zeros(classes, jnp.int32)
            return _exact.counts(zeros.at[groups.reshape(-1)].add(1, mode="drop"), dtype)
        return _exact.sum_by(weights.reshape(-1), groups.reshape(-1), classes)

    high, low = _sharding.automatic(counted, (groups, weights), PartitionSpec())
    lost = jnp.where(jnp.all(known), 0, jnp.nan).astype(dtype)
    return CountState(high + lost, low)


def inverse_frequency(
    counts: Values | CountState,
    *,
    power: ArrayLike = 1.0,
    normalize: Normalization = "examples",
    unseen: ArrayLike = 0.0,
) -> jax.Array:
    r"""Weights that fall as the class grows; by default scikit-learn's ``compute_class_weight("balanced")``.

    .. math:: w_c \propto n_c^{-power}, \qquad \text{by default } w_c = \frac{\sum_i n_i}{C \, n_c}

    Args:
      counts: How often each class was seen, [C], at least 0; or the state of a :class:`ClassCounts`.
      power: 1 makes all classes weigh the same in the sum, 0.5 is the square root that is usual for long
        tails, 0 is no weights.
      normalize: A name from the table of :mod:`focaljax.class_weights`.
      unseen: The weight of a class with the count 0.

    Returns:
      The weights, [C].

    Raises:
      TypeError: The counts are not real.
      ValueError: The counts are not [C] or negative, an option is no scalar, or `normalize` is no name.

    Example:
      >>> [f"{w:.4f}" for w in inverse_frequency([6, 3, 0, 1])]  # 10 / (3 n): one class was never seen
      ['0.5556', '1.1111', '0.0000', '3.3333']
      >>> print(inverse_frequency([1, 4], power=0.5, normalize="max"))
      [1.  0.5]

    References:
      King and Zeng, "Logistic Regression in Rare Events Data", 2001;
      `sklearn.utils.class_weight.compute_class_weight`.
    """
    counts = _counts(counts)
    _arguments.scalar_in("power", power, 0, math.inf)
    rule = _inverse if normalize is None else _inverse_to_rarest
    return _weights(rule, _as(power, counts), counts, normalize, unseen)


def effective_number(
    counts: Values | CountState,
    *,
    beta: ArrayLike = 0.999,
    normalize: Normalization = "classes",
    unseen: ArrayLike = 0.0,
) -> jax.Array:
    r"""Weights by the effective number of samples: new examples of a large class add less and less.

    .. math:: w_c \propto \frac{1 - \beta}{1 - \beta^{n_c}}

    beta = 0 is no weights, beta = 1 the limit 1 / n_c. The powers are computed without cancellation.

    Args:
      counts: How often each class was seen, [C], at least 0; or the state of a :class:`ClassCounts`.
      beta: In [0, 1]; the paper's are 0.9, 0.99, 0.999 and 0.9999.
      normalize: A name from the table of :mod:`focaljax.class_weights`; the paper's is "classes".
      unseen: The weight of a class with the count 0.

    Returns:
      The weights, [C].

    Raises:
      TypeError: The counts are not real.
      ValueError: The counts are not [C] or negative, an option is no scalar, or `normalize` is no name.

    Example:
      >>> weights = effective_number([2, 1], beta=0.5, normalize=None)
      >>> [f"{w:.4f}" for w in weights]  # 1 / (1 + 0.5) and 1 / 1
      ['0.6667', '1.0000']
      >>> print(f"{effective_number([5000, 50], beta=0.999).sum():.4f}")
      2.0000

    References:
      Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", 2019
      (https://arxiv.org/abs/1901.05555), equations 2 and 3.
    """
    counts = _counts(counts)
    _arguments.scalar_in("beta", beta, 0, 1)
    value = _arguments.known(beta)
    if value is None:
        log_beta = jnp.log(_as(beta, counts))
    else:  # in float64: 0.9999 has lost 3e-4 of its distance from 1 in float32
        log_beta = _as(math.log(float(value)) if value > 0 else -math.inf, counts)
    return _weights(_effective, log_beta, counts, normalize, unseen)


def _counts(counts: Values | CountState) -> jax.Array:
    return counts.count if isinstance(counts, CountState) else _arguments.class_counts("counts", counts)


def _as(x: ArrayLike, counts: jax.Array) -> jax.Array:
    """A scalar in the dtype of the counts."""
    return jnp.asarray(x).astype(counts.dtype)


def _mean(x: jax.Array, seen: jax.Array) -> jax.Array:
    """Over the classes that were seen; 1 where none was."""
    classes = jnp.sum(seen, dtype=x.dtype)
    return jnp.where(classes > 0, jnp.sum(jnp.where(seen, x, 0)) / jnp.maximum(classes, 1), 1)


def _inverse(power, counts):
    return jnp.where(counts == 0, 1, counts) ** -power


def _inverse_to_rarest(power, counts):
    """The weight of the rarest class is 1: no power leaves the range of the floats."""
    return _inverse(power, counts / jnp.min(jnp.where(counts == 0, jnp.inf, counts)))


def _effective(log_beta, counts):
    number = jnp.where(counts == 0, 1, counts)
    limit = log_beta == 0  # 0 / 0; the limit is 1 / n
    log_beta = jnp.where(limit, -1, log_beta)
    return jnp.where(limit, 1 / number, jnp.expm1(log_beta) / jnp.expm1(number * log_beta))


def _weights(rule, option, counts, normalize, unseen):
    _arguments.choice("normalize", normalize, Normalization)
    _arguments.scalar_in("unseen", unseen, 0, math.inf)
    return _normalized(rule, option, counts, normalize, _as(unseen, counts))


@functools.partial(jax.jit, static_argnums=(0, 3), inline=True)
def _normalized(rule, option, counts, normalize, unseen):
    """The weights of a rule, by the table at the top of this file."""
    weights = rule(option, counts)
    seen = counts != 0  # NaN too: the counts of a stream that had a wrong label
    if normalize == "examples":
        share = counts / _mean(counts, seen)
        weights = weights / _mean(share * weights, seen)
    elif normalize == "classes":
        weights = weights / _mean(weights, seen)
    elif normalize == "sum":
        weights = weights / jnp.where(jnp.any(seen), jnp.sum(jnp.where(seen, weights, 0)), 1)
    elif normalize == "max":
        weights = weights / jnp.where(jnp.any(seen), jnp.max(jnp.where(seen, weights, 0)), 1)
    return jnp.where(seen, weights, unseen)
