"""The last layer and its loss as one operation: the logits of a large vocabulary never exist.

For a hidden state x and a kernel W of C classes, logits ``x W`` of N rows are the largest array of a
training step, and each textbook loss stores several of them. Here they are made and used up chunk by chunk:

- in chunks of rows: three matmuls, 6 N D C operations for value and gradient, and a float32 sum of the
  kernel's gradient;
- in chunks of classes: four matmuls, 8 N D C operations, and nothing of the kernel's size but its gradient.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jax.typing import ArrayLike

from focaljax import _arguments, _sharding
from focaljax._arguments import LinearReduction, Strategy, Values
from focaljax._exact import wide
from focaljax._softmax import by_classes, by_rows
from focaljax._softmax.layer import Classes, Head, How, Rows
from focaljax.terms import Term

# What is chunked and how large a chunk is, where the caller does not say. Rows cost three matmuls, classes
# four, but each chunk of rows also reads the kernel and reads and writes a float32 sum of its size, which
# fewer rows than LEAST do not pay for; and the sum must have room. On a mesh it is always rows: chunks
# of sharded classes each sum their gradient by the inputs over the devices, chunks of rows have rows of it.
LOGITS = {"rows": 2**29, "classes": 2**25}  # bytes of the float32 logits of a chunk on a device
LEAST = 512  # rows or classes of a chunk
SUMS = 2**32  # bytes of a float32 sum of the kernel's size
TYPICAL = (8192, 1024, 32768)  # what a symbolic N, D or C of an exported program counts as
FORMS = {  # of the sum, of each loss
    "rows": (by_rows.total, by_rows.each),
    "classes": (by_classes.total, by_classes.each),
}


def linear_softmax_focal_loss(
    inputs: Values,
    kernel: Values,
    labels: Values,
    *,
    bias: Values | None = None,
    sample_weight: Values | None = None,
    reduction: LinearReduction = "mean",
    gamma: Values = 2.0,
    term: Term | None = None,
    alpha: Values | None = None,
    label_smoothing: ArrayLike = 0.0,
    ignore_index: int | None = None,
    logit_soft_cap: float | None = None,
    z_loss: ArrayLike = 0.0,
    strategy: Strategy = None,
    chunk: int | None = None,
    precision: Any = None,
    axis_name: _sharding.AxisName | None = None,
) -> jax.Array:
    r"""Focal loss of class indices under the softmax of a linear layer, without its logits.

    .. math:: L = w \left(\alpha_t \, (1 - p_t)^\gamma \, (-\log p_t) + \zeta \, \mathrm{lse}(z)^2\right),
              \quad p = \mathrm{softmax}(z), \quad z = x W + b

    The numbers and gradients of :func:`softmax_focal_loss_with_integer_labels` of the logits.

    Args:
      inputs: The examples x, floating, [..., D]. The matmuls are in this dtype, their sums in float32.
      kernel: The layer W, floating, [D, C].
      labels: Class indices in [0, C), integer, of the shape of `inputs` without the last axis.
      bias: The layer's bias b, floating, [C].
      sample_weight: A weight w per example, of the shape of `labels`, or one for all.
      reduction: "sum"; "mean" or "sum_over_batch_size", the sum divided by the number of examples that are
        not ignored, 0 if there is none; None or "none" for one loss per example, whose gradient computes
        the logits again.
      gamma: Focusing exponent, at least 0: a scalar, [C], or [..., 1] per example.
      term: Another member of the family in the place of focal loss, from :mod:`focaljax.terms`; its options
        have the shapes of `gamma`, which is then left out.
      alpha: Class weights: a scalar, [C], or [..., 1] per example; None weighs every class with 1.
      label_smoothing: Scalar s in [0, 1]: labels become ``y * (1 - s) + s / C``.
      ignore_index: A label whose examples have no loss and no gradient; it may lie outside [0, C).
      logit_soft_cap: A Python number c: the logits become ``c * tanh(z / c)``.
      z_loss: Scalar zeta, at least 0: a penalty of large logits, which alpha does not weigh.
      strategy: "rows" or "classes", what is chunked. None chooses rows (it is the faster one, and right for
        every sharding) unless on one device fewer than 512 rows have logits of 0.5 GiB, or the sum of the
        kernel's gradient takes more than 4 GiB.
      chunk: How many rows or classes are taken at a time; None chooses from the bytes of their logits.
      precision: That of the matmuls, as `jax.numpy.matmul` has it.
      axis_name: Inside `jax.shard_map` the mesh axis, or a tuple of them, that shards the classes:
        `kernel` and `bias` are those of this device's shard, `labels` count from the first class of all,
        `alpha` and `gamma` per class may be of all classes or of the shard. Examples that are sharded too
        are reduced on each device only: for their mean take "sum", and divide its sum over the devices
        (`jax.lax.psum`) by that of the examples. Under plain `jit` sharded operands need no option;
        there a chunk has a part of each device's rows or classes.

    Returns:
      A scalar, or without reduction the losses in the shape of `labels`; in at least float32.

    Raises:
      TypeError: An argument has the wrong dtype, for example integer inputs.
      ValueError: A shape or a known value is out of range, a word is none of its choices, or `axis_name`
        does not shard the kernel.

    Example:
      >>> import jax.numpy as jnp
      >>> inputs, kernel = jnp.eye(2), jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]))
      >>> losses = linear_softmax_focal_loss(inputs, kernel, jnp.array([0, 1]), reduction=None)
      >>> [round(float(x), 6) for x in losses / jnp.log(2)]  # (1 - 0.5)^2 * log 2
      [0.25, 0.25]

    References:
      Lin et al., "Focal Loss for Dense Object Detection", 2018 (https://arxiv.org/abs/1708.02002),
      equation 5, for the labelled class of a softmax; for gradients made in the forward pass, Hsu et al.,
      "Liger Kernel: Efficient Triton Kernels for LLM Training", 2024 (https://arxiv.org/abs/2410.10989).
    """
    layer = _arguments.layer(inputs, kernel, bias, axis_name)
    count = layer.kernel.shape[1] * _sharding.shards(layer.name)
    ignored = _arguments.index("ignore_index", ignore_index)
    last = len(layer.logits.shape) - 1
    labels, ignored = _arguments.integer_labels(
        "labels", labels, layer.logits, "inputs", last, ignored, "softmax_focal_loss", count
    )
    weights = sample_weight
    if weights is not None:
        weights = _arguments.weights("sample_weight", weights, labels.shape).astype(layer.logits.dtype)
    option = partial(_arguments.layer_option, logits=layer.logits, classes=count)
    term = _arguments.term(term, gamma, option)
    alpha = None if alpha is None else option("alpha", alpha)
    _arguments.scalar_in("label_smoothing", label_smoothing, 0, 1)
    _arguments.scalar_in("z_loss", z_loss, 0, math.inf)
    reduction = _arguments.linear_reduction(reduction)
    _arguments.choice("strategy", strategy, _arguments.Strategy)
    strategy, size = _plan(layer, strategy, _arguments.chunk(chunk))
    cap, precision = _arguments.cap(logit_soft_cap), _arguments.precision(precision)
    smoothing, zeta = (_unless_zero(x, layer.logits.dtype) for x in (label_smoothing, z_loss))
    operands = Operands(layer.inputs, layer.kernel, layer.bias, labels, weights, term, alpha, smoothing, zeta)
    how = How(size, cap, precision, layer.name, _devices(layer) if strategy == "classes" else 1)
    loss: Any = partial(_loss, how=how, strategy=strategy, reduction=reduction, ignored=ignored)
    mesh = _mesh_of(operands)
    explicit = tuple(
        name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit
    )
    if explicit:  # chunks of sharded axes: where they lie is left to the compiler
        rows = jax.typeof(labels).sharding.spec if reduction is None else PartitionSpec()
        loss = jax.sharding.auto_axes(loss, axes=explicit, out_sharding=rows)
    return loss(operands)


class Operands(NamedTuple):
    """What is checked; `alpha` and the options of `term` in the rank of the logits."""

    inputs: jax.Array
    kernel: jax.Array
    bias: jax.Array | None
    labels: jax.Array
    weights: jax.Array | None
    term: Term
    alpha: jax.Array | None
    smoothing: jax.Array | None
    zeta: jax.Array | None


def _unless_zero(x: ArrayLike, dtype: Any) -> jax.Array | None:
    """An option, or None where it is known to do nothing."""
    value = _arguments.known(x)
    return None if value is not None and value == 0 else jnp.asarray(x).astype(dtype)


def _plan(layer: _arguments.Layer, strategy: str | None, chunk: int | None) -> tuple[Any, int]:
    """What is chunked, and into how many rows or classes."""
    sizes = (math.prod(layer.logits.shape[:-1]), *layer.kernel.shape)
    rows, width, classes = (n if isinstance(n, int) else m for n, m in zip(sizes, TYPICAL, strict=True))
    devices, one = _devices(layer), layer.logits.dtype.itemsize
    fit = {"rows": LOGITS["rows"] // (one * classes), "classes": LOGITS["classes"] // (one * max(1, rows))}
    if strategy is None:
        large = one * width * classes > SUMS or fit["rows"] < min(LEAST, rows)
        strategy = "classes" if large and devices == 1 else "rows"
    size = sizes[0 if strategy == "rows" else 2]
    _arguments.size_of_chunks(strategy, size)
    if chunk is None and strategy == "rows":  # logits of no more than the kernel's gradient takes
        chunk = _even(size, devices * max(128, min(fit["rows"], max(1024, width))))
    elif chunk is None:
        chunk = devices * max(LEAST, fit["classes"] // 128 * 128)  # whole tiles
    return strategy, max(1, min(chunk, size)) if isinstance(size, int) else chunk


def _even(size: Any, chunk: int) -> int:
    """About as many rows in each of some more chunks, if they are then of one size."""
    if not isinstance(size, int) or chunk >= size:
        return chunk
    least = -(-size // chunk)
    even = [n for n in range(least, 2 * least) if size % n == 0]
    return size // even[0] if even else -(-size // least)


def _devices(layer: _arguments.Layer) -> int:
    """How many share the work: those of the mesh, where it is not `shard_map` that shares it."""
    mesh = _mesh_of(layer[:3])
    return math.prod(mesh.shape[name] for name in mesh.axis_names if name not in mesh.manual_axes)


def _mesh_of(operands: Any) -> Any:
    """The mesh that holds the operands, or the one that is set."""
    meshes = (jax.typeof(x).sharding.mesh for x in jax.tree.leaves(operands))
    return next((mesh for mesh in meshes if not mesh.empty), jax.sharding.get_abstract_mesh())


@partial(jax.jit, static_argnames=("how", "strategy", "reduction", "ignored"), inline=True)
def _loss(operands, *, how, strategy, reduction, ignored):
    """Folds the options into one weight, term and zeta per row, on the devices where the rows are."""
    dtype = wide(operands.inputs.dtype)
    shape, name = operands.labels.shape, how.name
    everywhere = frozenset().union(*(_sharding.varying(x) for x in jax.tree.leaves(operands)))
    of_rows = everywhere - frozenset(name if isinstance(name, tuple) else (name,))
    x, kernel, bias, smoothing = jax.tree.map(
        lambda x: _sharding.vary(x, everywhere),
        (operands.inputs, operands.kernel, operands.bias, operands.smoothing),
    )
    labels = _sharding.vary(operands.labels.reshape(-1), of_rows)
    classes = kernel.shape[1]
    counts = jnp.ones(labels.shape, bool)
    if ignored is not None:
        counts = labels != ignored
        labels = jnp.where(counts, labels, 0)  # a class, so that nothing is made of what is none
    known = (labels >= 0) & (labels < classes * _sharding.shards(name))
    labels = jnp.where(known, labels.astype(jnp.int32), -1)
    zeros = jnp.where(False, labels, 0).astype(dtype)

    of_labels = None if smoothing is not None else labels
    parts = partial(_parts, labels=of_labels, shape=shape, classes=classes, name=name)
    weight, alphas = (None, None) if operands.alpha is None else parts(operands.alpha)
    weight = zeros + (1 if weight is None else weight)
    term = jax.tree.map(lambda x: zeros + _or_zero(parts(x)[0]), operands.term)
    zeta = None if operands.zeta is None else zeros + operands.zeta
    if operands.weights is not None:
        weight = weight * operands.weights.reshape(-1)
        zeta = None if zeta is None else zeta * operands.weights.reshape(-1)

    scale = jnp.ones((), zeros.dtype)
    if reduction == "mean":
        number = labels.size if ignored is None else jnp.sum(counts, dtype=zeros.dtype)
        scale = 1 / jnp.maximum(jnp.asarray(number, zeros.dtype), 1)
    early = 1 if x.dtype == jnp.float16 else scale  # of gradients that have to pass through float16: late
    weight = jnp.where(counts, weight * early, 0)
    zeta = None if zeta is None else jnp.where(counts, zeta * early, 0)
    x = x.reshape(-1, kernel.shape[0])
    if not (operands.weights is None and operands.alpha is None and ignored is None):
        rows = operands.inputs.reshape(x.shape)  # which differ over the devices of the examples only
        quiet = (weight == 0) & ~jnp.all(jnp.isfinite(rows), 1)
        quiet = quiet if zeta is None else quiet & (zeta == 0)
        x, weight = jnp.where(quiet[:, None], 0, x), jnp.where(quiet, 0, weight)
        zeta = None if zeta is None else jnp.where(quiet, 0, zeta)
    of_classes = None
    if smoothing is not None:
        flat = _sharding.vary(jnp.zeros(classes, zeros.dtype), everywhere)
        of_classes = Classes(
            flat + (1 if alphas is None else alphas),
            jax.tree.map(lambda x: flat + _or_zero(parts(x)[1]), operands.term),
            smoothing,
        )
    operation = FORMS[strategy][reduction is None]
    losses = operation(how, x, Head(kernel, bias), labels, Rows(weight, term, zeta), of_classes)
    return losses.reshape(shape) if reduction is None else losses * (scale / early)


def _or_zero(x):
    return 0 if x is None else x


def _parts(option, labels, shape, classes, name):
    """What an option gives to rows and to classes, of which one is None; with `labels` all to rows."""
    if option.shape[-1] == 1 and (name is None or not _sharding.varies(option, name)):
        return jnp.broadcast_to(option[..., 0], shape).reshape(-1), None
    part = _sharding.part(option.reshape(-1), 0, classes, name)
    if labels is None:
        return None, part
    mine = _sharding.local(labels, classes, name)
    found = part[jnp.clip(mine, 0, classes - 1)]
    return _sharding.total(jnp.where((mine >= 0) & (mine < classes), found, 0), name), None
