"""The sigmoid operation against the oracle: value, every gradient, second derivative, infinite logits."""

import itertools
from functools import cache, partial

import cases
import chex
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import oracle
import pytest
import tolerances
from conftest import OPTIMIZED
from pairs import every_pair

from focaljax import (
    _entries,
    binary_focal_crossentropy,
    sigmoid_focal_loss,
    sigmoid_focal_loss_with_integer_labels,
)
from focaljax.terms import Asymmetric, Focal, Poly

pytestmark = pytest.mark.gpu
jit = partial(jax.jit, compiler_options=OPTIMIZED)

READINGS = ("mixture", "quality", "cross_entropy")


def loss_of(reading, epsilon, z, y, gamma):
    term = Focal(gamma) if epsilon is None else Poly(gamma, epsilon)
    return sigmoid_focal_loss(z, y, term=term, soft_labels=reading)


@partial(jit, static_argnums=(0, 1))
@partial(jax.vmap, in_axes=(None, None, 0, 0, None))
def everything(reading, epsilon, z, y, gamma):
    """The loss, its gradients by logit, label and gamma, and its second derivative by the logit."""
    loss = partial(loss_of, reading, epsilon)
    value, gradients = jax.value_and_grad(loss, (0, 1, 2))(z, y, gamma)
    return value, *gradients, jax.grad(jax.grad(loss))(z, y, gamma)


@every_pair(gamma=cases.GAMMAS, reading=READINGS, epsilon=[None, 1.0])
def test_value_and_derivatives_are_the_oracle_s(gamma, reading, epsilon):
    assert_exact(gamma, reading, epsilon, "float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("gamma", cases.GAMMAS)
def test_narrow_logits_are_taken_exactly(gamma, dtype):
    assert_exact(gamma, "mixture", None, dtype)


def assert_exact(gamma, reading, epsilon, dtype):
    z, y = cases.sigmoid_grid(dtype)
    truth = oracle.sigmoid_focal(z, y, gamma, reading=reading, epsilon=epsilon or 0.0)
    flush = tolerances.flush(factor=1 + (epsilon or 0))
    logs = flush * tolerances.FLUSHED_LOG * (1 + gamma)
    narrow = tolerances.rtol("gradient", gamma, returned=dtype)
    table = [
        (truth.value, truth.scale_value, tolerances.rtol("value", gamma), flush),
        (truth.grad, truth.scale, narrow, tolerances.flush(1, dtype, 1 + (epsilon or 0))),
        (truth.grad_y, truth.scale_y, tolerances.rtol("gradient", gamma), logs),
        (truth.grad_gamma, truth.scale_gamma, tolerances.rtol("gradient_gamma", gamma), logs),
        (truth.grad2, truth.scale2, tolerances.rtol("hessian", gamma), logs),
    ]
    if dtype != "float32":  # the second derivative of a rounded first one is of its dtype
        table.pop()
    names = [f"z = {a:g}, y = {b:g}" for a, b in zip(z, y, strict=True)]
    found = everything(reading, epsilon, z.astype(jnp.dtype(dtype)), y, np.float32(gamma))
    for got, (want, scale, rtol, tiny) in zip(found, table, strict=False):
        tolerances.assert_close(got, want, scale=scale, rtol=rtol, tiny=tiny, names=names)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_hard_labels_are_exact_in_every_entry(gamma, reading):
    """Without soft labels no terms cancel: the error is relative to the derivative itself."""
    z, y = cases.sigmoid_grid()
    hard = (y == 0) | (y == 1)
    truth = oracle.sigmoid_focal(z[hard], y[hard], gamma)
    by_logit = np.asarray(everything(reading, None, z, y, np.float32(gamma))[1])
    tolerances.assert_close(by_logit[hard], truth.grad, rtol=tolerances.rtol("gradient", gamma))


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_infinite_logits_have_the_limits(gamma, reading):
    z, y = np.meshgrid(np.float32([np.inf, -np.inf]), np.float32([0, 1, 0.3]))
    z, y = (np.resize(x, cases.sigmoid_grid()[0].shape) for x in (z, y))  # there is a program of that size
    truth = oracle.sigmoid_focal(z, y, gamma, reading=reading)
    value, by_logit, *_, second = everything(reading, None, z, y, np.float32(gamma))
    tolerances.assert_close(value, truth.value, rtol=tolerances.rtol("value"))
    tolerances.assert_close(by_logit, truth.grad, rtol=tolerances.rtol("gradient"))
    np.testing.assert_array_equal(second, 0)


def test_alpha_weighs_the_positive_and_the_negative_answer():
    z, y = cases.sigmoid_grid()
    plain = np.asarray(sigmoid_focal_loss(z, y), np.float64)

    def total(alpha):
        losses = sigmoid_focal_loss(z, y, alpha=alpha)
        return jnp.sum(losses), losses

    by_alpha, weighed = jax.jit(jax.grad(total, has_aux=True))(0.25)
    rtol = tolerances.rtol("same")
    tolerances.assert_close(weighed, plain * (0.25 * y + 0.75 * (1 - y)), rtol=rtol)
    want = plain * (2 * y - 1)
    tolerances.assert_close(by_alpha, want.sum(), rtol=rtol, scale=np.abs(want).sum())


@partial(jax.jit, static_argnums=0)
@partial(jax.vmap, in_axes=(None, 0, 0, None))
def second_by_label(reading, z, y, gamma):
    """The second derivative by the label, and that by logit and label."""
    loss = partial(loss_of, reading, None)
    return jax.grad(jax.grad(loss, 1), 1)(z, y, gamma), jax.grad(jax.grad(loss), 1)(z, y, gamma)


WRONG = {  # m by the definition of each reading
    "mixture": lambda y, p, q, bce: y * q + (1 - y) * p,
    "quality": lambda y, p, q, bce: abs((1 - y) * p - y * q),
    "cross_entropy": lambda y, p, q, bce: -mpmath.expm1(-bce),
}


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("gamma", [1.0, 1.5, 2.0, 5.0])
def test_second_derivatives_by_the_label_are_those_of_the_definition(gamma, reading):
    """Also where m vanishes: below gamma = 1 they are infinite there."""
    z, y = (
        x.ravel() for x in np.meshgrid(np.float32([-87, -30, -9, -1, 0.5, 9, 60]), np.float32([0, 0.3, 1]))
    )

    def parts(x, label):
        p, q = 1 / (1 + mpmath.exp(-x)), 1 / (1 + mpmath.exp(x))
        bce = -label * mpmath.log(p) - (1 - label) * mpmath.log(q)
        return WRONG[reading](label, p, q, bce), bce

    def value(x, label):
        m, bce = parts(x, label)
        return m ** mpmath.mpf(gamma) * bce

    def terms(x, label):  # of d2/dy2: their sizes, with dm/dy at most 1, or |x| of what is made of bce
        m, bce = parts(x, label)
        by_y = (1 - m) * abs(x) if reading == "cross_entropy" else 1
        bend = (1 - m) * x**2 if reading == "cross_entropy" else 0
        first = gamma * m ** (mpmath.mpf(gamma) - 1)
        return first * (abs(gamma - 1) * by_y**2 * bce / m + 2 * by_y * abs(x) + bend * bce)

    with mpmath.workdps(120):
        step = mpmath.mpf(10) ** -60
        points = [(mpmath.mpf(float(a)), mpmath.mpf(float(b))) for a, b in zip(z, y, strict=True)]
        # One-sided at the ends would leave [0, 1]; the definition holds there too.
        by_label = [mpmath.diff(lambda b, a=a: value(a, b), b, 2, h=step) for a, b in points]
        mixed = [mpmath.diff(value, (a, b), (1, 1), h=step) for a, b in points]
        size = np.array([float(terms(a, b)) for a, b in points])
    by_label, mixed = (np.array([float(mpmath.re(x)) for x in found]) for found in (by_label, mixed))
    rtol = tolerances.rtol("hessian", gamma)
    tiny = tolerances.flush(1, factor=100 * (1 + gamma))
    names = [f"z = {a:g}, y = {b:g}" for a, b in zip(z, y, strict=True)]
    close = partial(tolerances.assert_close, rtol=rtol, tiny=tiny, names=names)
    found = second_by_label(reading, z, y, np.float32(gamma))
    close(found[0], by_label, scale=size)
    close(found[1], mixed, scale=size + np.abs(mixed))


of_probabilities = jit(binary_focal_crossentropy)


@jit
def of_logits(labels, logits, options):
    """The losses and their slopes."""

    def total(z):
        losses = binary_focal_crossentropy(labels, z, from_logits=True, **options)
        return jnp.sum(losses), losses

    slopes, losses = jax.grad(total, has_aux=True)(logits)
    return losses, slopes[:, 0]


@pytest.mark.parametrize("smoothing", [0.1, 1e-2, 1e-3, 1e-6])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_smoothing_keeps_the_digits_of_small_labels(gamma, smoothing):
    """y (1 - s) + s / 2 and 1 minus it are each as exact as s is."""
    z, y = (x.ravel() for x in np.meshgrid(np.float32([-20, -8, -1, 0, 1, 8, 20]), np.float32([0, 1])))
    s = np.float64(np.float32(smoothing))
    with np.errstate(over="ignore"):
        p, q = 1 / (1 + np.exp(-np.float64(z))), 1 / (1 + np.exp(np.float64(z)))
    yes, no = y * (1 - s) + s / 2, (1 - y) * (1 - s) + s / 2
    m, bce = yes * q + no * p, -(yes * np.log(p) + no * np.log(q))
    slope = m**gamma * (gamma * (no - yes) * p * q / m * bce + no * p - yes * q)
    size = m**gamma * (gamma * np.abs(no - yes) * p * q / m * bce + no * p + yes * q)

    options = {"gamma": gamma, "label_smoothing": np.float32(smoothing)}
    losses, slopes = of_logits(y[:, None], z[:, None], options)
    rtol = tolerances.rtol("value", gamma)
    tolerances.assert_close(losses, m**gamma * bce, rtol=rtol)
    tolerances.assert_close(slopes, slope, scale=size, rtol=rtol)
    inside = np.float32([0.01, 0.3, 0.9, 0.999])
    for label in (0.0, 1.0):
        yes, no = label * (1 - s) + s / 2, (1 - label) * (1 - s) + s / 2
        p = np.float64(inside)
        want = (yes * (1 - p) + no * p) ** gamma * -(yes * np.log(p) + no * np.log1p(-p))
        found = of_probabilities(np.full((4, 1), np.float32(label)), inside[:, None], **options)
        tolerances.assert_close(found, want, rtol=tolerances.rtol("keras"))


def one_hot(labels, classes):
    """1 for every class that a list names."""
    return (labels[..., None] == np.arange(classes)).any(-2).astype("float32")


ROWS, CLASSES = (2, 5), 4
LABELS = {
    "one": np.random.default_rng(0).integers(-2, CLASSES + 2, (*ROWS, 1)),
    "lists": np.random.default_rng(1).integers(-2, CLASSES + 2, (*ROWS, 3)),
    "many": np.random.default_rng(1).permuted(np.tile(np.arange(-8, 12), (*ROWS, 1)), axis=-1)[..., :10],
    "none": np.zeros((*ROWS, 0), np.int64),
}


OPTIONS = (
    {},
    {"alpha": 0.25, "gamma": 0.5},
    {"alpha": [0.1, 0.9, 0.5, 0.7], "label_smoothing": 0.1},
    {"term": Poly(1.0, [[0.5]])},
    {"term": Asymmetric(0.5, 3.0, 0.1), "alpha": 0.75},
)


def factors(losses):
    return jnp.cos(jnp.arange(losses.size, dtype=losses.dtype)).reshape(losses.shape)


def moving(options):
    """What is differentiated of some options."""
    floating = {name: x for name, x in OPTIONS[options].items() if name != "label_smoothing"}
    return jax.tree.map(np.float32, floating, is_leaf=lambda x: isinstance(x, list))


@cache
def of_dense(options):
    """One program for all labels."""

    def total(logits, moving, dense):
        losses = sigmoid_focal_loss(logits, dense, **OPTIONS[options] | moving)
        return jnp.sum(factors(losses) * losses)

    return jax.jit(jax.value_and_grad(total, (0, 1)))


@pytest.mark.parametrize(
    ("axis", "options", "kind"),
    [
        (*each, kind)
        for each, kind in zip(
            itertools.product([-1, 0], range(len(OPTIONS))), itertools.cycle(LABELS), strict=False
        )
    ],
)
def test_indices_of_positives_are_their_labels(axis, options, kind, monkeypatch):
    """In value and every gradient; duplicates and what is no class too; more than are compared at once."""
    monkeypatch.setattr(_entries, "MANY", 4)
    labels = LABELS[kind]
    logits = np.random.default_rng(2).normal(size=(*ROWS, CLASSES)).astype("float32")
    given = labels[..., 0] if kind == "one" else labels.astype(np.int16)

    def of_indices(logits, moving):
        z = jnp.moveaxis(logits, -1, axis)
        losses = sigmoid_focal_loss_with_integer_labels(
            z, jnp.asarray(given), axis=axis, **OPTIONS[options] | moving
        )
        losses = jnp.moveaxis(losses, axis, -1)
        return jnp.sum(factors(losses) * losses)

    found = jax.jit(jax.value_and_grad(of_indices, (0, 1)))(logits, moving(options))
    want = of_dense(options)(logits, moving(options), one_hot(labels, CLASSES))
    chex.assert_trees_all_close(found, want, rtol=tolerances.rtol("same"), atol=tolerances.rtol("same"))


def test_known_indices_of_any_size_are_looked_at_before_they_are_narrowed():
    z = np.zeros((3, 2), "float32")
    none = sigmoid_focal_loss_with_integer_labels(z, [-1, 2, 7])
    for labels in ([2**32, -1, 2**63], np.array([2**32 + 1, -(2**40), 2])):
        np.testing.assert_array_equal(sigmoid_focal_loss_with_integer_labels(z, labels), none)
    ignored = sigmoid_focal_loss_with_integer_labels(z, np.array([2**32 + 1, -1, 0]), ignore_index=2**32 + 1)
    assert (np.asarray(ignored) == 0).all(1).tolist() == [True, False, False]
    unsigned = sigmoid_focal_loss_with_integer_labels(z, jnp.array([255, 0, 7], "uint8"), ignore_index=255)
    assert (np.asarray(unsigned) == 0).all(1).tolist() == [True, False, False]


@pytest.mark.parametrize("ignored", [-1, 255])
def test_masks_and_ignored_labels_take_entries_away(ignored):
    """What is left has the losses that it had; what is gone has none, whatever it holds."""
    z, y = (x[:120].reshape(30, 4) for x in cases.sigmoid_grid())
    mask = np.random.default_rng(0).random((30, 4)) < 0.7
    marked = np.random.default_rng(1).random((30, 4)) < 0.3
    kept = mask & ~marked
    labels = np.where(marked, ignored, y).astype("float32")

    @partial(jax.jit, static_argnames="ignore_index")
    def loss_and_slope(z, labels, **options):
        losses, pull_back = jax.vjp(lambda z: sigmoid_focal_loss(z, labels, alpha=0.25, **options), z)
        return losses, *pull_back(jnp.ones_like(losses))

    plain = loss_and_slope(z, y)
    masked = loss_and_slope(np.where(kept, z, np.nan), labels, where=mask, ignore_index=ignored)
    for found, full in zip(masked, plain, strict=True):
        np.testing.assert_array_equal(found, np.where(kept, full, 0))
    rows = np.arange(30, dtype="int32") % 6 - 1
    whole = sigmoid_focal_loss_with_integer_labels(z, rows, where=mask)
    some = sigmoid_focal_loss_with_integer_labels(
        np.where(kept, z, np.nan), rows, where=kept, ignore_index=ignored
    )
    counted = kept & (rows != ignored)[:, None]
    np.testing.assert_array_equal(some, np.where(counted, whole, 0))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"soft_labels": "soft"}, ValueError, "`soft_labels` must be one of"),
        (
            {"term": Asymmetric(), "soft_labels": "mixture"},
            ValueError,
            '`soft_labels` must be "linear" or None',
        ),
        ({"term": Asymmetric(margin=1.0)}, ValueError, "`term.margin` must be in [0, 1]"),
        ({"ignore_index": 0.5}, TypeError, "`ignore_index` must be an int or None, got float."),
        ({"where": [1.0, 0.0]}, TypeError, "`where` must be boolean"),
        ({"alpha": 2.0}, ValueError, "`alpha` must be in [0, 1], got 2.0."),
        ({"label_smoothing": 2.0}, ValueError, "`label_smoothing` must be in [0, 1], got 2"),
    ],
)
def test_a_wrong_option_is_named(options, error, message):
    with pytest.raises(error) as caught:
        sigmoid_focal_loss(jnp.zeros(2), [0.0, 1.0], **options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([0.0, 1.0], TypeError, "`labels` must be integer class indices"),
        (
            [0, 1, 2],
            ValueError,
            "`labels` must have shape (2,), that of `logits` without axis 1, or with one",
        ),
        ([[0], [1], [2]], ValueError, "`labels` must have shape (2,)"),
    ],
)
def test_wrong_indices_are_named(labels, error, message):
    with pytest.raises(error) as caught:
        sigmoid_focal_loss_with_integer_labels(jnp.zeros((2, 3)), labels)
    assert str(caught.value).startswith(message)


def test_labels_outside_the_range_may_be_the_ignored_ones():
    with pytest.raises(ValueError, match=r"`labels` must be in \[0, 1\], got 255"):
        sigmoid_focal_loss(jnp.zeros(2), np.array([1, 255]))
    assert sigmoid_focal_loss(jnp.zeros(2), np.array([1, 255], np.uint8), ignore_index=255)[1] == 0


@pytest.mark.parametrize("margin", [0.0, 0.05, 0.3])
def test_the_margin_is_learned(margin):
    """d/dm of r^g (-log(1 - r)), r = max(p - m, 0)."""
    z = np.float32([-8, -1, 0.5, 3, 9])

    @jax.jit
    @jax.grad
    def slope(margin, gamma):
        return sigmoid_focal_loss(z, np.zeros(5), term=Asymmetric(1.0, gamma, margin)).sum()

    for gamma in (1.0, 2.0, 4.0):
        m = np.float64(np.float32(margin))
        r = np.maximum(1 / (1 + np.exp(-np.float64(z))) - m, 0)
        want = -(gamma * r ** (gamma - 1) * -np.log1p(-r) + r**gamma / (1 - r)).sum()
        np.testing.assert_allclose(slope(margin, gamma), want, rtol=1e-5)
