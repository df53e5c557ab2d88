"""A batch of examples as rows of classes, labels and weights."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from focaljax import _arguments, reductions
from focaljax._arguments import Values
from focaljax._exact import wide


class Examples(NamedTuple):
    """Of a batch."""

    x: jax.Array  # [..., C], logits or probabilities
    labels: jax.Array  # [...]
    weights: jax.Array


def examples(
    x: Values,
    labels: Values,
    sample_weight: Values | None,
    ignored: int | None,
    axis: int,
    names: tuple[str, str, str],
) -> Examples:
    """Checks a batch and moves the class axis last; the weight of a label outside [0, C) is NaN."""
    name, labels_name, ignored_name = names
    x, labels, sample_weight = _arguments.without_gradient(x, labels, sample_weight)
    x, axis = _arguments.logits(name, x, axis)
    classes = x.shape[axis]
    ignored = _arguments.index(ignored_name, ignored)
    labels, ignored = _arguments.integer_labels(
        labels_name, labels, x, name, axis, ignored, "jax.numpy.argmax", classes
    )
    x = jnp.moveaxis(x.astype(wide(x.dtype)), axis, -1)
    ones = jnp.where(False, labels, 1).astype(x.dtype)  # where the labels lie
    counted = reductions.counted(labels, ignored, ones)
    _, weights = reductions.weigh(ones, sample_weight, where=counted)
    outside = (labels < 0) | (labels >= classes)
    lost = outside if counted is None else outside & counted
    weights = jnp.where(lost, jnp.nan, weights)
    return Examples(x, jnp.where(outside, 0, labels).astype(jnp.int32), weights)


def flat(examples: Examples) -> Examples:
    """The examples flattened to rows."""
    x, labels, weights = examples
    return Examples(x.reshape(-1, x.shape[-1]), labels.reshape(-1), weights.reshape(-1))
