"""Wrong arguments raise at trace time; the message names argument, rule and what came."""

import re
from collections.abc import Callable
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import focaljax
from focaljax import (
    BinaryFocalCrossentropy,
    CategoricalFocalCrossentropy,
    SparseCategoricalFocalCrossentropy,
    binary_focal_crossentropy,
    categorical_focal_crossentropy,
    sigmoid_focal_loss,
    softmax_focal_loss,
    softmax_focal_loss_with_integer_labels,
    sparse_categorical_focal_crossentropy,
)

N, C = 4, 3
Z = jnp.ones((N, C))
SQUARE = jnp.ones((C, C))
Y = jnp.full((N, C), 1 / C)
T = jnp.zeros(N, jnp.int32)
LONG = jnp.zeros((2, N, C))


def soft(logits=Z, labels=Y, **options):
    return softmax_focal_loss(logits, labels, **options)


def integer(logits=Z, labels=T, **options):
    return softmax_focal_loss_with_integer_labels(logits, labels, **options)


def independent(logits=Z, labels=Y, **options):
    return sigmoid_focal_loss(logits, labels, **options)


def categorical(y_pred=Z, y_true=Y, **options):
    return categorical_focal_crossentropy(y_true, y_pred, **options)


def sparse(y_pred=Z, y_true=T, **options):
    return sparse_categorical_focal_crossentropy(y_true, y_pred, **options)


def binary(y_pred=Z, y_true=Y, **options):
    return binary_focal_crossentropy(y_true, y_pred, **options)


class Wrong:
    """A call, what it raises, and the message that it must begin with or hold."""

    def __init__(
        self,
        function: Callable[..., Any],
        error: type[Exception],
        message: str,
        *args: Any,
        **options: Any,
    ):
        self.call = lambda: function(*args, **options)
        self.error = error
        self.message = message


WRONG = {
    # logits and probabilities
    "integer logits": Wrong(soft, TypeError, "`logits` must be floating, got int32.", Z.astype(int)),
    "boolean logits": Wrong(integer, TypeError, "`logits` must be floating, got bool.", Z > 0),
    "complex logits": Wrong(
        independent, TypeError, "`logits` must be floating, got complex64.", Z.astype(complex)
    ),
    "integer probabilities": Wrong(
        categorical, TypeError, "`y_pred` must be floating, got int32.", Z.astype(int)
    ),
    "no array": Wrong(soft, TypeError, "`logits` must be an array, got object: ", object()),
    "no class": Wrong(
        soft,
        ValueError,
        "`logits` must have at least one class, got shape (4, 0) with axis=1.",
        jnp.ones((N, 0)),
        jnp.ones((N, 0)),
    ),
    # labels of every class
    "indices for soft labels": Wrong(
        soft,
        ValueError,
        "`labels` must have the shape of `logits`, (4, 3), got (4,). For class indices use "
        "`softmax_focal_loss_with_integer_labels`.",
        labels=T,
    ),
    "indices for soft labels, N == K": Wrong(
        soft, ValueError, "got (3,). For class indices use", SQUARE, jnp.zeros(C, jnp.int32)
    ),
    "floating indices for soft labels, N == K": Wrong(
        soft,
        ValueError,
        "`labels` must have the shape of `logits`, (3, 3), got (3,).",
        SQUARE,
        jnp.zeros(C),
    ),
    "indices for soft labels, axis 0": Wrong(
        soft, ValueError, "got (3,). For class indices use", labels=jnp.zeros(C, jnp.int32), axis=0
    ),
    "indices for y_true": Wrong(
        categorical,
        ValueError,
        "`y_true` must have the shape of `y_pred`, (4, 3), got (4,). For class indices use "
        "`sparse_categorical_focal_crossentropy`.",
        y_true=T,
    ),
    "other classes": Wrong(
        soft,
        ValueError,
        "`labels` must have the shape of `logits`, (4, 3), got (4, 2).",
        labels=Y[:, :2],
    ),
    "labels to broadcast": Wrong(soft, ValueError, "(4, 3), got (1, 3).", labels=Y[:1]),
    "more labels": Wrong(soft, ValueError, "(4, 3), got (2, 4, 3).", labels=LONG),
    "scalar label": Wrong(independent, ValueError, "(4, 3), got ().", labels=1.0),
    "one column for independent labels": Wrong(binary, ValueError, "(4, 3), got (4, 1).", y_true=Y[:, :1]),
    "complex labels": Wrong(
        independent, TypeError, "`labels` must be real, got complex64.", labels=Y.astype(complex)
    ),
    # class indices
    "one-hot for indices": Wrong(
        integer,
        TypeError,
        "`labels` must be integer class indices, got float32. For one-hot or soft labels use "
        "`softmax_focal_loss`.",
        labels=Y,
    ),
    "integer one-hot for indices": Wrong(
        integer,
        ValueError,
        "`labels` must have shape (4,), that of `logits` without axis 1, got (4, 3). For one-hot "
        "or soft labels use `softmax_focal_loss`.",
        labels=Y.astype(int),
    ),
    "integer one-hot for indices, N == K": Wrong(
        integer, ValueError, "`labels` must have shape (3,)", SQUARE, jnp.eye(C, dtype=jnp.int32)
    ),
    "one-hot for y_true": Wrong(
        sparse,
        TypeError,
        "For one-hot or soft labels use `categorical_focal_crossentropy`.",
        y_true=Y,
    ),
    "floating indices": Wrong(
        sparse,
        TypeError,
        "`y_true` must be integer class indices, got float32.",
        y_true=jnp.zeros(N),
    ),
    "boolean indices": Wrong(
        integer, TypeError, "`labels` must be integer class indices, got bool.", labels=T > 0
    ),
    "a column of indices": Wrong(integer, ValueError, "(4,), that of `logits`", labels=T[:, None]),
    "indices of other rows": Wrong(integer, ValueError, "(4,), that of `logits`", labels=T[:2]),
    "indices along the other axis": Wrong(
        integer,
        ValueError,
        "`labels` must have shape (3,), that of `logits` without axis 0, got (4,).",
        axis=0,
    ),
    "index too large": Wrong(
        integer, ValueError, "`labels` must be in [0, 3), got 3.", labels=np.array([0, 1, 3, 2])
    ),
    "index too large, listed": Wrong(integer, ValueError, "[0, 3), got 7.", labels=[0, 1, 7, 2]),
    "negative index": Wrong(
        sparse, ValueError, "`y_true` must be in [0, 3), got -1.", y_true=np.array([0, -1, 1, 2])
    ),
    "another index than the ignored": Wrong(
        integer, ValueError, "[0, 3), got 255.", labels=np.array([0, -1, 255, 2]), ignore_index=-1
    ),
    # axis
    "axis too large": Wrong(
        soft, ValueError, "`axis` must be in [-2, 2) for `logits` of rank 2, got 2.", axis=2
    ),
    "axis too small": Wrong(
        sparse, ValueError, "`axis` must be in [-2, 2) for `y_pred` of rank 2, got -3.", axis=-3
    ),
    "axis of a scalar": Wrong(
        soft, ValueError, "`axis` must be in [0, 0) for `logits` of rank 0, got -1.", 1.0, 1.0
    ),
    "boolean axis": Wrong(integer, TypeError, "`axis` must be an int, got bool.", axis=True),
    "NumPy's boolean axis": Wrong(binary, TypeError, "`axis` must be an int, got ", axis=np.True_),
    "floating axis": Wrong(categorical, TypeError, "`axis` must be an int, got float.", axis=1.0),
    "two axes": Wrong(binary, TypeError, "`axis` must be an int, got tuple.", axis=(0, 1)),
    # gamma and alpha
    "negative gamma": Wrong(soft, ValueError, "`gamma` must be at least 0 and finite, got -1.0.", gamma=-1.0),
    "negative gamma of a class": Wrong(
        integer, ValueError, "`gamma` must be at least 0 and finite, got -0.5.", gamma=jnp.array([1, -0.5, 0])
    ),
    "gamma not a number": Wrong(
        independent, ValueError, "`gamma` must be at least 0 and finite, got nan.", gamma=np.nan
    ),
    "boolean gamma": Wrong(
        categorical,
        TypeError,
        "`gamma` must be a real number or an array of them, got bool.",
        gamma=True,
    ),
    "gamma in words": Wrong(soft, TypeError, "`gamma` ", gamma="two"),
    "no gamma": Wrong(soft, TypeError, "`gamma` ", gamma=None),
    "complex alpha": Wrong(soft, TypeError, "`alpha` must be a real number", alpha=1j),
    "boolean alpha": Wrong(integer, TypeError, "`alpha` must be a real number", alpha=[True, False, True]),
    "long alpha": Wrong(
        soft,
        ValueError,
        "`alpha` must have one entry per class, 3, or 1; got shape (4,).",
        alpha=np.ones(4),
    ),
    "short alpha": Wrong(
        categorical,
        ValueError,
        "`alpha` must have one entry per class, 3, or 1; got shape (2,).",
        alpha=[1, 2],
    ),
    "alpha along the other axis": Wrong(
        soft,
        ValueError,
        "`alpha` must have one entry per class, 4, or 1; got shape (3,).",
        alpha=[1, 2, 3],
        axis=0,
    ),
    "alpha of other examples": Wrong(
        integer,
        ValueError,
        "`alpha` must be a scalar, [classes], or broadcast against `logits` with the class axis "
        "last, (4, 3); got shape (2, 1).",
        alpha=np.ones((2, 1)),
    ),
    "alpha of examples without an axis of size 1, N == K": Wrong(
        integer,
        ValueError,
        "`alpha` must be",
        SQUARE,
        jnp.zeros(C, jnp.int32),
        alpha=np.ones((2, C)),
    ),
    "alpha of more axes": Wrong(sparse, ValueError, "broadcast against `y_pred`", alpha=np.ones((1, N, C))),
    "alpha of a scalar loss": Wrong(
        independent, ValueError, "`alpha` must be a scalar", 1.0, 1.0, alpha=[0.5, 0.5]
    ),
    "alpha without balancing": Wrong(
        binary,
        ValueError,
        "`alpha` has no effect without apply_class_balancing=True, got 0.5.",
        alpha=0.5,
    ),
    "alphas without balancing": Wrong(
        binary,
        ValueError,
        "`alpha` has no effect without apply_class_balancing=True",
        alpha=[0.25] * C,
    ),
    # label_smoothing
    "smoothing above 1": Wrong(
        soft, ValueError, "`label_smoothing` must be in [0, 1], got 1.5.", label_smoothing=1.5
    ),
    "negative smoothing": Wrong(
        integer, ValueError, "`label_smoothing` must be in [0, 1], got -0.1.", label_smoothing=-0.1
    ),
    "smoothing not a number": Wrong(
        binary, ValueError, "`label_smoothing` must be in [0, 1], got nan.", label_smoothing=np.nan
    ),
    "smoothing per class": Wrong(
        categorical,
        ValueError,
        "`label_smoothing` must be a scalar, got shape (3,).",
        label_smoothing=[0.1] * C,
    ),
    "boolean smoothing": Wrong(
        soft, TypeError, "`label_smoothing` must be a real number, got bool.", label_smoothing=True
    ),
    # masks
    "floating where": Wrong(soft, TypeError, "`where` must be boolean, got float32.", where=Z),
    "where of other classes": Wrong(
        integer,
        ValueError,
        "`where` must broadcast to the shape of `logits`, (4, 3); got (4, 2).",
        where=np.ones((N, 2), bool),
    ),
    "where per class alone": Wrong(soft, ValueError, "`where` must broadcast", where=np.ones(C, bool)),
    "floating ignore_index": Wrong(
        integer, TypeError, "`ignore_index` must be an int or None, got float.", ignore_index=0.0
    ),
    "boolean ignore_class": Wrong(
        sparse, TypeError, "`ignore_class` must be an int or None, got bool.", ignore_class=True
    ),
    # flags
    "from_logits as a number": Wrong(
        categorical, TypeError, "`from_logits` must be a bool, got int.", from_logits=1
    ),
    "from_logits in words": Wrong(
        sparse, TypeError, "`from_logits` must be a bool, got str.", from_logits="yes"
    ),
    "balancing as a number": Wrong(
        binary,
        TypeError,
        "`apply_class_balancing` must be a bool, got float.",
        apply_class_balancing=0.5,
    ),
    # loss objects
    "reduction": Wrong(
        CategoricalFocalCrossentropy,
        ValueError,
        "`reduction` must be one of ('sum_over_batch_size', 'mean', 'mean_with_sample_weight', "
        "'sum', 'none', None), got 'average'.",
        reduction="average",
    ),
    "reduction of another type": Wrong(
        BinaryFocalCrossentropy, ValueError, "`reduction` must be one of", reduction=0
    ),
    "dtype": Wrong(
        SparseCategoricalFocalCrossentropy,
        TypeError,
        "`dtype` must be a floating dtype or None",
        dtype="int32",
    ),
    "no dtype": Wrong(
        CategoricalFocalCrossentropy,
        TypeError,
        "`dtype` must be a floating dtype or None",
        dtype="wide",
    ),
    "alpha of an object": Wrong(
        CategoricalFocalCrossentropy,
        TypeError,
        "`alpha` must be a real number or an array",
        alpha="auto",
    ),
    "gamma of an object": Wrong(
        BinaryFocalCrossentropy, TypeError, "`gamma` must be a real number or an array", gamma=True
    ),
}


def raises(wrong: Wrong):
    return pytest.raises(wrong.error, match=re.escape(wrong.message))


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name):
    with raises(WRONG[name]):
        WRONG[name].call()


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_while_tracing(name):
    """The same inside jit: the rules know shapes, dtypes and Python values there too."""
    with raises(WRONG[name]):
        jax.jit(lambda x: (WRONG[name].call(), x)[1])(1.0)


SHAPE_RULES = [
    (soft, {"logits": (N, 0), "labels": (N, 0)}, "`logits` must have at least one class"),
    (soft, {"labels": (N,)}, "`labels` must have the shape of `logits`, (4, 3), got (4,)."),
    (soft, {"labels": (1, C)}, "`labels` must have the shape of `logits`, (4, 3), got (1, 3)."),
    (soft, {"logits": (C, C), "labels": (C,)}, "`labels` must have the shape of `logits`, (3, 3)"),
    (integer, {"logits": (N, 2, C)}, "`labels` must have shape (4, 2)"),
    (soft, {"alpha": (2,)}, "`alpha` must have one entry per class, 3, or 1; got shape (2,)."),
    (integer, {"gamma": (N,)}, "`gamma` must have one entry per class, 3, or 1; got shape (4,)."),
    (soft, {"label_smoothing": (1,)}, "`label_smoothing` must be a scalar, got shape (1,)."),
    (independent, {"alpha": (2, N, C)}, "`alpha` must be a scalar, [classes]"),
    (sparse, {"y_pred": (N + 1, C)}, "`y_true` must have shape (5,)"),
    (
        categorical,
        {"y_true": (C, N)},
        "`y_true` must have the shape of `y_pred`, (4, 3), got (3, 4).",
    ),
    (binary, {"y_true": (N,)}, "`y_true` must have the shape of `y_pred`, (4, 3), got (4,)."),
]


@pytest.mark.parametrize(("function", "shapes", "message"), SHAPE_RULES)
def test_traced_arguments_of_wrong_shape(function, shapes, message):
    traced = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(lambda given: function(**given), traced)


@pytest.mark.parametrize(
    ("function", "name", "dtype", "message"),
    [
        (soft, "logits", jnp.int32, "`logits` must be floating, got int32."),
        (integer, "labels", jnp.float32, "`labels` must be integer class indices, got float32."),
        (soft, "where", jnp.int32, "`where` must be boolean, got int32."),
        (soft, "alpha", jnp.bool_, "`alpha` must be a real number"),
        (soft, "label_smoothing", jnp.bool_, "`label_smoothing` must be a real number, got bool."),
    ],
)
def test_traced_arguments_of_wrong_dtype(function, name, dtype, message):
    shape = {
        "logits": (N, C),
        "labels": (N,),
        "where": (N, C),
        "alpha": (C,),
        "label_smoothing": (),
    }
    with pytest.raises(TypeError, match=re.escape(message)):
        jax.eval_shape(lambda x: function(**{name: x}), jax.ShapeDtypeStruct(shape[name], dtype))


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (categorical, "from_logits"),
        (sparse, "from_logits"),
        (binary, "from_logits"),
        (binary, "apply_class_balancing"),
    ],
)
def test_traced_flags(function, name):
    message = f"`{name}` must be a Python bool, got a traced value: mark it static under `jax.jit`."
    with pytest.raises(TypeError, match=re.escape(message)):
        jax.jit(lambda flag: function(**{name: flag}))(True)


@pytest.mark.parametrize(("function", "name"), [(integer, "ignore_index"), (sparse, "ignore_class")])
def test_traced_ignored_index(function, name):
    with pytest.raises(TypeError, match=f"`{name}` must be an int or None, got .*Tracer"):
        jax.jit(lambda index: function(**{name: index}))(1)


def test_traced_alpha_without_balancing():
    with pytest.raises(ValueError, match="`alpha` has no effect without apply_class_balancing=True"):
        jax.jit(lambda alpha: binary(alpha=alpha))(0.25)


@pytest.mark.parametrize("name", ["alpha", "gamma"])
def test_traced_option_of_an_object(name):
    with pytest.raises(TypeError, match=f"`{name}` of an object must be a known value, got a traced one."):
        jax.jit(lambda x: CategoricalFocalCrossentropy(**{name: x})(Y, Z))(1.0)


@pytest.mark.parametrize("function", [integer, sparse])
@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_unknown_labels_out_of_range_give_nan(function, jit, smoothing):
    """Never a silent wrong number, where a value cannot be looked at."""
    options = {"label_smoothing": smoothing} if function is integer else {}

    def losses(labels):
        return function(Z, labels, **options)

    found = (jax.jit(losses) if jit else losses)(jnp.array([0, -1, C, 2]))
    np.testing.assert_array_equal(np.isnan(found), [False, True, True, False])


@pytest.mark.parametrize(("function", "name"), [(integer, "ignore_index"), (sparse, "ignore_class")])
@pytest.mark.parametrize("ignored", [-1, C, 255, 1])
def test_ignored_first(function, name, ignored):
    """An ignored label may be no class; others outside are still found."""
    labels = [0, ignored, 2, ignored]
    plain = function(labels=[0, 0, 2, 0]) if function is integer else function(y_true=[0, 0, 2, 0])
    for kind in (list, np.array, jnp.array):
        found = function(Z, kind(labels), **{name: ignored})
        np.testing.assert_array_equal(found, np.where([1, 0, 1, 0], plain, 0))
    found = function(Z, jnp.array([0, ignored, -7, 2]), **{name: ignored})
    np.testing.assert_array_equal(np.isnan(found), [False, False, True, False])


def test_known_values_at_the_border_are_allowed():
    for smoothing in (0, 0.0, 1, 1.0, np.float32(1), jnp.bfloat16(0.5)):
        assert np.isfinite(soft(label_smoothing=smoothing)).all()
    for gamma in (0, 0.0, -0.0, jnp.bfloat16(0), np.float64(0)):
        assert np.isfinite(soft(gamma=gamma)).all()
    assert binary(alpha=0.25).shape == binary(alpha=np.float64(0.25)).shape == (N,)


def test_empty_batches_are_allowed():
    assert soft(Z[:0], Y[:0]).shape == integer(Z[:0], np.zeros(0, int)).shape == (0,)
    assert independent(Z[:0], Y[:0]).shape == (0, C)


def fits(given: tuple[int, ...], last: tuple[int, ...]) -> bool:
    """Whether an option broadcasts against the logits without making them larger."""
    return len(given) <= len(last) and all(n in (1, m) for n, m in zip(given[::-1], last[::-1], strict=False))


small = st.lists(st.integers(1, 3), max_size=4).map(tuple)


@hypothesis.settings(deadline=None, max_examples=150, derandomize=True, database=None)
@hypothesis.given(
    shape=small.filter(len),
    given=small,
    axis=st.integers(0, 3),
    name=st.sampled_from(["alpha", "gamma"]),
)
def test_options_fit_or_raise(shape, given, axis, name):
    axis %= len(shape)
    last = (*np.delete(shape, axis).tolist(), shape[axis])
    z, option = (jax.ShapeDtypeStruct(s, jnp.float32) for s in (shape, given))

    def losses():
        return jax.eval_shape(lambda z, x: softmax_focal_loss(z, z, axis=axis, **{name: x}), z, option)

    if fits(given, last):
        assert losses().shape == last[:-1]
    else:
        with pytest.raises(ValueError, match=f"`{name}` must"):
            losses()


@hypothesis.settings(deadline=None, max_examples=150, derandomize=True, database=None)
@hypothesis.given(shape=small.filter(len), given=small, axis=st.integers(0, 3), soft_labels=st.booleans())
def test_labels_fit_or_raise(shape, given, axis, soft_labels):
    axis %= len(shape)
    rows = tuple(np.delete(shape, axis).tolist())
    z = jax.ShapeDtypeStruct(shape, jnp.float32)
    y = jax.ShapeDtypeStruct(given, jnp.int32)  # integers may be one-hot labels too
    loss = softmax_focal_loss if soft_labels else softmax_focal_loss_with_integer_labels

    if given == (shape if soft_labels else rows):
        assert jax.eval_shape(lambda z, y: loss(z, y, axis=axis), z, y).shape == rows
    else:
        with pytest.raises(ValueError, match="`labels` must have"):
            jax.eval_shape(lambda z, y: loss(z, y, axis=axis), z, y)


def test_every_name_is_reached():
    """No public loss is without a wrong call here."""
    called = {soft, integer, independent, categorical, sparse, binary}
    losses = {name for name in focaljax.__all__ if name.endswith(("loss", "labels", "crossentropy"))}
    elsewhere = {"reduce_loss", "linear_softmax_focal_loss"}  # test_reductions, test_linear
    assert len(called) == len(losses - elsewhere)
