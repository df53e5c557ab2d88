"""Weights, masks and reductions of losses.

What holds for all of them:

* **Empty batch.** A mean divides by zero where nothing was counted: it is then 0, with gradient 0.
* **Silence.** A weight of exactly 0 silences NaN and infinite losses, in value and gradient. The
  derivative with respect to a weight of 0 is still the loss itself, where that is finite.
* **Broadcasting.** A weight may have one trailing axis of size 1 more than the losses, or one axis
  less, or none; then every axis must be 1 or equal. Weights [N] of losses [N, T] are one per row,
  also where N = T; one per column is [1, T]. (Keras 3.15 raises, or weighs columns where N = T.)
  The weighted losses have the shape of the losses. sum(w) is over the weights after broadcasting.
  (Keras 3.15 sums them before: ones of shape [2, 3] under weights [[1], [2]] have the weighted
  mean 3 there, 1 here.)
* **Precision.** Losses narrower than float32 are widened; float64 stays. The sums and the result
  have that dtype.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from focaljax import _arguments, _sharding
from focaljax._arguments import Reduction, Values
from focaljax._exact import wide
from focaljax._sharding import AxisName


def reduce_loss(
    losses: Values,
    sample_weight: Values | None = None,
    reduction: Reduction = "sum_over_batch_size",
    *,
    where: Values | None = None,
    normalizer: Values | None = None,
    axis_name: AxisName | None = None,
) -> jax.Array:
    """Weighs, masks and reduces losses.

    With losses v and weights w, both of one shape with n entries:

    ========================================  =========================
    ``"sum_over_batch_size"``, ``"mean"``     sum(w v) / n
    the same, with a `normalizer` c           sum(w v) / max(sum(c), 1)
    ``"mean_with_sample_weight"``             sum(w v) / sum(w)
    ``"sum"``                                 sum(w v)
    ``"none"``, None                          w v
    ========================================  =========================

    An entry that `where` leaves out has weight 0 and is not counted in n, so that a mean is over
    the valid entries only. Inside `jax.shard_map` or `jax.vmap`, `axis_name` gathers over that axis
    too: numerators and denominators are summed apart, so a mean is that of the global batch, never
    a mean of means.

    Args:
      losses: Floating, any shape; usually one loss per example.
      sample_weight: Real or boolean weights that broadcast to the losses, or None for 1.
      reduction: A name from the table.
      where: Booleans that broadcast to the losses, True where a loss counts; None is everywhere.
      normalizer: Real or boolean, any shape, entries at least 0. Their sum, but at least 1, takes
        the place of n. `where` and `sample_weight` do not change it. With `axis_name` each device
        gives its own entries or its own number, and the sum is over all devices.
      axis_name: Mesh axis or axes that shard the losses. With ``check_vma=True``, the default of
        `jax.shard_map`, the result is the same on each device and so is its gradient.

    Returns:
      A scalar, or for "none" the weighted losses in the shape of the losses; at least float32.

    Raises:
      TypeError: The losses are not floating, the weights or `normalizer` complex, or `where` not
        boolean.
      ValueError: `reduction` is no name from the table; the weights or `where` do not broadcast to
        the losses; `axis_name` names no axis around the call, or comes with "none", where there is
        nothing to gather; a known entry of `normalizer` is negative or not finite, or `normalizer`
        comes with a reduction that does not divide by n.

    Example:
      >>> import jax.numpy as jnp
      >>> reduce_loss(jnp.array([1.0, 2.0, 6.0]))
      Array(3., dtype=float32)
      >>> weights = jnp.array([1.0, 1.0, 0.0])
      >>> reduce_loss(jnp.array([1.0, 2.0, jnp.nan]), weights)
      Array(1., dtype=float32)
      >>> reduce_loss(jnp.array([1.0, 2.0, jnp.nan]), weights, "mean_with_sample_weight")
      Array(1.5, dtype=float32)

      Detectors divide the sum over all anchors by the number of positives:

      >>> reduce_loss(jnp.array([1.0, 2.0, 6.0]), normalizer=jnp.array([False, True, True]))
      Array(4.5, dtype=float32)

    References:
      The Keras 3 API, `keras.losses.Loss`, for the names of the reductions.
    """
    _arguments.choice("reduction", reduction, Reduction)
    _arguments.summed_axis(axis_name)
    _arguments.needs_mean(reduction, normalizer)
    weighted, weights = weigh(losses, sample_weight, where=where)
    if reduction in (None, "none"):
        if axis_name is not None:
            raise ValueError(f"`axis_name` must be None without a reduction, got {axis_name!r}.")
        return weighted

    total = _sharding.total(jnp.sum(weighted), axis_name)
    kept = None
    if where is not None:
        kept = jnp.broadcast_to(_arguments.mask("where", where, weighted, "losses"), weighted.shape)
    amount = None
    if normalizer is not None:
        amount = jnp.sum(_arguments.amounts("normalizer", normalizer), dtype=total.dtype)
    divisor = denominator(reduction, weights, kept, amount, axis_name)
    return total if divisor is None else ratio(total, divisor)


def denominator(
    reduction: Reduction,
    weights: jax.Array,
    kept: jax.Array | None,
    amount: jax.Array | None,
    axis_name: AxisName | None,
) -> jax.Array | None:
    """What a reduction divides the sum by.

    Args:
      reduction: A name from the table.
      weights: Those of the losses, 0 where one does not count.
      kept: Where a loss counts, or None for everywhere.
      amount: The sum of a normalizer, or None.
      axis_name: Mesh axes that shard the losses.

    Returns:
      A scalar in the dtype of the weights, or None for "sum" and no reduction.

    Example:
      >>> import jax.numpy as jnp
      >>> print(denominator("mean", jnp.array([3.0, 0.0]), jnp.array([True, False]), None, None))
      1.0
    """
    dtype = weights.dtype
    if reduction in ("sum", "none", None):
        return None
    if reduction == "mean_with_sample_weight":
        return _sharding.total(jnp.sum(weights), axis_name)
    if amount is not None:
        return jnp.maximum(_sharding.total(amount.astype(dtype), axis_name), 1)
    if kept is None:
        return jnp.asarray(weights.size * _sharding.shards(axis_name), dtype)
    return _sharding.total(jnp.sum(kept, dtype=dtype), axis_name)


def weigh(
    losses: Values, sample_weight: Values | None = None, *, where: Values | None = None
) -> tuple[jax.Array, jax.Array]:
    """The weighted losses and their weights, the two summands of a weighted mean.

    Args:
      losses: Floating, any shape.
      sample_weight: Real or boolean weights that broadcast to the losses, or None for 1.
      where: Booleans that broadcast to the losses; False means weight 0. None means everywhere.

    Returns:
      ``w v`` and ``w``, both in the shape of the losses and in at least float32.

    Raises:
      TypeError: The losses are not floating, the weights complex, or `where` not boolean.
      ValueError: The weights or `where` do not broadcast to the losses.

    Example:
      >>> import jax.numpy as jnp
      >>> weigh(jnp.array([[1.0, 2.0], [3.0, jnp.inf]]), jnp.array([4.0, 0.0]))[0]
      Array([[4., 8.],
             [0., 0.]], dtype=float32)
    """
    losses = _arguments.floating("losses", losses)
    losses = losses.astype(wide(losses.dtype))
    if sample_weight is None:
        weights = jnp.ones_like(losses)
    else:
        weights = broadcast_weight(sample_weight, losses)
    if where is not None:
        weights = jnp.where(_arguments.mask("where", where, losses, "losses"), weights, 0)
    elif sample_weight is None:
        return losses, weights
    return _weighed(losses, weights), weights


@functools.partial(jax.jit, inline=True)
def _weighed(losses, weights):
    # Only what is not finite is selected away: d(w v)/dw at w = 0 is v.
    silent = (weights == 0) & ~jnp.isfinite(losses)
    return weights * jnp.where(silent, 0, losses)


def masked(sample_weight: Values | None, mask: Values | None) -> jax.Array | None:
    """The weights of what a mask leaves, as frameworks hand over the two apart.

    Args:
      sample_weight: Real or boolean weights, or None for 1.
      mask: True, or 1, where an entry counts; None is everywhere. Of the two the one with fewer axes is
        that of whole examples: it is given trailing axes.

    Returns:
      The weights times the mask, exactly 0 where that is 0; None if both are None.

    Example:
      >>> import jax.numpy as jnp
      >>> print(masked(jnp.array([[1.0, 2.0], [jnp.nan, 3.0]]), jnp.array([True, False])))
      [[1. 2.]
       [0. 0.]]
    """
    if mask is None:
        return None if sample_weight is None else jnp.asarray(sample_weight)
    weights = jnp.ones((), float) if sample_weight is None else jnp.asarray(sample_weight)
    if not jnp.issubdtype(weights.dtype, jnp.floating):
        weights = weights.astype(float)
    mask = jnp.asarray(mask).astype(weights.dtype)
    ndim = max(weights.ndim, mask.ndim)
    weights, mask = (x.reshape(x.shape + (1,) * (ndim - x.ndim)) for x in (weights, mask))
    return jnp.where(mask == 0, 0, weights * mask)


def counted(
    labels: Values,
    ignore_class: int | None,
    losses: jax.Array,
    where: Values | None = None,
    axis: int | None = None,
) -> jax.Array | None:
    """Where a loss counts: the `where` of losses with an `ignore_class` or a mask.

    Args:
      labels: One class index per loss; or with `axis` the labels that were averaged to it along that axis.
      ignore_class: The label that marks an ignored entry, or None for no such label.
      losses: The losses whose shape the answer takes.
      where: Booleans that broadcast to the losses, or with `axis` to the labels; None is everywhere.
      axis: Of an average, which counts if one of its entries does.

    Returns:
      Booleans in the shape of the losses, or None without an `ignore_class` and a mask.

    Example:
      >>> import jax.numpy as jnp
      >>> counted(jnp.array([[2], [255]]), 255, losses=jnp.array([0.5, 0.0]))
      Array([ True, False], dtype=bool)
      >>> counted(jnp.array([[1, -1], [-1, -1]]), -1, losses=jnp.array([0.5, 0.0]), axis=1)
      Array([ True, False], dtype=bool)
    """
    kept = None
    if ignore_class is not None:
        kept = jnp.asarray(~_arguments.is_ignored("labels", labels, ignore_class))
        kept = kept.reshape(losses.shape) if axis is None else kept
    if where is not None:
        like = losses if axis is None else _arguments.array("labels", labels)
        mask = jnp.broadcast_to(_arguments.mask("where", where, like, "losses"), like.shape)
        kept = mask if kept is None else kept & mask
    return kept if kept is None or axis is None else jnp.any(kept, axis)


def broadcast_weight(x: Values, losses: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    """The weights by the rule at the top of this file, in the shape and dtype of the losses.

    Args:
      x: Real or boolean.
      losses: What they weigh, or its shape and dtype.

    Returns:
      One weight per loss.

    Raises:
      TypeError: The weights are complex.
      ValueError: They do not broadcast.

    Example:
      >>> print(broadcast_weight([1.0, 2.0], jax.ShapeDtypeStruct((2, 2), "float32")))
      [[1. 1.]
       [2. 2.]]
    """
    x = _arguments.real("sample_weight", x)
    shape = x.shape
    if x.ndim == 0:
        shape = (1,) * losses.ndim
    elif x.ndim == losses.ndim + 1 and shape[-1] == 1:
        shape = shape[:-1]
    elif x.ndim == losses.ndim - 1:
        shape = (*shape, 1)
    if len(shape) != losses.ndim or any(n not in (1, m) for n, m in zip(shape, losses.shape, strict=True)):
        column = losses.ndim > x.ndim > 0 and x.shape == losses.shape[-x.ndim :]
        spelled = (1,) * (losses.ndim - x.ndim) + x.shape
        raise ValueError(
            f"`sample_weight` must be a scalar or fit the shape of the losses, {losses.shape}, "
            f"or that shape without its last axis; got shape {x.shape}."
            + (f" For one weight per entry of the last axes give it the shape {spelled}." if column else "")
        )
    return jnp.broadcast_to(x.astype(losses.dtype).reshape(shape), losses.shape)


@functools.partial(jax.jit, inline=True)
def ratio(total: jax.Array, count: jax.Array) -> jax.Array:
    """``total / count``, and 0 where nothing was counted.

    Args:
      total: A sum.
      count: Of what.

    Returns:
      Their ratio.

    Example:
      >>> import jax.numpy as jnp
      >>> print(ratio(jnp.ones(2), jnp.array([0.0, 4.0])))
      [0.   0.25]
    """
    none = count == 0
    return jnp.where(none, 0, total / jnp.where(none, 1, count))
