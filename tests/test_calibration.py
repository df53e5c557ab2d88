"""Laws of the calibration: posteriors come back, the temperature is the best, errors are as defined."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.optimize
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sklearn.calibration import calibration_curve

import focaljax
from focaljax.calibration import (
    CalibrationState,
    ClasswiseCalibrationError,
    ExpectedCalibrationError,
    fit_temperature,
    log_posterior,
)

U = 2.0**-24
POSTERIORS = np.array(
    [
        [0.7, 0.2, 0.06, 0.04],
        [0.25, 0.25, 0.25, 0.25],
        [0.49, 0.49, 0.01, 0.01],
        [0.999, 0.0005, 0.0003, 0.0002],
        [0.01, 0.02, 0.03, 0.94],
    ]
)
ALPHA = np.array([0.5, 1.0, 3.0, 7.0])


posterior = jax.jit(log_posterior, static_argnames="axis")
fit = jax.jit(fit_temperature, static_argnames=("ignore_index", "axis", "bounds"))
update = jax.jit(lambda metric, *given: metric.update(*given), static_argnums=0)
result = jax.jit(lambda metric, state: metric.result(state), static_argnums=0)


def seen(metric, *batch):
    return update(metric, metric.init(), *batch)


def trained(slope, *distribution):
    """The logits without slope, the last one 0, by quasi-Newton steps in float64.

    `slope` has the risk and its gradient for logits without the last.
    """
    start = np.zeros(len(distribution[0]) - 1)
    found = scipy.optimize.minimize(
        slope, start, distribution, jac=True, method="BFGS", options={"gtol": 1e-11}
    )
    assert np.abs(found.jac).max() < 1e-8
    return jnp.append(found.x, 0.0)


@jax.jit
@jax.value_and_grad
def focal_risk(z, eta, gamma, alpha):
    return focaljax.softmax_focal_loss(jnp.append(z, 0.0), eta, gamma=gamma, alpha=alpha)


@jax.jit
@jax.value_and_grad
def sigmoid_risk(z, eta):
    yes, no = (focaljax.sigmoid_focal_loss(z, jnp.full(1, y), alpha=0.25) for y in (1.0, 0.0))
    return jnp.sum(eta[0] * yes + eta[1] * no)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [None, ALPHA], ids=["plain", "alpha"])
def test_the_posteriors_of_a_known_distribution_come_back(gamma, alpha):
    with jax.enable_x64(True):
        for eta in POSTERIORS:
            logits = trained(focal_risk, eta, gamma, alpha)
            back = np.exp(posterior(logits, gamma=gamma, alpha=alpha))
            np.testing.assert_allclose(back, eta, rtol=1e-5)
            if gamma and len(set(eta)) > 1:  # and without it they would not have
                assert np.abs(jax.nn.softmax(logits) - eta).max() > 1e-4
            in_float32 = np.exp(posterior(logits.astype(jnp.float32), gamma=gamma, alpha=alpha))
            np.testing.assert_allclose(in_float32, eta, rtol=1e-5)


def test_posteriors_come_back_with_a_gamma_per_class():
    gamma = np.array([0.0, 1.0, 2.0, 3.0])
    with jax.enable_x64(True):
        for eta in POSTERIORS:
            back = np.exp(posterior(trained(focal_risk, eta, gamma, ALPHA), gamma=gamma, alpha=ALPHA))
            np.testing.assert_allclose(back, eta, rtol=1e-5)


@pytest.mark.parametrize("eta", [0.01, 0.3, 0.5, 0.97])
def test_posteriors_come_back_from_a_sigmoid(eta):
    with jax.enable_x64(True):
        z = trained(sigmoid_risk, np.array([eta, 1 - eta]))[0]
        back = np.exp(posterior(np.array([0.0, z]), alpha=np.array([0.75, 0.25])))
        np.testing.assert_allclose(back, [1 - eta, eta], rtol=1e-5)


def test_a_linear_model_trained_on_labels_knows_their_frequencies():
    """The whole way: integer labels, a layer, gradient descent, and the frequencies in the data come back."""
    frequencies = np.array([[70, 20, 10], [5, 5, 90]])
    inputs = np.repeat(np.eye(2, dtype=np.float32), 100, 0)
    labels = np.concatenate([np.repeat(np.arange(3), n) for n in frequencies])

    def objective(kernel):
        return focaljax.softmax_focal_loss_with_integer_labels(inputs @ kernel, labels, gamma=2.0).mean()

    step = jax.jit(lambda kernel, _: (kernel - 4.0 * jax.grad(objective)(kernel), None))
    kernel, _ = lax.scan(step, jnp.zeros((2, 3)), length=2000)
    np.testing.assert_allclose(np.exp(posterior(kernel)), frequencies / 100, atol=1e-4)


def oracle(logits, gamma, alpha):
    """The same formula at 60 digits, as written."""
    with mpmath.workdps(400):
        e = [mpmath.exp(mpmath.mpf(float(z))) for z in logits]
        p = [x / mpmath.fsum(e) for x in e]
        q = [mpmath.fsum(e[:k] + e[k + 1 :]) / mpmath.fsum(e) for k in range(len(e))]
        raw = [
            x / (a * (y**gamma) * (1 + gamma * (-x * mpmath.log(x) / y)))
            for x, y, a in zip(p, q, alpha, strict=True)
        ]
        return np.array([float(mpmath.log(x / mpmath.fsum(raw))) for x in raw])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("spread", [1.0, 30.0, 300.0])
def test_posteriors_are_exact_for_any_logits(gamma, spread):
    rng = np.random.default_rng(0)
    for classes in (2, 3, 10):
        logits = (spread * rng.normal(size=(4, classes))).astype(np.float32)
        alpha = rng.uniform(0.1, 4, classes).astype(np.float32)
        got = posterior(jnp.asarray(logits), gamma=gamma, alpha=alpha)
        want = np.stack([oracle(row, gamma, [float(a) for a in alpha]) for row in logits])
        # Each logarithm is rounded to itself: relative to the largest that was added.
        error = np.abs(np.asarray(got) - want) / (1 + np.abs(want).max(-1, keepdims=True))
        assert error.max() < 8 * U


def test_posteriors_at_the_ends():
    inf = np.inf
    logits = np.array(
        [[1e4, 0.0, 0.0], [0.0, -inf, 0.0], [5.0, -inf, -inf], [3e38, -3e38, 0.0], [0.0, 0.0, 0.0]], "float32"
    )
    got = np.exp(posterior(logits))
    np.testing.assert_allclose(got, [[1, 0, 0], [0.5, 0, 0.5], [1, 0, 0], [1, 0, 0], [1 / 3] * 3], rtol=1e-6)
    np.testing.assert_array_equal(posterior(np.zeros((2, 1), "float32")), 0)

    def weighted(z):
        return jnp.sum(jnp.exp(log_posterior(z)) * jnp.arange(3.0))

    for derivative in jax.jit(jax.vmap(lambda z: (jax.grad(weighted)(z), jax.hessian(weighted)(z))))(logits):
        assert np.isfinite(derivative).all()
    assert np.isnan(posterior(np.array([np.nan, 0.0], "float32"))).all()


@jax.jit
def slopes_of_posteriors(*at):
    """By logits, gamma and alpha."""
    return jax.jacrev(lambda *x: log_posterior(x[0], gamma=x[1], alpha=x[2]), (0, 1, 2))(*at)


@pytest.mark.parametrize("row", [[0.3, -1.2, 2.0], [1.0, 1.0, -1.0], [0.0, 0.0, 0.0], [9.0, -9.0, 3.0]])
def test_posteriors_are_differentiable_at_ties_too(row):
    with jax.enable_x64(True):
        z, alpha = jnp.array(row), jnp.array([0.5, 1.0, 2.0])
        at = (z, jnp.asarray(1.5), alpha)
        for argument, jacobian in enumerate(map(np.asarray, slopes_of_posteriors(*at))):
            f = lambda *x: posterior(x[0], gamma=x[1], alpha=x[2])  # noqa: E731
            h = 1e-6
            for i in np.ndindex(at[argument].shape):
                up, down = (
                    f(*(x.at[i].add(s * h) if k == argument else x for k, x in enumerate(at)))
                    for s in (1, -1)
                )
                np.testing.assert_allclose(jacobian[(slice(None), *i)], (up - down) / (2 * h), atol=2e-9)


def test_posteriors_transform():
    rng = np.random.default_rng(0)
    logits, alpha = rng.normal(size=(5, 3, 4)).astype(np.float32), np.float32([1.0, 2.0, 3.0])
    whole = posterior(logits, alpha=alpha, axis=1)
    mapped = jax.jit(jax.vmap(lambda z: log_posterior(z, alpha=alpha, axis=0)))(logits)
    np.testing.assert_allclose(whole, mapped, atol=4 * U)
    np.testing.assert_allclose(np.exp(whole).sum(1), 1, rtol=8 * U)
    np.testing.assert_allclose(posterior(logits, gamma=0.0), jax.nn.log_softmax(logits), atol=8 * U)
    assert posterior(logits.astype(jnp.bfloat16)).dtype == jnp.float32
    np.testing.assert_array_equal(np.argmax(posterior(logits), -1), np.argmax(logits, -1))


def make_logits(n, classes, scale, seed=0):
    """Logits that are `scale` times too sure, and labels drawn from the true ones."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, classes)) * 2
    labels = np.argmax(z + rng.gumbel(size=z.shape), -1)
    return (scale * z).astype(np.float32), labels.astype(np.int32)


def best_temperature(logits, labels, weights=None) -> float:
    """By a general optimiser, in float64."""
    z = np.float64(logits)

    def nll(log_t):
        scaled = z / np.exp(log_t)
        losses = scipy.special.logsumexp(scaled, -1) - scaled[np.arange(len(z)), labels]
        return np.average(losses, weights=weights)

    found: Any = scipy.optimize.minimize_scalar(nll, bracket=(-1, 1), tol=1e-12)
    return math.exp(found.x)


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("classes", [2, 10])
def test_the_temperature_is_the_best_one(scale, classes):
    logits, labels = make_logits(2000, classes, scale)
    weights = np.random.default_rng(1).uniform(0, 2, 2000)
    for w in (None, weights):
        truth = best_temperature(logits, labels, w)
        given = None if w is None else jnp.asarray(w, jnp.float32)
        got = fit(logits, labels, sample_weight=given)
        np.testing.assert_allclose(
            got, truth, rtol=1e-5
        )  # a float32 mean of 2000 slopes is off by about 1e-6
    np.testing.assert_allclose(best_temperature(logits, labels), scale, rtol=0.1)
    with jax.enable_x64(True):
        # The reference finds a minimum, and is itself good to the root of eps.
        got = fit(np.float64(logits), labels)
        np.testing.assert_allclose(got, best_temperature(logits, labels), rtol=1e-7)


def test_temperature_at_its_bounds():
    sure = np.array([[2.0, 0.0], [0.0, 3.0]], "float32")
    np.testing.assert_allclose(fit(sure, np.array([0, 1])), 0.01, rtol=1e-6)
    np.testing.assert_allclose(fit(sure, np.array([1, 0]), bounds=(0.5, 8.0)), 8.0, rtol=1e-6)
    assert fit(sure, np.array([-1, -1]), ignore_index=-1) == 1
    assert fit_temperature(jnp.zeros((0, 2)), jnp.zeros(0, int)) == 1
    huge, labels = make_logits(500, 3, 1e4)
    np.testing.assert_allclose(
        fit(huge, labels, bounds=(1e-2, 1e6)),
        best_temperature(huge / 1e4, labels) * 1e4,
        rtol=1e-4,
    )


ALIKE = np.array([[0.0, 0.0, 0.0], [7.0, 7.0, 7.0], [2.0, 2.0, -np.inf]], "float32")  # at any temperature
NEAREST = {(0.01, 100.0): 1, (2.0, 5.0): 2, (0.1, 0.5): 0.5}  # to 1 within the bounds


@pytest.mark.parametrize("bounds", NEAREST)
def test_where_every_temperature_is_as_good_it_is_one(bounds):
    labels, uneven = np.array([0, 1] * 4), np.array([1.0, 2.0, 3.0], "float32")

    @jax.jit
    @jax.vmap
    def found(row):
        rows = jnp.tile(row, (8, 1))
        weights = (None, np.arange(8, dtype="float32"), np.zeros(8, "float32"))
        found = [fit_temperature(rows, labels, sample_weight=w, bounds=bounds) for w in weights]
        rows, ignored = rows.at[3].set(uneven), np.where(np.arange(8) == 3, -1, labels)
        found.append(fit_temperature(rows, ignored, ignore_index=-1, bounds=bounds))
        return jnp.stack(found), fit_temperature(rows, labels, bounds=bounds)

    ones, of_a_wrong_row = found(ALIKE)
    np.testing.assert_array_equal(ones, NEAREST[bounds])
    np.testing.assert_allclose(of_a_wrong_row, bounds[1], rtol=0.01)  # all that counts is that it is wrong


def test_temperature_on_a_mesh(mesh):
    """That of the whole, and one where every one is as good."""
    logits, labels = make_logits(50 * jax.device_count(), 4, 2.0)
    alike = np.repeat(ALIKE[:, None], len(labels), 1)

    def of_shards(logits, alike, labels):
        options = {"axis_name": "data"}
        ones = [
            jax.vmap(lambda z, bounds=bounds: fit_temperature(z, labels % 2, bounds=bounds, **options))(alike)
            for bounds in NEAREST
        ]
        return fit_temperature(logits, labels, **options), jnp.stack(ones)

    specs = (P("data"), P(None, "data"), P("data"))
    sharded = jax.shard_map(of_shards, mesh=mesh, in_specs=specs, out_specs=P())
    put = [
        jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip((logits, alike, labels), specs, strict=True)
    ]
    found, ones = jax.jit(sharded)(*put)
    np.testing.assert_allclose(found, fit(logits, labels), rtol=1e-5)
    np.testing.assert_array_equal(ones.T, [list(NEAREST.values())] * len(ALIKE))


def test_temperature_under_transforms_and_masks():
    logits, labels = make_logits(400, 4, 2.0)
    whole = fit(logits, labels)
    both = jax.jit(jax.vmap(fit_temperature))(np.stack([logits, 2 * logits]), np.stack([labels, labels]))
    np.testing.assert_allclose(both, [whole, 2 * whole], rtol=1e-5)
    np.testing.assert_allclose(fit(logits.T, labels, axis=0), whole, rtol=1e-5)

    dirty = np.append(logits, np.full((1, 4), np.nan, "float32"), 0)
    ignored = fit(dirty, np.append(labels, -1), ignore_index=-1)
    np.testing.assert_allclose(ignored, whole, rtol=1e-5)
    masked = np.append(logits, np.full((400, 1), -np.inf, "float32"), 1)  # a class that cannot be
    np.testing.assert_allclose(fit(masked, labels), whole, rtol=1e-5)
    assert np.isnan(fit(dirty, np.append(labels, 0)))
    assert np.isnan(fit(logits, np.append(9, labels[1:])))
    np.testing.assert_array_equal(jax.jit(jax.grad(fit_temperature))(logits, labels), 0)


def ece(p, labels, bins, weights=None):
    """By the definition, bin by bin: top class and every class."""
    n, classes = p.shape
    w = np.ones(n) if weights is None else np.float64(weights)

    def of(confidence, right):
        error = 0.0
        for b in range(bins):
            inside = (confidence > np.float32(b / bins)) & (confidence <= np.float32((b + 1) / bins))
            inside |= (b == 0) & (confidence <= 0)
            if w[inside].sum():
                gap = np.average(right[inside], weights=w[inside]) - np.average(
                    confidence[inside], weights=w[inside]
                )
                error += w[inside].sum() / w.sum() * abs(gap)
        return error

    top = of(p.max(1), p.argmax(1) == labels)
    return top, np.mean([of(p[:, c], labels == c) for c in range(classes)])


def probabilities(n, classes, seed=0):
    logits, labels = make_logits(n, classes, 1.5, seed)
    return np.asarray(jax.nn.softmax(logits)), labels


@pytest.mark.parametrize(("bins", "weighted"), [(1, True), (10, False), (15, True)])
def test_errors_are_those_of_the_definition(bins, weighted):
    p, labels = probabilities(701, 5)
    w = np.random.default_rng(1).integers(0, 3, 701).astype(np.float32) if weighted else None
    both = ExpectedCalibrationError(bins), ClasswiseCalibrationError(5, bins)

    @jax.jit
    def of_parts_and_whole(*given):
        states = [metric.init() for metric in both]
        for part in (slice(0, 1), slice(1, 351), slice(351, 351), slice(351, 701)):
            batch = jax.tree.map(lambda x, part=part: x[part], given)
            states = [metric.update(state, *batch) for metric, state in zip(both, states, strict=True)]
        whole = [metric.update(metric.init(), *given) for metric in both]
        return [[m.result(x) for m, x in zip(both, of, strict=True)] for of in (states, whole)]

    parts, whole = of_parts_and_whole(labels, p, w)
    np.testing.assert_allclose(parts, ece(p, labels, bins, w), rtol=1e-5)
    np.testing.assert_allclose(whole, parts, rtol=1e-5)


def test_reliability_is_that_of_scikit_learn():
    p, labels = probabilities(2000, 4)
    metric = ClasswiseCalibrationError(4, bins=8)
    diagram = jax.tree.map(np.asarray, metric.reliability(seen(metric, labels, p)))
    for c in range(4):
        accuracy, confidence = calibration_curve(labels == c, p[:, c], n_bins=8)
        some = ~np.isnan(diagram.accuracy[c])
        np.testing.assert_allclose(diagram.accuracy[c][some], accuracy, rtol=1e-6)
        np.testing.assert_allclose(diagram.confidence[c][some], confidence, rtol=1e-6)
    np.testing.assert_allclose(diagram.share.sum(-1), 1, rtol=1e-6)


def test_reliability_of_the_top_class():
    metric = ExpectedCalibrationError(bins=4)
    p = np.array([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]], "float32")
    state = seen(metric, np.array([0, 0, 1]), p)
    diagram = metric.reliability(state)
    np.testing.assert_allclose(
        diagram.share, [0, 1 / 3, 1 / 3, 1 / 3], rtol=1e-6
    )  # edges belong to the bin below
    np.testing.assert_array_equal(diagram.confidence, [np.nan, 0.5, 0.75, 1])
    np.testing.assert_array_equal(diagram.accuracy, [np.nan, 1, 1, 0])


def test_recovered_posteriors_and_a_temperature_calibrate():
    """What the room is for, on data whose posteriors are known."""
    z, labels = make_logits(20_000, 5, 1.0)
    eta = jax.nn.softmax(z)
    metric = ExpectedCalibrationError(from_logits=True)

    def error(logits):
        return float(result(metric, seen(metric, labels, logits)))

    # The minimiser of the focal risk: the logits whose recovered posteriors are these, by fixed point.
    step = jax.jit(lambda logits: logits + 0.5 * (jnp.log(eta) - log_posterior(logits)))
    logits = jnp.log(eta)
    for _ in range(50):
        logits = step(logits)
    np.testing.assert_allclose(np.exp(posterior(logits)), eta, atol=1e-5)
    assert error(logits) > 5 * error(posterior(logits))
    assert error(logits / fit(logits, labels)) < error(logits) / 2
    assert abs(fit(posterior(logits), labels) - 1) < 0.03


METRICS = (ExpectedCalibrationError(from_logits=True), ClasswiseCalibrationError(3, from_logits=True))


def test_streams_merge_and_transform(mesh):
    logits, labels = make_logits(6 * jax.device_count(), 3, 1.0)
    parts = [x.reshape(6, -1, *x.shape[1:]) for x in (labels, logits)]

    @jax.jit
    def whole_and_scanned(batch, parts):
        whole = [metric.update(metric.init(), *batch) for metric in METRICS]
        states = [metric.init() for metric in METRICS]
        return whole, lax.scan(lambda states, x: (all_see(states, *x), None), states, parts)[0]

    def all_see(states, *batch):
        return [metric.update(state, *batch) for metric, state in zip(METRICS, states, strict=True)]

    @jax.jit
    def sharded(y, z):
        def shard(y, z):
            return [m.merge(m.update(m.init(), y, z), axis_name="data") for m in METRICS]

        return jax.shard_map(shard, mesh=mesh, in_specs=(P("data"),) * 2, out_specs=P())(y, z)

    whole, scanned = whole_and_scanned((labels, logits), parts)
    put = [jax.device_put(x, NamedSharding(mesh, P("data"))) for x in (labels, logits)]
    donated = jax.jit(all_see, donate_argnums=0)
    for states in (scanned, sharded(*put), donated([metric.init() for metric in METRICS], *put)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), states, whole)
        for state, of_whole in zip(states, whole, strict=True):
            np.testing.assert_array_equal(state.count, of_whole.count)
    for metric, of_whole in zip(METRICS, whole, strict=True):
        jax.tree.map(np.testing.assert_array_equal, metric.merge(), metric.init())
        jax.tree.map(np.testing.assert_array_equal, metric.merge(of_whole, metric.init()), of_whole)
        assert len({x.unsafe_buffer_pointer() for x in jax.tree.leaves(metric.init())}) == 6
        assert hash(metric) == hash(type(metric)(**vars(metric)))


def test_a_stream_stays_exact_beyond_float32():
    metric = ExpectedCalibrationError(bins=2)
    y, p = jnp.array([0, 0, 1]), jnp.array([[0.9, 0.1]] * 3)
    once = state = metric.update(metric.init(), y, p)
    for _ in range(30):
        state = metric.merge(state, state)
    state = metric.merge(state, once)
    assert float(state.count[1]) + float(state.count_compensation[1]) == 3 * (2**30 + 1)
    np.testing.assert_allclose(metric.result(state), 0.9 - 2 / 3, rtol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_what_does_not_count_is_silent(metric):
    logits, labels = make_logits(8, 3, 1.0)
    third = np.arange(8) == 2
    w = np.where(third, 0, 1).astype("float32")
    dirty = np.where(third[:, None], np.float32(np.nan), logits)
    clean = seen(metric, labels, logits, w)
    jax.tree.map(np.testing.assert_array_equal, seen(metric, labels, dirty, w), clean)
    ignoring = type(metric)(**{**vars(metric), "ignore_class": 255})
    jax.tree.map(np.testing.assert_array_equal, seen(ignoring, np.where(third, 255, labels), dirty), clean)
    assert np.isnan(result(metric, seen(metric, labels, dirty)))
    assert np.isnan(result(metric, seen(metric, np.where(third, 3, labels), logits)))
    assert result(metric, metric.init()) == 0
    assert np.isnan(metric.reliability(metric.init()).accuracy).all()
    pixels = seen(metric, labels.reshape(2, 4), logits.reshape(2, 4, 3))
    np.testing.assert_array_equal(pixels.count, seen(metric, labels, logits).count)


def test_the_class_axis_and_dtypes():
    p, labels = probabilities(20, 3)
    first, last = ExpectedCalibrationError(axis=0), ExpectedCalibrationError()
    jax.tree.map(np.testing.assert_array_equal, seen(first, labels, p.T), seen(last, labels, p))
    half = seen(last, labels, p.astype(jnp.bfloat16))
    assert isinstance(half, CalibrationState) and half.count.dtype == jnp.float32
    with jax.enable_x64(True):
        assert result(last, seen(last, labels, p)).dtype == jnp.float64
        found = result(last, seen(last, labels, np.float64(p)))
        np.testing.assert_allclose(found, ece(np.float64(p), labels, 15)[0], rtol=1e-12)


LOGITS, LABELS = jnp.zeros((4, 3)), jnp.zeros(4, int)
TOP, EACH = ExpectedCalibrationError, ClasswiseCalibrationError


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: log_posterior([1, 2]), TypeError, "`logits` must be floating, got int32"),
        (lambda: log_posterior(LOGITS, gamma=-1.0), ValueError, "`gamma` must be at least 0 and finite"),
        (lambda: log_posterior(LOGITS, alpha=[1.0, 0.0, 1.0]), ValueError, "`alpha` must be above 0, got 0"),
        (lambda: log_posterior(LOGITS, alpha=[1.0, 1.0]), ValueError, "`alpha` must have one entry"),
        (lambda: log_posterior(LOGITS, axis=2), ValueError, "`axis` must be in"),
        (lambda: fit_temperature(LOGITS, jnp.zeros(4)), TypeError, "`labels` must be integer"),
        (lambda: fit_temperature(LOGITS, [0, 0, 0, 3]), ValueError, r"`labels` must be in"),
        (lambda: fit_temperature(LOGITS, LABELS, bounds=(0.0, 1.0)), ValueError, "`bounds` must be 0 <"),
        (lambda: fit_temperature(LOGITS, LABELS, bounds=2.0), TypeError, "`bounds` must be two"),
        (lambda: fit_temperature(LOGITS, LABELS, sample_weight=jnp.ones(3)), ValueError, "`sample_weight`"),
        (lambda: fit_temperature(LOGITS, LABELS, ignore_index=0.5), TypeError, "`ignore_index` must be"),
        (lambda: TOP(bins=0), ValueError, "`bins` must be at least 1, got 0"),
        (lambda: TOP(from_logits=1), TypeError, "`from_logits` must be a bool, got int"),
        (lambda: TOP(ignore_class=True), TypeError, "`ignore_class` must be an int or None"),
        (lambda: EACH(2.5), TypeError, "`num_classes` must be an int"),
        (lambda: of_zeros(EACH(4)), ValueError, "`y_pred` must have 4 classes, got 3"),
        (lambda: of_zeros(TOP(), LABELS[:3]), ValueError, r"`y_true` must have shape \(4,\)"),
        (lambda: of_zeros(TOP(), jnp.zeros((4, 3))), TypeError, "use `jax.numpy.argmax`"),
    ],
)  # fmt: skip
def test_errors_name_argument_expected_and_got(call, error, words):
    with pytest.raises(error, match=words):
        call()


def of_zeros(metric, y_true=LABELS):
    return metric.update(metric.init(), y_true, LOGITS)
