"""One temperature for all logits: a safeguarded Newton iteration on a convex mean."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from focaljax import _arguments, _odds, _sharding
from focaljax._arguments import Values
from focaljax._sharding import AxisName
from focaljax.calibration._examples import examples, flat


def fit_temperature(
    logits: Values,
    labels: Values,
    *,
    sample_weight: Values | None = None,
    ignore_index: int | None = None,
    bounds: tuple[float, float] = (0.01, 100.0),
    axis: int = -1,
    axis_name: AxisName | None = None,
) -> jax.Array:
    r"""The temperature that makes held-out logits most likely: use ``logits / temperature`` from then on.

    .. math:: T = \arg\min_T \; \mathrm{mean} \; (-\log \mathrm{softmax}(z / T)_y)

    The mean is convex in 1 / T; the root of its slope is found by Newton steps inside a bracket. Fit it on
    rows that trained nothing. It changes no prediction.

    Args:
      logits: Floating, of held-out examples.
      labels: Their class indices, integer, of the shape of the logits without `axis`.
      sample_weight: Weights that broadcast to the labels as in :mod:`focaljax.reductions`, or None for 1.
      ignore_index: A label whose examples do not count.
      bounds: The lowest and the highest temperature, above 0. The answer is one of them where no temperature
        between is best: the lowest if all predictions are right, the highest if they are worse than chance.
      axis: The class axis.
      axis_name: Mesh axis or axes that shard the examples, inside `jax.shard_map`.

    Returns:
      A scalar in at least float32; where nothing counts, or the logits of each row are all equal, every
      temperature is as good and it is 1. Its derivative is 0, as a fit is data, not a layer.

    Raises:
      TypeError: An argument has the wrong dtype.
      ValueError: A shape, the axis or a known value is out of range, or `axis_name` names no axis around
        the call.

    Example:
      >>> import jax.numpy as jnp
      >>> logits = jnp.array([[2.0, 0.0]] * 4)  # says 0.88, is right 3 times of 4
      >>> temperature = fit_temperature(logits, jnp.array([0, 0, 0, 1]))
      >>> print(f"{temperature:.4f}, {jax.nn.softmax(logits / temperature)[0, 0]:.4f}")  # 2 / log(3)
      1.8205, 0.7500

    References:
      Guo et al., "On Calibration of Modern Neural Networks", 2017 (https://arxiv.org/abs/1706.04599).
    """
    low, high = _arguments.bounds("bounds", bounds)
    axis_name = _arguments.summed_axis(axis_name)
    names = ("logits", "labels", "ignore_index")
    seen = examples(logits, labels, sample_weight, ignore_index, axis, names)
    return _sharding.automatic(
        partial(_fitted, low=low, high=high, axis_name=axis_name), seen, PartitionSpec()
    )


@partial(jax.jit, static_argnames=("low", "high", "axis_name"), inline=True)
def _fitted(seen, *, low, high, axis_name):
    """The temperature where the slope of the loss is 0."""
    z, y, weights = flat(seen)
    # Every logit against the label's: NLL(b) = log sum_k exp(b d_k) with b = 1 / T.
    own = lax.broadcasted_iota(jnp.int32, z.shape, 1) == y[:, None]
    d = z - jnp.sum(jnp.where(own, z, 0), 1, keepdims=True)
    dead = d == -jnp.inf
    d = jnp.where(dead, 0, d)
    total = _sharding.total(jnp.sum(weights), axis_name)
    # Where all live logits of each row that counts are equal, no temperature is better than another.
    differ = _sharding.total(jnp.sum((d != 0) & (weights != 0)[:, None], dtype=z.dtype), axis_name)

    def slopes(b: jax.Array) -> tuple[jax.Array, jax.Array]:
        p = jax.nn.softmax(jnp.where(dead, -jnp.inf, b * d), axis=1)
        mean = jnp.sum(p * d, 1)
        variance = jnp.sum(p * (d - mean[:, None]) ** 2, 1)
        first, second = (jnp.sum(_odds.scaled(weights, x)) for x in (mean, variance))
        return _sharding.total(first, axis_name), _sharding.total(second, axis_name)

    neutral = min(max(1.0, low), high)
    return jnp.where((total == 0) | (differ == 0), neutral, 1 / _root(slopes, 1 / high, 1 / low, z.dtype))


def _root(slopes, low: float, high: float, dtype: Any) -> jax.Array:
    """Where an increasing function of (low, high) is 0; `slopes` gives it and its derivative."""
    enough = 2 * float(jnp.finfo(dtype).eps)

    def unfinished(state):
        i, _, _, b, step = state
        return (i < 100) & (step > enough * b)  # both halvings: 100 of them reach any float

    def narrow(state):
        i, low, high, b, step = state
        first, second = slopes(b)
        # A slope of 0 with no curvature has underflowed: all are right, and the root lies above.
        low, high = jnp.where(first <= 0, b, low), jnp.where(first <= 0, high, b)
        newton = b - first / jnp.where(second > 0, second, 1)
        good = (second > 0) & (newton >= low) & (newton <= high) & (jnp.abs(newton - b) < step / 2)
        new = jnp.where(good, newton, jnp.sqrt(low * high))
        new = jnp.where(jnp.isnan(first), first, new)
        return i + 1, low, high, new, jnp.abs(new - b)

    low_, high_ = jnp.asarray(low, dtype), jnp.asarray(high, dtype)
    start = jnp.clip(jnp.ones((), dtype), low_, high_)
    return lax.while_loop(unfinished, narrow, (0, low_, high_, start, high_ - low_))[3]
