"""Laws of the metrics: a stream is its batch, however long, however split, wherever it ran."""

import dataclasses
import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from focaljax import crossentropy, metrics

U = 2.0**-24  # unit roundoff of float32
EXACT = 2.0**-44  # of a double-float sum: up to 80 additions of 3 u^2, and in practice far more
METRICS = (
    metrics.CategoricalFocalCrossentropy,
    metrics.SparseCategoricalFocalCrossentropy,
    metrics.BinaryFocalCrossentropy,
)
FUNCTIONS = (
    crossentropy.categorical_focal_crossentropy,
    crossentropy.sparse_categorical_focal_crossentropy,
    crossentropy.binary_focal_crossentropy,
)


def batch(metric, n, seed=0):
    """(y_true, y_pred) as the metric takes them: n examples of three classes."""
    rng = np.random.default_rng(seed)
    y_true = rng.integers(0, 3, n).astype(np.int32)
    y_pred = rng.uniform(0.01, 0.99, (n, 3)).astype(np.float32)
    if isinstance(metric, metrics.SparseCategoricalFocalCrossentropy):
        return y_true, y_pred
    return np.eye(3, dtype=np.float32)[y_true], y_pred


def weights(n, seed=0):
    return np.random.default_rng(seed + 1).uniform(0, 2, n).astype(np.float32)


update = jax.jit(lambda metric, *given: metric.update(*given), static_argnums=0)
result = jax.jit(lambda metric, state: metric.result(state), static_argnums=0)


def seen(metric, *batch):
    return update(metric, metric.init(), *batch)


def exact(high, low):
    """The number that a pair stands for."""
    return Fraction(float(high)) + Fraction(float(low))


def total(state):
    return exact(state.total, state.total_compensation)


def weight(state):
    return exact(state.weight, state.weight_compensation)


def pair(high, low=0.0):
    """A state of which only the total matters."""
    return metrics.MeanState(*(jnp.float32(x) for x in (high, low, 1, 0)))


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def mesh():
    assert jax.device_count() > 1, "the laws of a mesh need several devices"
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def on_mesh(mesh, *arrays):
    return [jax.device_put(x, NamedSharding(mesh, P("data"))) for x in arrays]


def test_example_of_keras_for_r():
    y_true = jnp.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    y_pred = jnp.array([[0.05, 0.9, 0.05], [0.1, 0.85, 0.05]])
    losses = metrics.categorical_focal_crossentropy(y_true, y_pred)
    np.testing.assert_allclose(losses, [2.6340129e-04, 0.67591209], rtol=1e-6)  # Keras' rounding
    metric = metrics.CategoricalFocalCrossentropy()
    mean = metric.result(metric.update(metric.init(), y_true, y_pred))
    np.testing.assert_allclose(mean, (2.6340129e-04 + 0.67591209) / 2, rtol=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_are_those_of_the_losses(function):
    assert getattr(metrics, function.__name__) is function


@pytest.mark.parametrize(("cls", "function"), list(zip(METRICS, FUNCTIONS, strict=True)))
@pytest.mark.parametrize(("weighted", "from_logits"), [(True, False), (False, True)])
def test_stream_is_the_weighted_mean_of_all(cls, function, weighted, from_logits):
    metric = cls(gamma=1.5, from_logits=from_logits)
    y_true, y_pred = batch(metric, 100)
    w = weights(100) if weighted else None

    @jax.jit
    def mean_and_losses(y_true, y_pred, w):
        state = metric.init()
        for part in (slice(0, 1), slice(1, 1), slice(1, 100)):
            state = metric.update(state, y_true[part], y_pred[part], None if w is None else w[part])
        return metric.result(state), function(y_true, y_pred, gamma=1.5, from_logits=from_logits)

    mean, losses = mean_and_losses(y_true, y_pred, w)
    w = np.float64(w) if weighted else np.ones(100)
    truth = math.fsum(np.float64(losses) * w) / math.fsum(w)
    # Each product rounds by u; the result rounds both sums and the quotient; the loss itself may
    # compile otherwise for another batch size.
    np.testing.assert_allclose(mean, truth, rtol=8 * U)
    assert mean.dtype == jnp.float32


@pytest.mark.parametrize("cls", METRICS)
def test_nothing_seen_is_zero(cls):
    metric = cls()
    assert result(metric, metric.init()) == 0
    assert result(metric, seen(metric, *batch(metric, 4), np.zeros(4, np.float32))) == 0
    assert result(metric, seen(metric, *batch(metric, 0))) == 0


@pytest.mark.parametrize("n", [1, 7, 4096, 1_000_003])
def test_sum_of_a_batch_is_that_of_fsum(n):
    metric = metrics.BinaryFocalCrossentropy()
    y_pred = np.random.default_rng(n).beta(0.1, 1, (n, 1)).astype(np.float32)
    y_true = np.zeros((n, 1), np.float32)
    state = seen(metric, y_true, y_pred)
    losses = jax.jit(metrics.binary_focal_crossentropy)(y_true, y_pred)
    truth = math.fsum(np.float64(losses))
    # n additions of 3 u^2 at most, of random sign: about sqrt(n) of them.
    assert abs(float(total(state)) / truth - 1) < 3 * U**2 * (4 + 4 * n**0.5)
    assert weight(state) == n


def test_counts_stay_exact_beyond_float32():
    metric = metrics.SparseCategoricalFocalCrossentropy(ignore_class=2)
    n, times = 1_000_001, 40  # 40 million, beyond 2^24
    y_true = jnp.arange(n, dtype=jnp.int32) % 3
    y_pred = jnp.full((n, 3), 1 / 3, jnp.float32)
    update = jax.jit(metric.update)
    masked, plain = metric.init(), metric.init()
    unmasked = dataclasses.replace(metric, ignore_class=None)
    once_masked = update(metric.init(), y_true, y_pred)
    once = jax.jit(unmasked.update)(metric.init(), y_true, y_pred)
    for _ in range(times):
        masked, plain = metric.merge(masked, once_masked), metric.merge(plain, once)
    assert weight(plain) == n * times
    assert weight(masked) == times * int(jnp.sum(y_true != 2))


def test_counts_are_exact_to_two_to_the_46():
    counts = np.random.default_rng(0).integers(0, 2**45, (2, 1000))
    high = counts.astype(np.float32)
    low = (counts - high.astype(np.int64)).astype(np.float32)
    a, b = (metrics.MeanState(*map(jnp.asarray, 2 * part)) for part in zip(high, low, strict=True))
    merged = jax.jit(jax.vmap(metrics.CategoricalFocalCrossentropy().merge))(a, b)
    got = np.asarray(merged.weight, np.int64) + np.asarray(merged.weight_compensation, np.int64)
    np.testing.assert_array_equal(got, counts.sum(0))


def test_exact_after_a_hundred_million_examples():
    metric = metrics.SparseCategoricalFocalCrossentropy()
    once = metric.update(metric.init(), *batch(metric, 1000))
    steps = 100_000

    @jax.jit
    def stream(state):
        return lax.scan(lambda s, _: (metric.merge(s, once), None), state, length=steps)[0]

    state = stream(metric.init())
    assert weight(state) == 10**8
    # At most 3 u^2 per merge, which 1e5 of one sign would take to 1e-9; they are not of one sign.
    assert abs(float(total(state) / (steps * total(once))) - 1) < 1e-11
    np.testing.assert_allclose(
        metric.result(state), float(total(once) / 1000), rtol=3 * U
    )  # rounds both sums and the quotient


def test_one_batch_again_and_again_stays_within_the_bound():
    """The worst stream there is: the rounding of an addition is the same until the sum has doubled."""
    metric, steps = metrics.BinaryFocalCrossentropy(), 1_000_000
    y_pred = np.random.default_rng(0).uniform(0.01, 0.99, (32, 64, 1)).astype(np.float32)
    once = jax.jit(jax.vmap(lambda p: metric.update(metric.init(), jnp.zeros((64, 1)), p)))(y_pred)

    @jax.jit
    def stream(state):
        return lax.scan(lambda s, _: (jax.vmap(metric.merge)(s, once), None), state, length=steps)[0]

    state = stream(jax.tree.map(jnp.zeros_like, once))
    errors = [
        abs(float(exact(*pair) / (steps * exact(*first)) - 1))
        for pair, first in zip(
            zip(state.total, state.total_compensation, strict=True),
            zip(once.total, once.total_compensation, strict=True),
            strict=True,
        )
    ]
    assert 1e-11 < max(errors) < steps * 3 * U**2  # the figure of random signs would be below 1e-11
    np.testing.assert_array_equal(state.weight, np.float32(64 * steps))


def test_ten_to_the_fifteen_by_doubling():
    metric = metrics.CategoricalFocalCrossentropy()
    once = state = metric.update(metric.init(), *batch(metric, 1001))
    for _ in range(37):
        state = metric.merge(state, state)
    assert weight(state) == 1001 * 2**37  # multiplication by 2 has no rounding error
    assert total(state) == total(once) * 2**37
    assert metric.result(state) == metric.result(once)


@pytest.mark.parametrize("compiled", [True, False])
def test_compilers_keep_the_compensation(compiled):
    rng = np.random.default_rng(0)
    metric = metrics.CategoricalFocalCrossentropy()

    def pairs():
        high = (2.0 ** rng.uniform(-30, 30, 1000)).astype(np.float32)
        low = (high * rng.uniform(-U / 2, U / 2, 1000)).astype(np.float32)
        return metrics.MeanState(*map(jnp.asarray, (high, low, high, low)))

    def numbers(state):
        return list(map(exact, state.total, state.total_compensation))

    x, y = pairs(), pairs()
    merge = jax.vmap(metric.merge)
    merged = (jax.jit(merge) if compiled else merge)(x, y)
    for a, b, got in zip(numbers(x), numbers(y), numbers(merged), strict=True):
        assert abs(got - (a + b)) <= 3 * Fraction(U) ** 2 * (a + b)
    # Renormalised: the high float is the rounded sum.
    assert np.all(merged.total_compensation <= U * merged.total)


@pytest.mark.parametrize("mode", ["jit", "vmap", "scan"])
def test_compensation_survives_transforms(mode):
    metric = metrics.CategoricalFocalCrossentropy()
    grains = jnp.full(64, 2.0**-30, jnp.float32)  # each vanishes beside 1 in float32

    def add(state, grain):
        return metric.merge(state, pair(grain))

    if mode == "scan":
        state = jax.jit(lambda s: lax.scan(lambda c, g: (add(c, g), None), s, grains)[0])(pair(1))
    else:
        step = jax.jit(add) if mode == "jit" else jax.vmap(add)
        ones = pair(1) if mode == "jit" else jax.tree.map(lambda x: jnp.tile(x, 2), pair(1))
        state = functools.reduce(lambda s, g: step(s, g if mode == "jit" else jnp.tile(g, 2)), grains, ones)
        state = state if mode == "jit" else jax.tree.map(lambda x: x[1], state)
    assert total(state) == 1 + Fraction(64, 2**30)


@pytest.mark.parametrize("cls", METRICS)
def test_jit_scan_and_vmap_do_the_same(cls):
    metric = cls()
    y_true, y_pred = batch(metric, 32)
    w = weights(32)
    parts = [x.reshape(4, 8, *x.shape[1:]) for x in (y_true, y_pred, w)]

    def step(state, part):
        return metric.update(state, *part), None

    @jax.jit
    def transformed(*parts):
        stacked = jax.vmap(metric.update, in_axes=(None, 0, 0, 0))(metric.init(), *parts)
        mapped = metric.merge(*(jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(4)))
        return lax.scan(step, metric.init(), parts)[0], mapped

    loop = metric.init()
    for i in range(4):
        loop = update(metric, loop, *(x[i] for x in parts))
    scanned, mapped = transformed(*parts)
    for state in (scanned, mapped):
        assert jax.eval_shape(lambda s: s, state) == jax.eval_shape(lambda s: s, loop)
        np.testing.assert_allclose(float(total(state)), float(total(loop)), rtol=8 * U)  # losses
        np.testing.assert_allclose(float(weight(state)), float(weight(loop)), rtol=EXACT)


def test_merge_is_a_monoid():
    metric = metrics.CategoricalFocalCrossentropy()
    a, b, c = (seen(metric, *batch(metric, 9, i), weights(9, i)) for i in range(3))
    assert_same(metric.merge(), metric.init())
    assert_same(metric.merge(a, metric.init()), a)
    assert_same(metric.merge(metric.init(), a), a)
    assert_same(metric.merge(a, b), metric.merge(b, a))
    left, right = metric.merge(metric.merge(a, b), c), metric.merge(a, metric.merge(b, c))
    assert_same(metric.merge(a, b, c), left)
    np.testing.assert_allclose(float(total(left)), float(total(right)), rtol=12 * U**2)
    np.testing.assert_allclose(float(weight(left)), float(weight(right)), rtol=12 * U**2)


@pytest.mark.parametrize("weighted", [True, False])
def test_merge_over_a_mesh_is_the_merge_of_the_shards(mesh, weighted):
    metric = metrics.SparseCategoricalFocalCrossentropy()
    devices = jax.device_count()
    y_true, y_pred = batch(metric, 5 * devices)
    w = weights(5 * devices) * np.float32(1000.0) ** -(np.arange(5 * devices, dtype=np.float32) // 5)

    def shard(y_true, y_pred, w):
        state = metric.update(metric.init(), y_true, y_pred, w if weighted else None)
        return state, metric.merge(state, axis_name="data")

    split = (P("data"),) * 3
    spread = jax.shard_map(
        lambda *args: jax.tree.map(lambda x: x[None], shard(*args)[0]),
        mesh=mesh, in_specs=split, out_specs=P("data"),
    )  # fmt: skip
    # out_specs=P() is refused unless the result is known to be the same on each device.
    merged = jax.shard_map(lambda *args: shard(*args)[1], mesh=mesh, in_specs=split, out_specs=P())
    arrays = on_mesh(mesh, y_true, y_pred, w)
    shards, state = jax.jit(spread)(*arrays), jax.jit(merged)(*arrays)

    highs = [Fraction(float(x)) for x in [*shards.total, *shards.total_compensation]]
    assert abs(float(total(state) / sum(highs)) - 1) < 3 * devices * U**2
    highs = [Fraction(float(x)) for x in [*shards.weight, *shards.weight_compensation]]
    assert abs(float(weight(state) / sum(highs)) - 1) < 3 * devices * U**2
    if not weighted:
        assert weight(state) == 5 * devices


def test_replicated_state_takes_in_a_sharded_stream(mesh):
    metric = metrics.CategoricalFocalCrossentropy()
    y_true, y_pred = batch(metric, 6 * jax.device_count())

    def stream(state, y_true, y_pred):
        def step(state, part):
            local = metric.update(metric.init(), *(x[None] for x in part))
            return metric.merge(state, metric.merge(local, axis_name="data")), None

        return lax.scan(step, state, (y_true, y_pred))[0]

    sharded = jax.jit(jax.shard_map(stream, mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=P()))
    state = sharded(metric.init(), *on_mesh(mesh, y_true, y_pred))
    plain = seen(metric, y_true, y_pred)
    assert weight(state) == weight(plain)
    np.testing.assert_allclose(metric.result(state), metric.result(plain), rtol=8 * U)  # losses


def test_merge_over_a_mapped_axis():
    metric = metrics.CategoricalFocalCrossentropy()
    y_true, y_pred = (x.reshape(2, 3, 4, 3) for x in batch(metric, 24))

    def merged(y_true, y_pred):
        return metric.merge(metric.update(metric.init(), y_true, y_pred), axis_name=("a", "b"))

    inner = jax.vmap(merged, axis_name="b", out_axes=None)
    state = jax.jit(jax.vmap(inner, axis_name="a", out_axes=None))(y_true, y_pred)
    assert weight(state) == 24


def test_sharded_batch_under_plain_jit(mesh):
    metric = metrics.CategoricalFocalCrossentropy()
    n = 1000 * jax.device_count()
    arrays = *batch(metric, n), weights(n)
    sharded = metric.init(), *on_mesh(mesh, *arrays)
    update = jax.jit(metric.update)
    state, plain = update(*sharded), update(metric.init(), *arrays)
    np.testing.assert_allclose(float(weight(state)), float(weight(plain)), rtol=EXACT)
    np.testing.assert_allclose(metric.result(state), metric.result(plain), rtol=8 * U)  # losses
    # One pair per device is sent: no device holds an array of all examples.
    assert f"[{n}" not in update.lower(*sharded).compile().as_text()


@pytest.mark.parametrize("start", [lambda m: m.init(), lambda m: jax.jit(m.init)()])
def test_state_can_be_donated(start):
    metric = metrics.CategoricalFocalCrossentropy()
    state = start(metric)
    assert len({x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)}) == 4
    update = jax.jit(metric.update, donate_argnums=0)
    for i in range(3):
        old, state = state, update(state, *batch(metric, 5, i))  # a warning is an error here
        assert all(x.is_deleted() for x in jax.tree.leaves(old))
    assert weight(state) == 15


def test_state_is_a_plain_pytree(tmp_path):
    metric = metrics.CategoricalFocalCrossentropy()
    state = metric.update(metric.init(), *batch(metric, 7), weights(7))
    leaves, structure = jax.tree.flatten(state)
    np.savez(tmp_path / "state.npz", *map(np.asarray, leaves))
    with np.load(tmp_path / "state.npz") as file:
        restored = jax.tree.unflatten(structure, [file[name] for name in file.files])
    assert_same(restored, state)
    more = batch(metric, 7, 1)
    assert_same(metric.update(restored, *more), metric.update(state, *more))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert paths == [".total", ".total_compensation", ".weight", ".weight_compensation"]


def test_orbax_round_trip(tmp_path):
    checkpoint = pytest.importorskip("orbax.checkpoint")
    metric = metrics.CategoricalFocalCrossentropy()
    state = metric.update(metric.init(), *batch(metric, 7), weights(7))
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(metric.init))
    assert isinstance(restored, metrics.MeanState)
    assert_same(restored, state)


@pytest.mark.parametrize("cls", METRICS)
@pytest.mark.parametrize("from_logits", [True, False])
def test_nan_is_silent_under_weight_zero_only(cls, from_logits):
    metric = cls(from_logits=from_logits)
    y_true, y_pred = batch(metric, 4)
    w = np.float32([1.0, 0.0, 2.0, 1.0])
    spoiled = np.where(w[:, None] == 0, np.float32(np.nan), y_pred)
    silent = seen(metric, y_true, spoiled, w)
    assert_same(silent, seen(metric, y_true, y_pred, w))
    loud = seen(metric, y_true, spoiled)
    assert np.isnan(result(metric, loud))
    assert np.isnan(result(metric, metric.merge(loud, silent)))


def test_infinite_loss_is_an_infinite_mean():
    metric = metrics.SparseCategoricalFocalCrossentropy(from_logits=True)
    y_pred = np.float32([[-np.inf, 0.0], [1.0, 0.0], [0.0, 0.0]])
    state = seen(metric, np.zeros(3, np.int32), y_pred)
    state = update(metric, state, np.zeros(2, np.int32), y_pred[1:])
    assert metric.result(metric.merge(state, state)) == jnp.inf


@pytest.mark.parametrize("labels", [np.int32, np.uint8, np.int8])
def test_ignored_examples_do_not_count(labels):
    ignored = np.iinfo(labels).max
    metric = metrics.SparseCategoricalFocalCrossentropy(ignore_class=int(ignored))
    y_true, y_pred = batch(metric, 6)
    y_true = np.asarray(y_true).astype(labels)
    y_true[[1, 4]] = ignored
    w, kept = weights(6), y_true != ignored
    for given_weights in (None, w):
        state = seen(metric, y_true, y_pred, given_weights)
        rest = seen(metric, y_true[kept], y_pred[kept], None if given_weights is None else w[kept])
        np.testing.assert_allclose(float(weight(state)), float(weight(rest)), rtol=EXACT)
        np.testing.assert_allclose(result(metric, state), result(metric, rest), rtol=8 * U)  # losses


def test_positions_weigh_alike():
    metric = metrics.SparseCategoricalFocalCrossentropy()
    y_true, y_pred = batch(metric, 24)
    w = weights(6)
    state = seen(metric, y_true.reshape(6, 4), y_pred.reshape(6, 4, 3), w)
    flat = seen(metric, y_true, y_pred, np.repeat(w, 4))
    np.testing.assert_allclose(float(weight(state)), float(weight(flat)), rtol=EXACT)
    np.testing.assert_allclose(result(metric, state), result(metric, flat), rtol=8 * U)  # losses


@pytest.mark.parametrize("cls", METRICS)
def test_metric_inside_a_differentiated_function(cls):
    metric = cls()
    y_true, y_pred = batch(metric, 8)

    def loss(scale):
        return 2 * scale, metric.update(metric.init(), y_true, scale * y_pred, scale * weights(8))

    @jax.jit
    def transformed(scale):
        (_, reverse), gradient = jax.value_and_grad(loss, has_aux=True)(scale)
        _, slope, forward = jax.jvp(loss, (scale,), (jnp.float32(1),), has_aux=True)
        of_mean = jax.grad(lambda p: metric.result(metric.update(metric.init(), y_true, p)))(y_pred)
        return (gradient, slope), (reverse, forward), of_mean

    slopes, states, of_mean = transformed(np.float32(0.5))
    assert slopes == (2, 2)
    plain = result(metric, seen(metric, y_true, 0.5 * y_pred, 0.5 * weights(8)))
    for state in states:
        np.testing.assert_allclose(result(metric, state), plain, rtol=8 * U)  # losses
    np.testing.assert_array_equal(of_mean, 0)


def test_pairs_of_float64():
    metric = metrics.BinaryFocalCrossentropy()
    single = metrics.BinaryFocalCrossentropy(dtype="float32")
    with jax.enable_x64(True):
        y_true, y_pred = np.zeros((3, 1)), np.array([[0.1], [0.5], [0.7]])
        state = seen(metric, y_true, y_pred)
        losses = np.asarray(jax.jit(metrics.binary_focal_crossentropy)(y_true, y_pred))
        assert result(metric, state).dtype == losses.dtype == np.float64
        truth = math.fsum(losses) / 3
        np.testing.assert_allclose(result(metric, state), truth, rtol=3 * 2.0**-53)
        assert jax.eval_shape(metric.update, state, y_true, y_pred).total.dtype == np.float64
        narrow = result(single, seen(single, y_true, y_pred))
        assert narrow.dtype == np.float32
        np.testing.assert_allclose(narrow, truth, rtol=4 * U)  # the losses are rounded too
        with pytest.raises(TypeError, match="`states` .* float32 and float64"):
            metric.merge(metric.init(), single.init())
    with pytest.raises(ValueError, match="`dtype`"):
        metrics.BinaryFocalCrossentropy(dtype="float64").init()


@pytest.mark.parametrize("cls", METRICS)
def test_configuration_is_frozen_and_hashable(cls):
    metric = cls()
    with pytest.raises(dataclasses.FrozenInstanceError):
        metric.gamma = 3.0
    assert hash(metric) == hash(cls()) and metric == cls()
    assert metric != cls(gamma=3.0)
    update = jax.jit(cls.update, static_argnums=0)
    state = update(metric, metric.init(), *batch(metric, 4))
    assert weight(state) == 4


@pytest.mark.parametrize("array", [list, tuple, np.asarray, lambda x: jnp.asarray(x, jnp.float32)])
def test_alpha_per_class(array):
    metric = metrics.CategoricalFocalCrossentropy(alpha=array([0.5, 0.25, 1.0]))
    assert metric.alpha == (0.5, 0.25, 1.0)
    assert hash(metric) == hash(metrics.CategoricalFocalCrossentropy(alpha=[0.5, 0.25, 1.0]))
    y_true, y_pred = batch(metric, 6)
    losses = metrics.categorical_focal_crossentropy(y_true, y_pred, alpha=jnp.array([0.5, 0.25, 1.0]))
    state = jax.jit(metric.update)(metric.init(), y_true, y_pred)
    np.testing.assert_allclose(metric.result(state), np.mean(np.float64(losses)), rtol=8 * U)


def test_names_are_those_of_keras():
    assert [cls().name for cls in METRICS] == [f.__name__ for f in FUNCTIONS]


def test_errors_name_the_argument():
    with pytest.raises(TypeError, match="`alpha`"):
        jax.jit(lambda a: metrics.CategoricalFocalCrossentropy(alpha=a).init())(0.5)
    with pytest.raises(TypeError, match="`dtype`"):
        metrics.CategoricalFocalCrossentropy(dtype="int32")
    with pytest.raises(ValueError, match="`dtype`.*bfloat16"):
        metrics.CategoricalFocalCrossentropy(dtype="bfloat16").init()
    metric = metrics.CategoricalFocalCrossentropy()
    with pytest.raises(ValueError, match="`sample_weight`"):
        metric.update(metric.init(), *batch(metric, 4), jnp.ones(3))
    with pytest.raises(ValueError, match="`y_true`"):
        metric.update(metric.init(), jnp.ones((4, 2)), jnp.ones((4, 3)))
