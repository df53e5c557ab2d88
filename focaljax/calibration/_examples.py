"""What a batch of examples becomes before it is counted: rows of classes, labels and weights."""

import jax
import jax.numpy as jnp

from focaljax import _arguments, reductions
from focaljax._arguments import Values
from focaljax._exact import wide


def examples(
    x: Values,
    labels: Values,
    sample_weight: Values | None,
    ignored: int | None,
    axis: int,
    names: tuple[str, str, str],
) -> tuple[jax.Array, jax.Array, jax.Array, int]:
    """[N, C] logits or probabilities, [N] labels and [N] weights, NaN for a label outside; and C."""
    name, labels_name, ignored_name = names
    x, labels, sample_weight = _arguments.without_gradient(x, labels, sample_weight)
    x, axis = _arguments.logits(name, x, axis)
    classes = x.shape[axis]
    ignored = _arguments.index(ignored_name, ignored)
    labels, ignored = _arguments.integer_labels(
        labels_name, labels, x, name, axis, ignored, "jax.numpy.argmax", classes
    )
    x = jnp.moveaxis(x.astype(wide(x.dtype)), axis, -1)
    where = reductions.counted(labels, ignored, x[..., 0])
    _, weights = reductions.weigh(x[..., 0], sample_weight, where=where)
    outside = (labels < 0) | (labels >= classes)
    counted = outside if where is None else outside & where
    weights = jnp.where(counted, jnp.nan, weights)
    labels = jnp.where(outside, 0, labels).astype(jnp.int32)
    return x.reshape(-1, classes), labels.reshape(-1), weights.reshape(-1), classes
