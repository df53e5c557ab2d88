"""Laws of the class weights: scikit-learn's and the paper's numbers, exact counts, however gathered."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sklearn.utils.class_weight import compute_class_weight

from focaljax import class_weights, softmax_focal_loss_with_integer_labels
from focaljax.class_weights import ClassCounts, CountState, effective_number, inverse_frequency

U = 2.0**-24
RTOL = 16 * U  # a quotient of sums of C terms; nothing cancels
LONG_TAIL = np.array([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50])  # CIFAR-10-LT, factor 100
NORMALIZED = ("examples", "classes", "sum", "max", None)


update = jax.jit(lambda counter, *given: counter.update(*given), static_argnums=0)


def labels_of(counts, seed=0):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))


def seen(state):
    """The exact counts."""
    pairs = zip(np.asarray(state.count), np.asarray(state.count_compensation), strict=True)
    return [Fraction(float(high)) + Fraction(float(low)) for high, low in pairs]


def reference(counts, beta):
    """Equation 2 and the normalisation of the paper's published code, in float64."""
    weights = (1.0 - beta) / np.array([1.0 - np.power(beta, float(n)) for n in counts])
    return weights / weights.sum() * len(counts)


@pytest.mark.parametrize("counts", [LONG_TAIL, [1, 1], [7], [3, 100_000, 17]])
def test_inverse_frequency_is_that_of_scikit_learn(counts):
    labels = labels_of(counts)
    truth = compute_class_weight("balanced", classes=np.arange(len(counts)), y=labels)
    counter = ClassCounts(len(counts))
    state, found = update(counter, counter.init(), labels), np.bincount(labels)
    for given in (state, counts, found, jnp.asarray(found)):
        np.testing.assert_allclose(inverse_frequency(given), truth, rtol=RTOL)


def test_inverse_frequency_is_that_of_scikit_learn_in_float64():
    truth = compute_class_weight("balanced", classes=np.arange(10), y=labels_of(LONG_TAIL))
    with jax.enable_x64(True):
        np.testing.assert_allclose(inverse_frequency(LONG_TAIL), truth, rtol=1e-15)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.99, 0.999, 0.9999])
def test_effective_number_is_that_of_the_paper(beta):
    truth = reference(LONG_TAIL, beta)
    np.testing.assert_allclose(effective_number(LONG_TAIL, beta=beta), truth, rtol=RTOL)
    traced = jax.jit(lambda b: effective_number(LONG_TAIL, beta=b))(beta)
    # A float32 beta is off by 2^-25 of 1 - beta, and so is log(beta).
    np.testing.assert_allclose(traced, truth, rtol=RTOL + 2 * U / (1 - beta))


def test_effective_number_at_its_ends():
    np.testing.assert_array_equal(effective_number(LONG_TAIL, beta=0.0, normalize=None), 1)
    np.testing.assert_allclose(effective_number(LONG_TAIL, beta=1.0, normalize=None), 1 / LONG_TAIL, rtol=U)
    close = effective_number(LONG_TAIL, beta=1 - 1e-12)  # where the formula as written has lost all digits
    inverse = inverse_frequency(LONG_TAIL, normalize="classes")
    np.testing.assert_allclose(close, inverse, rtol=RTOL)
    traced = jax.jit(lambda b: effective_number(LONG_TAIL, beta=b))
    for beta in (0.0, 1.0):
        assert np.isfinite(traced(beta)).all()
    assert np.isfinite(jax.jacfwd(traced)(0.5)).all()


def test_power():
    np.testing.assert_allclose(inverse_frequency(LONG_TAIL, power=0.0), 1, rtol=RTOL)
    raw = inverse_frequency(LONG_TAIL, power=0.5, normalize=None)
    np.testing.assert_allclose(raw, LONG_TAIL**-0.5, rtol=RTOL)


@pytest.mark.parametrize("normalize", ["examples", "classes", "sum", "max"])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 5.0, 40.0])
@pytest.mark.parametrize("counts", [[10**8] * 2, [10**8, 2 * 10**8, 0], [1, 10**9], [3, 5, 7]])
def test_no_power_leaves_the_range(counts, power, normalize):
    with mpmath.workdps(30):
        n = [mpmath.mpf(x) for x in counts if x]
        raw = [x**-power for x in n]
        sums = {"examples": mpmath.fdot(n, raw) / sum(n), "classes": sum(raw) / len(n)}
        scale = (sums | {"sum": sum(raw), "max": max(raw)})[normalize]
        truth = [float(x / scale) for x in raw]
    found = np.asarray(inverse_frequency(counts, power=power, normalize=normalize))
    # The quotient of two counts rounds once, its power `power` times that; beside the largest weight,
    # 1e-37 of it is 0.
    np.testing.assert_allclose(found[: len(truth)], truth, rtol=(power + 8) * U, atol=1e-37 * max(truth))


@pytest.mark.parametrize("weights", [inverse_frequency, effective_number])
@pytest.mark.parametrize("counts", [LONG_TAIL, [9, 0, 3, 0, 1]])
def test_normalisations_add_up(weights, counts):
    counts = np.asarray(counts)
    some = counts > 0
    got = {name: np.float64(weights(counts, normalize=name)) for name in NORMALIZED}
    np.testing.assert_allclose((got["examples"] * counts).sum(), counts.sum(), rtol=RTOL)
    np.testing.assert_allclose(got["classes"].sum(), some.sum(), rtol=RTOL)
    np.testing.assert_allclose(got["sum"].sum(), 1, rtol=RTOL)
    assert got["max"].max() == 1
    for name in NORMALIZED:  # one scale apart
        np.testing.assert_allclose(
            got[name][some] / got[name][some][0], got[None][some] / got[None][0], rtol=RTOL
        )


@pytest.mark.parametrize("weights", [inverse_frequency, effective_number])
@pytest.mark.parametrize("normalize", NORMALIZED)
def test_a_class_never_seen(weights, normalize):
    got = weights([4, 0, 2], normalize=normalize)
    assert got[1] == 0 and np.isfinite(got).all()
    np.testing.assert_array_equal(got[jnp.array([0, 2])], weights([4, 2], normalize=normalize))
    assert weights([4, 0, 2], normalize=normalize, unseen=3.0)[1] == 3
    np.testing.assert_array_equal(weights([0, 0], normalize=normalize), 0)
    np.testing.assert_array_equal(weights([0, 0], normalize=normalize, unseen=1.0), 1)


def test_weights_make_the_classes_equal():
    """The point of it all: with them each class has the same share of the loss of an untrained model."""
    counts = np.array([60, 30, 10])
    labels = jnp.asarray(labels_of(counts))
    losses = softmax_focal_loss_with_integer_labels(
        jnp.zeros((100, 3)), labels, alpha=inverse_frequency(counts), gamma=2.0
    )
    shares = [float(jnp.sum(jnp.where(labels == c, losses, 0))) for c in range(3)]
    np.testing.assert_allclose(shares, np.mean(shares), rtol=1e-6)
    plain = softmax_focal_loss_with_integer_labels(jnp.zeros((100, 3)), labels, gamma=2.0)
    np.testing.assert_allclose(losses.mean(), plain.mean(), rtol=1e-6)


def test_counts_go_beyond_what_float32_and_int32_count():
    counter = ClassCounts(2)
    once = state = update(counter, counter.init(), np.repeat([0, 1], [1001, 3]))
    for _ in range(33):
        state = counter.merge(state, state)
    one_more = update(counter, state, np.array([0]))
    assert seen(state) == [1001 * 2**33, 3 * 2**33]
    assert seen(one_more) == [1001 * 2**33 + 1, 3 * 2**33]
    np.testing.assert_array_equal(inverse_frequency(one_more), inverse_frequency(once))


def test_a_stream_of_single_labels_beyond_float32():
    counter = ClassCounts(2)
    far = CountState(jnp.array([2.0**24, 0.0]), jnp.zeros(2))
    step = jax.jit(
        lambda state: lax.scan(lambda s, x: (counter.update(s, x), None), state, jnp.zeros(100, int))
    )
    assert seen(step(far)[0]) == [2**24 + 100, 0]


@pytest.mark.parametrize("number", [0, 1, 2**16 - 1, 2**24 + 1, 2**31 - 1, 2**31 - 65])
def test_an_int32_count_becomes_an_exact_pair(number):
    from focaljax import _exact

    high, low = _exact.counts(jnp.int32(number), jnp.float32)
    assert int(high) + int(low) == number
    assert float(high) == float(np.float32(number))


@pytest.mark.parametrize(
    ("labels", "weighted"), [(np.int8, False), (np.uint8, True), (np.int32, True), (np.uint32, False)]
)
def test_ignored_labels_do_not_count(labels, weighted):
    ignored = np.iinfo(labels).max
    counter = ClassCounts(3, ignore_index=int(ignored))
    y = np.array([[0, 1], [ignored, 1], [2, ignored]], labels)
    for count in (counter.update, jax.jit(counter.update)):  # of known labels and of unknown ones
        assert seen(count(counter.init(), y, np.ones((3, 2)) if weighted else None)) == [1, 2, 1]


def test_an_index_below_zero_does_not_count_from_the_end():
    counter = ClassCounts(3, ignore_index=-1)
    assert seen(counter.update(counter.init(), jnp.array([-1, 0]))) == [1, 0, 0]
    lost = counter.update(counter.init(), jnp.array([-2, 0]))
    assert np.isnan(lost.count).all() and np.isnan(inverse_frequency(lost)).all()
    assert np.isnan(ClassCounts(3).update(counter.init(), jnp.array([3])).count).all()
    assert np.isnan(counter.update(lost, jnp.array([1])).count).all()


def test_sample_weights_are_summed_exactly():
    rng = np.random.default_rng(0)
    n, classes = 20_001, 7
    labels = rng.integers(0, classes - 1, n)  # the last class has none
    weights = (2.0 ** rng.uniform(-20, 4, n)).astype(np.float32)
    counter = ClassCounts(classes)
    state = update(counter, counter.init(), labels, weights)
    for c, got in enumerate(seen(state)):
        truth = math.fsum(np.float64(weights[labels == c]))
        assert abs(float(got) - truth) <= 4 * U**2 * n**0.5 * truth
    halves = [update(counter, counter.init(), labels[i::2], weights[i::2]) for i in range(2)]
    np.testing.assert_allclose(
        [float(x) for x in seen(counter.merge(*halves))], [float(x) for x in seen(state)], rtol=1e-12
    )
    ones = update(counter, counter.init(), labels, np.ones(n, bool))
    jax.tree.map(np.testing.assert_array_equal, ones, update(counter, counter.init(), labels))


def test_nothing_is_nothing():
    counter = ClassCounts(3)
    for weights in (None, jnp.zeros(0)):
        state = counter.update(counter.init(), jnp.zeros(0, int), weights)
        jax.tree.map(np.testing.assert_array_equal, state, counter.init())
    jax.tree.map(np.testing.assert_array_equal, counter.merge(), counter.init())


def test_merge_over_a_mesh_is_the_merge_of_the_shards(mesh):
    counter = ClassCounts(4)
    n = 5 * jax.device_count()
    labels = np.random.default_rng(0).integers(0, 4, n)
    weights = np.random.default_rng(1).integers(1, 9, n).astype(np.float32)

    def counted(labels, weights):
        return [counter.update(counter.init(), labels, w) for w in (None, weights)]

    def merged(*shards):
        return [counter.merge(state, axis_name="data") for state in counted(*shards)]

    arrays = [jax.device_put(x, NamedSharding(mesh, P("data"))) for x in (labels, weights)]
    states = jax.jit(jax.shard_map(merged, mesh=mesh, in_specs=P("data"), out_specs=P()))(*arrays)
    jax.tree.map(np.testing.assert_array_equal, states, jax.jit(counted)(labels, weights))


def test_transforms_do_the_same():
    counter = ClassCounts(3)
    labels = np.random.default_rng(0).integers(0, 3, (4, 8))

    @jax.jit
    def transformed(x):
        scanned, _ = lax.scan(lambda s, part: (counter.update(s, part), None), counter.init(), x)
        mapped = jax.vmap(counter.update, in_axes=(None, 0))(counter.init(), x)
        merged = counter.merge(*(jax.tree.map(lambda x, i=i: x[i], mapped) for i in range(4)))
        first = jax.tree.map(lambda x: x[0], mapped)
        return (scanned, merged), jax.vmap(inverse_frequency)(mapped)[0], inverse_frequency(first)

    states, of_mapped, of_first = transformed(labels)
    for state in states:
        jax.tree.map(np.testing.assert_array_equal, state, update(counter, counter.init(), labels))
    np.testing.assert_allclose(of_mapped, of_first, rtol=RTOL)


def test_state_can_be_donated_and_is_a_plain_pytree():
    counter = ClassCounts(3)
    state = counter.init()
    assert len({x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)}) == 2
    update = jax.jit(counter.update, donate_argnums=0)
    assert seen(update(state, jnp.array([2]))) == [0, 0, 1]  # a warning is an error here
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(counter.init())]
    assert paths == [".count", ".count_compensation"]


def test_dtypes():
    assert inverse_frequency([1, 2]).dtype == jnp.float32
    assert inverse_frequency(jnp.array([1, 2], jnp.int8)).dtype == jnp.float32
    assert inverse_frequency(jnp.array([1, 2], jnp.bfloat16)).dtype == jnp.float32
    with jax.enable_x64(True):
        assert inverse_frequency([1, 2]).dtype == jnp.float64
        assert ClassCounts(2).init().count.dtype == jnp.float64
        assert ClassCounts(2, dtype="float32").init().count.dtype == jnp.float32
    big = np.array([3 * 10**9, 10**9])  # beyond int32: JAX would wrap them
    np.testing.assert_allclose(inverse_frequency(big), [2 / 3, 2], rtol=RTOL)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ClassCounts(0), ValueError, "`num_classes` must be at least 1, got 0"),
        (lambda: ClassCounts(None), TypeError, "`num_classes` must be an int, got NoneType"),
        (lambda: ClassCounts(2.0), TypeError, "`num_classes` must be an int"),
        (lambda: ClassCounts(2, ignore_index=True), TypeError, "`ignore_index` must be an int or None"),
        (lambda: ClassCounts(2, dtype="int32"), TypeError, "`dtype` must be a floating dtype"),
        (lambda: ClassCounts(2, dtype="float64").init(), ValueError, "`dtype` must be float32, or float64"),
        (lambda: count([0, 2]), ValueError, r"`labels` must be in \[0, 2\), got 2"),
        (lambda: count(np.array([-1])), ValueError, r"`labels` must be in \[0, 2\), got -1"),
        (lambda: count(jnp.zeros(2)), TypeError, "`labels` must be integer class indices, got float32"),
        (lambda: count([0, 1], jnp.ones(3)), ValueError, "`sample_weight` must be a scalar or have"),
        (lambda: count([0, 1], jnp.ones(2, jnp.complex64)), TypeError, "`sample_weight` must be real"),
        (lambda: inverse_frequency([[1, 2]]), ValueError, r"`counts` must have one entry per class"),
        (lambda: inverse_frequency([]), ValueError, "`counts` must have one entry per class"),
        (lambda: inverse_frequency([1, -2]), ValueError, "`counts` must be at least 0 and finite, got -2"),
        (lambda: inverse_frequency([1j]), TypeError, "`counts` must be real, got complex"),
        (lambda: inverse_frequency([True, False]), TypeError, "`counts` must be real, got bool"),
        (lambda: inverse_frequency([1], power=-1), ValueError, "`power` must be at least 0 and finite"),
        (lambda: inverse_frequency([1], normalize="mean"), ValueError, "`normalize` must be one of"),
        (lambda: inverse_frequency([1], unseen=[1.0]), ValueError, "`unseen` must be a scalar"),
        (lambda: effective_number([1], beta=1.5), ValueError, r"`beta` must be in \[0, 1\], got 1.5"),
        (lambda: effective_number([1], beta="x"), TypeError, "`beta` must be a real number"),
    ],
)  # fmt: skip
def test_errors_name_argument_expected_and_got(call, error, words):
    with pytest.raises(error, match=words):
        call()


def count(labels, sample_weight=None):
    counter = ClassCounts(2)
    return counter.update(counter.init(), labels, sample_weight)


def test_states_of_two_dtypes_do_not_merge():
    a = ClassCounts(2).init()
    b = jax.tree.map(lambda x: np.asarray(x, np.float64), a)
    with pytest.raises(TypeError, match="`states` must have one dtype, got float32 and float64"):
        ClassCounts(2).merge(a, b)


def test_all_is_all():
    assert class_weights.__all__ == sorted(class_weights.__all__)
