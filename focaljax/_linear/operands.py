"""Options of a linear loss become data: checked, and folded into the operands of one operation.

`alpha`, masks, weights and reductions all end in one weight per row, or in options per class.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from focaljax import _arguments, _sharding, reductions
from focaljax._arguments import Reduction, Strategy, Values
from focaljax._exact import wide
from focaljax._linear import plan, sigmoid, softmax_by_classes
from focaljax._linear.form import Form
from focaljax._linear.layer import Classes, Fixed, Head, How, Rows
from focaljax._linear.softmax import LinearAux
from focaljax.terms import Term


class Given(NamedTuple):
    """The arguments of a linear loss, as the caller gave them."""

    inputs: Values
    kernel: Values
    labels: Values
    bias: Values | None
    sample_weight: Values | None
    reduction: Reduction
    normalizer: Values | None
    gamma: Values
    term: Term | None
    alpha: Values | None
    label_smoothing: Values = 0.0
    label_weights: Values | None = None
    where: Values | None = None
    ignore_index: int | None = None
    logit_soft_cap: float | None = None
    z_loss: Values = 0.0
    strategy: Strategy = None
    chunk: int | None = None
    memory: int | None = None
    precision: Any = None
    axis_name: _sharding.AxisName | None = None
    batch_axis_name: _sharding.AxisName | None = None
    has_aux: bool = False


class Operands(NamedTuple):
    """Checked arguments; `alpha` and the options of `term` have the rank of the logits."""

    inputs: jax.Array
    kernel: jax.Array
    bias: jax.Array | None
    labels: jax.Array  # [...], or [..., L] for several classes
    shares: jax.Array | None  # [..., L]
    weights: jax.Array | None  # [...]
    normalizer: jax.Array | None  # a scalar
    term: Term
    alpha: jax.Array | None
    smoothing: jax.Array | None
    zeta: jax.Array | None
    where: jax.Array | None  # [1, ..., C], or [..., 1]


class Static(NamedTuple):
    """Static options beside `How`; changing one recompiles."""

    form: Form
    reduction: Reduction
    ignored: int | None
    batch: _sharding.AxisName | None
    reading: str | None  # of a sigmoid loss


def softmax_loss(given: Given) -> tuple[jax.Array, LinearAux | None]:
    """The softmax loss, and its `LinearAux` or None."""
    layer = _layer(given)
    ignored, count = _arguments.index("ignore_index", given.ignore_index), _count(layer)
    rows = layer.logits.shape[:-1]
    if given.label_weights is None:
        labels, ignored = _arguments.integer_labels(
            "labels", given.labels, layer.logits, "inputs", len(rows), ignored, "softmax_focal_loss", count
        )
        shares = None
    else:
        labels, ignored = _arguments.class_indices("labels", given.labels, count, ignored, outside=True)
        shares = _arguments.label_weights(given.label_weights, labels, rows).astype(layer.logits.dtype)
    _arguments.scalar_in("z_loss", given.z_loss, 0, math.inf)
    zeta = _unless_zero(given.z_loss, layer.logits.dtype)
    operands = _operands(given, layer, labels, binary=False)._replace(shares=shares, zeta=zeta)
    return _run(given, layer, operands, softmax_by_classes.FORMS, plan.SOFTMAX, ignored)


def sigmoid_loss(given: Given) -> jax.Array:
    """The sigmoid loss."""
    layer = _layer(given)
    ignored = _arguments.index("ignore_index", given.ignore_index)
    last = len(layer.logits.shape) - 1
    labels, ignored = _arguments.positives(
        "labels", given.labels, layer.logits, "inputs", last, ignored, _count(layer)
    )
    operands = _operands(given, layer, labels, binary=True)
    reading = "hard" if operands.smoothing is None else _arguments.soft_labels(None, given.term)
    return _run(given, layer, operands, sigmoid.FORMS[reading], plan.SIGMOID, ignored, reading)[0]


def _layer(given):
    _arguments.choice("reduction", given.reduction, Reduction)
    _arguments.choice("strategy", given.strategy, Strategy)
    _arguments.summed_axis(given.batch_axis_name, "batch_axis_name")
    _arguments.needs_mean(given.reduction, given.normalizer)
    return _arguments.layer(given.inputs, given.kernel, given.bias, given.axis_name)


def _count(layer):
    return layer.kernel.shape[1] * _sharding.shards(layer.name)


def _operands(given, layer, labels, binary):
    dtype, rows = layer.logits.dtype, layer.logits.shape[:-1]
    option = partial(_arguments.layer_option, logits=layer.logits, classes=_count(layer))
    alpha = given.alpha
    if alpha is not None:
        alpha = option("alpha", alpha, highest=1 if binary else math.inf)
    weights = given.sample_weight
    if weights is not None:
        weights = reductions.broadcast_weight(weights, jax.ShapeDtypeStruct(rows, dtype))
    normalizer = given.normalizer
    if normalizer is not None:
        normalizer = jnp.sum(_arguments.amounts("normalizer", normalizer), dtype=dtype)
    where = given.where
    if where is not None:
        where = _arguments.layer_mask(where, layer.logits, _count(layer))
    _arguments.scalar_in("label_smoothing", given.label_smoothing, 0, 1)
    smoothing = _unless_zero(given.label_smoothing, dtype)
    term = _arguments.term(given.term, given.gamma, option, binary)
    head = (layer.inputs, layer.kernel, layer.bias)
    return Operands(*head, labels, None, weights, normalizer, term, alpha, smoothing, None, where)


def _unless_zero(x, dtype):
    """The option as an array, or None if it is known to be 0."""
    value = _arguments.known(x)
    return None if value is not None and value == 0 else jnp.asarray(x).astype(dtype)


def _run(given, layer, operands, forms, limits, ignored, reading=None):
    """Plans the chunks and runs the loss, on any mesh."""
    chunk, memory = (_arguments.at_least_one(name, getattr(given, name)) for name in ("chunk", "memory"))
    strategy, chunk, group = plan.plan(layer, given.strategy, chunk, memory, limits)
    blocks = plan.devices(layer) if strategy == "classes" else 1
    cap, precision = _arguments.cap(given.logit_soft_cap), _arguments.precision(given.precision)
    logs = _arguments.flag("has_aux", given.has_aux)
    how = How(chunk, group, cap, precision, layer.name, blocks, logs)
    reduction = None if given.reduction == "none" else given.reduction
    static = Static(forms[strategy], reduction, ignored, given.batch_axis_name, reading)
    of_rows = PartitionSpec(*jax.typeof(operands.labels).sharding.spec[: len(layer.logits.shape) - 1])
    out = (of_rows if reduction is None else PartitionSpec(), of_rows)
    return _sharding.automatic(partial(_loss, how=how, static=static), operands, out)


@partial(jax.jit, static_argnames=("how", "static"), inline=True)
def _loss(operands, *, how, static):
    """Folds the options into one weight, term and zeta per row, on the devices that hold the rows."""
    everywhere = frozenset().union(*(_sharding.varying(x) for x in jax.tree.leaves(operands)))
    x, kernel, bias, smoothing = jax.tree.map(
        lambda x: _sharding.vary(x, everywhere),
        (operands.inputs, operands.kernel, operands.bias, operands.smoothing),
    )
    head = Head(kernel, bias)
    fixed, counts = _fixed(operands, everywhere, how, static)
    weight, late = _weights(operands, counts, static)
    rows, classes = _options(operands, fixed, counts, weight, smoothing, everywhere, how, static)
    x = x.reshape(-1, kernel.shape[0])
    if not (_all_count(operands, static) and operands.weights is None and operands.alpha is None):
        given = operands.inputs.reshape(x.shape)  # which differ over the devices of the examples only
        quiet = rows.silent(jnp.ones((), weight.dtype)) & ~jnp.all(jnp.isfinite(given), 1)
        x = jnp.where(quiet[:, None], 0, x)
        loud = jax.tree.map(lambda x: jnp.where(quiet, 0, x), (rows.weight, rows.zeta))
        rows = rows._replace(weight=loud[0], zeta=loud[1])
    operation = static.form.each if static.reduction is None else static.form.total
    losses, logs = operation(how, x, head, fixed, rows, classes)
    shape = operands.inputs.shape[:-1]
    if static.reduction is None:
        return losses.reshape(shape), _of_counted(logs, counts, shape)
    return _sharding.total(losses * late, static.batch), _of_counted(logs, counts, shape)


def _all_count(operands, static):
    return operands.where is None and static.ignored is None


def _weights(operands, counts, static):
    """Returns (weight of each row, factor of the sum)."""
    dtype = wide(operands.inputs.dtype)
    weight = 1 if operands.weights is None else operands.weights.reshape(-1)
    weight = jnp.where(counts, jnp.asarray(weight, dtype), 0)
    kept = None if _all_count(operands, static) else counts
    divisor = reductions.denominator(static.reduction, weight, kept, operands.normalizer, static.batch)
    one = jnp.ones((), dtype)
    scale = one if divisor is None else reductions.ratio(one, divisor)
    if operands.inputs.dtype == jnp.float16:  # small gradients would be lost there
        return weight, scale
    return weight * scale, one


def _options(operands, fixed, counts, weight, smoothing, everywhere, how, static):
    """Options per row, and per class if every class has a term."""
    shape, classes = operands.inputs.shape[:-1], operands.kernel.shape[1]
    sigmoid = static.reading is not None
    every = sigmoid or smoothing is not None or operands.shares is not None
    parts = partial(
        _parts, labels=None if every else fixed.labels, shape=shape, classes=classes, name=how.name
    )
    flat = _sharding.vary(jnp.zeros(classes, weight.dtype), everywhere)
    zeros = jnp.where(counts, 0, 0).astype(weight.dtype)
    alpha, alphas = (None, None) if operands.alpha is None else parts(operands.alpha)
    zeta = None if operands.zeta is None else weight * operands.zeta
    if sigmoid and operands.alpha is not None:
        alpha, alphas = zeros + _or_zero(alpha), flat + _or_zero(alphas)
    elif not sigmoid:
        weight, alpha = weight * (1 if alpha is None else alpha), None
        alphas = flat + (1 if alphas is None else alphas)
    shares = operands.shares
    if shares is not None:
        shares = jnp.where(counts[:, None], shares.reshape(fixed.labels.shape), 0)
    term = jax.tree.map(lambda x: zeros + _or_zero(parts(x)[0]), operands.term)
    rows = Rows(weight, term, alpha, zeta, shares)
    if not every:
        return rows, None
    terms = jax.tree.map(lambda x: flat + _or_zero(parts(x)[1]), operands.term)
    return rows, Classes(alphas, terms, smoothing)


def _fixed(operands, everywhere, how, static):
    """Returns (labels, mask and number of classes that take part; mask of rows that count)."""
    shape, classes = operands.inputs.shape[:-1], operands.kernel.shape[1]
    every = classes * _sharding.shards(how.name)
    labels = operands.labels.reshape(math.prod(shape), *operands.labels.shape[len(shape) :])
    labels = _sharding.vary(labels, everywhere - frozenset(_sharding.names(how.name)))
    # Made of the labels in both cases, so that it lies where they do.
    counts = labels == labels if static.ignored is None else labels != static.ignored
    counts = counts if labels.ndim == 1 else jnp.all(counts, 1)
    kept, count = None, jnp.asarray(every, wide(operands.inputs.dtype))
    if operands.where is not None:
        of_rows, kept = _parts(operands.where, None, shape, classes, how.name)
        if of_rows is not None:
            counts &= of_rows
        else:
            count = _sharding.total(jnp.sum(kept, dtype=count.dtype), how.name)
            counts &= count > 0
    labels = jnp.where(counts if labels.ndim == 1 else counts[:, None], labels, 0)  # a class: not NaN
    labels = jnp.where((labels >= 0) & (labels < every), labels.astype(jnp.int32), -1)
    return Fixed(labels, kept, jnp.maximum(count, 1)), counts


def _or_zero(x):
    return 0 if x is None else x


def _of_counted(logs, counts, shape):
    """The `LinearAux` without derivatives; False and 0 in rows that do not count."""
    if logs is None:
        return None
    found = LinearAux(logs.correct & counts, jnp.where(counts, logs.logsumexp, 0))
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x).reshape(shape), found)


def _parts(option, labels, shape, classes, name) -> Any:
    """An option as (per row, per class), one of them None; with `labels` always per row."""
    if option.shape[-1] == 1 and (name is None or not _sharding.varies(option, name)):
        return jnp.broadcast_to(option[..., 0], shape).reshape(-1), None
    part = _sharding.part(option.reshape(-1), 0, classes, name)
    if labels is None:
        return None, part
    mine = _sharding.local(labels, classes, name)
    found = part[jnp.clip(mine, 0, classes - 1)]
    return _sharding.total(jnp.where((mine >= 0) & (mine < classes), found, 0), name), None
