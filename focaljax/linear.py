"""The last layer and its loss as one operation: the logits of a large vocabulary never exist.

For a hidden state x and a kernel W of C classes, logits ``x W`` of N rows are the largest array of a
training step, and each textbook loss stores several of them. Here they are made and used up chunk by chunk:

- in chunks of rows: three matmuls, 6 N D C operations for value and gradient, and a float32 sum of the
  kernel's gradient; or in 16 bits, on one device or inside `jax.shard_map`, the gradient of as many logits as
  there is memory for;
- in chunks of classes: four matmuls, 8 N D C operations, for a softmax, and three for a sigmoid; and nothing
  of the kernel's size but its gradient.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.typing import ArrayLike

from focaljax._arguments import Reduction, Strategy, Values
from focaljax._linear import operands
from focaljax._linear.operands import Given
from focaljax._sharding import AxisName
from focaljax.terms import Term


def linear_softmax_focal_loss(
    inputs: Values,
    kernel: Values,
    labels: Values,
    *,
    bias: Values | None = None,
    sample_weight: Values | None = None,
    reduction: Reduction = "mean",
    normalizer: Values | None = None,
    gamma: Values = 2.0,
    term: Term | None = None,
    alpha: Values | None = None,
    label_smoothing: ArrayLike = 0.0,
    label_weights: Values | None = None,
    where: Values | None = None,
    ignore_index: int | None = None,
    logit_soft_cap: float | None = None,
    z_loss: ArrayLike = 0.0,
    strategy: Strategy = None,
    chunk: int | None = None,
    memory: int | None = None,
    precision: Any = None,
    axis_name: AxisName | None = None,
    batch_axis_name: AxisName | None = None,
    has_aux: bool = False,
) -> Any:
    r"""Focal loss of class indices under the softmax of a linear layer, without its logits.

    .. math:: L = w \left(\alpha_t \, (1 - p_t)^\gamma \, (-\log p_t) + \zeta \, \mathrm{lse}(z)^2\right),
              \quad p = \mathrm{softmax}(z), \quad z = x W + b

    The numbers and gradients of :func:`softmax_focal_loss_with_integer_labels` of the logits; with
    `label_weights` those of :func:`softmax_focal_loss`.

    Args:
      inputs: The examples x, floating, [..., D]. The matmuls are in this dtype, their sums in float32.
      kernel: The layer W, floating, [D, C].
      labels: Class indices in [0, C), integer, of the shape of `inputs` without the last axis; with
        `label_weights` several per example, [..., L].
      bias: The layer's bias b, floating, [C].
      sample_weight: Weights w that broadcast to the examples, as :func:`reduce_loss` has them.
      reduction: One of those of :func:`reduce_loss`, by the same table: "mean" divides by the number of
        examples that count, "mean_with_sample_weight" by the sum of their weights. None or "none" for one
        loss per example, whose gradient computes the logits again.
      normalizer: What takes the place of the number of examples, as in :func:`reduce_loss`.
      gamma: Focusing exponent, at least 0: a scalar, [C], or [..., 1] per example.
      term: Another member of the family in the place of focal loss, from :mod:`focaljax.terms`; its options
        have the shapes of `gamma`, which is then left out.
      alpha: Class weights: a scalar, [C], or [..., 1] per example; None weighs every class with 1.
      label_smoothing: Scalar s in [0, 1]: labels become ``y * (1 - s) + s / C``, C counts what takes part.
      label_weights: How much of a soft label each class of `labels` is, at least 0, [..., L]: the top classes
        of a teacher, or two mixed classes. A class named twice has both parts. One that is outside [0, C)
        must have the weight 0.
      where: Booleans, [C] for classes that take part, as in a padded vocabulary; or [..., 1] for examples
        that count. The rest is silent, whatever kernel, bias and inputs hold there.
      ignore_index: A label whose examples have no loss and no gradient; it may lie outside [0, C).
      logit_soft_cap: A Python number c: the logits become ``c * tanh(z / c)``.
      z_loss: Scalar zeta, at least 0: a penalty of large logits, which alpha does not weigh.
      strategy: "rows" or "classes", what is chunked. None chooses rows (it is the faster one, and right for
        every sharding) unless `memory` has no room for them, or on one device fewer than 512 rows have
        logits of 0.5 GiB.
      chunk: How many rows or classes are taken at a time; None chooses from the bytes of their logits.
      memory: About how many bytes value and gradient may store on a device beside operands and results, of
        which as little is used as is fastest; None is 4 GiB. A given `strategy` may need more.
      precision: That of the matmuls, as `jax.numpy.matmul` has it.
      axis_name: Inside `jax.shard_map` (or `jax.pmap`, `jax.vmap`) the axis, or a tuple of them, that shards
        the classes: `kernel` and `bias` are those of this device's shard, `labels` count from the first
        class of all, options per class may be of all classes or of the shard. Under plain `jit` sharded
        operands need no option; there a chunk has a part of each device's rows or classes.
      batch_axis_name: Inside `jax.shard_map` the mesh axis or axes that shard the examples. Sums and what
        they are divided by are summed over it, so a mean is that of the global batch.
      has_aux: Whether to return a :class:`LinearAux` too.

    Returns:
      A scalar, or without reduction the losses in the shape of the examples; in at least float32. With
      `has_aux` a pair of this and the :class:`LinearAux`.

    Raises:
      TypeError: An argument has the wrong dtype, for example integer inputs.
      ValueError: A shape or a known value is out of range, a word is none of its choices, or a name is that
        of no mesh axis that shards the kernel, or the examples.

    Example:
      >>> import jax.numpy as jnp
      >>> inputs, kernel = jnp.eye(2), jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]))
      >>> losses = linear_softmax_focal_loss(inputs, kernel, jnp.array([0, 1]), reduction=None)
      >>> [round(float(x), 6) for x in losses / jnp.log(2)]  # (1 - 0.5)^2 * log 2
      [0.25, 0.25]

      Accuracy at no cost:

      >>> loss, aux = linear_softmax_focal_loss(inputs, kernel, jnp.array([0, 2]), has_aux=True)
      >>> print(jnp.mean(aux.correct))
      0.5

    References:
      Lin et al., "Focal Loss for Dense Object Detection", 2018 (https://arxiv.org/abs/1708.02002),
      equation 5, for the labelled class of a softmax; for gradients made in the forward pass, Hsu et al.,
      "Liger Kernel: Efficient Triton Kernels for LLM Training", 2024 (https://arxiv.org/abs/2410.10989).
    """
    given = Given(inputs, kernel, labels, bias, sample_weight, reduction, normalizer, gamma, term, alpha)
    given = given._replace(label_smoothing=label_smoothing, label_weights=label_weights, where=where)
    given = given._replace(ignore_index=ignore_index, logit_soft_cap=logit_soft_cap, z_loss=z_loss)
    given = given._replace(
        strategy=strategy, chunk=chunk, memory=memory, precision=precision, has_aux=has_aux
    )
    given = given._replace(axis_name=axis_name, batch_axis_name=batch_axis_name)
    loss, aux = operands.softmax_loss(given)
    return loss if aux is None else (loss, aux)


def linear_sigmoid_focal_loss(
    inputs: Values,
    kernel: Values,
    labels: Values,
    *,
    bias: Values | None = None,
    sample_weight: Values | None = None,
    reduction: Reduction = "mean",
    normalizer: Values | None = None,
    gamma: Values = 2.0,
    term: Term | None = None,
    alpha: Values | None = None,
    label_smoothing: ArrayLike = 0.0,
    where: Values | None = None,
    ignore_index: int | None = None,
    logit_soft_cap: float | None = None,
    strategy: Strategy = None,
    chunk: int | None = None,
    memory: int | None = None,
    precision: Any = None,
    axis_name: AxisName | None = None,
    batch_axis_name: AxisName | None = None,
) -> jax.Array:
    r"""Focal loss of independent labels of a linear layer, from the indices of the positive classes.

    .. math:: L = w \sum_k \mathrm{loss}(z_k, y_k), \quad y_k = [k \in labels], \quad z = x W + b

    An example has the sum over all classes of :func:`sigmoid_focal_loss_with_integer_labels` of the logits,
    which never exist: a recommender with a million items, or any tagger with many. Value and gradients of a
    chunk of classes are made at once.

    Args:
      inputs: The examples x, floating, [..., D]. The matmuls are in this dtype, their sums in float32.
      kernel: The layer W, floating, [D, C].
      labels: The positive classes, integer: one per example, in the shape of `inputs` without the last axis,
        or several, [..., L]. What is outside [0, C) is no class, a class named twice counts once.
      bias: The layer's bias b, floating, [C].
      sample_weight: Weights w that broadcast to the examples, as :func:`reduce_loss` has them.
      reduction: One of those of :func:`reduce_loss`, by the same table, of one loss per example: "mean"
        divides by the number of examples that count. None or "none" for the losses themselves, whose gradient
        computes the logits again.
      normalizer: What takes the place of the number of examples, as in :func:`reduce_loss`: for detectors and
        recommenders the positives, ``normalizer=labels >= 0``.
      gamma: Focusing exponent, at least 0: a scalar, [C], or [..., 1] per example.
      term: Another member of the family in the place of focal loss, from :mod:`focaljax.terms`; its options
        have the shapes of `gamma`, which is then left out.
      alpha: Weight of a positive in [0, 1], that of a negative is ``1 - alpha``: a scalar, [C], or [..., 1]
        per example; None weighs both with 1.
      label_smoothing: Scalar s in [0, 1]: labels become ``y * (1 - s) + s / 2``.
      where: Booleans, [C] for classes that take part, as in a padded vocabulary; or [..., 1] for examples
        that count. The rest is silent, whatever kernel, bias and inputs hold there.
      ignore_index: A label whose examples have no loss and no gradient; it may lie outside [0, C).
      logit_soft_cap: A Python number c: the logits become ``c * tanh(z / c)``.
      strategy: "rows" or "classes", what is chunked. None chooses classes on one device and rows on a mesh,
        unless there are fewer than 512 rows in 0.5 GiB.
      chunk: How many rows or classes are taken at a time; None chooses from the bytes of their logits.
      memory: About how many bytes value and gradient may store on a device beside operands and results, of
        which as little is used as is fastest; None is 4 GiB. A given `strategy` may need more.
      precision: That of the matmuls, as `jax.numpy.matmul` has it.
      axis_name: Inside `jax.shard_map` the mesh axis, or a tuple of them, that shards the classes, as in
        :func:`linear_softmax_focal_loss`.
      batch_axis_name: Inside `jax.shard_map` the mesh axis or axes that shard the examples. Sums and what
        they are divided by are summed over it, so a mean is that of the global batch.

    Returns:
      A scalar, or without reduction the losses in the shape of the examples; in at least float32.

    Raises:
      TypeError: An argument has the wrong dtype, for example floating labels.
      ValueError: A shape or a known value is out of range, a word is none of its choices, or a name is that
        of no mesh axis that shards the kernel, or the examples.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = linear_sigmoid_focal_loss(jnp.ones((1, 2)), jnp.zeros((2, 3)), jnp.array([[0, 2, -1]]))
      >>> print(f"{loss / jnp.log(2):.4f}")  # 3 classes, (1 - 0.5)^2 * log 2 each
      0.7500

    References:
      Lin et al., "Focal Loss for Dense Object Detection", 2018 (https://arxiv.org/abs/1708.02002),
      equations 4 and 5. RecML has a fused layer with such labels (`cut_binary_focal_cross_entropy`,
      https://github.com/AI-Hypercomputer/RecML).
    """
    given = Given(inputs, kernel, labels, bias, sample_weight, reduction, normalizer, gamma, term, alpha)
    given = given._replace(label_smoothing=label_smoothing, where=where, ignore_index=ignore_index)
    given = given._replace(
        logit_soft_cap=logit_soft_cap, strategy=strategy, chunk=chunk, memory=memory, precision=precision
    )
    given = given._replace(axis_name=axis_name, batch_axis_name=batch_axis_name)
    return operands.sigmoid_loss(given)
