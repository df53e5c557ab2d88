"""The integer-label operation against the oracle: value, every gradient, Hessian, limits, statistics."""

import math
from functools import partial

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tolerances
from conftest import FORMS, OPTIMIZED
from pairs import every_pair

from focaljax import _exact, _sharding
from focaljax import softmax_focal_loss_with_integer_labels as loss_of
from focaljax._softmax import cpu, cpu_rivals, one_pass, statistics
from focaljax._softmax import indexed as operation

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("one_device")]
jit = partial(jax.jit, compiler_options=OPTIMIZED)

LARGE = 100_000


def per_row(logits, labels, alpha, gamma):
    return jnp.sum(loss_of(logits, labels, alpha=alpha, gamma=gamma))


def of_all(logits, labels, alpha, gamma):
    """Losses and the gradients by logits, by alpha and by gamma, one gamma per example."""
    alpha, gamma = jnp.full((len(labels), 1), alpha), jnp.full((len(labels), 1), gamma)
    losses = loss_of(logits, labels, alpha=alpha, gamma=gamma)
    return losses, *jax.grad(per_row, (0, 2, 3))(logits, labels, alpha, gamma)


# Code that users run, and code that CPU never has for them.
everything = jit(of_all)
EVERYTHING = {"cpu": everything, "accelerators": jax.jit(of_all)}


@jax.jit
@partial(jax.vmap, in_axes=(0, 0, None))
def second(logits, labels, gamma):
    """The derivatives of the gradient, as `jax.jacfwd` and `jax.jacrev` have them, of one linearization."""
    _, forward = jax.linearize(jax.grad(lambda z: loss_of(z, labels, gamma=gamma)), logits)
    reverse = jax.linear_transpose(forward, logits)
    basis = jnp.eye(logits.size, dtype=logits.dtype)
    return {
        "forward": jax.vmap(forward, out_axes=1)(basis),
        "reverse": jax.vmap(lambda ct: reverse(ct)[0])(basis),
    }


def assert_exact(logits, targets, gamma, dtype, names=None, alpha=1.0, form="cpu"):
    """Everything agrees with the oracle of the numbers that `dtype` holds."""
    classes = logits.shape[1]
    rows = jnp.asarray(logits).astype(dtype)
    truth = oracle.batch(np.asarray(rows, np.float64), oracle.one_hot(targets, classes, alpha), gamma)
    given = rows, targets, jnp.float32(alpha), jnp.float32(gamma)
    losses, by_logits, by_alpha, by_gamma = EVERYTHING[form](*given)
    assert losses.dtype == jnp.float32
    assert by_logits.dtype == dtype
    close = lambda got, want, quantity, **options: tolerances.assert_close(  # noqa: E731
        got, want, rtol=tolerances.rtol(quantity, gamma, **options), names=names, tiny=tiny, label=quantity
    )
    tiny = tolerances.flush(classes, factor=alpha)
    close(losses, truth.value, "value")
    close(by_alpha[:, 0], truth.value / alpha, "gradient_weights")
    tiny = tolerances.flush(classes, dtype, factor=alpha)
    close(by_logits, truth.grad, "gradient", returned=dtype)
    tiny = tolerances.flush(classes, factor=alpha * tolerances.FLUSHED_LOG * (1 + gamma))
    close(by_gamma[:, 0], truth.grad_gamma, "gradient_gamma")


FEW = [n for n in cases.CLASSES if n <= 100]


@pytest.mark.parametrize(
    ("form", "classes", "gamma"),
    # XLA:CPU adds in sequence what accelerators add in parts: of many classes that is no test of these.
    [(form, n, gamma) for form in FORMS for n in FEW for gamma in cases.GAMMAS]
    + [("cpu", 1000, gamma) for gamma in cases.GAMMAS[::2]]
    + [("cpu", LARGE, gamma) for gamma in cases.GAMMAS[1::2]],
)
@pytest.mark.versions
def test_value_and_gradients_are_the_oracle_s(form, classes, gamma):
    logits, targets = cases.rows(classes)
    assert_exact(logits, targets, gamma, "float32", cases.names(classes), form=form)


@pytest.mark.parametrize("classes", FEW)
def test_a_large_batch_is_as_exact_as_others(monkeypatch, classes):
    """On CPU it is summed without a maximum before, and where it shares nothing with its gradient."""
    monkeypatch.setattr(cpu_rivals, "LARGE", 0)
    monkeypatch.setattr(cpu_rivals, "shares", lambda logits, axis: False)
    jax.clear_caches()
    logits, targets = cases.rows(classes)
    for gamma in cases.GAMMAS:
        assert_exact(logits, targets, gamma, "float32", cases.names(classes))
    jax.clear_caches()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_logits_are_taken_exactly(dtype, gamma):
    for classes in (3, 100):
        logits, targets = cases.rows(classes, dtype)
        assert_exact(logits, targets, gamma, dtype, cases.names(classes), alpha=0.75)


@pytest.mark.parametrize("gamma", cases.GAMMAS)
def test_hessian_is_the_oracle_s(form, gamma):
    for classes in (1, 2, 3, 10):
        logits, targets = cases.rows(classes)
        truth = oracle.batch(logits, oracle.one_hot(targets, classes), gamma)
        found = second(logits, targets, jnp.float32(gamma))
        names = cases.names(classes)
        tolerances.assert_hessians(found, truth.hessian, truth.hessian_scale_odds, gamma, names)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_an_impossible_target_has_an_infinite_loss_and_a_finite_gradient(gamma):
    for classes in (2, 10):
        logits, targets = cases.limits(classes)
        losses, by_logits, _, _ = everything(logits, targets, jnp.float32(1), jnp.float32(gamma))
        assert np.all(losses == np.inf)
        truth = oracle.batch(logits, oracle.one_hot(targets, classes), gamma)
        tolerances.assert_close(
            by_logits, truth.grad, rtol=tolerances.rtol("gradient", gamma), tiny=tolerances.flush(classes)
        )


@pytest.mark.parametrize(
    "row", [[np.inf, 0, 0], [0, np.inf, 0], [np.nan, 0, 0], [0, np.nan, 0], [-np.inf] * 3]
)
def test_a_row_without_a_softmax_is_nan(row):
    assert np.isnan(loss_of(jnp.array(row, jnp.float32), jnp.array(0)))


def test_double_precision_is_kept():
    with jax.enable_x64(True):
        logits, targets = cases.rows(10)
        rows = np.asarray(logits, np.float64)
        truth = oracle.batch(rows, oracle.one_hot(targets, 10), 2.0)
        losses, by_logits, _, _ = everything(rows, targets, jnp.float64(1), jnp.float64(2))
        assert losses.dtype == by_logits.dtype == jnp.float64
        rtol, tiny = tolerances.rtol("value", 2.0, "float64"), tolerances.flush(10, "float64")
        tolerances.assert_close(losses, truth.value, rtol=rtol, tiny=tiny)
        tolerances.assert_close(by_logits, truth.grad, rtol=rtol, tiny=tiny)


def assert_same_sums(got, want, rtol):
    """``rest * exp(top)`` agrees: a `top` is any number near the logarithm of the sum.

    Competitors that are all 103 below the target, where q is 0, may be none.
    """
    (top, rest, target), (wanted_top, wanted, wanted_target) = (
        [np.asarray(x, np.float64) for x in part] for part in (got, want)
    )
    both = np.isneginf(top) & np.isneginf(wanted_top)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        scale = np.where(both, 1, np.exp(top - wanted_top))
        none = (rest == 0) & (wanted_target - (wanted_top + np.log(wanted)) > 103)
        rest = np.where(none, wanted, rest * scale)
    tolerances.assert_close(np.float32(rest), wanted, rtol=rtol)
    tolerances.assert_close(np.float32(target), wanted_target, rtol=0)  # a sum flushes what a gather does not


@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
def test_the_accelerators_reduction_is_the_cpus(classes):
    """The merging reduction runs here too, slowly."""
    logits, targets = cases.rows(classes)
    one, on_cpu = (
        jit(partial(form, axis=1))(logits, targets) for form in (one_pass.rivals, cpu_rivals.rivals)
    )
    # It adds its terms one after the other: half an ulp each.
    rtol = tolerances.rtol("same") + classes * 2**-24
    assert_same_sums(on_cpu, one, rtol)


@every_pair(classes=[1000, 1001, 1024, 2304, 16384], dtype=["float32", "bfloat16"], on_gpu=[False, True])
def test_blocks_of_the_tiles_of_a_device(monkeypatch, classes, dtype, on_gpu):
    """Views of tiles where these divide the classes, slices where not, and a rest of single entries."""
    monkeypatch.setattr(one_pass, "parts", lambda logits: 1)
    rng = np.random.default_rng(0)
    logits = np.asarray(10 * rng.normal(size=(2, 8, classes)), dtype)
    logits[0, 0], logits[0, 1, 1:], logits[1, 2, ::2] = [np.asarray(-np.inf, dtype)] * 3
    labels = rng.integers(0, classes, (2, 8), np.int32)
    labels[0, :6] = 0, 0, -1, classes, classes - 1, 130
    found = jax.jit(partial(one_pass.rivals, axis=2, on_gpu=on_gpu))(logits, labels)
    assert found[0].dtype == jnp.float32
    z = logits.astype(np.float64)
    own = np.arange(classes) == labels[..., None]
    others = np.where(own, -np.inf, z)
    top = others.max(-1)
    with np.errstate(invalid="ignore"):
        rest = np.where(np.isneginf(top), 0, np.exp(others - top[..., None]).sum(-1))
    want = (top, rest, np.where(own, z, 0).sum(-1))
    # Its blocks are added one after the other: half an ulp each.
    assert_same_sums(found, want, tolerances.rtol("same") + classes / one_pass.BLOCK * 2**-24)


def test_labels_that_are_one_constant():
    """Of logits out of range; XLA:CPU of jaxlib 0.10.2 crashed."""
    logits = 60 * np.random.default_rng(0).normal(size=(64, 100)).astype(np.float32)
    labels = np.zeros(64, np.int32)

    def value_and_gradient(logits, labels):
        return jax.value_and_grad(lambda z: jnp.sum(loss_of(z, labels)))(logits)

    want = jax.jit(value_and_gradient)(logits, labels)
    found = jax.jit(lambda logits: value_and_gradient(logits, labels))(logits)
    chex.assert_trees_all_close(found, want, rtol=tolerances.rtol("same"))


@pytest.mark.parametrize(
    ("form", "large"),
    [
        ("weighed", 0),
        ("weighed", 2**22),
        ("in runs", 0),
        ("in runs", 2**22),
        ("below a maximum", 0),
        ("shared", 0),
    ],
)
def test_every_form_leaves_out_the_label_alone(monkeypatch, form, large):
    """Beside 10 runs of 100 classes, with a label in every run and some that are none."""
    monkeypatch.setattr(cpu_rivals, "LARGE", large)
    monkeypatch.setattr(cpu_rivals, "MANY", 1000 if form == "in runs" else 2000)
    monkeypatch.setattr(cpu_rivals, "_is_counted", lambda logits, axis: form != "below a maximum")
    logits, targets = cases.rows(1000)
    rows = np.concatenate([logits, np.resize(logits, (52, 1000))])
    labels = np.concatenate([targets, np.arange(50, dtype=targets.dtype) * 20, np.int32([-1, 1000])])
    assert cpu_rivals._width(rows, 1) == (100 if form == "in runs" else None)
    on_cpu = partial(cpu_rivals.rivals, shared=form == "shared")
    got, want = (jax.jit(partial(f, axis=1))(rows, labels) for f in (on_cpu, one_pass.rivals))
    assert_same_sums(got, want, tolerances.rtol("same") + 1000 * 2**-24)


@pytest.mark.parametrize("classes", [2, 50, 5000])
def test_sums_of_any_size_are_kept(classes):
    """A whole number more in every logit changes nothing, over and beyond the range of exp."""
    shifts = np.arange(-120, 121, 5)[:, None]
    row = np.round(64 * np.random.default_rng(classes).normal(size=classes)) / 64  # their sums are exact
    logits, targets = np.float32(row + shifts), np.zeros(len(shifts), np.int32)
    found = everything(logits, targets, jnp.float32(1), jnp.float32(2))
    assert np.all(found[0] > 0)
    for each in found:
        want = np.broadcast_to(each[shifts[:, 0] == 0], each.shape)
        tolerances.assert_close(each, want, rtol=tolerances.rtol("same"))


@pytest.mark.parametrize("classes", [2, 20])
def test_competitors_far_below_the_label_keep_their_digits(form, classes):
    """Down to where q is the smallest float, for every place of the label between the ends of exp."""
    rng = np.random.default_rng(0)
    labels = np.float64([-100, -30, -8, -2, 0, 3, 10, 40, 75, 90, 120])
    label, gap = (x.ravel() for x in np.meshgrid(labels, np.arange(1.0, 104, 1.5)))
    logits = (label - gap)[:, None] - 4 * np.abs(rng.normal(size=(label.size, classes)))
    logits[:, 0] = label + rng.random(label.size)
    rows, targets = np.float32(logits), np.zeros(label.size, np.int32)
    for gamma in (0.0, 0.1):
        truth = oracle.batch(np.float64(rows), oracle.one_hot(targets, classes), gamma)
        kept = truth.value > 2 * tolerances.flush(classes)
        losses, by_logits, _, _ = everything(rows, targets, jnp.float32(1), jnp.float32(gamma))
        for got, want, what in (
            (losses, truth.value, "value"),
            (by_logits[:, 0], truth.grad[:, 0], "gradient"),
        ):
            tolerances.assert_close(got[kept], want[kept], rtol=tolerances.rtol(what, gamma), label=what)


@pytest.mark.parametrize("number", [8, 1024])
@pytest.mark.parametrize("beside", [1e4, -1e4, np.inf, np.nan])
def test_a_row_does_not_depend_on_what_another_holds(monkeypatch, beside, number):
    monkeypatch.setattr(cpu_rivals, "LARGE", 50 * 1024)
    logits = np.float32(np.random.default_rng(0).normal(size=(number, 50)))
    targets = np.arange(number, dtype=np.int32) % 50
    other = logits.copy()
    # Every 128th row of a large batch tells whether all are out of range; NaN and infinity tell nothing.
    changed = np.arange(number) % 128 == 0 if not np.isfinite(beside) else np.arange(number) == 0
    other[changed] = beside
    for got, want in zip(
        *(everything(x, targets, jnp.float32(1), jnp.float32(2)) for x in (other, logits)), strict=True
    ):
        np.testing.assert_array_equal(got[~changed], want[~changed])


@pytest.mark.parametrize("transform", [lambda f: f, jax.vmap], ids=["rows", "vmap"])
def test_where_a_sample_of_the_rows_is_lost_the_first_read_is_left_out(monkeypatch, transform):
    rng = np.random.default_rng(0)
    logits = np.float32(rng.normal(200, 30, (2, 1024, 5)))
    labels = rng.integers(0, 5, (2, 1024), np.int32)
    loss = jax.jit(transform(loss_of))
    want = np.stack(
        [loss_of(z, y) for z, y in zip(*(np.split(x, 64, 1) for x in (logits, labels)), strict=True)]
    )
    monkeypatch.setattr(cpu_rivals, "LARGE", 0)
    monkeypatch.setattr(cpu_rivals, "_sum_of_others", lambda z, labels, *_: jnp.ones_like(labels, z.dtype))
    jax.clear_caches()
    got = np.stack(np.split(loss(logits, labels), 64, 1))
    jax.clear_caches()
    tolerances.assert_close(got, want, rtol=tolerances.rtol("same"))


def test_statistics_of_parts_merge_to_those_of_the_whole():
    logits, targets = cases.rows(10)
    rivals = jax.jit(partial(one_pass.rivals, axis=1))
    parts = [rivals(logits[:, a:b], targets - a) for a, b in ((0, 3), (3, 4), (4, 10))]
    parts = [(top, rest - 1, target) for top, rest, target in parts]
    for order in ((0, 1, 2), (2, 0, 1)):
        first, second, third = (parts[i] for i in order)
        top, excess, target = statistics.merge(statistics.merge(first, second), third)
        whole = rivals(logits, targets)
        np.testing.assert_array_equal(top, whole[0])
        np.testing.assert_array_equal(target, whole[2])
        some = np.asarray(whole[1]) > 0
        tolerances.assert_close(
            np.asarray(1 + excess)[some], np.asarray(whole[1])[some], rtol=tolerances.rtol("same")
        )


def test_the_difference_has_no_error():
    x, y = np.float32([1e4, 1.0, -3e38, 1e-8]), np.float32([1e-4, 2.0**-30, 3e37, -7.0])
    gap, err = jit(_exact.difference)(x, y)
    exact = np.asarray(x, np.float64) - np.asarray(y, np.float64)
    np.testing.assert_array_equal(np.asarray(gap, np.float64) + np.asarray(err, np.float64), exact)


def test_nothing_but_the_gradient_has_the_size_of_the_logits():
    """The residuals hold rows beside the operands themselves."""
    logits, labels = jnp.zeros((64, LARGE // 64)), jnp.zeros(64, jnp.int32)
    _, pull_back = jax.vjp(lambda z: loss_of(z, labels), logits)
    large = [x for x in jax.tree.leaves(pull_back) if getattr(x, "size", 0) >= logits.size]
    assert len(large) <= 1  # the logits


@pytest.mark.parametrize("shape", [(512, 1000), (64, 8192)], ids=str)
def test_a_value_on_cpu_stores_nothing_of_the_size_of_the_logits(shape):
    """Nor would the second reduction, below a maximum."""
    logits, labels = jax.ShapeDtypeStruct(shape, "float32"), jax.ShapeDtypeStruct(shape[:1], "int32")
    program = jit(lambda z, labels: jnp.mean(loss_of(z, labels))).lower(logits, labels).compile()
    memory = program.memory_analysis()
    assert memory is not None
    stored = 1.2 if jax.__version_info__ < (0, 10) else 1 / 8  # an older XLA:CPU stores what it reduces
    assert memory.temp_size_in_bytes < stored * logits.size * 4


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.uint32])
def test_labels_of_any_integer_dtype_name_the_same_class(dtype):
    logits = jnp.sin(jnp.arange(600.0)).reshape(2, 300)
    labels = jnp.array([3, 44])  # 300 is 44 in eight bits
    for classes in (300, 4800):
        rows = jnp.tile(logits, classes // 300)
        want = loss_of(rows, labels, ignore_index=-1)
        np.testing.assert_array_equal(loss_of(rows, labels.astype(dtype), ignore_index=-1), want)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shape", [(12, 5, 7), (1, 1, 64), (13, 3, 11)], ids=str)
def test_blocks_of_rows_change_nothing(monkeypatch, shape, axis):
    """On CPU the statistics are taken block by block; 13 and 11 cannot be split but into single rows."""
    logits = jnp.sin(jnp.arange(float(math.prod(shape)))).reshape(shape)
    labels = jnp.zeros(shape[:axis] + shape[axis + 1 :], jnp.int32)

    def statistics(logits, labels):
        return *cpu_rivals.rivals(logits, labels, axis=axis), *cpu.peak(logits, axis=axis)

    monkeypatch.setattr(cpu_rivals, "LARGE", 0)
    whole = jax.jit(statistics)(logits, labels)
    for module, name, size in ((cpu, "BLOCK", 16), (cpu, "LINE", 1), (cpu_rivals, "FAR", 1)):
        monkeypatch.setattr(module, name, size)
    program = jax.jit(lambda *operands: statistics(*operands)).lower(logits, labels)  # traced anew
    assert "while" in program.as_text() or shape[axis] == logits.size
    chex.assert_trees_all_equal(program.compile()(logits, labels), whole)


@pytest.fixture
def apart(monkeypatch):
    """The classes of any array that are not last count as far apart, in pieces of a few rows."""
    monkeypatch.setattr(_sharding, "parts", lambda x: 1)
    for module, name, size in ((cpu, "LINE", 1), (cpu, "BLOCK", 16), (cpu_rivals, "APART", 2)):
        monkeypatch.setattr(module, name, size)
    jax.clear_caches()  # the choice is made while tracing
    yield
    jax.clear_caches()


@pytest.mark.parametrize("shape", [(2, 6, 12), (4, 1, 3), (3, 6, 2, 9), (1, 6, 11), (6, 5)], ids=str)
def test_classes_that_lie_apart_have_the_statistics_of_all(apart, shape):
    rng = np.random.default_rng(0)
    axis = min(1, len(shape) - 2)
    classes, rows = shape[axis], shape[:axis] + shape[axis + 1 :]
    z = 3 * rng.normal(size=shape).astype(np.float32)
    z[rng.random(shape) < 0.1] = -np.inf
    z[(0,) * len(shape)] = 1e4
    z, labels = jnp.asarray(z), jnp.asarray(rng.integers(-1, classes + 1, rows), jnp.int32)
    assert cpu_rivals.is_apart(z, axis)
    got, want = (
        jax.jit(partial(form, axis=axis))(z, labels) for form in (cpu_rivals.rivals, one_pass.rivals)
    )
    assert_same_sums(got, want, 2 * tolerances.rtol("same"))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_classes_that_lie_apart_are_as_exact_as_others(apart, gamma):
    """The hard rows, with the classes first."""
    logits, targets = cases.rows(10)
    truth = oracle.batch(logits, oracle.one_hot(targets, 10), gamma)
    assert cpu_rivals.is_apart(jnp.asarray(logits).T, 0)
    loss = partial(loss_of, labels=targets, axis=0, gamma=gamma)
    losses, pull_back = jax.vjp(loss, jnp.asarray(logits).T)
    by_logits = pull_back(jnp.ones_like(losses))[0].T
    for got, want, quantity in ((losses, truth.value, "value"), (by_logits, truth.grad, "gradient")):
        tolerances.assert_close(
            got, want, rtol=tolerances.rtol(quantity, gamma), tiny=tolerances.flush(10), label=quantity
        )


@pytest.mark.parametrize(
    ("axis", "form"),
    [
        *((axis, form) for axis in (0, 1, 2) for form in ("selected", "shared")),
        *((axis, "class by class") for axis in (0, 1)),
    ],
)
@pytest.mark.parametrize("silence", [False, True], ids=["plain", "silent rows"])
def test_the_gradient_on_cpu_is_the_one_by_masks(request, axis, form, silence):
    """The target takes the place of whatever an overflow has left there."""
    if form == "class by class":
        request.getfixturevalue("apart")
    shape = (4, 5, 6)
    logits = 100 * np.sin(np.arange(120, dtype=np.float32)).reshape(shape)
    rows = shape[:axis] + shape[axis + 1 :]
    each = np.arange(math.prod(rows), dtype=np.int32).reshape(rows)
    silent = np.zeros(rows, bool)
    silent[1, 2] = silence
    operands = logits, each % shape[axis], silent, np.where(silent, 0, -np.cos(each)).astype(np.float32)
    assert cpu_rivals.is_apart(jnp.asarray(logits), axis) == (form == "class by class")

    @jax.jit
    def by_each_form(z, labels, silent, slope):
        shared = form == "shared"
        stats = statistics.rivals(z, labels, axis, None, shared=shared)
        operands = jnp.where(jnp.expand_dims(silent, axis), jnp.nan, z), labels, silent, slope, stats
        on_cpu = operation._spread_of_shared if shared else operation._spread_on_cpu
        by_mask = partial(operation._spread_by_mask, name=None, exact=True)
        return [form(*operands, axis=axis) for form in (on_cpu, by_mask)]

    found = by_each_form(*operands)
    chex.assert_tree_all_finite(found)
    tolerances.assert_close(*found, rtol=tolerances.rtol("gradient"), tiny=tolerances.flush(shape[axis]))


def test_a_value_and_its_gradient_trace_the_statistics_once(monkeypatch):
    calls, reduce = [], cpu_rivals.rivals
    monkeypatch.setattr(cpu_rivals, "rivals", lambda *x, **static: calls.append(x) or reduce(*x, **static))
    jax.clear_caches()
    jit(jax.value_and_grad(lambda z: jnp.sum(loss_of(z, jnp.zeros(4, jnp.int32))))).lower(jnp.zeros((4, 3)))
    jax.clear_caches()
    assert len(calls) == 1


@pytest.mark.parametrize(("of", "asks"), [(loss_of, True), (jax.grad(loss_of), False)], ids=["value", "both"])
def test_a_batch_asks_once_whether_a_sum_is_lost(of, asks):
    """A condition per example would compute both of its branches, on arrays of the size of the logits."""
    program = jit(jax.vmap(of)).lower(jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32)).compile()
    assert (" conditional(" in program.as_text()) == asks


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_huge_logits_are_as_exact_as_others(form, gamma):
    """Around 2^30 a top less 64 is rounded, to a number 128 below; and so on to the end of the range."""
    rng = np.random.default_rng(0)
    powers = np.repeat(np.arange(4, 128), 4)[:, None]
    logits = (np.sign(rng.normal(size=(len(powers), 1))) * 2.0**powers * rng.uniform(1, 1.99, (1, 5))).astype(
        np.float32
    )
    logits[::2, :2] = logits[::2, 2:3]  # some ties, some neighbours
    logits[::4, 0] = np.nextafter(logits[::4, 0], np.float32(0))
    targets = rng.integers(0, 5, len(logits)).astype(np.int32)
    truth = oracle.batch(logits, oracle.one_hot(targets, 5), gamma)
    losses, by_logits, _, _ = everything(jnp.asarray(logits), targets, jnp.float32(1), jnp.float32(gamma))
    rtol, tiny = tolerances.rtol("gradient", gamma), tolerances.flush(5)
    finite = np.abs(truth.value) < 3e38
    tolerances.assert_close(losses[finite], truth.value[finite], rtol=rtol, tiny=tiny)
    tolerances.assert_close(by_logits, truth.grad, rtol=rtol, tiny=tiny)


def test_a_large_weight_and_a_large_cotangent_do_not_meet():
    """Their product is beyond the floats, the gradient is 0."""
    logits, labels = jnp.array([[200.0, 0.0]]), jnp.array([0])
    found = jax.grad(lambda z: jnp.sum(1e10 * loss_of(z, labels, alpha=1e30)))(logits)
    np.testing.assert_array_equal(found, 0)
