"""The losses by JAX' names: one per example, from logits, with options as keywords.

All functions are pure; they jit, vmap, scan, remat and shard, and are differentiated in reverse mode to
any order (`jax.grad`, `jax.hessian`, Hessian-vector products) with respect to logits, soft labels, alpha
and gamma. Plain forward mode (`jax.jvp` of the loss itself) is not available under `jax.custom_vjp`.

Arithmetic and results are in float32, or in float64 for float64 logits; gradients come back in the dtype
of the logits. `alpha`, `gamma` and `label_smoothing` may be traced: a new value is not a new program.

Options shared by the functions:

- `term` is the member of the family, :mod:`focaljax.terms`; ``gamma=2.0`` is short for ``term=Focal(2.0)``.
- `gamma`, the options of a term and `alpha` broadcast against the logits with the class axis moved last: a
  scalar, ``[C]`` per class (wherever `axis` is), ``[..., 1]`` per example. A scalar alpha only rescales a
  softmax loss.
- A logit of -inf is a class of probability 0: silent as a competitor, a loss of +inf as the target. A row
  with a logit of +inf or NaN, or with nothing but -inf, has the loss NaN.
- What a mask, an ignored label or a weight of 0 takes away is silent: NaN or infinity there changes
  neither the loss nor any gradient.
"""

from __future__ import annotations

import jax

from focaljax import _operands
from focaljax._arguments import SoftLabels, Values
from focaljax._operands import Given
from focaljax.terms import Term

_WORDS = _operands.Words("logits", "labels", "softmax_focal_loss", "softmax_focal_loss_with_integer_labels")


def softmax_focal_loss(
    logits: Values,
    labels: Values,
    *,
    gamma: Values = 2.0,
    term: Term | None = None,
    alpha: Values | None = None,
    label_smoothing: Values = 0.0,
    axis: int = -1,
    where: Values | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> jax.Array:
    r"""Focal loss of one-hot or soft labels under a softmax.

    .. math:: L = \sum_k \alpha_k \, y_k \, (1 - p_k)^\gamma \, (-\log p_k), \quad p = \mathrm{softmax}(z)

    With ``gamma=0`` and no alpha it is the softmax cross-entropy. It is linear in the labels.

    Args:
      logits: Unnormalised log-probabilities, floating, of any shape with at least one class on `axis`.
      labels: One weight per class, of the shape of `logits`; usually rows that sum to 1.
      gamma: Focusing exponent, at least 0 and finite.
      term: Another member of the family in the place of focal loss, from :mod:`focaljax.terms`; `gamma` is
        then left out.
      alpha: Class weights, at least 0 and finite; None weighs every class with 1.
      label_smoothing: Scalar s in [0, 1]: the labels become ``y * (1 - s) + s / K``, K the number of classes
        that `where` keeps.
      axis: The class axis.
      where: Boolean, broadcasts to the shape of `logits`. A class that is False takes no part, as if it
        did not exist; a label on it is left out. A row without a class has the loss 0.
      axis_name: Inside `jax.shard_map` (or `jax.pmap`, `jax.vmap`) the axis, or a tuple of them, that shards
        the classes: `logits`, `labels` and `where` are those of this device's shard; `alpha` and `gamma` per
        class may be of all classes or of the shard. The losses are the same on all its devices.

    Returns:
      The losses, of the shape of `logits` without `axis`, in at least float32.

    Raises:
      TypeError: An argument has the wrong dtype, for example integer logits.
      ValueError: A shape, the axis or a known value is out of range, or `axis_name` does not shard the
        logits.

    Example:
      >>> import jax.numpy as jnp
      >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
      >>> labels = jnp.array([[1.0, 0.0, 0.0]])
      >>> round(float(softmax_focal_loss(logits, labels)[0] / jnp.log(2)), 6)  # (1 - 0.5)^2 * log 2
      0.25

    References:
      Lin et al., "Focal Loss for Dense Object Detection", 2018 (https://arxiv.org/abs/1708.02002),
      equation 5, for every class of a softmax.
    """
    given = Given(logits, labels, gamma, term, alpha, label_smoothing, axis, where, axis_name=axis_name)
    return _operands.soft_labels(given, _WORDS)


def softmax_focal_loss_with_integer_labels(
    logits: Values,
    labels: Values,
    *,
    gamma: Values = 2.0,
    term: Term | None = None,
    alpha: Values | None = None,
    label_smoothing: Values = 0.0,
    axis: int = -1,
    where: Values | None = None,
    ignore_index: int | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> jax.Array:
    r"""Focal loss of class indices under a softmax.

    .. math:: L = \alpha_t \, (1 - p_t)^\gamma \, (-\log p_t), \quad p = \mathrm{softmax}(z)

    With t the label. The same numbers as :func:`softmax_focal_loss` of one-hot labels, without them:
    beside the gradient nothing of the size of the logits is stored.

    Args:
      logits: Unnormalised log-probabilities, floating, of any shape with at least one class on `axis`.
      labels: Class indices in [0, C), integer, of the shape of `logits` without `axis`. A label outside
        is an error where it is a NumPy array or a list, and gives the loss NaN otherwise. A label that
        `where` takes away gives the loss +inf: its class has probability 0.
      gamma: Focusing exponent, at least 0 and finite.
      term: Another member of the family in the place of focal loss, from :mod:`focaljax.terms`; `gamma` is
        then left out.
      alpha: Class weights, at least 0 and finite; None weighs every class with 1.
      label_smoothing: Scalar s in [0, 1], as in :func:`softmax_focal_loss`; no one-hot array is made.
      axis: The class axis.
      where: Boolean, broadcasts to the shape of `logits`. A class that is False takes no part, as if it
        did not exist. A row without a class has the loss 0.
      ignore_index: A label whose examples have the loss 0 and no gradient; it may lie outside [0, C).
      axis_name: Inside `jax.shard_map` (or `jax.pmap`, `jax.vmap`) the axis, or a tuple of them, that shards
        the classes: `logits` and `where` are those of this device's shard, `labels` count from the first
        class of all; `alpha` and `gamma` per class may be of all classes or of the shard. The losses are the
        same on all its devices.

    Returns:
      The losses, of the shape of `labels`, in at least float32.

    Raises:
      TypeError: An argument has the wrong dtype, for example floating labels.
      ValueError: A shape, the axis or a known value is out of range, or `axis_name` does not shard the
        logits.

    Example:
      >>> import jax.numpy as jnp
      >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]))
      >>> losses = softmax_focal_loss_with_integer_labels(logits, jnp.array([0, -1]), ignore_index=-1)
      >>> [round(float(x), 6) for x in losses / jnp.log(2)]
      [0.25, 0.0]

    References:
      Lin et al., "Focal Loss for Dense Object Detection", 2018 (https://arxiv.org/abs/1708.02002),
      equation 5, for the labelled class of a softmax.
    """
    given = Given(logits, labels, gamma, term, alpha, label_smoothing, axis, where, ignore_index, axis_name)
    return _operands.class_indices(given, _WORDS)


def sigmoid_focal_loss(
    logits: Values,
    labels: Values,
    *,
    gamma: Values = 2.0,
    term: Term | None = None,
    alpha: Values | None = None,
    label_smoothing: Values = 0.0,
    where: Values | None = None,
    ignore_index: int | None = None,
    soft_labels: SoftLabels = None,
) -> jax.Array:
    r"""Focal loss of independent (binary, multi-label) labels under a sigmoid.

    .. math:: L = \alpha_t \, m^\gamma \, bce, \quad bce = -y \log p - (1 - y) \log(1 - p), \quad
              p = \mathrm{sigmoid}(z)

    With m the probability of a wrong answer and ``alpha_t = alpha y + (1 - alpha)(1 - y)``. For labels 0 and
    1 all readings of `soft_labels` are one. Infinite logits give the limits, every gamma a finite gradient.

    Args:
      logits: Log-odds, floating, of any shape.
      labels: Labels in [0, 1], of the shape of `logits`.
      gamma: Focusing exponent, at least 0 and finite.
      term: Another member of the family in the place of focal loss, from :mod:`focaljax.terms`; `gamma` is
        then left out.
      alpha: Weight of the positive answer in [0, 1], the negative one weighs ``1 - alpha``; None weighs
        both with 1.
      label_smoothing: Scalar s in [0, 1]: the labels become ``y * (1 - s) + s / 2``.
      where: Boolean, broadcasts to the shape of `logits`. Where it is False the loss is 0, without gradient.
      ignore_index: A label, often -1 or 255, whose logits have the loss 0 and no gradient.
      soft_labels: How a label between 0 and 1 is read. None is "mixture" for :class:`~focaljax.terms.Focal`
        and :class:`~focaljax.terms.Poly`, and "linear" for other terms, which have no other reading.

        - "mixture": ``m = y (1 - p) + (1 - y) p``, as in Keras, Optax and torchvision.
        - "linear": what the two answers cost, weighed by y and 1 - y, each with its alpha, as in kornia.
        - "quality": ``m = |y - p|``, the quality focal loss (Li et al. 2020) of mmdetection. Its gradient is
          infinite at y = p for gamma < 1; it is 0 there.
        - "cross_entropy": ``m = 1 - exp(-bce)``, as in scenic and segmentation_models.pytorch.

    Returns:
      One loss per logit, of the shape of `logits`, in at least float32.

    Raises:
      TypeError: An argument has the wrong dtype, for example integer logits.
      ValueError: A shape or a known value is out of range, or the term does not have the reading.

    Example:
      >>> import jax.numpy as jnp
      >>> losses = sigmoid_focal_loss(jnp.array([0.0, 0.0]), jnp.array([1.0, 0.0]), alpha=0.25)
      >>> [round(float(x), 6) for x in losses / jnp.log(2)]  # 0.25 * 0.5^2 and 0.75 * 0.5^2
      [0.0625, 0.1875]
      >>> soft = [sigmoid_focal_loss(0.0, 0.9, soft_labels=how) for how in ("mixture", "quality")]
      >>> [round(float(x), 6) for x in jnp.array(soft) / jnp.log(2)]  # 0.5^2 and |0.9 - 0.5|^2
      [0.25, 0.16]

    References:
      Lin et al., "Focal Loss for Dense Object Detection", 2018 (https://arxiv.org/abs/1708.02002),
      equation 5. Li et al., "Generalized Focal Loss", 2020 (https://arxiv.org/abs/2006.04388), equation 4.
    """
    given = Given(logits, labels, gamma, term, alpha, label_smoothing, -1, where, ignore_index)
    return _operands.independent_labels(given, _WORDS, soft_labels)


def sigmoid_focal_loss_with_integer_labels(
    logits: Values,
    labels: Values,
    *,
    gamma: Values = 2.0,
    term: Term | None = None,
    alpha: Values | None = None,
    label_smoothing: Values = 0.0,
    axis: int = -1,
    where: Values | None = None,
    ignore_index: int | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> jax.Array:
    """Focal loss under a sigmoid of the classes that a row names, without one-hot labels.

    The same numbers as :func:`sigmoid_focal_loss` of labels that are 1 for the named classes and 0 for all
    others. Every index outside [0, C) names no class: the background of detectors, and the padding of lists.

    Args:
      logits: Log-odds, floating, of any shape with at least one class on `axis`.
      labels: Class indices, integer: one per row, of the shape of `logits` without `axis`, or lists of them
        along one more axis, ``[..., L]``. A class that is named twice counts once.
      gamma: Focusing exponent, at least 0 and finite.
      term: Another member of the family in the place of focal loss, from :mod:`focaljax.terms`; `gamma` is
        then left out.
      alpha: Weight of the positive answer in [0, 1], the negative one weighs ``1 - alpha``; None weighs
        both with 1.
      label_smoothing: Scalar s in [0, 1], as in :func:`sigmoid_focal_loss`.
      axis: The class axis.
      where: Boolean, broadcasts to the shape of `logits`. Where it is False the loss is 0, without gradient.
      ignore_index: A row that names it has the loss 0 in all classes, without gradient; it may lie outside
        [0, C).
      axis_name: Inside `jax.shard_map` (or `jax.pmap`, `jax.vmap`) the axis, or a tuple of them, that shards
        the classes: `logits` and `where` are those of this device's shard, `labels` count from the first
        class of all; options per class may be of all classes or of the shard.

    Returns:
      One loss per logit, of the shape of `logits`, in at least float32.

    Raises:
      TypeError: An argument has the wrong dtype, for example floating labels.
      ValueError: A shape, the axis or a known value is out of range, or `axis_name` does not shard the
        logits.

    Example:
      >>> import jax.numpy as jnp
      >>> losses = sigmoid_focal_loss_with_integer_labels(jnp.zeros((2, 3)), jnp.array([1, 3]), alpha=0.25)
      >>> print(4 * losses / jnp.log(2))  # 3 is no class
      [[0.75 0.25 0.75]
       [0.75 0.75 0.75]]
      >>> losses = sigmoid_focal_loss_with_integer_labels(jnp.zeros(3), jnp.array([0, 2, -1]), alpha=0.25)
      >>> print(4 * losses / jnp.log(2))
      [0.25 0.75 0.25]

    References:
      Lin et al., "Focal Loss for Dense Object Detection", 2018 (https://arxiv.org/abs/1708.02002),
      equation 5.
    """
    given = Given(logits, labels, gamma, term, alpha, label_smoothing, axis, where, ignore_index, axis_name)
    return _operands.independent_indices(given, _WORDS)
