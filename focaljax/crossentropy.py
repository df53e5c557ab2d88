"""The losses by Keras' names: Keras 3's argument order, defaults and numbers, on the same operations.

The functions return one loss per example; the classes hold the options, weigh and reduce. `alpha` and
`gamma` may be scalars, ``[C]`` per class or ``[..., 1]`` per example, traced or not.

Probabilities (``from_logits=False``) are read as Keras reads them: labels smoothed, probabilities divided by
their sum, clipped to [1e-7, 1 - 1e-7]. Outside, the loss is constant and its gradient 0, in the binary loss
too, where Keras clips the logarithm only. Logits are not clipped: below p = 1e-7 Keras returns a constant and
a gradient of zero, which drops the very examples that focal loss exists for. All differences are in
docs/keras.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from focaljax import _arguments, _operands, _probabilities, reductions
from focaljax._arguments import Values
from focaljax._operands import Given
from focaljax._softmax import dense, indexed

_WORDS = _operands.Words(
    "y_pred",
    "y_true",
    "categorical_focal_crossentropy",
    "sparse_categorical_focal_crossentropy",
    "ignore_class",
)


def categorical_focal_crossentropy(
    y_true: Values,
    y_pred: Values,
    alpha: Values = 0.25,
    gamma: Values = 2.0,
    from_logits: bool = False,
    label_smoothing: ArrayLike = 0.0,
    axis: int = -1,
) -> jax.Array:
    r"""Focal cross-entropy of one-hot or soft labels, as a loss or as a metric.

    .. math:: L = \sum_k \alpha_k \, y_k \, (1 - p_k)^\gamma \, (-\log p_k)

    Args:
      y_true: One label per class, of the shape of `y_pred`.
      y_pred: Probabilities, or logits with `from_logits`, floating.
      alpha: Class weights; ``[C]`` follows `axis`.
      gamma: Focusing exponent, at least 0.
      from_logits: Whether `y_pred` holds logits.
      label_smoothing: Scalar s in [0, 1]: the labels become ``y * (1 - s) + s / K``. K is the number of
        classes, where Keras up to 3.15 takes the size of the last axis.
      axis: The class axis.

    Returns:
      The losses, of the shape of `y_pred` without `axis`, in at least float32.

    Raises:
      TypeError: An argument has the wrong dtype, or `from_logits` is traced.
      ValueError: A shape, the axis or a known value is out of range.

    Example:
      >>> y_true = [[0, 1, 0], [0, 0, 1]]
      >>> losses = categorical_focal_crossentropy(y_true, jnp.array([[0.05, 0.95, 0], [0.1, 0.8, 0.1]]))
      >>> [f"{x:.6g}" for x in losses]  # the loss in Keras' documentation for R
      ['3.20583e-05', '0.466273']
      >>> losses = categorical_focal_crossentropy(y_true, jnp.array([[0.05, 0.9, 0.05], [0.1, 0.85, 0.05]]))
      >>> [f"{x:.6g}" for x in losses]  # the metric there
      ['0.000263401', '0.675912']

    References:
      Lin et al., "Focal Loss for Dense Object Detection", 2018 (https://arxiv.org/abs/1708.02002),
      equation 5; `keras.losses.categorical_focal_crossentropy`.
    """
    op = dense.dense if _arguments.flag("from_logits", from_logits) else _probabilities.dense
    given = Given(y_pred, y_true, gamma, None, alpha, label_smoothing, axis)
    return _operands.soft_labels(given, _WORDS, op)


def sparse_categorical_focal_crossentropy(
    y_true: Values,
    y_pred: Values,
    alpha: Values = 0.25,
    gamma: Values = 2.0,
    from_logits: bool = False,
    ignore_class: int | None = None,
    axis: int = -1,
) -> jax.Array:
    r"""Focal cross-entropy of class indices, without one-hot labels.

    .. math:: L = \alpha_t \, (1 - p_t)^\gamma \, (-\log p_t)

    Args:
      y_true: Class indices in [0, C), integer, of the shape of `y_pred` without `axis`. A label outside is
        an error where it is a NumPy array or a list, and gives the loss NaN otherwise.
      y_pred: Probabilities, or logits with `from_logits`, floating.
      alpha: Class weights; ``[C]`` follows `axis`.
      gamma: Focusing exponent, at least 0.
      from_logits: Whether `y_pred` holds logits.
      ignore_class: A label whose examples have the loss 0; it may lie outside [0, C).
      axis: The class axis.

    Returns:
      The losses, of the shape of `y_true`, in at least float32.

    Raises:
      TypeError: An argument has the wrong dtype, or `from_logits` is traced.
      ValueError: A shape, the axis or a known value is out of range.

    Example:
      >>> y_pred = jnp.array([[0.05, 0.95, 0], [0.1, 0.8, 0.1]])
      >>> [f"{x:.6g}" for x in sparse_categorical_focal_crossentropy([1, 2], y_pred)]
      ['3.20583e-05', '0.466273']

    References:
      Lin et al., "Focal Loss for Dense Object Detection", 2018 (https://arxiv.org/abs/1708.02002),
      equation 5. Keras has no such function yet; names and order follow its sparse cross-entropy.
    """
    op = indexed.indexed if _arguments.flag("from_logits", from_logits) else _probabilities.indexed
    given = Given(y_pred, y_true, gamma, alpha=alpha, axis=axis, ignored=ignore_class)
    return _operands.class_indices(given, _WORDS, op)


def binary_focal_crossentropy(
    y_true: Values,
    y_pred: Values,
    apply_class_balancing: bool = False,
    alpha: Values = 0.25,
    gamma: Values = 2.0,
    from_logits: bool = False,
    label_smoothing: ArrayLike = 0.0,
    axis: int = -1,
    *,
    where: Values | None = None,
    ignore_class: int | None = None,
) -> jax.Array:
    r"""Focal cross-entropy of independent labels, averaged over `axis`.

    .. math:: L = \mathrm{mean}\; \alpha_t \, (1 - p_t)^\gamma \, (-y \log p - (1 - y) \log(1 - p))

    With ``p_t = y p + (1 - y)(1 - p)`` and ``alpha_t = alpha y + (1 - alpha)(1 - y)``.

    Args:
      y_true: Labels in [0, 1], of the shape of `y_pred`.
      y_pred: Probabilities, or logits with `from_logits`, floating.
      apply_class_balancing: Whether to weigh by alpha_t. Without it any other `alpha` than 0.25 is an
        error, where Keras ignores it.
      alpha: Weight of the label 1, in [0, 1]; the label 0 weighs ``1 - alpha``.
      gamma: Focusing exponent, at least 0.
      from_logits: Whether `y_pred` holds logits.
      label_smoothing: Scalar s in [0, 1]: the labels become ``y * (1 - s) + s / 2``.
      axis: The axis over which the losses are averaged.
      where: Booleans that broadcast to `y_pred`, True where a label counts. The average is over these, and 0
        without one. Keras has neither this nor the next.
      ignore_class: A label that does not count, often -1.

    Returns:
      The losses, of the shape of `y_pred` without `axis`, in at least float32.

    Raises:
      TypeError: An argument has the wrong dtype, or a flag is traced.
      ValueError: A shape, the axis or a known value is out of range.

    Example:
      >>> loss = binary_focal_crossentropy([[1, 0]], jnp.array([[0.5, 0.5]]), apply_class_balancing=True)
      >>> round(float(loss[0] / jnp.log(2)), 6)  # (0.25 + 0.75) / 2 * 0.5^2
      0.125
      >>> losses = binary_focal_crossentropy([[1, -1, 1]], jnp.array([[0.5, 0.9, 0.5]]), ignore_class=-1)
      >>> round(float(losses[0] / jnp.log(2)), 6)  # (0.5^2 + 0.5^2) / 2
      0.25

    References:
      Lin et al., "Focal Loss for Dense Object Detection", 2018 (https://arxiv.org/abs/1708.02002),
      equations 4 and 5; `keras.losses.binary_focal_crossentropy`.
    """
    op = None if _arguments.flag("from_logits", from_logits) else _probabilities.sigmoid
    balanced = _arguments.flag("apply_class_balancing", apply_class_balancing)
    if not balanced:
        _arguments.untouched("alpha", alpha, 0.25, "apply_class_balancing=True")
    y_pred, axis = _arguments.logits("y_pred", y_pred, axis)
    given = Given(y_pred, y_true, gamma, None, alpha if balanced else None, label_smoothing, axis)
    given = given._replace(where=where, ignored=ignore_class)
    losses = _operands.independent_labels(given, _WORDS, "mixture", op)
    if where is None and ignore_class is None:
        return jnp.mean(losses, axis)
    kept = jnp.asarray(reductions.counted(y_true, ignore_class, losses, where))
    return jnp.sum(losses, axis) / jnp.maximum(jnp.sum(kept, axis, dtype=losses.dtype), 1)


def losses_of(
    function: Callable[..., jax.Array],
    y_true: Values,
    y_pred: Values,
    where: Values | None,
    options: Mapping[str, Any],
) -> tuple[jax.Array, jax.Array | None]:
    """The losses of one of the three functions, and where they count; None is everywhere.

    Args:
      function: One of the above.
      y_true: Its labels.
      y_pred: Its predictions.
      where: True where an example counts, or one of its independent labels.
      options: By name.

    Returns:
      The losses and their `where`, as :func:`focaljax.reduce_loss` takes them.

    Example:
      >>> losses_of(binary_focal_crossentropy, [[1], [-1]], jnp.ones((2, 1)), None, {"ignore_class": -1})[1]
      Array([ True, False], dtype=bool)
    """
    binary = function is binary_focal_crossentropy
    losses = function(y_true, y_pred, **options, **({"where": where} if binary else {}))
    ignored, axis = options.get("ignore_class"), options.get("axis", -1) if binary else None
    return losses, reductions.counted(y_true, ignored, losses, where, axis)
