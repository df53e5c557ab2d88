"""Wrong arguments raise at trace time; the message names argument, rule and what came."""

import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import focaljax
from focaljax import (
    CategoricalFocalCrossentropy,
    SparseCategoricalFocalCrossentropy,
    binary_focal_crossentropy,
    calibration,
    categorical_focal_crossentropy,
    class_weights,
    linear_sigmoid_focal_loss,
    linear_softmax_focal_loss,
    metrics,
    sigmoid_focal_loss,
    sigmoid_focal_loss_with_integer_labels,
    softmax_focal_loss,
    softmax_focal_loss_with_integer_labels,
    sparse_categorical_focal_crossentropy,
)
from focaljax.keras import losses as losses_of_keras
from focaljax.keras import metrics as metrics_of_keras

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


def positives(logits=Z, labels=T, **options):
    return sigmoid_focal_loss_with_integer_labels(logits, labels, **options)


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
        "`labels` must have shape (3,), that of `logits` without axis 0, got (4,). Do the classes lie along "
        "axis 1 of `logits`?",
        axis=0,
    ),
    "an index of the other axis": Wrong(
        integer,
        ValueError,
        "`labels` must be in [0, 3), got 3. Do the classes lie along axis 0 of `logits`?",
        labels=[0, 3, 1],
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
    "negative gamma of a class": Wrong(
        integer, ValueError, "`gamma` must be at least 0 and finite, got -0.5.", gamma=jnp.array([1, -0.5, 0])
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
    # loss objects
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
    message = f"`{name}` must be a bool, got a traced value: mark it static under `jax.jit`."
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


# What is known and out of its range, in every function and every object.


def linear(**options):
    return linear_softmax_focal_loss(Z, jnp.ones((C, C)), **({"labels": T} | options))


def linear_positives(**options):
    return linear_sigmoid_focal_loss(Z, jnp.ones((C, C)), **({"labels": T} | options))


def posterior(**options):
    return calibration.log_posterior(Z, **options)


def balanced(**options):
    return binary(apply_class_balancing=True, **options)


OBJECTS = [
    getattr(module, f"{name}FocalCrossentropy")
    for module in (focaljax, metrics, losses_of_keras, metrics_of_keras)
    for name in ("Categorical", "SparseCategorical", "Binary")
]
STREAMS = [calibration.ExpectedCalibrationError, partial(calibration.ClasswiseCalibrationError, 3)]
COUNTS = partial(class_weights.ClassCounts, 3)
MAKERS = [*OBJECTS, *STREAMS, COUNTS]
LINEAR = [linear, linear_positives]
FUNCTIONS = [soft, integer, independent, positives, categorical, sparse, balanced, *LINEAR, posterior]
HALVES = {
    independent,
    positives,
    balanced,
    linear_positives,
}  # alpha weighs one answer, and 1 - alpha the other
BAD = {
    "gamma": [-1, -0.5, np.nan, np.inf, -np.inf],
    "alpha": [-1, np.nan, np.inf],
    "label_smoothing": [-0.1, 1.5, np.nan],
    "z_loss": [-1, np.nan, np.inf],
    "weight": [1.5],
}
KINDS = {
    "number": lambda x: x,
    "NumPy": np.asarray,
    "bfloat16": jnp.bfloat16,
    "JAX": jnp.asarray,
    "list": lambda x: [1.0, 0.5, x],
    "rows": lambda x: [[0.5], [x], [1.0], [1.0]],
}


def takes(function, name):
    """Whether the function behind one of those above has an option."""
    try:
        function(**{name: object()})
    except TypeError as error:
        return "unexpected keyword argument" not in str(error)
    return True


RANGES = [
    (function, name, value, kind)
    for function in FUNCTIONS
    for name in ("gamma", "alpha", "label_smoothing", "z_loss")
    if takes(function, name)
    for value in [*BAD[name], *([2, 1.5] if name == "alpha" and function in HALVES else [])]
    for kind in KINDS
    if name in ("gamma", "alpha") or kind not in ("list", "rows")
]


@pytest.mark.parametrize(("function", "name", "value", "kind"), RANGES)
def test_known_options_out_of_range(function, name, value, kind):
    given = KINDS[kind](value)
    got = re.escape(str(KINDS[kind](value) if kind == "bfloat16" else float(value)))
    message = f"`{name}` must be (at least 0 and finite|in \\[0, 1\\]|above 0), got ({got}|{value})"
    with pytest.raises(ValueError, match=message):
        function(**{name: given})
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda x: (function(**{name: given}), x)[1])(1.0)


def test_the_ranges_are_of_all_losses():
    assert {(function.__name__, name) for function, name, *_ in RANGES} == {
        *((f.__name__, name) for f in FUNCTIONS for name in ("gamma", "alpha")),
        *((f.__name__, "label_smoothing") for f in FUNCTIONS if f not in (sparse, posterior)),
        ("linear", "z_loss"),
    }


WRONG_OPTIONS = {
    "gamma": [-1, np.nan, np.inf, "two", True, None, [[1], [1, 2]], [1.0, -1.0]],
    "alpha": [-1, np.nan, np.inf, "auto", True, None, [[1], [1, 2]]],
    "label_smoothing": [2, -0.1, np.nan, [0.1, 0.1, 0.1], "a", None, True],
    "axis": ["x", 1.0, None, True, (0, 1)],
    "from_logits": [3, 0, "yes", None],
    "apply_class_balancing": [2, 0.5, "no", None],
    "ignore_class": [1.5, True, "x", [1]],
    "ignore_index": [1.5, True, "x", [1]],
    "reduction": ["average", 0, "", ("mean",)],
    "dtype": ["int32"],
    "bins": [0, 2.5, None, True],
}
MADE = [
    (cls, name, value)
    for cls in MAKERS
    for name, values in WRONG_OPTIONS.items()
    if name in inspect.signature(cls).parameters and (name != "dtype" or "keras" not in cls.__module__)
    for value in values
]


@pytest.mark.parametrize(("cls", "name", "value"), MADE)
def test_objects_check_their_options_when_they_are_made(cls, name, value):
    with pytest.raises((TypeError, ValueError), match=f"^`{name}` (must be|has no effect)"):
        cls(**{name: value})


@pytest.mark.parametrize("cls", [cls for cls in OBJECTS if "Binary" in cls.__name__])
@pytest.mark.parametrize("alpha", [1.5, -1, [0.5, 2.0]])
def test_binary_objects_know_the_range_of_alpha(cls, alpha):
    with pytest.raises(ValueError, match=r"^`alpha` must be (in \[0, 1\]|at least 0)"):
        cls(apply_class_balancing=True, alpha=alpha)
    with pytest.raises(ValueError, match="^`alpha` has no effect without apply_class_balancing=True"):
        cls(alpha=0.5)


@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("wrong", [1.5, True, "x"])
def test_the_ignored_class_has_its_own_name(from_logits, wrong):
    with pytest.raises(TypeError, match="^`ignore_class` must be an int or None"):
        sparse(ignore_class=wrong, from_logits=from_logits)
    with pytest.raises(TypeError, match="^`ignore_index` must be an int or None"):
        integer(ignore_index=wrong)


LABELLED = {
    soft: ("labels", [-1, np.nan, np.inf, -100]),
    categorical: ("y_true", [-1, np.nan, np.inf, -100]),
    independent: ("labels", [-1, np.nan, np.inf, 2, 1.5, 255, -100]),
    binary: ("y_true", [-1, np.nan, np.inf, 2, 1.5, 255, -100]),
    partial(binary, from_logits=True): ("y_true", [-1, np.nan, 2, 255]),
}


@pytest.mark.parametrize(
    ("function", "name", "value"), [(f, name, x) for f, (name, values) in LABELLED.items() for x in values]
)
@pytest.mark.parametrize("kind", [np.asarray, np.ndarray.tolist, partial(np.asarray, dtype=np.float32)])
def test_known_labels_out_of_range(function, name, value, kind):
    labels = np.zeros((N, C))
    labels[2, 1] = value
    with pytest.raises(ValueError, match=f"^`{name}` must be .*, got {float(value)}") as error:
        jax.jit(lambda z: function(z, kind(labels)))(Z)
    assert ("mark entries to ignore" in str(error.value)) == (value in (-1, 255, -100))
    assert function(Z, jnp.asarray(labels)) is not None  # JAX arrays are not read
    assert np.isfinite(function(Z, kind(np.ones((N, C))))).all()


@pytest.mark.parametrize("known", [np.asarray, jnp.asarray, np.ndarray.tolist])
def test_labels_that_a_mask_takes_away_may_be_anything(known):
    where = np.arange(C) != 1
    labels = np.where(where, np.full((N, C), 0.5), np.nan)
    mask = known(np.broadcast_to(where, (N, C)))
    wanted = soft(Z, jnp.asarray(labels), where=mask)
    assert np.isfinite(wanted).all()
    np.testing.assert_array_equal(soft(Z, labels, where=mask), wanted)
    np.testing.assert_array_equal(jax.jit(lambda w: soft(Z, labels, where=w))(jnp.asarray(mask)), wanted)
    with pytest.raises(ValueError, match="^`labels` must be at least 0 and finite, got nan"):
        soft(Z, labels, where=known(np.broadcast_to(~where, (N, C))))


NO_NUMBERS = [None, "a", [[1], [1, 2]], object(), [None], {"a": 1}]
JUNK = [
    (function, name, value)
    for function, name, *_ in dict.fromkeys((f, n) for f, n, *_ in RANGES)
    for value in NO_NUMBERS
    if not (value is None and name == "alpha")
]


@pytest.mark.parametrize(("function", "name", "value"), JUNK)
def test_what_is_no_number_is_named(function, name, value):
    with pytest.raises((TypeError, ValueError), match=f"^`{name}` (must be|has no effect)"):
        function(**{name: value})


LABELS = {soft: "labels", integer: "labels", linear: "labels", independent: "labels"}
LABELS |= {categorical: "y_true", sparse: "y_true", binary: "y_true"}


@pytest.mark.parametrize(("function", "name"), LABELS.items())
@pytest.mark.parametrize("value", NO_NUMBERS)
def test_labels_that_are_no_numbers_are_named(function, name, value):
    with pytest.raises((TypeError, ValueError), match=f"^`{name}` must"):
        function(**{name: value})


OVER_AXES = {
    "softmax": lambda name: soft(axis_name=name),
    "integers": lambda name: integer(axis_name=name),
    "linear": lambda name: linear(axis_name=name),
    "reduce_loss": lambda name: focaljax.reduce_loss(jnp.ones(3), axis_name=name),
    "fit_temperature": lambda name: calibration.fit_temperature(Z, T, axis_name=name),
    "merge": lambda name: COUNTS().merge(COUNTS().init(), axis_name=name),
    "merge of means": lambda name: OBJECTS[3]().merge(axis_name=name),
    "merge of bins": lambda name: STREAMS[0]().merge(axis_name=name),
}


@pytest.mark.parametrize("function", OVER_AXES)
@pytest.mark.parametrize("name", ["nowhere", ("nowhere", "data"), 3, 1.5, ["data"]])
def test_an_unknown_axis_is_named(function, name):
    with pytest.raises((TypeError, ValueError), match="^`axis_name` must"):
        OVER_AXES[function](name)
    with pytest.raises((TypeError, ValueError), match="^`axis_name` must"):
        jax.vmap(lambda x: (OVER_AXES[function](name), x)[1], axis_name="rows")(jnp.ones(2))


# Integer labels that JAX would narrow to 32 bits.

WIDE, EIGHT = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)), 8
FAR = [2**32 + 5, 2**32 - 1, 2**31, -(2**31) - 1, -(2**63), 2**63, 2**64 - 1, 2**70]


def counted(labels, ignored):
    counter = class_weights.ClassCounts(EIGHT, ignore_index=ignored)
    return counter.result(counter.update(counter.init(), labels))


def streamed(cls, **options):
    def result(labels, ignored):
        metric = cls(ignore_class=ignored, from_logits=True, **options)
        return metric.result(metric.update(metric.init(), labels, WIDE))

    return result


def watched(labels, ignored):
    metric = metrics_of_keras.SparseCategoricalFocalCrossentropy(ignore_class=ignored, from_logits=True)
    metric.update_state(labels, WIDE)
    return metric.result()


def layered(labels, ignored, **options):
    return linear_softmax_focal_loss(WIDE, jnp.eye(EIGHT), labels, ignore_index=ignored, chunk=2, **options)


INDEXED = {
    "softmax": lambda y, i: integer(WIDE, y, ignore_index=i),
    "smoothed": lambda y, i: integer(WIDE, y, ignore_index=i, label_smoothing=0.1),
    "sparse": lambda y, i: sparse(jax.nn.softmax(WIDE), y, ignore_class=i),
    "sparse of logits": lambda y, i: sparse(WIDE, y, ignore_class=i, from_logits=True),
    "object": lambda y, i: SparseCategoricalFocalCrossentropy(ignore_class=i, from_logits=True)(y, WIDE),
    "Keras": lambda y, i: OBJECTS[7](ignore_class=i, from_logits=True)(y, WIDE),
    "rows": partial(layered, strategy="rows"),
    "classes": partial(layered, strategy="classes"),
    "losses of rows": partial(layered, strategy="rows", reduction="none"),
    "counts": counted,
    "metric": streamed(metrics.SparseCategoricalFocalCrossentropy),
    "metric of Keras": watched,
    "calibration": streamed(calibration.ExpectedCalibrationError),
    "calibration by class": streamed(calibration.ClasswiseCalibrationError, num_classes=EIGHT),
    "temperature": lambda y, i: calibration.fit_temperature(WIDE, y, ignore_index=i),
}


def holders(far):
    """The label among others, as a list and in all dtypes of NumPy that hold it."""
    yield [far, 1, 7]
    for dtype in (np.int64, np.uint32, np.uint64, object):
        if dtype is object or np.iinfo(dtype).min <= far <= np.iinfo(dtype).max:
            yield np.array([far, 1, 7], dtype)


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("entrance", INDEXED)
def test_labels_are_seen_before_they_are_narrowed(entrance, far):
    loss = INDEXED[entrance]
    wanted = loss(jnp.array([-1, 1, 7]), -1)
    assert np.isfinite(wanted).all()
    for labels in holders(far):
        with pytest.raises(ValueError, match=rf"^`(labels|y_true)` must be in \[0, 8\), got {far}\.$"):
            loss(labels, None)
        with pytest.raises(ValueError, match=rf"^`(labels|y_true)` must be in \[0, 8\), got {far}\.$"):
            loss(labels, far % 8)
        np.testing.assert_array_equal(loss(labels, far), wanted)
    # Of what JAX has narrowed already, nothing is that index.
    np.testing.assert_array_equal(loss(jnp.array([5, 1, 7]), far), loss(jnp.array([5, 1, 7]), None))


def test_every_name_is_reached():
    """No public loss is without a wrong call here."""
    called = {soft, integer, independent, positives, categorical, sparse, binary, *LINEAR}
    losses = {name for name in focaljax.__all__ if name.endswith(("loss", "labels", "crossentropy"))}
    elsewhere = {"reduce_loss"}  # test_reductions
    assert len(called) == len(losses - elsewhere)
