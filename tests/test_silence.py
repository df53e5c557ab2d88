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
from conftest import FORMS
from pairs import every_pair

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

ROWS, CLASSES = 4, 3
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
        scores, kernel, labels, ignore_index=ignored, reduction=None, z_loss=0.0, **options
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
            functools.partial(linear, strategy=strategy, label_smoothing=smoothing, chunk=chunk), True
        )
        for strategy in ("rows", "classes")
        for smoothing, chunk in ((0.0, 2), (0.1, 1))  # of three classes: one chunk and a rest, or a loop
    },
}


def summed(losses, counts):
    """A weight of 0, a mask of the reduction, and a selection: each alone would keep NaN."""
    weighed = reduce_loss(losses, counts.astype(jnp.float32), "sum")
    return weighed + reduce_loss(losses, None, "mean", where=counts) + jnp.sum(jnp.where(counts, losses, 0))


def questions(entrance: Entrance) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(ROWS, CLASSES))
    scores = rng.uniform(0.1, 0.9, scores.shape) if entrance.probabilities else scores
    labels = rng.integers(0, CLASSES, ROWS) if entrance.indices else rng.dirichlet(np.ones(CLASSES), ROWS)
    return scores.astype("float32"), labels.astype("int32" if entrance.indices else "float32")


@functools.partial(jax.jit, static_argnums=(0, 1))
def derivatives(entrance: Entrance, by_alpha: bool, scores, labels, floats, counts) -> dict[str, Any]:
    """The sum, its gradients, and the derivatives of these: forward and reverse over reverse."""

    def total(scores, floats):
        alpha, ignored = floats["alpha"], OUTSIDE
        if by_alpha:
            alpha, ignored = jnp.where(HIDDEN[:, None], 0, jnp.broadcast_to(alpha, (ROWS, 1))), None
        return summed(
            entrance.losses(scores, labels, gamma=floats["gamma"], alpha=alpha, ignored=ignored), counts
        )

    gradients = jax.grad(total, (0, 1))
    found, forward = jax.linearize(gradients, scores, floats)
    reverse = jax.linear_transpose(forward, scores, floats)
    return {
        "value and gradient": jax.value_and_grad(total, (0, 1))(scores, floats),
        "forward over reverse": forward(jnp.ones_like(scores), jax.tree.map(jnp.zeros_like, floats)),
        "reverse over reverse": reverse(found),
    }


@every_pair(form=FORMS, name=["softmax", "integer", "integer, smoothed"], by_alpha=[False, True])
def test_what_is_hidden_changes_nothing_in_either_form(form, name, by_alpha):
    assert_nothing_changes(name, by_alpha)


@every_pair(form=FORMS, strategy=["rows", "classes"], smoothing=[0.0, 0.1], by_alpha=[False, True])
def test_what_is_hidden_changes_nothing_in_a_linear_loss(form, strategy, smoothing, by_alpha):
    assert_nothing_changes(f"linear, {strategy}, {smoothing}", by_alpha)


@pytest.mark.parametrize("name", [n for n in ENTRANCES if n.startswith(("sigmoid", "binary"))])
def test_what_is_hidden_changes_nothing_in_independent_classes(name):
    """Not by alpha: ``1 - alpha`` weighs the other answer."""
    assert_nothing_changes(name, by_alpha=False)


@pytest.mark.parametrize("by_alpha", [False, True])
@pytest.mark.parametrize("name", ["categorical", "sparse"])
def test_what_is_hidden_changes_nothing_in_probabilities(name, by_alpha):
    assert_nothing_changes(name, by_alpha)


def assert_nothing_changes(name, by_alpha):
    """Where the hidden rows have the weight 0; or else are not counted, or have the ignored label."""
    entrance = ENTRANCES[name]
    for way in ["alpha"] if by_alpha else ["counts", "label"][: 1 + entrance.indices]:
        scores, labels = questions(entrance)
        labels = np.where(HIDDEN, OUTSIDE, labels) if way == "label" else labels
        floats = {"gamma": jnp.float32(1.5), "alpha": jnp.float32(0.75)}
        counts = ~HIDDEN | (way != "counts")
        of = functools.partial(derivatives, entrance, by_alpha, floats=floats, counts=counts)
        plain = of(scores, labels)
        chex.assert_tree_all_finite(plain)
        for hidden in (np.nan, np.inf, -np.inf):
            spoiled = np.where(HIDDEN[:, None], np.float32(hidden), scores)
            chex.assert_trees_all_equal(of(spoiled, labels), plain)
            one = np.hstack([spoiled[:, :1], scores[:, 1:]])  # the others of the row as they were
            chex.assert_trees_all_equal(of(one, labels), plain)
            if entrance.indices and way != "label":
                for label in (-1, OUTSIDE + 1, CLASSES):
                    chex.assert_trees_all_equal(of(spoiled, np.where(HIDDEN, label, labels)), plain)
        if entrance.indices and way != "label":
            chex.assert_trees_all_equal(of(scores, np.where(HIDDEN, OUTSIDE + 1, labels)), plain)


@pytest.mark.parametrize(
    "name", [n for n, entrance in ENTRANCES.items() if entrance.indices and n != "sigmoid, integer"]
)
def test_a_label_that_is_no_class_is_seen_where_it_counts(name):
    entrance = ENTRANCES[name]
    scores, labels = questions(entrance)
    labels[0] = OUTSIDE

    def total(scores, labels, gamma, alpha):
        losses = entrance.losses(scores, labels, ignored=None, gamma=gamma, alpha=alpha)
        return jnp.sum(losses), losses

    gradient, found = jax.jit(jax.grad(total, has_aux=True))(scores, labels, 1.5, 0.75)
    assert np.isnan(found[0]) and np.isfinite(found[1:]).all()
    assert np.isfinite(gradient[1:]).all()
    if not entrance.probabilities:  # there the row is a constant NaN
        assert np.isnan(gradient[0]).all()


def test_loss_objects_are_silent_too():
    loss = focaljax.SparseCategoricalFocalCrossentropy(from_logits=True)
    scores, labels = questions(ENTRANCES["integer"])
    of = jax.jit(jax.value_and_grad(lambda z, labels: loss(labels, z, (~HIDDEN).astype("float32"))))
    chex.assert_trees_all_equal(of(scores, np.where(HIDDEN, -1, labels)), of(scores, labels))
