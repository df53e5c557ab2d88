"""The oracle is right: against differences, against scipy, and by the laws that it must obey."""

from typing import Any

import cases
import mpmath
import numpy as np
import oracle
import pytest
import tolerances
from pairs import every_pair
from scipy.special import log_softmax

EPS = 2.0**-52
mp: Any = mpmath.mp.clone()
mp.dps = 150  # differences are off by about 1e-150, absolute

# Rows of few classes at the places where formulas change their character.
SMALL_ROWS = [
    ([0.5], [2.0]),
    ([0.0, 0.0], [1.0, 0.0]),
    ([1.5, -0.25], [0.25, 0.0]),
    ([40.0, 0.0], [1.0, 0.0]),
    ([-40.0, 0.0], [1.0, 0.0]),
    ([1e4, 0.0, 1.0], [1.0, 0.0, 0.0]),
    ([-1e4, 0.0, 1.0], [1.0, 0.0, 0.0]),
    ([1.0, 1.0, 1.0], [0.2, 0.3, 0.5]),
    ([1.0 + 1e-8, 1.0, 1.0], [0.2, 0.2, 0.6]),
    ([300.0, 200.0, -500.0], [0.1, 1e-9, 3.0]),
    ([30.0, 1.0, 1.0, -2.0], [0.5, 0.0, 0.25, 0.25]),
]
SMALL_GAMMAS = [0.0, 0.25, 1.0, 1.5, 5.0]


def textbook(z: Any, w: Any, g: Any) -> Any:
    """The definition, word for word, at whatever precision `mp` has."""
    e = [mp.exp(x) for x in z]
    loss = mp.mpf(0)
    for k in range(len(z)):
        q = mp.fsum(e[:k] + e[k + 1 :]) / mp.fsum(e)
        loss -= w[k] * q ** g[k] * mp.log(e[k] / mp.fsum(e))
    return loss


def exact(values: Any) -> list[Any]:
    return [mp.mpf(float(x)) for x in values]


def replaced(values: list[Any], index: int, value: Any) -> list[Any]:
    return [*values[:index], value, *values[index + 1 :]]


def close(got: Any, want: Any, scale: Any = None, k: float = 8) -> None:
    tolerances.assert_close(got, want, rtol=k * EPS, scale=scale, tiny=1e-140)


@pytest.mark.parametrize("gamma", SMALL_GAMMAS)
@pytest.mark.parametrize("row", SMALL_ROWS, ids=str)
def test_softmax_focal_is_the_definition_and_its_differences(row, gamma):
    z, w, n = exact(row[0]), exact(row[1]), len(row[0])
    gammas = [gamma + 0.5 * k for k in range(n)]
    for g in ([gamma] * n, gammas):
        got = oracle.softmax_focal(row[0], row[1], g)
        g = exact(g)

        def of_z(*point, g=g):
            return textbook(point, w, g)

        def along(k, values, order):
            return float(mp.diff(lambda x: order(replaced(values, k, x)), values[k]))

        close(got.value, float(of_z(*z)))
        grad = [along(k, z, lambda v: of_z(*v)) for k in range(n)]
        close(got.grad, grad, got.scale)
        grad_weights = [along(k, w, lambda v, g=g: textbook(z, v, g)) for k in range(n)]
        close(got.grad_weights, grad_weights)
        if n == 1:  # q = 0: differences of 0^g, but the term is gone for every g
            assert got.grad_gamma == 0
            continue
        grad_gammas = [along(k, g, lambda v: textbook(z, w, v)) for k in range(n)]
        close(got.grad_gammas, grad_gammas)
        close(got.grad_gamma, sum(grad_gammas))


@pytest.mark.parametrize("gamma", SMALL_GAMMAS)
@pytest.mark.parametrize("row", SMALL_ROWS, ids=str)
def test_hessian_is_the_difference_of_the_definition(row, gamma):
    z, w, n = exact(row[0]), exact(row[1]), len(row[0])
    g = [mp.mpf(gamma)] * n
    got = oracle.softmax_focal(row[0], row[1], gamma)
    want = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            order = tuple((k == i) + (k == j) for k in range(n))
            if n == 1:
                want[i, j] = float(mp.diff(lambda x: textbook([x], w, g), z[0], 2))
            else:
                want[i, j] = float(mp.diff(lambda *v: textbook(v, w, g), tuple(z), order))
    close(got.hessian, want, got.hessian_scale)


@pytest.mark.parametrize("gamma", cases.GAMMAS)
def test_moderate_rows_agree_with_scipy(gamma):
    generator = np.random.default_rng(0)
    z, y = generator.normal(size=(20, 7)), generator.dirichlet(np.ones(7), size=20)
    log_p = log_softmax(z, axis=-1)
    p = np.exp(log_p)
    slopes = y * (1 - p) ** gamma * (1 - gamma * p * log_p / (1 - p))
    got = oracle.batch(z, y, gamma)
    close(got.value, (y * (1 - p) ** gamma * -log_p).sum(-1), k=64)
    close(got.grad, p * slopes.sum(-1, keepdims=True) - slopes, got.scale, k=64)
    close(got.grad_weights, (1 - p) ** gamma * -log_p, k=64)


def test_ten_thousand_distinct_classes_agree_with_scipy():
    z, target = (x[0] for x in cases.rows(10_000))
    log_p = log_softmax(z.astype(np.float64))
    got = oracle.softmax_focal(z, oracle.one_hot([target], len(z))[0], 0.0)
    close(got.value, -log_p[target], k=64)
    close(got.grad, np.exp(log_p) - (np.arange(len(z)) == target), got.scale, k=512)


@pytest.mark.parametrize("gamma", [0.0, 0.25, 2.0])
def test_hard_rows_obey_the_laws(gamma):
    for classes in (2, 3, 10):
        z, targets = cases.rows(classes)
        got = oracle.batch(z, oracle.one_hot(targets, classes), gamma)
        own = np.arange(len(z)), targets
        assert np.isfinite(got.value).all() and (got.value >= 0).all()
        assert np.isfinite(got.grad).all() and np.isfinite(got.hessian).all()
        # one label: every entry has one sign and one term, and the row sums to zero
        assert (np.abs(got.grad) == got.scale).all()
        assert (got.grad[own] <= 0).all() and ((got.grad >= 0).sum(-1) >= classes - 1).all()
        close(np.abs(got.grad.sum(-1)) + 1, np.ones(len(z)))
        # a Hessian is symmetric, and the loss does not feel a common shift
        assert (got.hessian == got.hessian.swapaxes(1, 2)).all()
        assert (got.hessian_scale_odds >= got.hessian_scale * (1 - 8 * EPS) - 1e-300).all()
        close(got.hessian_scale_odds[own], got.hessian_scale[own])
        close(got.hessian.sum(-1) + 1, np.ones((len(z), classes)), k=16)


def test_soft_hard_rows_obey_the_laws():
    soft = cases.soft_rows(3)
    got = oracle.batch(soft.logits, soft.weights, 0.5)
    assert (np.abs(got.grad) <= got.scale * (1 + EPS)).all()
    close(got.grad.sum(-1), np.zeros(len(soft.names)), got.scale.sum(-1))
    sums = np.abs(got.hessian_scale).sum(-1)
    close(got.hessian.sum(-1), np.zeros_like(sums), sums)


def test_gamma_zero_is_cross_entropy():
    for classes in (1, 2, 10):
        z, targets = cases.rows(classes)
        weights = oracle.one_hot(targets, classes)
        got = oracle.batch(z, weights, 0.0)
        log_p = log_softmax(z.astype(np.float64), axis=-1)
        own = log_p[np.arange(len(z)), targets]
        np.testing.assert_allclose(got.value, -own, rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(got.grad, np.exp(log_p) - weights, rtol=1e-13, atol=1e-14)


def test_a_common_shift_changes_nothing():
    z = cases.representable(np.random.default_rng(1).normal(size=9), "bfloat16").astype(np.float64)
    y = np.random.default_rng(2).dirichlet(np.ones(9))
    for shift in (2.0**20, -(2.0**10)):
        here, there = (oracle.softmax_focal(x, y, 1.5) for x in (z, z + shift))
        assert here.value == there.value and (here.grad == there.grad).all()
        assert (here.hessian == there.hessian).all()


def test_equal_classes_are_a_matter_of_speed_only():
    z, w = np.array([2.0, -1.0, 2.0, 0.5, -1.0, 2.0]), np.array([0.5, 1.0, 0.5, 0.0, 0.0, 0.25])
    nudge = np.arange(6) * 1e-13  # all classes distinct
    for gamma in (0.0, 0.25, 2.0):
        same, apart = (oracle.softmax_focal(x, w, gamma) for x in (z, z + nudge))
        for field in ("value", "grad", "scale", "grad_weights", "grad_gamma", "hessian"):
            np.testing.assert_allclose(getattr(same, field), getattr(apart, field), 1e-11, 1e-12)
        order = [3, 0, 5, 1, 2, 4]
        moved = oracle.softmax_focal(z[order], w[order], gamma)
        assert (moved.grad == same.grad[order]).all()
        assert (moved.hessian == same.hessian[np.ix_(order, order)]).all()


def test_classes_at_minus_infinity():
    dead = oracle.softmax_focal([1.0, -np.inf, 0.5], [0.25, 0.0, 0.75], 2.0)
    alive = oracle.softmax_focal([1.0, 0.5], [0.25, 0.75], 2.0)
    assert dead.value == alive.value and (dead.grad[[0, 2]] == alive.grad).all()
    assert dead.grad[1] == 0 and (dead.hessian[[0, 2]][:, [0, 2]] == alive.hessian).all()
    for gamma in (0.0, 0.25, 2.0):
        alone = oracle.softmax_focal([3.0, -np.inf], [1.0, 0.0], gamma)
        assert alone.value == alone.grad_gamma == 0 and not alone.grad.any()
        assert not alone.hessian.any()
        lost = oracle.softmax_focal([-np.inf, 0.0, 0.0], [1.0, 0.0, 0.0], gamma)
        assert lost.value == np.inf and lost.grad.tolist() == [-1.0, 0.5, 0.5]
        assert lost.grad_gamma == 0
    z, targets = cases.limits(10)
    got = oracle.batch(z, oracle.one_hot(targets, 10), 2.0)
    assert (got.value > np.finfo(np.float32).max).all() and np.isfinite(got.grad).all()


@pytest.mark.parametrize("z", [[np.nan, 0.0], [np.inf, 0.0], [-np.inf, -np.inf], [], [[0.0]]])
def test_questions_without_an_answer_raise(z):
    with pytest.raises(ValueError, match="`z` must"):
        oracle.softmax_focal(z, 1.0, 2.0)


def test_inputs_are_taken_exactly():
    third = np.float32(1 / 3)
    assert oracle.softmax_focal(np.array([third, 0]), [1, 0], 0).value == float(
        mp.log1p(mp.exp(-mp.mpf(int(third * 2**25)) / 2**25))
    )
    with pytest.raises(TypeError, match="exact"):
        oracle.softmax_focal(np.array(["long words"]), 1.0, 2.0)


def test_batch_takes_a_gamma_and_a_weight_per_example():
    z, targets = cases.rows(10)
    weight = np.linspace(0.5, 4.0, len(z))
    gamma = np.resize(cases.GAMMAS, len(z))
    got = oracle.batch(z, oracle.one_hot(targets, 10, weight), gamma[:, None])
    for n in (0, 17, 50):
        one = oracle.softmax_focal(z[n], np.eye(10)[targets[n]], gamma[n])
        close(got.value[n], weight[n] * one.value)
        close(got.grad[n], weight[n] * one.grad)


# --- sigmoid ------------------------------------------------------------------------------------

READINGS = {
    "mixture": lambda y, p, q, b: y * q + (1 - y) * p,
    "quality": lambda y, p, q, b: abs((1 - y) * p - y * q),
    "cross_entropy": lambda y, p, q, b: -mp.expm1(-b),
}


@pytest.mark.parametrize("gamma", cases.GAMMAS)
def test_hard_binary_labels_are_a_softmax_of_two(gamma):
    z = np.array(cases.SIGMOID_LOGITS)
    got = oracle.sigmoid_focal(z, 1.0, gamma, 0.25)
    mirrored = oracle.sigmoid_focal(-z, 0.0, gamma, 0.25)
    two = oracle.batch(np.stack([z, 0 * z], -1), [0.25, 0.0], gamma)
    close(got.value, two.value)
    close(got.grad, two.grad[:, 0])
    close(got.grad_gamma, two.grad_gamma)
    close(got.grad2, two.hessian[:, 0, 0], got.scale2)
    assert (mirrored.value == got.value).all() and (mirrored.grad == -got.grad).all()
    assert (mirrored.grad_y == -got.grad_y).all() and (mirrored.grad2 == got.grad2).all()


@every_pair(
    label=[0.0, 1.0, 0.3, 1e-6, 1 - 1e-6], gamma=SMALL_GAMMAS, reading=[*READINGS, "mixture, epsilon"]
)
def test_sigmoid_focal_is_the_definition_and_its_differences(label, gamma, reading):
    reading, *shifted = reading.split(", ")
    epsilon = -0.5 if shifted else 0.0
    y, g, weight = mp.mpf(label), mp.mpf(gamma), mp.mpf(3)

    def f(z, y, g):
        p, q = 1 / (1 + mp.exp(-z)), 1 / (1 + mp.exp(z))
        b = y * softplus(-z) + (1 - y) * softplus(z)
        m = READINGS[reading](y, p, q, b)
        return weight * (m**g * b + epsilon * m ** (g + 1))

    def softplus(z):  # at -1e4 it is not 0
        return z + mp.log1p(mp.exp(-z)) if z > 0 else mp.log1p(mp.exp(z))

    for z in (0.0, 1e-8, -0.5, 3.0, -12.0, 17.0, 40.0, -90.0, 1e3, -1e4):
        x = mp.mpf(z)
        got = oracle.sigmoid_focal(z, label, gamma, 3.0, reading, epsilon)
        close(got.value, float(f(x, y, g)))
        close(got.grad, float(mp.diff(f, (x, y, g), (1, 0, 0))), got.scale)
        if 0 < label < 1 or abs(z) < 100:  # from inside [0, 1], where steps are small beside q
            inwards = {0.0: 1, 1.0: -1}.get(label, 0)
            grad_y = mp.diff(lambda v, x=x: f(x, v, g), y, direction=inwards)
            close(got.grad_y, float(grad_y), got.scale_y)
        close(got.grad_gamma, float(mp.diff(f, (x, y, g), (0, 0, 1))))
        close(got.grad2, float(mp.diff(f, (x, y, g), (2, 0, 0))), got.scale2)


@pytest.mark.parametrize("reading", ["mixture", "quality", "cross_entropy"])
@pytest.mark.parametrize("gamma", [0.0, 0.25, 1.0, 2.0])
def test_sigmoid_at_infinity_is_the_limit(gamma, reading):
    label = np.array([0.0, 0.3, 1.0])
    for sign in (1.0, -1.0):
        far = oracle.sigmoid_focal(sign * 1e300, label, gamma, 1.0, reading)
        limit = oracle.sigmoid_focal(sign * np.inf, label, gamma, 1.0, reading)
        for name, got, want in zip(far._fields, far, limit, strict=True):
            got = np.where(np.abs(got) > 1e290, np.copysign(np.inf, got), got)
            np.testing.assert_allclose(got, want, rtol=1e-14, err_msg=name)


# --- the cases and the tolerances ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("classes", cases.CLASSES)
def test_rows_are_questions_with_an_answer(classes, dtype):
    z, targets = cases.rows(classes, dtype)
    assert z.dtype == np.float32 and z.shape == (len(targets), classes)
    assert len(set(cases.names(classes))) == len(z)
    assert not (np.isnan(z) | (z == np.inf)).any()
    assert np.isfinite(z[np.arange(len(z)), targets]).all()
    assert (cases.representable(z, dtype) == z).all()


def test_soft_rows_have_no_weight_under_minus_infinity():
    for classes in (1, 2, 3, 10, 100):
        soft = cases.soft_rows(classes)
        assert soft.weights.shape == soft.logits.shape and len(set(soft.names)) == len(soft.names)
        assert not soft.weights[np.isneginf(soft.logits)].any()
        assert (soft.alpha > 0).all() and (soft.alpha <= 4).all()


def test_bfloat16_is_the_upper_half_rounded_to_even():
    x = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -np.inf], np.float32)
    want = [1.0, 1.0, 1 + 2**-6, 1 + 2**-7, -np.inf]
    assert cases.representable(x, "bfloat16").tolist() == want


def test_the_table_keeps_the_promise():
    for quantity in ("value", "gradient"):
        assert tolerances.rtol(quantity, cases.GAMMAS[:-1]) <= 2e-6
        assert tolerances.rtol(quantity, 5.0) <= 1e-5
    assert tolerances.rtol("gradient", 2, returned="bfloat16") == 2.0**-8 + 16 * 2.0**-23
    assert tolerances.rtol("gradient", 2, "float64", "float64") == 16 * EPS


def test_assert_close_tells_the_worst_row():
    want = np.array([[1.0, 2.0], [1.0, 1e300], [0.0, np.inf]])
    right = np.array([[1.0, 2.0], [1.0, np.inf], [1e-39, np.inf]], np.float32)
    tolerances.assert_close(right, want, rtol=1e-7)
    for value in (np.nan, 1.1, -np.inf):
        wrong = right.copy()
        wrong[1, 0] = value
        with pytest.raises(AssertionError, match=r"row 'b', index \(1, 0\): got .*, want 1.0"):
            tolerances.assert_close(wrong, want, rtol=1e-6, names=["a", "b", "c"])
