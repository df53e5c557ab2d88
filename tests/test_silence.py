"""What weighs nothing changes nothing: values, gradients, and the derivatives of gradients.

Rows without an answer (a label that is no class, NaN or infinite numbers) are taken away in every way that
a user has. The result must be that of harmless numbers in their place, in the forms of CPU and accelerators.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import focaljax
from focaljax import (
    binary_focal_crossentropy,
    categorical_focal_crossentropy,
    linear_softmax_focal_loss,
    reduce_loss,
    sigmoid_focal_loss,
    sigmoid_focal_loss_with_integer_labels,
    softmax_focal_loss,
    softmax_focal_loss_with_integer_labels,
    sparse_categorical_focal_crossentropy,
)

ROWS, CLASSES, WIDTH = 4, 3, 2
HIDDEN = np.array([True, False, False, True])
OUTSIDE = 7  # a label that is no class


class Entrance(NamedTuple):
    """``losses(scores, labels, gamma=, alpha=, ignored=)``, one per row; what may be hidden in a row."""

    losses: Callable[..., jax.Array]
    indices: bool = False
    probabilities: bool = False


def softmax(scores, labels, *, ignored, **options):
    del ignored
    return softmax_focal_loss(scores, labels, **options)


def integer(scores, labels, *, ignored, **options):
    return softmax_focal_loss_with_integer_labels(scores, labels, ignore_index=ignored, **options)


def sigmoid(scores, labels, *, ignored, **options):
    del ignored
    return jnp.sum(sigmoid_focal_loss(scores, labels, **options), -1)


def positives(scores, labels, *, ignored, **options):
    losses = sigmoid_focal_loss_with_integer_labels(scores, labels, ignore_index=ignored, **options)
    return jnp.sum(losses, -1)


def linear(scores, labels, *, ignored, **options):
    """The scores are the inputs of a fixed layer."""
    kernel = jnp.asarray(np.linspace(-1, 1, CLASSES * CLASSES).reshape(CLASSES, CLASSES), jnp.float32)
    return linear_softmax_focal_loss(
        scores, kernel, labels, ignore_index=ignored, reduction=None, chunk=2, z_loss=0.0, **options
    )


def of_keras(function, indices=False):
    def losses(scores, labels, *, ignored, alpha, **options):
        options |= {"ignore_class": ignored} if indices else {}
        return function(labels, scores, alpha=alpha, **options)

    return Entrance(losses, indices, probabilities=True)


ENTRANCES = {
    "softmax": Entrance(softmax),
    "integer": Entrance(integer, True),
    "integer, smoothed": Entrance(functools.partial(integer, label_smoothing=0.1), True),
    **{
        f"sigmoid, {reading}": Entrance(functools.partial(sigmoid, soft_labels=reading))
        for reading in ("mixture", "linear", "quality", "cross_entropy")
    },
    "sigmoid, integer": Entrance(positives, True),
    "categorical": of_keras(categorical_focal_crossentropy),
    "sparse": of_keras(sparse_categorical_focal_crossentropy, True),
    "binary": of_keras(functools.partial(binary_focal_crossentropy, apply_class_balancing=True)),
    **{
        f"linear, {strategy}, {smoothing}": Entrance(
            functools.partial(linear, strategy=strategy, label_smoothing=smoothing), True
        )
        for strategy in ("rows", "classes")
        for smoothing in (0.0, 0.1)
    },
}


# Ways to take the hidden rows out of the sum of the losses.


def by_cotangent(losses, **options):
    """A weight of 0, a mask of the reduction, and a selection: each alone would keep NaN."""
    found = losses(**options)
    weighed = reduce_loss(found, jnp.asarray(~HIDDEN, jnp.float32), "sum")
    return weighed + reduce_loss(found, None, "mean", where=~HIDDEN) + jnp.sum(jnp.where(HIDDEN, 0, found))


def by_alpha(losses, *, alpha, **options):
    rows = jnp.where(HIDDEN[:, None], 0, jnp.broadcast_to(alpha, (ROWS, 1)))
    return jnp.sum(losses(alpha=rows, **options))


def by_index(losses, **options):
    return jnp.sum(losses(ignored=OUTSIDE, **options))


WAYS = (by_cotangent, by_alpha, by_index)


def questions(entrance: Entrance) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(ROWS, CLASSES))
    scores = rng.uniform(0.1, 0.9, scores.shape) if entrance.probabilities else scores
    labels = rng.integers(0, CLASSES, ROWS) if entrance.indices else rng.dirichlet(np.ones(CLASSES), ROWS)
    return jnp.asarray(scores, jnp.float32), jnp.asarray(
        labels, jnp.int32 if entrance.indices else jnp.float32
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def derivatives(entrance: Entrance, way: Callable, scores, labels, floats) -> dict[str, Any]:
    """The sum, its gradients, and the gradients of these: reverse and forward over reverse."""

    def total(scores, floats):
        losses = functools.partial(entrance.losses, scores, labels)
        losses = losses if way is by_index else functools.partial(losses, ignored=None)
        return way(losses, **floats)

    def penalised(scores, floats):
        value, gradients = jax.value_and_grad(total, (0, 1))(scores, floats)
        return value + sum(jnp.sum(x**2) for x in jax.tree.leaves(gradients))

    gradient = functools.partial(jax.grad(total), floats=floats)
    return {
        "value": total(scores, floats),
        "gradient": jax.grad(total, (0, 1))(scores, floats),
        "reverse over reverse": jax.grad(penalised, (0, 1))(scores, floats),
        "forward over reverse": jax.jvp(gradient, (scores,), (jnp.ones_like(scores),))[1],
    }


TWO_FORMS = ("softmax", "integer", "linear")
CASES = [
    (name, way)
    for name, entrance in ENTRANCES.items()
    for way in WAYS
    if entrance.indices or way is not by_index
    if not name.startswith(("sigmoid", "binary"))
    or way is not by_alpha  # there 1 - alpha weighs the other answer
]


def over(cases):
    return pytest.mark.parametrize(
        ("name", "way"), cases, ids=lambda x: x if isinstance(x, str) else x.__name__
    )


@over([case for case in CASES if case[0].startswith(TWO_FORMS)])
def test_what_is_hidden_changes_nothing_in_either_form(form, name, way):
    assert_nothing_changes(name, way)


@over([case for case in CASES if not case[0].startswith(TWO_FORMS)])
def test_what_is_hidden_changes_nothing(name, way):
    assert_nothing_changes(name, way)


def assert_nothing_changes(name, way):
    entrance = ENTRANCES[name]
    scores, labels = questions(entrance)
    floats = {"gamma": jnp.float32(1.5), "alpha": jnp.float32(0.75)}
    if way is by_index:
        labels = jnp.where(HIDDEN, OUTSIDE, labels)
    plain = derivatives(entrance, way, scores, labels, floats)
    chex.assert_tree_all_finite(plain)
    for hidden in (np.nan, np.inf, -np.inf):
        spoiled = jnp.where(HIDDEN[:, None], hidden, scores)
        chex.assert_trees_all_equal(derivatives(entrance, way, spoiled, labels, floats), plain)
        one = spoiled.at[:, 1:].set(scores[:, 1:])  # the others of the row as they were
        chex.assert_trees_all_equal(derivatives(entrance, way, one, labels, floats), plain)
        if entrance.indices:
            for label in (-1, OUTSIDE, CLASSES):
                outside = jnp.where(HIDDEN, OUTSIDE if way is by_index else label, labels)
                chex.assert_trees_all_equal(derivatives(entrance, way, spoiled, outside, floats), plain)
    if entrance.indices:
        outside = jnp.where(HIDDEN, OUTSIDE, labels)
        chex.assert_trees_all_equal(derivatives(entrance, way, scores, outside, floats), plain)


@pytest.mark.parametrize(
    "name", [n for n, entrance in ENTRANCES.items() if entrance.indices and n != "sigmoid, integer"]
)
def test_a_label_that_is_no_class_is_seen_where_it_counts(name):
    entrance = ENTRANCES[name]
    scores, labels = questions(entrance)
    labels = labels.at[0].set(OUTSIDE)
    floats = {"gamma": jnp.float32(1.5), "alpha": jnp.float32(0.75)}

    def losses(scores):
        return entrance.losses(scores, labels, ignored=None, **floats)

    found, gradient = losses(scores), jax.grad(lambda scores: jnp.sum(losses(scores)))(scores)
    assert np.isnan(found[0]) and np.isfinite(found[1:]).all()
    assert np.isfinite(gradient[1:]).all()
    if not entrance.probabilities:  # there the row is a constant NaN
        assert np.isnan(gradient[0]).all()


@pytest.mark.parametrize("sample_weight", [[0.0, 1.0, 1.0, 0.0]])
def test_loss_objects_are_silent_too(sample_weight):
    loss = focaljax.SparseCategoricalFocalCrossentropy(from_logits=True)
    scores, labels = questions(ENTRANCES["integer"])
    plain = jax.value_and_grad(lambda z: loss(labels, z, jnp.array(sample_weight)))(scores)
    outside = jnp.where(HIDDEN, -1, labels)
    chex.assert_trees_all_equal(
        jax.value_and_grad(lambda z: loss(outside, z, jnp.array(sample_weight)))(scores), plain
    )
