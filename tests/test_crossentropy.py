"""The Keras grammar against Keras itself, and by hand where Keras is wrong."""

import functools
import inspect

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import tolerances

import focaljax
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


def test_smoothing_counts_the_classes_of_the_axis():
    """Keras 3.15 takes K from the last axis: 0.1 / 3 here, where 0.1 / 2 is right."""
    y_true = np.array([[1, 0, 1], [0, 1, 0]], np.float32)
    y_pred = np.array([[0.5, 0.75, 0.5], [0.5, 0.25, 0.5]], np.float32)
    found = categorical_focal_crossentropy(y_true, y_pred, 1.0, 0.0, label_smoothing=0.1, axis=0)
    middle = -0.05 * np.log(0.75) - 0.95 * np.log(0.25)
    np.testing.assert_allclose(found, [np.log(2), middle, np.log(2)], rtol=RTOL)


def test_alpha_is_not_ignored():
    """Keras ignores alpha without apply_class_balancing."""
    with pytest.raises(ValueError, match="`alpha` has no effect"):
        BinaryFocalCrossentropy(alpha=0.5)([[1.0]], jnp.array([[0.5]]))


def test_weighted_mean_divides_by_the_weights_of_all_losses():
    """Keras 3.15 divides by the sum before broadcasting: 3 for a loss of 1 everywhere."""
    y_true, y_pred = np.zeros((2, 3), int), jnp.full((2, 3, 2), 0.5)
    ours = SparseCategoricalFocalCrossentropy(alpha=1.0, gamma=0.0, reduction="mean_with_sample_weight")
    mean = ours(y_true, y_pred, sample_weight=np.array([[1.0], [2.0]], np.float32))
    np.testing.assert_allclose(mean, np.log(2), rtol=RTOL)


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
    ours, theirs = (arguments(getattr(library, name)) for library in (focaljax, keras.losses))
    assert list(ours.items()) == list(theirs.items())


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
