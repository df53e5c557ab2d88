"""Options become arrays: arguments are checked and folded into the few operands of one operation.

`alpha`, `label_smoothing`, `where` and `ignore_index` all end in one weight per row or per class, and a
weight of 0 is silent in every operation, so masks need no rule of their own. All public losses of logits
call these four functions; `Words` holds what the arguments are called there.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from focaljax import _arguments, _entries, _sharding
from focaljax._arguments import Values
from focaljax._exact import wide
from focaljax._sigmoid import independent
from focaljax._softmax import statistics
from focaljax._softmax.dense import dense
from focaljax._softmax.indexed import indexed
from focaljax.terms import Term


class Words(NamedTuple):
    """What a function calls its arguments, for its error messages."""

    logits: str
    labels: str
    dense: str  # the function that takes one label per class
    indexed: str  # the function that takes class indices
    ignored: str = "ignore_index"


class Given(NamedTuple):
    """The arguments of a loss, as the caller gave them."""

    logits: Values
    labels: Values
    gamma: Values
    term: Term | None = None
    alpha: Values | None = None
    label_smoothing: Values = 0.0
    axis: int = -1
    where: Values | None = None
    ignored: int | None = None
    axis_name: _sharding.AxisName | None = None


def soft_labels(given: Given, words: Words, op: Callable = dense) -> jax.Array:
    """One loss per row from one label per class."""
    logits, axis, name, where = _logits(given, words)
    labels = _arguments.dense_labels(
        words.labels, given.labels, logits, words.logits, axis, words.indexed, given.where
    )
    options = _options(given, words, logits, axis, name)
    return _soft(logits, labels, *options, where, axis=axis, name=name, op=op)


def class_indices(given: Given, words: Words, op: Callable = indexed) -> jax.Array:
    """One loss per row from one class index per row."""
    ignored = _arguments.index(words.ignored, given.ignored)
    logits, axis, name, where = _logits(given, words)
    classes = logits.shape[axis] * _sharding.shards(name)
    labels, ignored = _arguments.integer_labels(
        words.labels, given.labels, logits, words.logits, axis, ignored, words.dense, classes
    )
    options = _options(given, words, logits, axis, name)
    return _index(logits, labels, *options, where, axis=axis, name=name, ignored=ignored, op=op)


def independent_labels(
    given: Given, words: Words, soft_labels: _arguments.SoftLabels = None, op: Callable | None = None
) -> jax.Array:
    """One loss per logit; `alpha` weighs the positive and ``1 - alpha`` the negative answer.

    The axis is that of options per class.
    """
    ignored = _arguments.index(words.ignored, given.ignored)
    logits = _arguments.floating(words.logits, given.logits)
    kept = None if given.where is None else _arguments.mask("where", given.where, logits, words.logits)
    if ignored is not None:
        counted = ~_arguments.is_ignored(words.labels, given.labels, ignored)
        kept = counted if kept is None else kept & counted
    labels = _arguments.dense_labels(
        words.labels, given.labels, logits, words.logits, logits.ndim, None, kept, highest=1
    )
    axis = given.axis % max(logits.ndim, 1)
    options = _options(given, words, logits, axis, None, binary=True)
    reading = _arguments.soft_labels(soft_labels, given.term)
    op = op or independent.OPERATIONS[reading]
    return _independent(logits, labels, *options, kept, op=op, reading=reading)


def independent_indices(given: Given, words: Words) -> jax.Array:
    """One loss per logit from the indices of the positive classes of each row."""
    ignored = _arguments.index(words.ignored, given.ignored)
    logits, axis, name, where = _logits(given, words)
    classes = logits.shape[axis] * _sharding.shards(name)
    labels, ignored = _arguments.positives(
        words.labels, given.labels, logits, words.logits, axis, ignored, classes
    )
    term, alpha, smoothing = _options(given, words, logits, axis, name, binary=True)
    reading = _arguments.soft_labels(None, given.term)
    static = {"indices": True, "axis": axis, "name": name, "ignored": ignored, "reading": reading}
    op = independent.OPERATIONS[reading]
    return _independent(logits, labels, term, alpha, smoothing, where, op=op, **static)


def _logits(given, words):
    """The logits, their class axis counted from 0, the mesh axis that shards it, and the mask of classes."""
    logits, axis = _arguments.logits(words.logits, given.logits, given.axis)
    name = _arguments.mesh_axis(given.axis_name, logits, words.logits, logits.shape[axis])
    where = None if given.where is None else _arguments.mask("where", given.where, logits, words.logits)
    return logits, axis, name, where


def _options(given, words, logits, axis, name, binary=False):
    """(term, alpha or None, label_smoothing or None) in the dtype of the arithmetic."""
    dtype = wide(logits.dtype)
    classes = logits.shape[axis] * _sharding.shards(name) if logits.ndim else 1
    option = partial(
        _arguments.option, like=logits, like_name=words.logits, axis=axis, dtype=dtype, classes=classes
    )
    term, alpha, smoothing = _arguments.term(given.term, given.gamma, option, binary), given.alpha, None
    if alpha is not None:
        alpha = option("alpha", alpha, highest=1 if binary else math.inf)
    _arguments.scalar_in("label_smoothing", given.label_smoothing, 0, 1)
    value = _arguments.known(given.label_smoothing)
    if value is None or value != 0:
        smoothing = jnp.asarray(given.label_smoothing).astype(dtype)
    return term, alpha, smoothing


@partial(jax.jit, static_argnames=("axis", "name", "op"), inline=True)
def _soft(logits, labels, term, alpha, smoothing, where, *, axis, name, op):
    zeros = _entries.zeros(logits, wide(logits.dtype))
    part = partial(_sharding.part, axis=axis, classes=logits.shape[axis], name=name)
    labels = labels.astype(zeros.dtype) + zeros
    if where is not None:
        labels = jnp.where(where, labels, 0)
    weights = _smoothed(labels, smoothing, where, axis, name) * (1 if alpha is None else part(alpha))
    if where is not None:
        logits, weights = jnp.where(where, logits, -jnp.inf), jnp.where(where, weights, 0)
    return op(logits, weights, _of_entries(term, zeros, part, axis), axis, **_over(name))


@partial(jax.jit, static_argnames=("axis", "name", "ignored", "op"), inline=True)
def _index(logits, labels, term, alpha, smoothing, where, *, axis, name, ignored, op):
    zeros = _entries.zeros(logits, wide(logits.dtype))
    classes = logits.shape[axis] * _sharding.shards(name)
    counted = jnp.ones(labels.shape, bool)
    if ignored is not None:
        counted = labels != jnp.asarray(ignored, labels.dtype)
        labels = jnp.where(counted, labels, 0)  # a class, so that nothing is made of what is none
    if where is not None:
        where = jnp.broadcast_to(where, logits.shape)
        logits = jnp.where(where, logits, -jnp.inf)
        counted &= _sharding.highest(jnp.any(where, axis).astype(jnp.int32), name) > 0
    mine = _sharding.local(labels, logits.shape[axis], name)
    if smoothing is None:
        of_label = partial(_of_class, labels=labels, mine=mine, shape=logits.shape, axis=axis, name=name)
        rows = _sharding.total(jnp.sum(zeros, axis), name) + _entries.zeros(labels, zeros.dtype)
        weights = jnp.where(counted, rows + (1 if alpha is None else of_label(alpha)), 0)
        return op(
            logits, labels, weights, jax.tree.map(lambda x: rows + of_label(x), term), axis, **_over(name)
        )
    part = partial(_sharding.part, axis=axis, classes=logits.shape[axis], name=name)
    own = _entries.is_class(mine, logits.shape, axis)
    weights = _smoothed(own.astype(zeros.dtype) + zeros, smoothing, where, axis, name)
    weights = weights * (1 if alpha is None else part(alpha))
    if where is not None:  # the label's own class has probability 0 there: an infinite loss
        weights = jnp.where(where | own, weights, 0)
    weights = jnp.where(jnp.expand_dims(counted, axis), weights, 0)
    known = (labels >= 0) & (labels < classes)
    return dense(logits, weights, _of_entries(term, zeros, part, axis), axis, name, known)


@partial(jax.jit, static_argnames=("op", "reading", "indices", "axis", "name", "ignored"), inline=True)
def _independent(
    logits,
    labels,
    term,
    alpha,
    smoothing,
    where,
    *,
    op,
    reading,
    indices=False,
    axis=0,
    name=None,
    ignored=None,
):
    labels, indices = (None, labels) if indices else (labels.astype(wide(logits.dtype)), None)
    answers = partial(_answers, axis=axis, name=name, ignored=ignored, reading=reading)
    return op(answers, logits, (indices, where), (labels, term, alpha, smoothing))


def _answers(like, fixed, moving, *, axis, name, ignored, reading):
    """Label, mask and options of each logit."""
    (indices, kept), (labels, term, alpha, smoothing) = fixed, moving
    zeros = _entries.zeros(like, wide(like.dtype))
    if indices is not None:
        mine = _sharding.local(indices, like.shape[axis], name)
        labels = _entries.is_any_class(mine, like.shape, axis).astype(zeros.dtype)
        term, alpha = jax.tree.map(
            partial(_sharding.part, axis=axis, classes=like.shape[axis], name=name), (term, alpha)
        )
        if ignored is not None:
            counted = ~jnp.any(indices == jnp.asarray(ignored, indices.dtype), -1)
            kept = jnp.expand_dims(counted, axis) & (True if kept is None else kept)
    return independent.asked(labels + zeros, kept, 1 + zeros, term, alpha, smoothing, reading)


def _of_entries(term, zeros, part, axis):
    """The term with options that broadcast to the entries; on a mesh they have all but the class axis."""
    if _sharding.is_whole(zeros) and not _sharding.varying(zeros):
        return jax.tree.map(part, term)
    return jax.tree.map(lambda x: part(x) + _like(zeros, part(x), axis), term)


def _smoothed(labels, smoothing, where, axis, name):
    """``y * (1 - s) + s / K`` with K the number of classes that take part."""
    if smoothing is None:
        return labels
    classes = labels.shape[axis] * _sharding.shards(name)
    if where is not None:
        kept = jnp.broadcast_to(where, labels.shape).astype(labels.dtype)
        classes = jnp.maximum(statistics.row_sum(kept, axis, name), 1)
    return labels * (1 - smoothing) + smoothing / classes


def _of_class(option, *, labels, mine, shape, axis, name):
    """The entry of an option that belongs to the label of each row."""
    classes = shape[axis] * _sharding.shards(name)
    of_shards = name is not None and _sharding.varies(option, name)  # also where a shard is a single class
    if option.shape[axis] == 1 and not of_shards:
        return jnp.squeeze(option, axis)
    explicit = AxisType.Explicit in jax.typeof(labels).sharding.mesh.axis_types  # a gather raises there
    if option.size == option.shape[axis] == classes and not (
        explicit or of_shards
    ):  # of [rows] from [C]: nothing large
        return jnp.reshape(option, (classes,))[jnp.clip(labels, 0, classes - 1)]
    own = _entries.is_class(mine, shape, axis)
    option = _sharding.part(option, axis, shape[axis], name)
    return jnp.squeeze(statistics.row_sum(jnp.where(own, option, 0), axis, name), axis)


def _over(name):
    """The last argument of an operation; one on probabilities has none."""
    return {} if name is None else {"name": name}


def _like(zeros, option, axis):
    """Zeros of rows or of logits, as the option needs, in their sharding: its cotangent will have one."""
    return zeros if option.shape[axis] == zeros.shape[axis] else jnp.sum(zeros, axis, keepdims=True)
