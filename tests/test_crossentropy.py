"""The losses by Keras' names against Keras itself, and by hand where Keras is wrong."""

import functools
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import tolerances
from keras.src.backend import set_keras_mask  # it has no public name

import focaljax
import focaljax.keras.losses
from focaljax import (
    BinaryFocalCrossentropy,
    CategoricalFocalCrossentropy,
    SparseCategoricalFocalCrossentropy,
    binary_focal_crossentropy,
    categorical_focal_crossentropy,
    sparse_categorical_focal_crossentropy,
)

N, C = 6, 4
ALPHA = (0.5, 0.25, 1.0, 2.0)
OBJECTS = (
    CategoricalFocalCrossentropy,
    SparseCategoricalFocalCrossentropy,
    BinaryFocalCrossentropy,
)
RTOL = tolerances.rtol("keras")


def relaxed(function):
    """Keras' own arithmetic mixes dtypes and ranks."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return np.asarray(function(*args, **kwargs))

    return call


def their(function):
    """The same of a function with several results."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return jax.tree.map(np.asarray, function(*args, **kwargs))

    return call


their_categorical = relaxed(keras.losses.categorical_focal_crossentropy)
their_binary = relaxed(keras.losses.binary_focal_crossentropy)


def draw(from_logits: bool, shape=(N, C), scale=1.5, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """Soft labels and logits, or probabilities that do not quite sum to 1; Keras clips none."""
    rng = np.random.default_rng(seed)
    y_true = rng.dirichlet(np.ones(shape[-1]), shape[:-1]).astype(np.float32)
    y_pred = scale * rng.normal(size=shape)
    if not from_logits:
        y_pred = np.exp(y_pred) / (np.exp(y_pred).sum(-1, keepdims=True) + 0.25)
    return y_true, y_pred.astype(np.float32)


def hard(y_true: np.ndarray) -> np.ndarray:
    return np.eye(C, dtype=np.float32)[y_true.argmax(-1)]


def assert_keras(ours, theirs):
    assert ours.dtype == jnp.float32
    tolerances.assert_close(ours, theirs, rtol=RTOL)


# The functions.


@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [0.25, 1.0, ALPHA])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_categorical_is_keras(from_logits, gamma, alpha, label_smoothing):
    y_true, y_pred = draw(from_logits)
    for labels in (y_true, hard(y_true)):
        arguments = (labels, y_pred, alpha, gamma, from_logits, label_smoothing)
        assert_keras(categorical_focal_crossentropy(*arguments), their_categorical(*arguments))


@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("shape", [(C,), (2, 3, C)])
def test_categorical_of_any_rank_is_keras(from_logits, shape):
    arguments = (*draw(from_logits, shape), ALPHA, 2.0, from_logits)
    assert_keras(categorical_focal_crossentropy(*arguments), their_categorical(*arguments))


@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("axis", [0, 1, -2])
def test_categorical_of_another_axis_is_keras(from_logits, axis):
    y_true, y_pred = (np.moveaxis(x, -1, axis) for x in draw(from_logits, (2, 3, C)))
    arguments = (y_true, y_pred, 0.25, 2.0, from_logits, 0.0, axis)
    assert_keras(categorical_focal_crossentropy(*arguments), their_categorical(*arguments))


@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("balancing", [(False, 0.25), (True, 0.25), (True, 0.9)])
@pytest.mark.parametrize("axis", [-1, 0])
def test_binary_is_keras(from_logits, gamma, label_smoothing, balancing, axis):
    y_true, y_pred = draw(from_logits)
    for labels in (y_true, hard(y_true)):
        arguments = (labels, y_pred, *balancing, gamma, from_logits, label_smoothing, axis)
        # In float64: Keras takes 1 - p_t of a rounded p_t, off by 75 u to the gamma at logits of 5.
        with jax.enable_x64(True):
            theirs = their_binary(*(x.astype(np.float64) for x in arguments[:2]), *arguments[2:])
        assert theirs.dtype == np.float64
        assert_keras(binary_focal_crossentropy(*arguments), theirs)


@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("alpha", [0.25, ALPHA])
def test_sparse_is_the_categorical_of_keras(from_logits, alpha):
    y_true, y_pred = draw(from_logits)
    ours = sparse_categorical_focal_crossentropy(y_true.argmax(-1), y_pred, alpha, from_logits=from_logits)
    assert_keras(ours, their_categorical(hard(y_true), y_pred, alpha, 2.0, from_logits))


@pytest.mark.parametrize("from_logits", [False, True])
def test_sparse_without_focus_is_the_sparse_of_keras(from_logits):
    y_true, y_pred = draw(from_logits)
    labels = y_true.argmax(-1)
    labels[::3] = -1
    theirs = relaxed(keras.losses.sparse_categorical_crossentropy)(
        labels, y_pred, from_logits=from_logits, ignore_class=-1
    )
    ours = sparse_categorical_focal_crossentropy(
        labels, y_pred, alpha=1.0, gamma=0.0, from_logits=from_logits, ignore_class=-1
    )
    assert_keras(ours, theirs)
    np.testing.assert_array_equal(ours[::3], 0)


@pytest.mark.parametrize("function", ["categorical_focal_crossentropy", "binary_focal_crossentropy"])
def test_gradient_by_probabilities_is_that_of_keras(function):
    y_true, y_pred = draw(False)

    def gradient(library):
        return jax.grad(lambda p: jnp.sum(getattr(library, function)(hard(y_true), p, gamma=0.5)))

    ours = gradient(focaljax)(y_pred)
    theirs = relaxed(gradient(keras.losses))(y_pred)
    # The entries of a row have both signs and come from the same few terms.
    scale = np.abs(theirs).max(-1, keepdims=True)
    tolerances.assert_close(ours, theirs, rtol=4 * RTOL, scale=scale)


# Where Keras clips, or is wrong.


def test_examples_that_keras_drops_keep_their_gradient():
    """Below p = 1e-7 the loss of Keras is constant, its gradient 0; ours grow with the mistake."""
    y_true, y_pred = jnp.array([[1.0, 0.0]]), jnp.array([[-20.0, 0.0]])

    def losses(function, z):
        return jnp.sum(function(y_true, z, alpha=0.25, gamma=2.0, from_logits=True))

    ours = functools.partial(losses, categorical_focal_crossentropy)
    theirs = functools.partial(losses, keras.losses.categorical_focal_crossentropy)
    np.testing.assert_array_equal(relaxed(jax.grad(theirs))(y_pred), 0)
    np.testing.assert_allclose(relaxed(theirs)(y_pred), -0.25 * np.log(1e-7), rtol=RTOL)
    # p = 2e-9: q = 1 - 2e-9 and -log p = 20 + 2e-9, so the loss is 0.25 * 20 and its slope -0.25.
    np.testing.assert_allclose(ours(y_pred), 0.25 * 20, rtol=RTOL)
    np.testing.assert_allclose(jax.grad(ours)(y_pred), [[-0.25, 0.25]], rtol=RTOL)


@pytest.mark.parametrize("function", [their_categorical, categorical_focal_crossentropy])
def test_probabilities_are_clipped_as_by_keras(function):
    p = np.array([[0.0, 1.0], [1.0, 0.0], [1e-9, 1.0]], np.float32)
    found = function(np.array([[1.0, 0.0]] * 3, np.float32), p)
    low, high = -np.log(np.float32(1e-7)), np.float32(1) - np.float32(1e-7)
    right = (1 - high) ** 2 * -np.log(high)
    np.testing.assert_allclose(found, [0.25 * low, 0.25 * right, 0.25 * low], rtol=RTOL)


@pytest.mark.parametrize("from_logits", [False, True])
def test_alpha_of_a_class_follows_the_axis(from_logits):
    """Keras raises for a list of alpha with axis=1, or weighs another axis."""
    y_true, y_pred = draw(from_logits, (2, 3, C))
    plain = categorical_focal_crossentropy(y_true, y_pred, ALPHA, from_logits=from_logits)
    turned = categorical_focal_crossentropy(
        np.moveaxis(y_true, -1, 1),
        np.moveaxis(y_pred, -1, 1),
        ALPHA,
        from_logits=from_logits,
        axis=1,
    )
    tolerances.assert_close(turned, np.asarray(plain), rtol=tolerances.rtol("same"))
    with pytest.raises((TypeError, ValueError)):
        their_categorical(
            np.moveaxis(y_true, -1, 1),
            np.moveaxis(y_pred, -1, 1),
            list(ALPHA),
            2.0,
            from_logits,
            0.0,
            1,
        )


@pytest.mark.parametrize("cls", OBJECTS)
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean_with_sample_weight", "sum", None])
def test_nan_under_a_weight_of_zero_is_silent(cls, reduction):
    """Keras multiplies: NaN * 0 = NaN (keras#18818)."""
    y_true, y_pred = draw(False)
    y_true = y_true.argmax(-1) if cls is SparseCategoricalFocalCrossentropy else y_true
    spoiled = y_pred.copy()
    spoiled[1] = np.nan
    weights = np.array([1, 0, 2, 1, 1, 0.5], np.float32)
    loss = cls(reduction=reduction)

    @jax.jit
    def result(y):
        by_scores = jax.grad(lambda y: jnp.sum(loss(y_true, y, weights)))(y)
        return loss(y_true, y, weights), by_scores

    for found, plain in zip(result(spoiled), result(y_pred), strict=True):
        np.testing.assert_array_equal(found, plain)
        assert np.isfinite(found).all()


# The differences from Keras that docs/keras.md lists: what Keras does, run, and what focaljax does.

DIFFERENCES = {}
KERAS = tuple(int(n) for n in keras.__version__.split(".")[:2])


def difference(row):
    """Registers the test of a row of its table, by its first cell."""

    def register(test):
        DIFFERENCES[row] = test
        return test

    return register


def named(library, name, **options):
    loss = getattr(library, name)(**options)
    return relaxed(loss) if library is keras.losses else loss


def test_each_difference_has_a_test():
    page = Path(__file__).parents[1].joinpath("docs", "keras.md").read_text(encoding="utf-8")
    table = page.split("\n\n")[2]
    rows = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
    assert len(rows) > 10 and sorted(rows) == sorted(DIFFERENCES)


difference("from logits")(test_examples_that_keras_drops_keep_their_gradient)
difference("`alpha` of shape `[C]` with `axis=1`")(test_alpha_of_a_class_follows_the_axis)


@difference("`alpha` without `apply_class_balancing`")
def test_alpha_is_not_ignored():
    y_true, y_pred = np.array([[1.0]], np.float32), np.array([[0.5]], np.float32)
    losses = [named(keras.losses, "BinaryFocalCrossentropy", alpha=a)(y_true, y_pred) for a in (0.25, 0.5)]
    assert losses[0] == losses[1]
    with pytest.raises(ValueError, match="`alpha` has no effect"):
        BinaryFocalCrossentropy(alpha=0.5)(y_true, y_pred)


@difference('`"mean_with_sample_weight"`')
@pytest.mark.parametrize("weights", [np.float32(2), np.array([[1], [2]], np.float32)])
def test_weighted_mean_divides_by_the_weights_of_all_losses(weights):
    """A loss of log 2 everywhere; Keras sums the weights before it broadcasts them."""
    y_true, y_pred = np.zeros((2, 3), int), np.full((2, 3, 2), 0.5, np.float32)
    options = {"alpha": 1.0, "gamma": 0.0, "reduction": "mean_with_sample_weight"}
    ours = SparseCategoricalFocalCrossentropy(**options)(y_true, y_pred, sample_weight=weights)
    theirs = named(keras.losses, "CategoricalFocalCrossentropy", **options)(
        np.eye(2, dtype=np.float32)[y_true], y_pred, sample_weight=weights
    )
    np.testing.assert_allclose(ours, np.log(2), rtol=RTOL)
    np.testing.assert_allclose(theirs, np.log(2) * 6 / weights.size, rtol=RTOL)


@difference("NaN under a weight of 0, or masked")
def test_nan_that_does_not_count_is_silent():
    y_true, y_pred = draw(False)
    y_pred[1] = np.nan
    weights = np.array([1, 0, 2, 1, 1, 0.5], np.float32)
    for name in ("CategoricalFocalCrossentropy", "BinaryFocalCrossentropy"):
        assert np.isnan(named(keras.losses, name)(y_true, y_pred, weights))
        assert np.isfinite(named(focaljax, name)(y_true, y_pred, weights))
    for library, silent in ((keras.losses, False), (focaljax.keras.losses, True)):
        masked = jnp.asarray(y_pred)
        set_keras_mask(masked, jnp.asarray(weights > 0))
        assert np.isfinite(named(library, "CategoricalFocalCrossentropy")(y_true, masked)) == silent


@difference("`ignore_class`")
@pytest.mark.skipif(KERAS > (3, 16), reason="newer than what docs/keras.md speaks of")
def test_keras_has_no_focal_loss_of_class_indices():
    """The mean over the entries that count is tested with the objects, below."""
    assert not hasattr(keras.losses, "SparseCategoricalFocalCrossentropy")


@difference("label smoothing, `axis` not the last")
@pytest.mark.parametrize("from_logits", [False, True])
def test_smoothing_counts_the_classes_of_the_axis(from_logits):
    y_true, y_pred = (np.moveaxis(x, -1, 0) for x in draw(from_logits, (5, C)))
    ours, theirs = (
        f(y_true, y_pred, 1.0, 2.0, from_logits, 0.1, 0)
        for f in (categorical_focal_crossentropy, their_categorical)
    )
    by_hand = categorical_focal_crossentropy(0.9 * y_true + 0.1 / C, y_pred, 1.0, 2.0, from_logits, 0.0, 0)
    tolerances.assert_close(ours, np.asarray(by_hand), rtol=RTOL)
    counted = 5 if KERAS < (3, 16) else C  # 5 is the size of the last axis
    by_hand = categorical_focal_crossentropy(
        0.9 * y_true + np.float32(0.1 / counted), y_pred, 1.0, 2.0, from_logits, 0.0, 0
    )
    tolerances.assert_close(by_hand, theirs, rtol=RTOL)


@difference("weights `[N]` of losses `[N, T]`")
@pytest.mark.parametrize("columns", [2, 3])
def test_weights_of_one_axis_weigh_rows(columns):
    """In Keras they are an error, or weigh columns when a batch happens to have as many examples."""
    y_true, y_pred = draw(False, (2, columns, C))
    weights = np.array([1, 3], np.float32)
    name = "CategoricalFocalCrossentropy"
    losses = np.asarray(categorical_focal_crossentropy(y_true, y_pred))
    ours = named(focaljax, name, reduction=None)
    np.testing.assert_allclose(ours(y_true, y_pred, weights), losses * weights[:, None], rtol=RTOL)
    by_column = np.arange(1, columns + 1, dtype=np.float32)
    np.testing.assert_allclose(ours(y_true, y_pred, by_column[None]), losses * by_column, rtol=RTOL)
    theirs = named(keras.losses, name, reduction=None)
    if columns == 2:
        np.testing.assert_allclose(theirs(y_true, y_pred, weights), losses * weights, rtol=2 * RTOL)
    else:
        with pytest.raises(ValueError, match="[Ii]ncompatible shapes"):
            theirs(y_true, y_pred, weights)
        with pytest.raises(ValueError, match=r"`sample_weight` .* give it the shape \(1, 3\)"):
            ours(y_true, y_pred, by_column)


@difference("weights of more entries than the losses")
@pytest.mark.parametrize("shape", [(1, N), (N, N), (N, 1, 1)])
def test_weights_do_not_broadcast_the_losses(shape):
    y_true, y_pred = draw(False)
    weights = np.ones(shape, np.float32)
    theirs = named(keras.losses, "CategoricalFocalCrossentropy", reduction=None)(y_true, y_pred, weights)
    assert theirs.shape == np.broadcast_shapes(shape, (N,))
    with pytest.raises(ValueError, match="`sample_weight` must be a scalar or fit"):
        CategoricalFocalCrossentropy(reduction=None)(y_true, y_pred, weights)


@difference("`reduction=None`, weights `[N, 1]` of losses `[N]`")
@pytest.mark.parametrize("name", ["CategoricalFocalCrossentropy", "BinaryFocalCrossentropy"])
def test_weighted_losses_have_the_shape_of_the_losses(name):
    """Keras makes the losses a column, which a vector would broadcast to [N, N]."""
    y_true, y_pred = draw(False)
    weights = np.linspace(0.5, 2, N, dtype=np.float32)[:, None]
    ours, theirs = (
        named(library, name, reduction=None)(y_true, y_pred, weights) for library in (focaljax, keras.losses)
    )
    assert ours.shape == (N,) and theirs.shape == (N, 1)
    np.testing.assert_allclose(ours, theirs[:, 0], rtol=1e-5)  # of Keras' 1 - p_t


@difference("no examples")
def test_a_mean_of_no_examples_is_zero():
    y_true, y_pred = np.zeros((0, C), np.float32), np.zeros((0, C), np.float32)
    for name in ("CategoricalFocalCrossentropy", "BinaryFocalCrossentropy"):
        for reduction in ("sum_over_batch_size", "sum", None):
            ours, theirs = (
                named(library, name, reduction=reduction)(y_true, y_pred)
                for library in (focaljax, keras.losses)
            )
            assert theirs.shape == (0,)
            assert ours.shape == ((0,) if reduction is None else ()) and np.sum(ours) == 0


@difference("binary probabilities outside [1e-7, 1 - 1e-7]")
@pytest.mark.parametrize("label", [1.0, 0.3, 0.0])
def test_binary_gradient_outside_the_clip_is_zero(label):
    """Keras keeps the slope of the modulating factor, which is infinite for gamma < 1 at p_t = 1."""

    def of(library, p, gamma=2.0):
        y_true, y_pred = jnp.array([[label]], jnp.float32), jnp.array([[p]], jnp.float32)

        def loss(p):
            return jnp.sum(library.binary_focal_crossentropy(y_true, p, gamma=gamma))

        both = jax.value_and_grad(loss)
        value, gradient = both(y_pred) if library is focaljax else their(both)(y_pred)
        return float(value), float(np.sum(gradient))

    u = 2.0**-24
    for p, slope in ((1e-9, 1 - 2 * label), (1.0, 1 - 2 * label)):
        value, gradient = of(focaljax, p)
        theirs, their_gradient = of(keras.losses, p)
        wrong = label * (1 - p) + (1 - label) * p
        np.testing.assert_allclose(value, theirs, rtol=4 * RTOL, atol=1e-12)
        assert gradient == 0
        edge = np.clip(np.float32(p), np.float32(1e-7), np.float32(1) - np.float32(1e-7)).astype(float)
        bce = -label * np.log(edge) - (1 - label) * np.log1p(-edge)
        # d wrong^2 / dp * bce; log(1 - edge) of an edge rounded to u has a relative error of u / 1e-7 / 16.
        np.testing.assert_allclose(their_gradient, 2 * wrong * slope * bce, rtol=0.04, atol=10 * u)
    if label == 1:
        assert of(focaljax, 1.0, gamma=0.5)[1] == 0
        assert not np.isfinite(of(keras.losses, 1.0, gamma=0.5)[1])


@difference("labels that need broadcasting")
def test_labels_are_not_broadcast():
    y_true, y_pred = draw(False)
    y_true, y_pred = y_true[:C], y_pred[:C]
    for labels in (y_true[0], y_true[:1], np.arange(C)):  # the last are class indices, read as one-hot
        assert np.isfinite(named(keras.losses, "CategoricalFocalCrossentropy")(labels, y_pred))
        with pytest.raises(ValueError, match="`y_true` must have the shape of `y_pred`"):
            CategoricalFocalCrossentropy()(labels, y_pred)


@difference("labels `[N]` and predictions `[N, 1]`, or the reverse")
@pytest.mark.parametrize(("of_labels", "of_predictions"), [((N,), (N, 1)), ((N, 1), (N,))])
def test_only_the_adapter_for_keras_adds_an_axis(of_labels, of_predictions):
    y_true, y_pred = draw(False, (N, 2))
    y_true, y_pred = y_true[:, 0].reshape(of_labels), y_pred[:, 0].reshape(of_predictions)
    weights = np.linspace(0.5, 2, N, dtype=np.float32)
    name = "BinaryFocalCrossentropy"
    theirs = named(keras.losses, name)(y_true, y_pred, weights)
    adapted = named(focaljax.keras.losses, name)(y_true, y_pred, weights)
    np.testing.assert_allclose(adapted, theirs, rtol=1e-5)  # of Keras' 1 - p_t
    with pytest.raises(ValueError, match="`y_true` must have the shape of `y_pred`"):
        named(focaljax, name)(y_true, y_pred, weights)


@difference("labels `[N, T]`, predictions `[N, T, 1]`, binary, in a model")
def test_binary_entries_of_a_model_keep_their_losses():
    y_true, y_pred = draw(False, (N, 3))
    ours, theirs = (
        named(library, "BinaryFocalCrossentropy", reduction=None)(y_true, y_pred[..., None])
        for library in (focaljax.keras.losses, keras.losses)
    )
    assert ours.shape == (N, 3) and theirs.shape == (N,)
    np.testing.assert_allclose(np.mean(ours, -1), theirs, rtol=1e-5)  # of Keras' 1 - p_t


@difference("float16 and bfloat16 in a function")
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_functions_compute_in_float32(dtype):
    y_true, y_pred = draw(False)
    y_true, y_pred = hard(y_true), jnp.asarray(y_pred).astype(dtype)
    for ours, theirs in (
        (categorical_focal_crossentropy, their_categorical),
        (binary_focal_crossentropy, their_binary),
    ):
        assert theirs(y_true, y_pred).dtype == dtype
        wide = ours(y_true, y_pred)
        assert wide.dtype == jnp.float32
        np.testing.assert_array_equal(wide, ours(y_true, y_pred.astype(jnp.float32)))


@difference("`keras.config.set_epsilon`")
def test_the_clip_does_not_move():
    y_true, y_pred = np.array([[1.0, 0.0]], np.float32), np.array([[0.0, 1.0]], np.float32)
    before = keras.config.epsilon()
    keras.config.set_epsilon(1e-3)
    try:
        ours, theirs = (
            f(y_true, y_pred, 1.0, 0.0) for f in (categorical_focal_crossentropy, their_categorical)
        )
    finally:
        keras.config.set_epsilon(before)
    np.testing.assert_allclose(ours, -np.log(1e-7), rtol=RTOL)
    np.testing.assert_allclose(theirs, -np.log(1e-3), rtol=RTOL)


# The objects.

WEIGHTS = {
    "none": None,
    "scalar": np.float32(0.5),
    "each": np.linspace(0.5, 2, N, dtype=np.float32),
    "column": np.linspace(0.5, 2, N, dtype=np.float32)[:, None],
    "integer": np.array([1, 0, 2, 1, 3, 0]),
    "zero": np.zeros(N, np.float32),
}


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(
    "reduction", ["sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none", None]
)
def test_objects_are_those_of_keras(weights, reduction):
    weights = WEIGHTS[weights]
    if reduction == "mean_with_sample_weight" and np.ndim(weights) == 0:
        weights = None  # Keras divides by the one number, not by N of it
    y_true, y_pred = draw(True)
    options = {"from_logits": True, "label_smoothing": 0.1, "reduction": reduction}
    for name, more in (
        ("CategoricalFocalCrossentropy", {"alpha": list(ALPHA), "gamma": 1.5}),
        ("BinaryFocalCrossentropy", {"alpha": 0.75, "gamma": 1.0, "apply_class_balancing": True}),
    ):
        ours = getattr(focaljax, name)(**options, **more)(y_true, y_pred, sample_weight=weights)
        theirs = relaxed(getattr(keras.losses, name)(**options, **more))(
            y_true, y_pred, sample_weight=weights
        )
        assert ours.shape == (() if reduction not in ("none", None) else (N,))
        theirs = theirs.reshape(ours.shape)  # a column of weights makes Keras' losses a column
        # Of Keras' 1 - p_t, and of sums of six positive terms.
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (2, 1), (2, 3, 1)])
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", None])
def test_weights_of_images_are_those_of_keras(shape, reduction):
    y_true, y_pred = draw(False, (2, 3, C))
    weights = np.random.default_rng(5).uniform(0.5, 2, shape).astype(np.float32)
    if shape == (2,):  # one weight per image: Keras wants the axis spelled out
        theirs_weights = weights[:, None]
    else:
        theirs_weights = weights
    ours = CategoricalFocalCrossentropy(reduction=reduction)(y_true, y_pred, weights)
    theirs = relaxed(keras.losses.CategoricalFocalCrossentropy(reduction=reduction))(
        y_true, y_pred, theirs_weights
    )
    np.testing.assert_allclose(ours, theirs, rtol=2 * RTOL)


def test_examples_of_keras_for_r():
    y_true = np.array([[0, 1, 0], [0, 0, 1]], np.float32)
    y_pred = np.array([[0.05, 0.95, 0], [0.1, 0.8, 0.1]], np.float32)
    loss = [3.2058309e-05, 0.46627348]
    # (1 - p)^2 log p of a p near 1 that is rounded once more than in Keras: a few u / (1 - p).
    np.testing.assert_allclose(categorical_focal_crossentropy(y_true, y_pred), loss, rtol=5e-6)
    np.testing.assert_allclose(sparse_categorical_focal_crossentropy([1, 2], y_pred), loss, rtol=5e-6)
    np.testing.assert_allclose(CategoricalFocalCrossentropy()(y_true, y_pred), np.mean(loss), rtol=RTOL)
    weighted = CategoricalFocalCrossentropy()(y_true, y_pred, sample_weight=np.array([0.3, 0.7]))
    np.testing.assert_allclose(weighted, (0.3 * loss[0] + 0.7 * loss[1]) / 2, rtol=RTOL)

    y_pred = np.array([[0.05, 0.9, 0.05], [0.1, 0.85, 0.05]], np.float32)
    metric = [2.6340129e-04, 0.67591209]
    np.testing.assert_allclose(categorical_focal_crossentropy(y_true, y_pred), metric, rtol=5e-6)


def arguments(function) -> dict[str, object]:
    return {name: x.default for name, x in inspect.signature(function).parameters.items()}


@pytest.mark.parametrize(
    "name",
    [
        "categorical_focal_crossentropy",
        "binary_focal_crossentropy",
        "CategoricalFocalCrossentropy",
        "BinaryFocalCrossentropy",
    ],
)
def test_signatures_are_those_of_keras(name):
    ours, theirs = (list(arguments(getattr(library, name)).items()) for library in (focaljax, keras.losses))
    assert ours[: len(theirs)] == theirs
    assert {name for name, _ in ours[len(theirs) :]} <= {
        "where",
        "ignore_class",
    }  # what Keras lacks, after it


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (sparse_categorical_focal_crossentropy, keras.losses.sparse_categorical_crossentropy),
        (SparseCategoricalFocalCrossentropy, keras.losses.SparseCategoricalCrossentropy),
    ],
)
def test_sparse_signatures_follow_keras(ours, theirs):
    """Its sparse cross-entropy with alpha and gamma where the focal losses have them."""
    mine = arguments(ours)
    focal = {name: mine.pop(name) for name in ("alpha", "gamma")}
    assert focal == {"alpha": 0.25, "gamma": 2.0}
    shared = [name for name in mine if name in arguments(theirs)]
    wanted = arguments(theirs)
    assert {name: mine[name] for name in shared if name != "name"} == {
        name: wanted[name] for name in shared if name != "name"
    }
    assert set(mine) - set(shared) <= {"axis"}
    order = ["y_true", "y_pred", "alpha", "gamma", "from_logits", "ignore_class", "axis"]
    assert [name for name in arguments(ours) if name in order] == [
        name for name in order if name in arguments(ours)
    ]


@pytest.mark.parametrize("cls", OBJECTS)
def test_configurations_lose_nothing(cls):
    options = {"gamma": np.array([1.0, 2.0, 0.5, 0.0]), "from_logits": True, "axis": 1}
    options |= {"reduction": "sum", "name": "mine", "dtype": "bfloat16"}
    options["alpha"] = 0.25 if cls is BinaryFocalCrossentropy else jnp.asarray(ALPHA)
    if cls is SparseCategoricalFocalCrossentropy:
        options["ignore_class"] = 3
    else:
        options["label_smoothing"] = 0.1
    loss = cls(**options)
    config = loss.get_config()
    assert set(config) == set(arguments(cls))
    again = cls.from_config(config)
    assert again == loss and hash(again) == hash(loss) and again.get_config() == config
    assert (config["name"], config["dtype"], config["reduction"]) == ("mine", "bfloat16", "sum")
    assert config["gamma"] == (1.0, 2.0, 0.5, 0.0)
    assert all(type(x) in (str, int, float, bool, tuple, type(None)) for x in config.values())
    assert cls() == cls.from_config(cls().get_config()) != loss


@pytest.mark.parametrize("cls", OBJECTS[::2])
def test_configurations_of_keras_are_understood(cls):
    theirs = getattr(keras.losses, cls.__name__)(gamma=1.5, reduction="sum", name="theirs")
    loss = cls.from_config(theirs.get_config())
    assert loss == cls(gamma=1.5, reduction="sum", name="theirs")


@pytest.mark.parametrize("cls", OBJECTS)
def test_objects_may_be_static_arguments(cls):
    y_true, y_pred = draw(False)
    y_true = y_true.argmax(-1) if cls is SparseCategoricalFocalCrossentropy else y_true
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def result(loss, y_true, y_pred):
        traces.append(loss)
        return loss(y_true, y_pred)

    found = [result(cls(gamma=gamma), y_true, y_pred) for gamma in (2.0, 2.0, np.float32(1.0))]
    assert len(traces) == 2
    assert found[0] == found[1] != found[2]
    np.testing.assert_allclose(found[0], cls()(y_true, y_pred), rtol=tolerances.rtol("same"))


@pytest.mark.parametrize("cls", OBJECTS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtype_of_an_object(cls, dtype):
    """Predictions are read in `dtype`, as in Keras, and the result has it; sums are in float32."""
    y_true, y_pred = draw(False)
    y_true = y_true.argmax(-1) if cls is SparseCategoricalFocalCrossentropy else y_true
    loss = cls(dtype=dtype)
    found = loss(y_true, y_pred)
    assert found.dtype == jnp.dtype(dtype)
    narrow = jnp.asarray(y_pred).astype(dtype)
    np.testing.assert_array_equal(found, cls()(y_true, narrow).astype(dtype))
    assert cls()(y_true, narrow).dtype == jnp.float32


@pytest.mark.parametrize("cls", OBJECTS)
def test_objects_are_frozen(cls):
    with pytest.raises(AttributeError):
        cls().gamma = 1.0


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean_with_sample_weight", "sum", None])
def test_ignored_examples_are_not_counted(reduction):
    """Keras' sparse cross-entropy masks them out of its mean."""
    y_true, y_pred = draw(True)
    labels = y_true.argmax(-1)
    labels[::3] = 9
    options = {"from_logits": True, "ignore_class": 9, "reduction": reduction}
    ours = SparseCategoricalFocalCrossentropy(alpha=1.0, gamma=0.0, **options)(labels, y_pred)
    theirs = relaxed(keras.losses.SparseCategoricalCrossentropy(**options))(labels, y_pred)
    np.testing.assert_allclose(ours, theirs, rtol=2 * RTOL)


@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("axis", [-1, 0])
def test_binary_labels_that_do_not_count(from_logits, axis):
    """The average is over those that count; an example without one does not count; all of it is silent."""
    rng = np.random.default_rng(0)
    y_pred, y_true = rng.uniform(0.1, 0.9, (6, 5)), rng.integers(0, 2, (6, 5))
    mask = rng.random((6, 5)) < 0.6
    mask[1], y_true[2], y_true[:, 3] = False, -1, -1
    kept = mask & (y_true != -1)
    hidden = jnp.asarray(np.where(kept, y_pred, np.nan), jnp.float32)
    each = binary_focal_crossentropy(
        np.maximum(y_true, 0)[..., None], y_pred[..., None].astype(np.float32), from_logits=from_logits
    )
    count = kept.sum(axis)
    wanted = np.where(kept, each, 0).sum(axis) / np.maximum(count, 1)
    options = {"from_logits": from_logits, "axis": axis}
    found = binary_focal_crossentropy(y_true, hidden, where=mask, ignore_class=-1, **options)
    np.testing.assert_allclose(found, wanted, rtol=RTOL)

    loss = BinaryFocalCrossentropy(ignore_class=-1, **options)
    metric = focaljax.metrics.BinaryFocalCrossentropy(ignore_class=-1, **options)
    mean = wanted[count > 0].mean()
    value, gradient = jax.value_and_grad(lambda p: loss(y_true, p, where=mask))(hidden)
    np.testing.assert_allclose(value, mean, rtol=RTOL)
    assert (np.asarray(gradient)[~kept] == 0).all() and np.isfinite(gradient).all()
    seen = metric.update(metric.init(), y_true, hidden, where=mask)
    np.testing.assert_allclose(metric.result(seen), mean, rtol=RTOL)
    weights = np.arange(len(count), dtype=np.float32)
    weighed = (wanted * weights)[count > 0].sum() / np.sum(count > 0)
    np.testing.assert_allclose(loss(y_true, hidden, weights, where=mask), weighed, rtol=RTOL)


@pytest.mark.parametrize("cls", [CategoricalFocalCrossentropy, SparseCategoricalFocalCrossentropy])
def test_a_mask_of_examples(cls):
    labels = [0, 1, 2] if cls is SparseCategoricalFocalCrossentropy else np.eye(3)
    y_pred = jnp.array([[0.7, 0.2, 0.1], [np.nan, 0.3, 0.1], [0.1, 0.3, 0.6]])
    losses = cls(reduction=None)(labels, y_pred)
    where = np.array([True, False, True])
    np.testing.assert_allclose(cls()(labels, y_pred, where=where), losses[where].mean(), rtol=RTOL)
    metric = getattr(focaljax.metrics, cls.__name__)()
    seen = metric.update(metric.init(), labels, y_pred, where=where)
    np.testing.assert_allclose(metric.result(seen), losses[where].mean(), rtol=RTOL)
