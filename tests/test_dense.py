"""The soft-label operation against the oracle: value, every gradient, Hessian, limits, statistics."""

from functools import partial

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tolerances
from conftest import FORMS, OPTIMIZED
from pairs import every_pair

import focaljax
from focaljax import _forms, _sharding
from focaljax import softmax_focal_loss as loss_of
from focaljax import softmax_focal_loss_with_integer_labels as smoothed_loss
from focaljax._softmax import cpu, dense, one_pass, statistics

pytestmark = pytest.mark.gpu
jit = partial(jax.jit, compiler_options=OPTIMIZED)


def of_all(logits, labels, alpha, gamma):
    """Losses and the gradients by logits, labels and gamma, one gamma per example."""

    def total(logits, labels, gamma):
        losses = loss_of(logits, labels, alpha=alpha, gamma=gamma)
        return jnp.sum(losses), losses

    gradients, losses = jax.grad(total, (0, 1, 2), has_aux=True)(
        logits, labels, jnp.full((len(labels), 1), gamma)
    )
    return losses, *gradients


# Code that users run, and code that CPU never has for them.
everything = jit(of_all)
EVERYTHING = {"cpu": everything, "accelerators": jax.jit(of_all)}


@jax.jit
@partial(jax.vmap, in_axes=(0, 0, 0, None))
def second(logits, labels, alpha, gamma):
    """The derivatives of the gradient, as `jax.jacfwd` and `jax.jacrev` have them, of one linearization."""
    _, forward = jax.linearize(jax.grad(lambda z: loss_of(z, labels, alpha=alpha, gamma=gamma)), logits)
    reverse = jax.linear_transpose(forward, logits)
    basis = jnp.eye(logits.size, dtype=logits.dtype)
    return {
        "forward": jax.vmap(forward, out_axes=1)(basis),
        "reverse": jax.vmap(lambda ct: reverse(ct)[0])(basis),
    }


@every_pair(form=FORMS, classes=[1, 2, 3, 10, 100], gamma=cases.GAMMAS)
@pytest.mark.versions
def test_value_and_gradients_are_the_oracle_s(form, classes, gamma):
    assert_exact(some(cases.soft_rows(classes), {100: 5}.get(classes, 1)), gamma, "float32", form)


def test_a_thousand_classes():
    assert_exact(some(cases.soft_rows(1000), 7), 2.0, "float32")


def some(rows, every):
    """One row in so many, to bound the oracle's time; 5 and 7 are prime to the 6 kinds of label."""
    return cases.SoftRows(*(x[::every] for x in rows))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_logits_are_taken_exactly(dtype):
    assert_exact(cases.soft_rows(10, dtype), 2.0, dtype)


def assert_exact(rows, gamma, dtype, form="cpu"):
    classes = rows.logits.shape[1]
    logits = rows.logits.astype(jnp.dtype(dtype))
    truth = oracle.batch(np.asarray(logits, np.float64), rows.weights, gamma)
    given = logits, rows.labels, rows.alpha, np.float32(gamma)
    losses, by_logits, by_labels, by_gamma = EVERYTHING[form](*given)
    largest = float(rows.alpha.max())
    tiny = tolerances.flush(classes, factor=largest)
    close = tolerances.assert_close
    close(losses, truth.value, rtol=tolerances.rtol("value", gamma), tiny=tiny, names=rows.names)
    close(
        by_logits,
        truth.grad,
        rtol=tolerances.rtol("gradient_scale", gamma, returned=dtype),
        scale=truth.scale,
        tiny=tolerances.flush(classes, dtype, factor=largest),
        names=rows.names,
    )
    silent = (rows.labels == 0) & np.isinf(truth.grad_weights)
    close(
        by_labels,
        np.where(silent, 0, truth.grad_weights * rows.alpha),
        rtol=tolerances.rtol("gradient_weights", gamma),
        tiny=tiny,
        names=rows.names,
    )
    close(
        by_gamma[:, 0],
        truth.grad_gamma,
        rtol=tolerances.rtol("gradient_gamma", gamma),
        tiny=tiny * tolerances.FLUSHED_LOG * (1 + gamma),
        names=rows.names,
    )


@every_pair(form=FORMS, classes=[2, 10], gamma=cases.GAMMAS)
def test_hessian_is_the_oracle_s(form, classes, gamma):
    rows = some(cases.soft_rows(classes), 5)
    truth = oracle.batch(rows.logits, rows.weights, gamma)
    found = second(rows.logits, rows.labels, rows.alpha, np.float32(gamma))
    tolerances.assert_hessians(found, truth.hessian, truth.hessian_scale, gamma, rows.names, largest=4)


@every_pair(
    axis=[0, 1, 2], gamma=["of all", "per class", "per example"], labels=["soft", "smoothed"], parts=[1, 8]
)
def test_blocks_of_rows_change_nothing(monkeypatch, axis, gamma, labels, parts):
    """On CPU value and sums are taken block by block, the derivatives of the gradient too."""
    monkeypatch.setattr(_sharding, "parts", lambda x: parts)
    rng = np.random.default_rng(0)
    shape = [12, 16, 5] if axis == 2 else [16, 12, 16]
    classes = shape[axis]
    rows = shape[:axis] + shape[axis + 1 :]
    logits, direction = rng.normal(size=(2, *shape)).astype(np.float32)
    weights, indices = rng.random(shape, np.float32), rng.integers(-1, classes, rows, np.int32)
    first, silent = (np.moveaxis(x, axis, -1) for x in (logits, weights))
    first[0, 0], silent[0, 0], indices[0, 0] = np.nan, 0, -1  # a row that is silent
    first[1, 1, :2], first[2, 2, 0], silent[2, 2, 0], indices[2, 2] = 9, -np.inf, 0, -1  # two highest; none
    exponents = {"of all": (), "per class": classes, "per example": (*rows, 1)}[gamma]
    operands = logits, weights, rng.uniform(0.5, 3, exponents).astype(np.float32)
    smoothed = partial(smoothed_loss, labels=indices, label_smoothing=0.1, ignore_index=-1)

    def derivatives(*operands):
        def total(logits, weights, gamma):
            of = partial(loss_of, labels=weights) if labels == "soft" else smoothed
            losses = of(logits, gamma=gamma, axis=axis)
            return jnp.sum(losses), losses

        first = jax.grad(total, (0, 1, 2), has_aux=True)
        still = jax.tree.map(jnp.zeros_like, operands[1:])
        (found, losses), (curved, _) = jax.jvp(first, operands, (direction, *still))
        return losses, found, curved[0]

    whole = jax.jit(derivatives)(*operands)
    monkeypatch.setattr(cpu, "BLOCK", 128)
    monkeypatch.setattr(cpu, "STORED", 6 if parts == 1 else 5)  # exponentials of five last classes, or none
    jax.clear_caches()
    traced = jax.jit(derivatives).trace(*operands)
    jax.clear_caches()
    assert traced.lower(lowering_platforms=("cpu",)).as_text().count("stablehlo.while") == 1
    in_blocks = traced.lower().compile()(*operands)
    for got, want in zip(*map(jax.tree.leaves, (in_blocks, whole)), strict=True):
        assert np.all(np.isfinite(want))
        tolerances.assert_close(got, want, rtol=tolerances.rtol("same"), scale=np.abs(want).max())


def test_a_silent_row_of_a_block_is_silent_in_second_derivatives(monkeypatch):
    """By reverse of reverse, where a derivative of what is a constant would be 0 times NaN."""
    monkeypatch.setattr(cpu, "BLOCK", 64)
    logits, labels = np.random.default_rng(0).random((2, 16, 16), np.float32)
    logits[3], labels[3] = np.nan, 0

    def slope(z):
        return jnp.sum(jax.grad(lambda z: jnp.sum(loss_of(z, labels, gamma=2.0)))(z) * labels)

    jax.clear_caches()
    traced = jax.jit(jax.grad(slope)).trace(logits)
    jax.clear_caches()
    assert "stablehlo.while" in traced.lower(lowering_platforms=("cpu",)).as_text()
    found = np.asarray(traced.lower().compile()(logits))
    assert np.all(np.isfinite(found)) and np.all((found == 0).all(1) == (np.arange(16) == 3))


class Share(focaljax.terms.Term):
    def value(self, odds):
        return odds.p


def test_a_term_of_p_alone_has_its_last_bits():
    """Focal loss has p beside 1 only, and its sums leave out what rounds the difference from the highest."""
    rng = np.random.default_rng(0)
    logits = np.stack([rng.uniform(20, 30, 64), rng.uniform(-50, -40, 64)], 1).astype(np.float32)
    gap = logits[:, 0].astype(float) - logits[:, 1]
    assert np.abs(gap - gap.astype(np.float32)).max() > 16 * 2**-23  # what is at stake
    losses = jit(lambda z: loss_of(z, jnp.array([[0.0, 1.0]]).repeat(64, 0), term=Share()))(logits)
    tolerances.assert_close(losses, np.exp(-gap), rtol=tolerances.rtol("same"))


@pytest.mark.parametrize("axis", [0, 1])
def test_stored_exponentials_give_the_same_odds(axis):
    """Of the highest, of two that are, and of an impossible class, too."""
    logits = 4 * np.random.default_rng(0).normal(size=(12, 12)).astype(np.float32)
    logits[0, 0], logits[1, :2], logits[:2, 1], logits[2, 2] = 99, 9, 9, -np.inf
    peak, powers = statistics.peak_and_powers(logits, axis)
    found, truth = (dense.odds_of(logits, peak, axis, None, powers=x) for x in (powers, None))
    for got, want in zip(found, truth, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("axis", [0, 1])
def test_plain_odds_differ_by_roundings_and_not_in_derivatives(axis):
    """Where the logits are not far apart; where they are, in p and log q of a class far below the highest."""
    logits = 4 * np.random.default_rng(0).normal(size=(12, 12)).astype(np.float32)
    logits[1, :2], logits[:2, 1], logits[2, 2] = 9, 9, -np.inf
    peak, powers = statistics.peak_and_powers(logits, axis)
    direction = np.where(np.isfinite(logits), 1, 0) * np.float32(0.5)

    def moved(**options):
        return jax.jvp(lambda z: dense.odds_of(z, peak, axis, None, **options), (logits,), (direction,))

    truth, slopes = moved()
    for given in (powers, None):
        found, rises = moved(powers=given, plain=True)
        for got, want in zip(found, truth, strict=True):
            tolerances.assert_close(got, want, rtol=2 * tolerances.rtol("same"))  # |d| u for d to 25
        for got, want in zip(rises, slopes, strict=True):
            np.testing.assert_array_equal(got, want)


def test_a_value_and_its_gradient_trace_the_sums_once(monkeypatch):
    """In the one form that is lowered."""
    calls, peak = [], statistics.peak
    monkeypatch.setattr(statistics, "peak", lambda *x: calls.append(x) or peak(*x))
    monkeypatch.setattr(cpu, "BLOCK", 4)
    logits = jnp.zeros((4, 3))
    jax.clear_caches()
    jit(jax.value_and_grad(lambda z: jnp.sum(loss_of(z, logits)))).lower(logits)
    jax.clear_caches()
    assert len(calls) == 1


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_a_weight_on_an_impossible_class_gives_an_infinite_loss_and_a_finite_gradient(gamma):
    for classes in (2, 10):
        logits, targets = cases.limits(classes)
        labels = oracle.one_hot(targets, classes).astype(np.float32)
        losses, by_logits, _, _ = everything(logits, labels, np.float32(1), np.float32(gamma))
        assert np.all(losses == np.inf)
        truth = oracle.batch(logits, labels, gamma)
        tolerances.assert_close(
            by_logits,
            truth.grad,
            rtol=tolerances.rtol("gradient_scale", gamma),
            scale=truth.scale,
            tiny=tolerances.flush(classes),
        )


@pytest.mark.parametrize(
    "row", [[np.inf, 0, 0], [0, np.inf, 0], [np.nan, 0, 0], [0, np.nan, 0], [-np.inf] * 3]
)
def test_a_row_without_a_softmax_is_nan_unless_nothing_is_asked_of_it(row):
    @jax.jit
    def value_and_gradient(labels):
        return jax.value_and_grad(loss_of)(np.float32(row), labels)

    assert np.isnan(value_and_gradient(np.float32([1, 0, 0]))[0])
    for silent in value_and_gradient(np.zeros(3, "float32")):
        np.testing.assert_array_equal(silent, 0)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_class_without_weight_that_is_wrong_is_seen_in_a_long_row(wrong):
    """The maximum of a long row may drop a NaN: XLA:CPU's vectors do."""
    logits = np.random.default_rng(0).normal(size=(64, 1000)).astype(np.float32)
    logits[1::3, 5] = wrong
    labels = jax.nn.one_hot(jnp.full(64, 7), 1000)
    losses, by_logits, _, _ = everything(logits, labels, np.float32(1), np.float32(2))
    hit = np.arange(64) % 3 == 1
    np.testing.assert_array_equal(np.isnan(losses), hit)
    np.testing.assert_array_equal(np.isnan(by_logits), np.broadcast_to(hit[:, None], logits.shape))


@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
def test_the_accelerators_reduction_is_the_cpus(classes):
    """The one-pass statistics run here too, slowly: they must be those of the two-pass ones."""
    logits, _ = cases.rows(classes)
    one, two = jit(lambda z: (one_pass.peak(z, axis=1), cpu.peak(z, axis=1)))(logits)
    np.testing.assert_array_equal(one[0], two[0])
    # Here the one-pass form adds its terms one after the other: half an ulp each.
    rtol = tolerances.rtol("same") + classes * 2**-24
    tolerances.assert_close(one[1], np.asarray(two[1]), rtol=rtol, tiny=tolerances.flush(classes))


@pytest.mark.parametrize("shape, axis", [((16, 24), 1), ((16, 1000), 1), ((4, 5, 6), 1)])
def test_the_form_of_gpus(monkeypatch, shape, axis):
    """Derivatives of every operand, and second ones, are those of CPU; some rows are hidden, some are NaN."""
    rng = np.random.default_rng(0)
    logits, direction = 5 * rng.normal(size=(2, *shape)).astype(np.float32)
    labels = rng.random(shape, np.float32)
    first, second, third = (np.moveaxis(x, axis, -1)[i] for x, i in ((logits, 0), (logits, 1), (labels, 1)))
    first[..., 1], second[..., 0], third[...] = np.inf, np.nan, 0

    def derivatives(logits, labels, gamma):
        def total(*operands):
            losses = loss_of(*operands[:2], gamma=operands[2], axis=axis)
            return jnp.sum(losses, where=jnp.isfinite(losses)), losses

        still = jax.tree.map(jnp.zeros_like, (labels, gamma))
        found = jax.value_and_grad(total, (0, 1, 2), has_aux=True)
        return jax.jvp(found, (logits, labels, gamma), (direction, *still))

    operands = logits, labels, np.float32(1.5)
    want = jax.jit(derivatives)(*operands)
    for module, name in ((jax.lax, "platform_dependent"), (_forms, "of_platform")):
        monkeypatch.setattr(module, name, lambda *x, default, **_: default(*x))
    monkeypatch.setattr(one_pass, "parts", lambda x: 1)
    jax.clear_caches()
    program = jax.jit(derivatives).lower(*operands)
    jax.clear_caches()
    assert "complex<f32>" in program.as_text()
    rtol = tolerances.rtol("same") + shape[axis] * 2**-24  # it adds its terms one after the other
    for got, one in zip(*map(jax.tree.leaves, (program.compile()(*operands), want)), strict=True):
        np.testing.assert_array_equal(np.isnan(got), np.isnan(one))
        got, one = np.nan_to_num(got), np.nan_to_num(one)
        tolerances.assert_close(got, one, rtol=rtol, scale=np.abs(one).max())


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("classes", [1000, 1024, one_pass.MANY])
def test_sums_of_the_tiles_of_a_device(monkeypatch, classes, on_gpu):
    """Of whole numbers, which are exact in any order."""
    monkeypatch.setattr(one_pass, "parts", lambda x: 1)
    terms = np.random.default_rng(0).integers(-9, 9, (3, 2, 16, classes)).astype(np.float32)
    for got, want in zip(one_pass.sums(*terms, axis=2, on_gpu=on_gpu), terms.sum(-1), strict=True):
        np.testing.assert_array_equal(got, want)


@every_pair(classes=[1000, 1001, 1024, 2304, 16384], dtype=["float32", "bfloat16"], on_gpu=[False, True])
def test_blocks_of_the_tiles_of_a_device(monkeypatch, classes, dtype, on_gpu):
    """The peak of rows that are flat, steep, or nothing but -inf; in tiles, in slices and what is left."""
    monkeypatch.setattr(one_pass, "parts", lambda x: 1)
    logits = np.asarray(10 * np.random.default_rng(0).normal(size=(2, 8, classes)), dtype)
    lowest = jnp.finfo(dtype).min
    logits[0, 0], logits[0, 1, 1:], logits[0, 2, ::2], logits[0, 3] = -np.inf, -np.inf, -np.inf, 3
    logits[0, 4, 7], logits[0, 5, -1], logits[0, 6], logits[0, 7, 5:] = 90, 3e38, lowest, lowest
    logits[1, 0, 1], logits[1, 1, 1] = np.nan, np.inf
    top, excess = jax.jit(partial(one_pass.peak, axis=2, on_gpu=on_gpu))(logits)
    assert top.dtype == excess.dtype == jnp.float32
    z = logits.astype(np.float64)
    np.testing.assert_array_equal(top, z.max(-1))
    known = np.isfinite(z.max(-1))
    beside = np.exp(z[known] - z[known].max(-1, keepdims=True))
    beside[np.arange(len(beside)), z[known].argmax(-1)] = 0
    # Its blocks are added one after the other: half an ulp each.
    rtol = tolerances.rtol("same") + classes / one_pass.BLOCK * 2**-24
    tolerances.assert_close(excess[known], beside.sum(-1), rtol=rtol, tiny=tolerances.flush(classes))
    assert excess[0, 0] == 0
