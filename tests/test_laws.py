"""Laws that every loss obeys, each over every loss that it fits."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cases
import chex
import hypothesis
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax
import oracle
import pytest
import tolerances
from absl.testing import parameterized
from hypothesis import strategies as st
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import focaljax
from focaljax import _operands
from focaljax._sigmoid import independent
from focaljax._softmax import cpu_rivals
from focaljax._softmax.dense import dense
from focaljax._softmax.indexed import indexed
from focaljax.terms import Asymmetric, Focal, Poly

ROWS, CLASSES = 6, 5


class Loss(NamedTuple):
    """A loss in one form: ``call(scores, labels, gamma=, alpha=, **options)``."""

    call: Callable[..., jax.Array]
    labels: str  # "soft" [..., C], "index" [...] or "binary" [..., C]
    probabilities: bool = False  # scores in (0, 1) instead of logits


def keras_grammar(function: Callable[..., jax.Array], from_logits: bool, **fixed: Any) -> Callable:
    """A function of the Keras grammar, called as those of the JAX grammar are."""

    def call(scores, labels, *, alpha=None, **options):
        alpha = 0.25 if alpha is None else alpha
        return function(labels, scores, alpha=alpha, from_logits=from_logits, **fixed, **options)

    return call


def _losses() -> dict[str, Loss]:
    """The six operations; the Keras grammar from logits is the JAX grammar (tested below)."""
    return {
        "softmax": Loss(focaljax.softmax_focal_loss, "soft"),
        "integer": Loss(focaljax.softmax_focal_loss_with_integer_labels, "index"),
        "sigmoid": Loss(focaljax.sigmoid_focal_loss, "binary"),
        "categorical": Loss(CATEGORICAL(False), "soft", True),
        "sparse": Loss(SPARSE(False), "index", True),
        "binary": Loss(BINARY(False), "binary", True),
    }


CATEGORICAL, SPARSE, BINARY = (
    functools.partial(keras_grammar, focaljax.categorical_focal_crossentropy),
    functools.partial(keras_grammar, focaljax.sparse_categorical_focal_crossentropy),
    functools.partial(keras_grammar, focaljax.binary_focal_crossentropy, apply_class_balancing=True),
)
LOSSES = _losses()
DENSE, INTEGER, SIGMOID = LOSSES["softmax"], LOSSES["integer"], LOSSES["sigmoid"]
OPERATIONS = {"softmax": DENSE, "integer": INTEGER, "sigmoid": SIGMOID}
SOFTMAX = {name: loss for name, loss in LOSSES.items() if loss.labels != "binary"}
MASKED = {"softmax": DENSE, "integer": INTEGER}  # those with a `where`


def over(losses: dict[str, Loss]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("loss", losses.values(), ids=losses)


def draw(loss: Loss, shape=(ROWS, CLASSES), dtype=jnp.float32, seed=0) -> tuple[jax.Array, jax.Array]:
    """Scores of `shape`, classes last, and labels that fit them."""
    rng = np.random.default_rng(seed)
    scores = 3 * rng.normal(size=shape)
    if loss.probabilities:
        scores = 0.02 + 0.96 / (1 + np.exp(-scores))
    if loss.labels == "index":
        labels = rng.integers(0, shape[-1], shape[:-1])
        return jnp.asarray(scores, dtype), jnp.asarray(labels, jnp.int32)
    if loss.labels == "soft":
        labels = rng.dirichlet(np.ones(shape[-1]), shape[:-1])
        labels[..., 0] = 0  # a class without a label in every row
    else:
        labels = rng.choice([0.0, 1.0, 0.3], shape)
    return jnp.asarray(scores, dtype), jnp.asarray(labels, jnp.float32)


def option(shape=(), low=0.2, high=2.0, seed=1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).uniform(low, high, shape), jnp.float32)


def per_class(loss: Loss, seed=1) -> jax.Array:
    """A weight for each class; those of independent labels lie in [0, 1]."""
    return option(CLASSES, 0.1, 0.9 if loss.labels == "binary" else 2.0, seed)


STATIC = ("loss", "axis", "label_smoothing", "ignore_index", "ignore_class")


def gradients(loss: Loss, scores, labels, **options) -> dict[str, jax.Array]:
    """The losses, and the gradients of their sum by everything that floats.

    The losses are weighed by `weights`, or by numbers that differ, before they are added. Without
    other options there are one gamma and an alpha per class.
    """
    return jitted(loss, scores, labels, **standard(loss, options))


def standard(loss: Loss, options: dict[str, Any]) -> dict[str, Any]:
    return {"gamma": option(), "alpha": per_class(loss)} | options


def eager(loss: Loss, scores, labels, *, gamma, alpha, weights=None, **options) -> dict[str, jax.Array]:
    """`gradients` without a `jax.jit` around it."""
    floats = {"scores": scores, "gamma": gamma, "alpha": alpha}
    if jnp.issubdtype(labels.dtype, jnp.floating):
        floats["labels"] = labels

    def total(floats):
        given = {"labels": labels} | floats
        losses = loss.call(given.pop("scores"), given.pop("labels"), **given, **options)
        factors = distinct(losses) if weights is None else weights
        return jnp.sum(losses * factors.astype(losses.dtype)), losses

    found, losses = jax.grad(total, has_aux=True)(floats)
    return {"losses": losses} | found


jitted = jax.jit(eager, static_argnames=STATIC)


def distinct(losses: jax.Array) -> jax.Array:
    """A positive weight for each loss, different along the first axis."""
    first = losses.shape[0] if losses.ndim else 1
    steps = jnp.asarray(np.linspace(0.5, 2.0, first), losses.dtype)
    return jnp.broadcast_to(steps.reshape((-1,) + (1,) * (losses.ndim - 1)), (first, *losses.shape[1:]))


def assert_same(actual: Any, desired: Any, *, gamma=2.0, axis: int = -1) -> None:
    """Both trees hold the same numbers, computed by one formula.

    A gradient by scores adds terms of both signs, it is judged by the largest of its row; those by
    alpha and labels may be differences of losses, which are near 1.
    """
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, desired)
    want = dict(jax.tree_util.tree_leaves_with_path(desired))
    for path, got in jax.tree_util.tree_leaves_with_path(actual):
        name = jax.tree_util.keystr(path)
        truth = np.asarray(want[path])
        size = np.abs(truth.astype(np.float64))
        if "scores" in name and truth.ndim:
            size = size.max(axis, keepdims=True)
        elif "alpha" in name or "labels" in name:
            size = np.maximum(size, 1.0)
        wide = jnp.float64 if truth.dtype == np.float64 else jnp.float32
        tolerances.assert_close(
            got,
            truth,
            rtol=tolerances.rtol("same", gamma, wide, truth.dtype),
            scale=size,
            label=name,
        )


# What the formula says.


@over({name: loss for name, loss in SOFTMAX.items() if loss.labels == "soft"})
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_linear_in_labels(loss, smoothing):
    scores, first = draw(loss)
    _, second = draw(loss, seed=7)

    def losses(labels):
        return loss.call(scores, labels, gamma=0.5, alpha=per_class(loss), label_smoothing=smoothing)

    # 0.25 + 0.75 = 1: smoothing adds the same to each side.
    mixed = losses(0.25 * first + 0.75 * second)
    assert_same(mixed, 0.25 * losses(first) + 0.75 * losses(second))


@over({name: loss for name, loss in SOFTMAX.items() if not loss.probabilities})
@pytest.mark.parametrize("shift", [64.0, -1024.0])
def test_a_common_shift_changes_nothing(monkeypatch, loss, shift):
    scores, labels = draw(loss)
    scores = jnp.round(scores * 8) / 8  # so that scores + shift is exact

    def both():
        jax.clear_caches()  # the choice of the reduction is made while tracing
        return [gradients(loss, x, labels) for x in (scores + shift, scores)]

    assert_same(*both())  # shares count from 0, which does not move; on CPU the sums of integer labels too
    monkeypatch.setattr(cpu_rivals, "_is_counted", lambda logits, axis: False)
    moved, plain = both()
    assert_same(moved.pop("scores"), plain.pop("scores"))
    chex.assert_trees_all_equal(moved, plain)  # below a maximum the rest does not move by a bit
    jax.clear_caches()


@over({name: loss for name, loss in SOFTMAX.items() if loss.probabilities})
def test_a_common_factor_changes_no_probability(loss):
    scores, labels = draw(loss)
    double, single = (gradients(loss, factor * scores, labels) for factor in (2, 1))
    double["scores"] = 2 * double["scores"]  # of a power of two: exact
    chex.assert_trees_all_equal(double, single)


@over({name: loss for name, loss in LOSSES.items() if loss.labels == "binary"})
def test_yes_and_no_change_places(loss):
    scores, labels = draw(loss)
    opposite = 1 - scores if loss.probabilities else -scores
    mirrored = gradients(loss, opposite, 1 - labels, alpha=jnp.float32(0.25))
    plain = gradients(loss, scores, labels, alpha=jnp.float32(0.75))
    for name in ("scores", "alpha", "labels"):
        mirrored[name] = -mirrored[name]
    # 1 - p and 1 - y are rounded, and d/d(alpha, labels) are differences of such terms.
    chex.assert_trees_all_close(mirrored, plain, rtol=1e-5, atol=1e-5)


@over(LOSSES)
def test_order_of_classes_is_free(loss):
    scores, labels = draw(loss)
    order = np.array([3, 0, 4, 1, 2])
    permuted = np.argsort(order)[labels] if loss.labels == "index" else labels[:, order]
    options = {"gamma": option(CLASSES), "alpha": per_class(loss)}
    plain = gradients(loss, scores, labels, **options)
    moved = gradients(
        loss,
        scores[:, order],
        jnp.asarray(permuted, labels.dtype),
        **{name: value[order] for name, value in options.items()},
    )
    back = {name: x if name == "losses" else x[..., np.argsort(order)] for name, x in moved.items()}
    if loss is SIGMOID:
        back["losses"] = moved["losses"][:, np.argsort(order)]
    assert_same(back, plain)


@over(LOSSES)
def test_order_of_examples_is_free(loss):
    scores, labels = draw(loss)
    order = np.array([3, 0, 5, 1, 4, 2])
    options = {"gamma": option((ROWS, 1)), "alpha": option((ROWS, 1), 0.1, 0.9, 2)}
    options["weights"] = distinct(jnp.zeros((ROWS, CLASSES) if loss is SIGMOID else ROWS))
    plain = gradients(loss, scores, labels, **options)
    moved = gradients(loss, scores[order], labels[order], **{k: v[order] for k, v in options.items()})
    assert_same(jax.tree.map(lambda x: x[np.argsort(order)], moved), plain)


@pytest.mark.parametrize(
    ("loss", "axis"),
    [(loss, 0) for loss in LOSSES.values() if loss is not SIGMOID] + [(DENSE, -2), (INTEGER, 1)],
)
def test_classes_may_lie_on_any_axis(loss, axis):
    scores, labels = draw(loss, (2, 3, CLASSES))
    options = {"gamma": option(CLASSES), "alpha": per_class(loss)}
    plain = gradients(loss, scores, labels, **options)
    weights = distinct(plain["losses"])

    inner = {"scores": scores} | ({} if loss.labels == "index" else {"labels": labels})
    turned = {"labels": labels} | {k: jnp.moveaxis(x, -1, axis) for k, x in inner.items()}
    moved = gradients(loss, **turned, weights=weights, axis=axis, **options)
    back = moved | {k: jnp.moveaxis(moved[k], axis, -1) for k in inner}
    assert_same(back, plain)


# Masks.


def kept(loss: Loss, labels, keep):
    """The labels of the classes in `keep` alone; class indices are counted anew."""
    if loss.labels == "index":
        return jnp.asarray(np.searchsorted(keep, labels), labels.dtype)
    return labels[..., keep]


@over(MASKED)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_where_deletes_classes(loss, smoothing):
    keep = np.array([0, 2, 3])
    where = np.isin(np.arange(CLASSES), keep)
    scores, labels = draw(loss)
    labels = jnp.asarray(keep)[labels % 3].astype(labels.dtype) if loss.labels == "index" else labels
    gamma, alpha = option(CLASSES), per_class(loss)
    masked = gradients(
        loss, scores, labels, gamma=gamma, alpha=alpha, where=where[None], label_smoothing=smoothing
    )
    deleted = gradients(
        loss,
        scores[:, keep],
        kept(loss, labels, keep),
        gamma=gamma[keep],
        alpha=alpha[keep],
        label_smoothing=smoothing,
    )
    losses = masked.pop("losses")
    assert_same(losses, deleted.pop("losses"))
    assert_same({name: x[..., keep] for name, x in masked.items()}, deleted)
    for name, x in masked.items():
        np.testing.assert_array_equal(x[..., ~where], 0, err_msg=name)


@over(MASKED)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_where_of_each_row(loss, smoothing):
    scores, labels = draw(loss)
    where = np.random.default_rng(3).random(scores.shape) < 0.6
    if loss.labels == "index":
        where[np.arange(ROWS), labels] = True
    where[-1] = False
    masked = loss.call(scores, labels, where=where, label_smoothing=smoothing)
    hot = np.eye(CLASSES)[labels] if loss.labels == "index" else np.float64(labels)
    for row in range(ROWS - 1):
        z, y = np.float64(scores)[row, where[row]], hot[row, where[row]]
        weights = y * (1 - smoothing) + smoothing / len(z)
        truth = oracle.softmax_focal(z, weights, 2.0).value
        tolerances.assert_close(masked[row], truth, rtol=tolerances.rtol("value", 2.0))
    assert masked[-1] == 0  # a row without a class


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_label_on_a_removed_class_is_impossible(smoothing):
    """One rule for class indices: that class has the probability 0. A row without any class has no loss."""
    scores, labels = draw(INTEGER)
    where = (np.arange(CLASSES) != np.asarray(labels)[:, None]) & (np.arange(ROWS) > 0)[:, None]
    found = gradients(INTEGER, scores, labels, where=jnp.asarray(where), label_smoothing=smoothing)
    np.testing.assert_array_equal(found["losses"], np.where(np.arange(ROWS) > 0, np.inf, 0))
    assert np.isfinite(found["scores"]).all()


@over(MASKED)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("hidden", [np.nan, np.inf, -np.inf])
def test_what_is_masked_is_silent(loss, smoothing, hidden):
    scores, labels = draw(loss)
    where = np.random.default_rng(3).random(scores.shape) < 0.6
    if loss.labels == "index":
        where[np.arange(ROWS), labels] = True
    where[-1] = False
    options = {"where": where, "label_smoothing": smoothing}
    plain = gradients(loss, scores, labels, **options)
    spoiled = jnp.where(where, scores, hidden)
    marked = labels if loss.labels == "index" else jnp.where(where, labels, hidden)
    chex.assert_trees_all_equal(gradients(loss, spoiled, marked, **options), plain)
    assert all(np.isfinite(x).all() for x in plain.values())


@over({name: loss for name, loss in LOSSES.items() if loss.labels == "index"})
@pytest.mark.parametrize("ignored", [-1, 2])
@pytest.mark.parametrize("hidden", [np.nan, np.inf, 0.0])
def test_what_is_ignored_is_silent(loss, ignored, hidden):
    scores, labels = draw(loss)
    word = "ignore_index" if loss is INTEGER else "ignore_class"  # each grammar has its own
    rows = np.arange(ROWS) % 3 == 0
    labels = jnp.where(rows, ignored, jnp.where(labels == 2, 1, labels))
    options = {word: ignored, "gamma": option(CLASSES)}
    plain = gradients(loss, scores, labels, **options)
    spoiled = jnp.where(rows[:, None], hidden, scores)
    chex.assert_trees_all_equal(gradients(loss, spoiled, labels, **options), plain)
    assert all(np.isfinite(x).all() for x in plain.values())
    np.testing.assert_array_equal(plain["losses"][rows], 0)
    np.testing.assert_array_equal(plain["scores"][rows], 0)

    rest = gradients(
        loss,
        scores[~rows],
        labels[~rows],
        gamma=options["gamma"],
        weights=distinct(plain["losses"])[~rows],
    )
    chosen = {name: x[~rows] if name in ("losses", "scores") else x for name, x in plain.items()}
    assert_same(chosen, rest)


@over(LOSSES)
@pytest.mark.parametrize("hidden", [np.nan, np.inf])
def test_weight_zero_is_silent(loss, hidden):
    # The answer that weighs 0 is that of label 1 under alpha = 0, of any label in a softmax.
    scores, labels = draw(loss)
    labels = jnp.ones_like(labels) if loss.labels == "binary" else labels
    rows = np.arange(ROWS) % 3 == 0
    alpha = jnp.where(rows[:, None], 0.0, option((ROWS, 1), 0.1, 0.9))
    gamma = option((ROWS, 1))
    spoiled = jnp.where(rows[:, None], hidden, scores)
    plain, silent = (gradients(loss, x, labels, alpha=alpha, gamma=gamma) for x in (scores, spoiled))
    for name in ("losses", "scores", "gamma"):  # by alpha the spoiled number itself is asked for
        np.testing.assert_array_equal(silent[name], plain[name], err_msg=name)


def test_dead_classes_without_a_label_are_silent():
    scores, labels = draw(DENSE)
    scores = scores.at[:, 0].set(-jnp.inf)
    found = gradients(DENSE, scores, labels)
    del found["labels"]  # a label on a class of probability 0 costs infinity
    live = gradients(DENSE, scores[:, 1:], labels[:, 1:], alpha=per_class(DENSE)[1:])
    assert found["alpha"][0] == 0
    assert_same(found["losses"], live["losses"])
    assert_same(found["alpha"][1:], live["alpha"])
    assert_same({"scores": found["scores"][:, 1:]}, {"scores": live["scores"]})


# One loss is another.


@pytest.mark.parametrize(
    ("shape", "smoothing", "masked"),
    [
        ((CLASSES,), 0.0, False),
        ((ROWS, CLASSES), 0.0, True),
        ((ROWS, 1), 0.1, False),
        ((CLASSES,), 0.1, True),
    ],
)
def test_integer_labels_are_one_hot_labels(shape, smoothing, masked):
    scores, labels = draw(INTEGER)
    hot = jax.nn.one_hot(labels, CLASSES)
    options = {"gamma": option(shape), "alpha": option(shape, seed=2), "label_smoothing": smoothing}
    if masked:
        options["where"] = jnp.asarray(np.arange(CLASSES) != 3)[None] | (hot == 1)
    found = gradients(INTEGER, scores, labels, **options)
    wanted = gradients(DENSE, scores, hot, **options)
    del wanted["labels"]
    assert_same(found, wanted)


def test_sparse_is_categorical():
    scores, labels = draw(LOSSES["sparse"])
    options = {"gamma": option((ROWS, 1)), "alpha": option(CLASSES, seed=2)}
    found = gradients(LOSSES["sparse"], scores, labels, **options)
    wanted = gradients(LOSSES["categorical"], scores, jax.nn.one_hot(labels, CLASSES), **options)
    del wanted["labels"]
    assert_same(found, wanted)


@pytest.mark.parametrize(("keras", "loss"), [(CATEGORICAL, DENSE), (SPARSE, INTEGER), (BINARY, SIGMOID)])
def test_keras_grammar_from_logits_is_the_jax_grammar(keras, loss):
    scores, labels = draw(loss)
    options = {"gamma": option(CLASSES), "alpha": per_class(loss)}
    found = gradients(loss._replace(call=keras(True)), scores, labels, **options)
    weights = distinct(found["losses"])
    if loss is SIGMOID:  # one loss per example there, their mean over the classes
        weights = jnp.broadcast_to(weights[:, None] / CLASSES, scores.shape)
    wanted = gradients(loss, scores, labels, weights=weights, **options)
    if loss is SIGMOID:
        wanted["losses"] = wanted["losses"].mean(1)
    assert_same(found, wanted)


@over({name: loss for name, loss in LOSSES.items() if loss.labels != "index"})
@pytest.mark.parametrize("dtype", [jnp.bool_, jnp.uint8, jnp.int32, jnp.bfloat16])
def test_labels_of_any_dtype(loss, dtype):
    scores, _ = draw(loss)
    hot = jax.nn.one_hot(np.arange(ROWS) % CLASSES, CLASSES)
    np.testing.assert_array_equal(
        loss.call(scores, hot.astype(dtype), gamma=0.5), loss.call(scores, hot, gamma=0.5)
    )


@over({name: loss for name, loss in LOSSES.items() if loss.labels == "index"})
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint32, np.int64, np.uint64])
def test_indices_of_any_dtype(loss, dtype):
    scores, labels = draw(loss, (ROWS, 200))  # more classes than int8 has
    labels = np.asarray(labels) % 100
    plain = loss.call(scores, jnp.asarray(labels), gamma=0.5)
    np.testing.assert_array_equal(loss.call(scores, labels.astype(dtype), gamma=0.5), plain)
    with jax.enable_x64(True):
        wide = loss.call(scores, jnp.asarray(labels.astype(dtype)), gamma=0.5)
    np.testing.assert_array_equal(wide, plain)


@over(LOSSES)
def test_two_keys_one_number(loss):
    """A Python number, a NumPy scalar and an array of one number are the same option."""
    scores, labels = draw(loss)
    plain = loss.call(scores, labels, gamma=2.0, alpha=0.5)
    for kind in (float, np.float32, np.float64, np.asarray, jnp.float32, jnp.bfloat16):
        np.testing.assert_array_equal(loss.call(scores, labels, gamma=kind(2), alpha=kind(0.5)), plain)
    np.testing.assert_array_equal(loss.call(scores, labels, gamma=2, alpha=[0.5]), plain)


# gamma = 0 and alpha = 1 is the cross-entropy.


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradient(function, *operands):
    """Losses, and the gradient of their sum by the scores, the first operand."""
    by_scores = jax.grad(lambda *x: jnp.sum(function(*x)))(*operands)
    return {"losses": function(*operands), "scores": by_scores}


@pytest.mark.parametrize(
    ("loss", "theirs"),
    [
        (DENSE, optax.softmax_cross_entropy),
        (INTEGER, optax.softmax_cross_entropy_with_integer_labels),
        (SIGMOID, optax.sigmoid_binary_cross_entropy),
    ],
)
def test_gamma_zero_is_optax(loss, theirs):
    scores, labels = draw(loss)
    wanted = value_and_gradient(theirs, scores, labels)
    for alpha in (None,) if loss is SIGMOID else (None, 1.0):
        ours = functools.partial(loss.call, gamma=0.0, alpha=alpha)
        assert_same(value_and_gradient(ours, scores, labels), wanted)


@pytest.mark.parametrize("alpha", [None, 0.25])
def test_sigmoid_is_optax(alpha):
    scores, labels = draw(SIGMOID)

    def ours(scores, labels, gamma):
        return SIGMOID.call(scores, labels, gamma=gamma, alpha=alpha)

    def theirs(scores, labels, gamma):
        return optax.sigmoid_focal_loss(scores, labels, alpha=alpha, gamma=gamma)

    for gamma in (1.0, 2.0, 5.0):
        operands = (scores, labels, jnp.float32(gamma))
        # Optax takes 1 - p_t of a rounded p_t: off by 2^13 u / 2 at logits of 9, times gamma.
        chex.assert_trees_all_close(
            value_and_gradient(ours, *operands),
            value_and_gradient(theirs, *operands),
            rtol=2e-4 * (1 + gamma),
            atol=1e-7,
        )


# Transformations.


@pytest.mark.versions
class Variants(chex.TestCase):
    """With `jax.jit`, or with arrays on the device or in NumPy, what comes without."""

    @chex.variants(with_jit=True, with_device=True, without_device=True)
    @parameterized.named_parameters(LOSSES.items())
    def test_variants(self, loss):
        def losses(*operands):
            scores, labels, gamma, alpha = operands
            return loss.call(scores, labels, gamma=gamma, alpha=alpha)

        operands = (*draw(loss), option(), per_class(loss))
        assert_same(jax.device_get(self.variant(losses)(*operands)), jax.device_get(losses(*operands)))


@over(LOSSES)
@pytest.mark.versions
def test_vmap_over_examples_is_the_batch(loss):
    scores, labels = draw(loss)
    batch = gradients(loss, scores, labels)
    weights = distinct(batch["losses"])
    rows = jax.vmap(lambda *row: gradients(loss, *row[:2], weights=row[2]))(scores, labels, weights)
    for name in ("gamma", "alpha"):
        rows[name] = jnp.sum(rows[name], 0)
    assert_same(rows, batch)


@over(LOSSES)
@pytest.mark.versions
def test_vmap_over_options_is_a_loop(loss):
    operands = draw(loss)
    gammas, alphas = option(2), jnp.stack([per_class(loss, seed) for seed in range(2)])

    def one(gamma, alpha):
        return gradients(loss, *operands, gamma=gamma, alpha=alpha)

    mapped = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(gammas, alphas)
    for i, gamma in enumerate(gammas):
        for j, alpha in enumerate(alphas):
            assert_same(jax.tree.map(lambda x, i=i, j=j: x[i, j], mapped), one(gamma, alpha))


@over(LOSSES)
@pytest.mark.versions
def test_scan_is_the_batch(loss):
    """Row by row with a gamma that is carried along: the batch with a gamma per example."""
    operands = draw(loss)
    steps = jnp.asarray(1.5 ** np.arange(ROWS), jnp.float32)[:, None]

    def scanned(scores, labels, *, gamma, alpha):
        def step(gamma, row):
            return gamma * 1.5, loss.call(*row, gamma=gamma, alpha=alpha[0])

        return lax.scan(step, gamma, (scores, labels))[1]

    alpha = jnp.broadcast_to(per_class(loss)[:1], (ROWS, 1))
    found = gradients(loss._replace(call=scanned), *operands, alpha=alpha)
    wanted = gradients(loss, *operands, gamma=option() * steps, alpha=alpha)
    wanted["gamma"] = jnp.sum(wanted["gamma"] * steps)
    wanted["alpha"] = jnp.zeros((ROWS, 1)).at[0].set(jnp.sum(wanted["alpha"]))
    assert_same(found, wanted, gamma=float(option() * steps.max()))


@over(OPERATIONS)
@pytest.mark.versions
def test_checkpoint_changes_nothing(loss):
    operands = draw(loss)
    found = gradients(loss._replace(call=jax.checkpoint(loss.call)), *operands)
    assert_same(found, gradients(loss, *operands))


def on_mesh(mesh, operands, specs):
    return [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(operands, specs, strict=True)]


DATA, ALL = P("data"), P()


@over(LOSSES)
@pytest.mark.versions
def test_gradients_inside_shard_map(loss, mesh):
    """The default shard_map; replicated options get the gradient of the whole batch."""
    scores, labels = draw(loss, (2 * jax.device_count(), CLASSES))
    plain = gradients(loss, scores, labels)
    specs = {"losses": DATA, "scores": DATA, "labels": DATA, "gamma": ALL, "alpha": ALL}
    inputs = (DATA, DATA, ALL, ALL, DATA)

    def local(z, y, g, a, w):
        return eager(loss, z, y, gamma=g, alpha=a, weights=w)

    outputs = {name: specs[name] for name in plain}
    function = jax.shard_map(local, mesh=mesh, in_specs=inputs, out_specs=outputs)
    operands = (scores, labels, option(), per_class(loss), distinct(plain["losses"]))
    assert_same(jax.jit(function)(*on_mesh(mesh, operands, inputs)), plain)


@over(OPERATIONS)
@pytest.mark.versions
def test_gradients_through_shard_map(loss, mesh):
    """Differentiated from outside, with options per class and per example."""
    n = 2 * jax.device_count()
    scores, labels = draw(loss, (n, CLASSES))
    options = {"gamma": option(CLASSES), "alpha": option((n, 1), 0.1, 0.9)}
    plain = gradients(loss, scores, labels, **options)
    inputs = (DATA, DATA, ALL, DATA)

    def local(z, y, g, a):
        return loss.call(z, y, gamma=g, alpha=a)

    sharded = jax.shard_map(local, mesh=mesh, in_specs=inputs, out_specs=DATA)
    wrapped = loss._replace(call=lambda z, y, *, gamma, alpha: sharded(z, y, gamma, alpha))
    operands = (scores, labels, *options.values(), distinct(plain["losses"]))
    z, y, g, a, w = on_mesh(mesh, operands, (*inputs, DATA))
    assert_same(gradients(wrapped, z, y, gamma=g, alpha=a, weights=w), plain)


@over(OPERATIONS)
@pytest.mark.versions
def test_sharded_examples(loss, mesh):
    """Without shard_map, the shardings found by the compiler or explicit."""
    scores, labels = draw(loss, (2 * jax.device_count(), CLASSES))
    plain = gradients(loss, scores, labels)
    operands = (scores, labels, option(), per_class(loss), distinct(plain["losses"]))
    z, y, g, a, w = on_mesh(mesh, operands, (DATA, DATA, ALL, ALL, DATA))
    found = gradients(loss, z, y, gamma=g, alpha=a, weights=w)
    for name in ("losses", "scores"):
        assert found[name].sharding.is_equivalent_to(z.sharding, found[name].ndim)
    assert_same(found, plain)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.versions
def test_every_value_is_one_trace(label_smoothing):
    """Numbers of any kind reach the operation as one type: its program is built once."""
    chex.clear_trace_counter()
    scores, labels = draw(DENSE)
    indices, answers = draw(INTEGER)[1], draw(SIGMOID)[1]
    mixture = independent.OPERATIONS["mixture"]
    counted = {op: chex.assert_max_traces(op, n=1) for op in (dense, indexed, mixture)}
    words = _operands.Words("logits", "labels", "", "")
    for x in (1, 2.0, np.float32(0.5), np.float64(0.25), jnp.float32(1.5), jnp.asarray(2)):
        given = _operands.Given(scores, labels, x, None, x * 0.25, label_smoothing)
        _operands.soft_labels(given, words, counted[dense])
        _operands.independent_labels(given._replace(labels=answers), words, op=counted[mixture])
        # With smoothing, indices become labels.
        plain = given._replace(labels=indices, label_smoothing=0.0)
        _operands.class_indices(plain, words, counted[indexed])


@over(LOSSES)
def test_a_schedule_is_one_trace(loss):
    chex.clear_trace_counter()
    scores, labels = draw(loss)
    once = jax.jit(chex.assert_max_traces(loss.call, n=1))
    for step in range(4):
        once(scores, labels, gamma=jnp.float32(step), alpha=per_class(loss, seed=step))


@over({name: LOSSES[name] for name in ("softmax", "integer", "categorical")})
def test_label_smoothing_is_one_trace_with_a_gradient(loss):
    chex.clear_trace_counter()
    scores, labels = draw(loss)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def total(smoothing):
        return jnp.sum(loss.call(scores, labels, label_smoothing=smoothing))

    losses = [total(jnp.float32(s)) for s in (0.0, 0.25, 0.5)]
    # Linear in the labels is linear in the smoothing: the middle is the mean, the slope too.
    assert_same(losses[1], (losses[0] + losses[2]) / 2)
    slope = jax.grad(total)(jnp.float32(0.25))
    size = abs(losses[0]) + abs(losses[2])  # the slope is a difference of these
    tolerances.assert_close(
        slope, 2 * (losses[2] - losses[0]), rtol=tolerances.rtol("same", 2.0), scale=4 * size
    )


# Types.


@over(LOSSES)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_dtypes(loss, dtype):
    scores, labels = draw(loss, dtype=dtype)
    found = gradients(loss, scores, labels)
    assert {name: x.dtype for name, x in found.items()} == {
        name: jnp.dtype(dtype if name == "scores" else jnp.float32) for name in found
    }
    # The same question in float32: only the gradient by the logits is rounded.
    wide = gradients(loss, scores.astype(jnp.float32), labels)
    wide["scores"] = wide["scores"].astype(dtype)
    assert_same(found, wide)


@over(LOSSES)
@pytest.mark.versions
def test_float64(loss):
    scores, labels = draw(loss)
    with jax.enable_x64(True):
        wide_scores = scores.astype(jnp.float64)
        wide = gradients(loss, wide_scores, labels)
        assert wide["losses"].dtype == wide["scores"].dtype == jnp.float64
        narrow = gradients(loss, scores, labels)
    assert narrow["losses"].dtype == narrow["scores"].dtype == jnp.float32
    plain = gradients(loss, scores, labels)
    assert_same(narrow, plain)  # what x64 allows changes nothing for float32
    # float32 is right to its own precision: judged by float64 as the truth.
    for name in ("losses", "gamma"):
        tolerances.assert_close(plain[name], wide[name], rtol=tolerances.rtol("value", 2.0))


# Gradients by the options, against the oracle.


@pytest.mark.parametrize("shape", [(), (CLASSES,), (ROWS, 1), (ROWS, CLASSES)])
@pytest.mark.parametrize("loss", [DENSE, INTEGER], ids=["softmax", "integer"])
def test_gradients_by_options_are_the_oracles(loss, shape):
    scores, labels = draw(loss)
    gamma, alpha = option(shape), option(shape, seed=2)
    found = gradients(loss, scores, labels, gamma=gamma, alpha=alpha)
    weights = np.float64(distinct(found["losses"]))[:, None]
    hot = np.float64(jax.nn.one_hot(labels, CLASSES) if loss is INTEGER else labels)
    truth = oracle.batch(scores, np.float64(alpha) * hot, gamma)
    wanted = {
        "gamma": (truth.grad_gammas * weights, "gradient_gamma"),
        "alpha": (truth.grad_weights * hot * weights, "gradient_weights"),
    }
    for name, (each, quantity) in wanted.items():
        total = each.sum(tuple(range(2 - len(shape))))
        if shape == (ROWS, 1):
            total = total.sum(1, keepdims=True)
        # One sign each: the sum has the tolerance of its terms, and `same` for its own roundings.
        rtol = tolerances.rtol(quantity, 2.0) + tolerances.rtol("same", 2.0)
        tolerances.assert_close(found[name], total, rtol=rtol, label=name)
    if loss is DENSE:
        by_labels = np.float64(jnp.broadcast_to(alpha, hot.shape)) * truth.grad_weights * weights
        rtol = tolerances.rtol("gradient_weights", 2.0) + tolerances.rtol("same", 2.0)
        tolerances.assert_close(found["labels"], by_labels, rtol=rtol, label="labels")


@pytest.mark.parametrize("shape", [(), (CLASSES,), (ROWS, 1)])
def test_gradients_by_options_of_independent_labels_are_the_oracles(shape):
    scores, labels = draw(SIGMOID)
    gamma, alpha = option(shape), option(shape, 0.1, 0.9, 2)
    found = gradients(SIGMOID, scores, labels, gamma=gamma, alpha=alpha)
    weights = np.float64(distinct(found["losses"]))
    y, a = np.float64(labels), np.float64(alpha)
    truth = oracle.sigmoid_focal(scores, y, gamma)
    weigh = a * y + (1 - a) * (1 - y)
    wanted = {
        "gamma": (truth.grad_gamma * weigh * weights, None),
        "alpha": (truth.value * (2 * y - 1) * weights, truth.value * weights),
        "labels": ((truth.value * (2 * a - 1) + truth.grad_y * weigh) * weights, "each"),
    }
    for name, (each, scale) in wanted.items():
        if name == "labels":
            size = (truth.value + truth.scale_y * weigh) * weights
        else:
            size = np.abs(each) if scale is None else scale
            each, size = (
                x if x.shape == shape else x.sum(1, keepdims=True) if len(shape) == 2 else x.sum(0)
                for x in (each, size)
            )
            each, size = (x if x.shape == shape else x.sum() for x in (each, size))
        rtol = tolerances.rtol("gradient_gamma", 2.0) + tolerances.rtol("same", 2.0)
        tolerances.assert_close(found[name], each, rtol=rtol, scale=size, label=name)


@pytest.mark.parametrize("loss", [DENSE, INTEGER], ids=["softmax", "integer"])
def test_a_weight_of_zero_keeps_its_derivative(loss):
    scores, labels = draw(loss)
    hot = np.float64(jax.nn.one_hot(labels, CLASSES) if loss is INTEGER else labels)
    gamma = jnp.array([0.0, 0.5, 1.0, 2.0, 0.25, 0.0])[:, None]
    found = gradients(loss, scores, labels, gamma=gamma, alpha=jnp.zeros((ROWS, CLASSES)))
    weights = np.float64(distinct(found["losses"]))[:, None]
    truth = oracle.batch(scores, 0.0, gamma).grad_weights * hot * weights
    rtol = tolerances.rtol("gradient_weights", 2.0)
    tolerances.assert_close(found["alpha"], truth, rtol=rtol)
    np.testing.assert_array_equal(found["losses"], 0)


@over(OPERATIONS)
def test_an_infinite_loss_does_not_depend_on_gamma(loss):
    """p = 0: (1 - p)^gamma is 1, and -log p * log q has the limit 0."""
    logits = jnp.array([-jnp.inf, 0.0, 1.0])
    labels = jnp.array(0) if loss is INTEGER else jnp.array([1.0, 0.0, 0.0])
    if loss is SIGMOID:
        logits, labels = logits[0], labels[0]
    value, slope = jax.value_and_grad(lambda gamma: loss.call(logits, labels, gamma=gamma))(2.0)
    assert value == jnp.inf and slope == 0


@pytest.mark.parametrize(
    ("reading", "term"),
    [(reading, Focal) for reading in ("linear", "mixture", "quality", "cross_entropy")]
    + [("linear", lambda gamma: Poly(gamma, 1.5)), ("linear", lambda gamma: Asymmetric(gamma, gamma, 0.0))],
    ids=["linear", "mixture", "quality", "cross_entropy", "poly", "asymmetric"],
)
def test_derivatives_at_the_ends_of_the_logits_are_finite(reading, term):
    """Where the loss itself is infinite too, and a multiple of it would overflow."""
    ends, labels, gammas = [-np.inf, -3e38, 3e38, np.inf], [0, 0.3, 1], [0, 1, 5, 50]
    z, y, gamma = (x.astype(np.float32) for x in np.meshgrid(ends, labels, gammas))

    def loss(z, y, gamma):
        return focaljax.sigmoid_focal_loss(z, y, term=term(gamma), soft_labels=reading)

    def derivatives(*x):
        first, second = jax.linearize(jax.grad(loss, (0, 2)), *x)
        forward = [second(*one) for one in ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0))]
        reverse = jax.linear_transpose(second, *x)
        return *first, *jax.tree.leaves((forward, reverse((1.0, 0.0))))

    found = jax.jit(jnp.vectorize(derivatives))(z, y, gamma)
    assert np.isfinite(found).all()
    if reading == "linear":
        np.testing.assert_array_equal(found[0], np.where(z > 0, 1 - y, -y))


# Higher and forward derivatives.


@over({name: loss for name, loss in LOSSES.items() if not loss.probabilities})
def test_forward_mode_is_refused(loss):
    scores, labels = draw(loss)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda z: loss.call(z, labels, gamma=2.0), (scores,), (scores,))


@over(OPERATIONS)
def test_third_derivative(loss):
    """Along the target of two classes every loss is one function of the log-odds."""
    points = np.array([-80.0, -9.0, -1.0, 0.0, 1e-3, 2.0, 17.0, 30.0, 80.0])
    gammas = np.array([0.0, 0.5, 1.0, 2.0])
    u, gamma = (x.ravel() for x in np.meshgrid(points, gammas))

    def of(u, gamma):
        if loss is SIGMOID:
            return loss.call(u, jnp.float32(1), gamma=gamma)
        labels = jnp.int32(0) if loss is INTEGER else jnp.array([1.0, 0.0])
        return loss.call(jnp.stack([u, jnp.zeros_like(u)]), labels, gamma=gamma)

    third = jax.jit(jax.vmap(jax.grad(jax.grad(jax.grad(of)))))
    found = third(jnp.asarray(u, jnp.float32), jnp.asarray(gamma, jnp.float32))

    def truth(u, gamma):
        def value(x):
            return (1 + mpmath.exp(x)) ** -mpmath.mpf(gamma) * mpmath.log1p(mpmath.exp(-x))

        return float(mpmath.diff(value, mpmath.mpf(u), 3, h=mpmath.mpf(10) ** -40))

    with mpmath.workdps(200):
        wanted = np.array([truth(*pair) for pair in zip(u, gamma, strict=True)])
    # Its terms have both signs: products of q^gamma, p q, -log p < 1 + |u|, 3 of (1 + gamma).
    p, q = 1 / (1 + np.exp(-u)), 1 / (1 + np.exp(u))
    scale = (1 + gamma) ** 3 * q**gamma * p * q * (1 + np.abs(u))
    names = [f"u = {x:g}, gamma = {g:g}" for x, g in zip(u, gamma, strict=True)]
    tiny = tolerances.flush(2, factor=tolerances.FLUSHED_LOG * (1 + gamma) ** 3)
    rtol = tolerances.rtol("hessian")
    tolerances.assert_close(found, wanted, rtol=rtol, scale=scale, tiny=tiny, names=names)


# Shapes.

SHAPES = hypothesis.settings(deadline=None, max_examples=40, derandomize=True, database=None)


@SHAPES
@hypothesis.given(
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple),
    axis=st.integers(-4, 3),
    name=st.sampled_from(sorted(LOSSES)),
)
def test_one_loss_per_example(shape, axis, name):
    loss = LOSSES[name]
    hypothesis.assume(-len(shape) <= axis < len(shape) and shape[axis] > 0)
    rows = tuple(np.delete(shape, axis).tolist())
    labels = jax.ShapeDtypeStruct(rows, jnp.int32)
    if loss.labels != "index":
        labels = jax.ShapeDtypeStruct(shape, jnp.float32)
    scores = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    where_to = {} if loss is SIGMOID else {"axis": axis}
    found = jax.eval_shape(lambda z, y: loss.call(z, y, gamma=2.0, **where_to), scores, labels)
    assert found.shape == (shape if loss is SIGMOID else rows) and found.dtype == jnp.float32


# Strict modes: nothing changes in any of them.


@functools.partial(jax.jit, static_argnums=0)
def everything(name, scores, labels, gamma, alpha):
    """Losses, their gradients by every float, and their Hessian, row by row."""

    def one(scores, labels, gamma, alpha):
        return jnp.sum(LOSSES[name].call(scores, labels, gamma=gamma, alpha=alpha))

    def derivatives(scores, labels):
        def slopes(scores):
            found = jax.grad(one, (0, 2, 3))(scores, labels, gamma, alpha)
            return found[0], dict(zip(("scores", "gamma", "alpha"), found, strict=True))

        twice, found = jax.jacfwd(slopes, has_aux=True)(scores)
        return found | {"scores, twice": twice}

    losses = lax.map(lambda row: one(*row, gamma, alpha), (scores, labels))
    return {"losses": losses} | jax.vmap(derivatives)(scores, labels)


def hard_rows() -> dict[str, tuple[jax.Array, ...]]:
    rows, (z, y) = cases.rows(3), cases.sigmoid_grid()
    logits, targets = rows.logits[::8], rows.targets[::8]
    hot = np.eye(3, dtype=np.float32)[targets]
    given = {
        "softmax": (logits, hot),
        "integer": (logits, targets),
        "sigmoid": (z[::7, None], y[::7, None]),
    }
    return {name: tuple(map(jnp.asarray, operands)) for name, operands in given.items()}


def smoke() -> dict[str, Any]:
    """Everything at once, on hard rows whose results are all finite."""
    gamma, alpha = jnp.float32(0.5), jnp.float32(0.25)
    return {name: everything(name, *rows, gamma, alpha) for name, rows in hard_rows().items()}


@pytest.fixture(scope="module")
def relaxed() -> dict[str, Any]:
    found = jax.device_get(smoke())
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    return found


@pytest.mark.parametrize("mode", [jax.checking_leaks, functools.partial(jax.enable_x64, True)])
@pytest.mark.versions
def test_strict_mode(mode, relaxed):
    with mode():
        found = smoke()
    assert_same(jax.device_get(found), relaxed, gamma=0.5)


@over(OPERATIONS)
@pytest.mark.versions
def test_no_nan_on_the_way(loss):
    """Eagerly under `jax.debug_nans`, where the backward pass is checked operation by operation."""
    name = next(name for name in OPERATIONS if OPERATIONS[name] is loss)
    scores, labels = hard_rows()[name]
    options = {"gamma": jnp.float32(0.5), "alpha": jnp.full((len(scores), 1), 0.25)}
    with jax.debug_nans(True):
        found = eager(loss, scores, labels, **options)
    found.pop("labels", None)  # infinite for a dead class
    wanted = gradients(loss, scores, labels, **options)
    assert_same(found, {name: wanted[name] for name in found}, gamma=0.5)


@over(LOSSES)
@pytest.mark.versions
def test_no_hidden_transfer(loss):
    scores, labels = draw(loss)
    options = standard(loss, {})
    gradients(loss, scores, labels)  # the constants of a program come with its first run
    with jax.transfer_guard("disallow"):
        jitted(loss, scores, labels, **options)
        loss.call(scores, labels, **options)


@pytest.mark.versions
def test_custom_vjp3(relaxed, tmp_path):
    file = tmp_path / "smoke.npz"
    code = (
        "import conftest, sys, jax, numpy as np, test_laws;"
        "leaves = jax.tree.leaves(test_laws.smoke());"
        "np.savez(sys.argv[1], *leaves)"
    )
    subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(file)],
        cwd=Path(__file__).parent,
        env=os.environ | {"JAX_CUSTOM_VJP3": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
    with np.load(file) as saved:
        found = jax.tree.unflatten(jax.tree.structure(relaxed), [saved[name] for name in saved.files])
    assert_same(found, relaxed, gamma=0.5)


@over({"softmax": DENSE, "integer": INTEGER, "sigmoid": SIGMOID})
@pytest.mark.versions
def test_a_program_is_exported_for_shapes_to_come(loss):
    """Also its gradient; on CPU, where large arrays of a known shape are reduced in blocks."""

    def both(scores, labels):
        def total(scores):
            losses = loss.call(scores, labels, gamma=2.0)
            return jnp.sum(losses), losses

        return jax.grad(total, has_aux=True)(scores)

    scores, labels = draw(loss)
    sizes = jax.export.symbolic_shape("rows, classes")
    shapes = [jax.ShapeDtypeStruct(sizes[: x.ndim], x.dtype) for x in (scores, labels)]
    program = jax.export.export(jax.jit(both))(*shapes)
    assert_same(program.call(scores, labels), jax.jit(both)(scores, labels))
