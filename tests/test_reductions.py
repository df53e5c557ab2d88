"""Laws of the reductions: the table, Keras, silence, broadcasting, and the global mean."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from keras.src.losses.loss import reduce_weighted_values

import focaljax
from focaljax.reductions import counted, masked, reduce_loss, weigh

U = 2.0**-24  # unit roundoff of float32
MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")
REDUCTIONS = (*MEANS, "sum")

# (shape of the losses, shape of the weights, shape in which the weights multiply)
FITTING = (
    ((), (), ()),
    ((), (1,), ()),
    ((6,), (), (1,)),
    ((6,), (6,), (6,)),
    ((6,), (6, 1), (6,)),
    ((6,), (1,), (1,)),
    ((6, 1), (6,), (6, 1)),
    ((2, 3), (2,), (2, 1)),
    ((2, 3), (2, 1), (2, 1)),
    ((2, 3), (1, 3), (1, 3)),
    ((3, 3), (3,), (3, 1)),
    ((2, 3), (2, 3, 1), (2, 3)),
    ((2, 3, 4), (2, 3), (2, 3, 1)),
    ((0,), (0,), (0,)),
    ((0, 3), (1,), (1, 1)),
)
UNFITTING = (
    ((6,), (5,)),
    ((6,), (6, 2)),
    ((6,), (1, 6)),
    ((1,), (6,)),
    ((2, 3), (3,)),
    ((2, 3), (2, 3, 4)),
    ((2, 3, 4), (2,)),
    ((), (2,)),
)


def draw(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).uniform(0.1, 2.0, shape).astype(dtype)


def expected(losses, weights, reduction, where=True):
    """The table, in float64; weights already in a shape that multiplies."""
    v, w, keep = np.broadcast_arrays(np.float64(losses), np.float64(weights), where)
    if reduction in (None, "none"):
        return v * w * keep
    total = np.sum(v * w * keep)
    if reduction == "sum":
        return total
    count = np.sum(w * keep) if reduction == "mean_with_sample_weight" else np.sum(keep)
    return total / count if count else 0.0


@pytest.fixture(scope="module")
def mesh():
    assert jax.device_count() > 1, "the laws of a mesh need several devices"
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def over_mesh(mesh, f, *arrays):
    """`f` on the shards of the arrays; jax.shard_map checks that all devices have one result."""
    sharding = NamedSharding(mesh, P("data"))
    sharded = jax.shard_map(f, mesh=mesh, in_specs=(P("data"),) * len(arrays), out_specs=P())
    return jax.jit(sharded)(*(jax.device_put(x, sharding) for x in arrays))


@pytest.mark.parametrize("reduction", [*REDUCTIONS, "none", None])
@pytest.mark.parametrize(("shape", "given", "multiplied"), FITTING)
def test_table(shape, given, multiplied, reduction):
    losses, weights = draw(shape), draw(given, 1)
    result = reduce_loss(losses, weights, reduction)
    # The terms are positive: each product and partial sum of n adds u, the division two more.
    tolerance = (losses.size + 3) * U
    truth = expected(losses, weights.reshape(multiplied), reduction)
    np.testing.assert_allclose(result, truth, rtol=tolerance)
    assert result.shape == np.shape(truth)


@pytest.mark.parametrize("reduction", [*REDUCTIONS, "none", None])
def test_without_weights_all_weights_are_one(reduction):
    losses = draw((4, 3))
    ones = reduce_loss(losses, np.ones((4, 3), np.float32), reduction)
    np.testing.assert_array_equal(reduce_loss(losses, None, reduction), ones)
    np.testing.assert_array_equal(reduce_loss(losses, 1, reduction), ones)


def test_default_is_the_mean_over_the_batch():
    assert reduce_loss(jnp.array([1.0, 2.0, 6.0])) == 3


@pytest.mark.parametrize("given", [(), (1,), (2,), (2, 1), (1, 3), (2, 3)])
def test_weighted_mean_of_a_constant_is_the_constant(given):
    # Keras 3.15 gives 3 for [[1], [2]]: it sums the weights before it broadcasts them.
    mean = reduce_loss(np.full((2, 3), 0.75, np.float32), draw(given), "mean_with_sample_weight")
    np.testing.assert_allclose(mean, 0.75, rtol=14 * U)  # two sums of six terms, one division


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("given", [None, (), (6,), (6, 1)])
def test_keras(reduction, given):
    losses, weights = draw(6), None if given is None else draw(given, 1)
    if reduction == "mean_with_sample_weight" and given == ():
        weights = np.full(6, weights)  # Keras divides by the one weight it was given, not by six of it
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        theirs = np.asarray(reduce_weighted_values(losses, weights, reduction=reduction))
    np.testing.assert_allclose(reduce_loss(losses, weights, reduction), theirs, rtol=16 * U)


@pytest.mark.parametrize("given", [np.float64, np.int32, np.uint8, np.bool_, jnp.bfloat16])
def test_weights_of_any_real_dtype(given):
    weights = np.array([1, 0, 1, 1]).astype(given)
    mean = reduce_loss(jnp.array([1.0, 5.0, 2.0, 3.0]), weights, "mean_with_sample_weight")
    assert mean == 2 and mean.dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("reduction", [*REDUCTIONS, None])
def test_sums_are_in_at_least_float32(dtype, reduction):
    losses = jnp.ones(4097, dtype)  # 4097 is no bfloat16 and no float16
    result = reduce_loss(losses, None, reduction)
    assert result.dtype == jnp.float32
    assert jnp.sum(result) == (1 if reduction in MEANS else 4097)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weights", [None, np.zeros(3, np.float32)])
def test_nothing_counted_is_zero_with_gradient_zero(reduction, weights):
    losses = jnp.zeros(0) if weights is None else jnp.ones(3)
    value, gradient = jax.value_and_grad(reduce_loss)(losses, weights, reduction)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros(losses.shape))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("silent", [jnp.nan, jnp.inf, -jnp.inf])
def test_weight_zero_silences(reduction, silent):
    weights = jnp.array([2.0, 0.0, 1.0])

    def loss(v, w):
        return reduce_loss(v, w, reduction)

    value, gradients = jax.value_and_grad(loss, (0, 1))(jnp.array([1.0, silent, 4.0]), weights)
    plain, plain_gradients = jax.value_and_grad(loss, (0, 1))(jnp.array([1.0, 0.0, 4.0]), weights)
    assert value == plain
    np.testing.assert_array_equal(gradients, plain_gradients)
    assert np.all(np.isfinite(gradients))


def test_weight_zero_keeps_its_derivative():
    losses = jnp.array([1.0, 5.0])
    gradient = jax.grad(lambda w: reduce_loss(losses, w, "sum"))(jnp.array([1.0, 0.0]))
    np.testing.assert_array_equal(gradient, losses)  # d sum(w v) / dw = v, also at w = 0


@pytest.mark.parametrize("reduction", [*REDUCTIONS, None])
def test_nan_under_another_weight_stays(reduction):
    result = reduce_loss(jnp.array([1.0, jnp.nan]), jnp.array([0.0, 1e-30]), reduction)
    assert np.isnan(np.sum(result))


@pytest.mark.parametrize("reduction", [*REDUCTIONS, None])
@pytest.mark.parametrize("weights", [None, draw((4, 1), 1)])
@pytest.mark.parametrize("keep", [True, False, [[True], [False], [True], [True]], "each"])
def test_where_leaves_out(reduction, weights, keep):
    where = np.asarray(draw((4, 3), 2) > 1 if keep == "each" else keep)
    losses = draw((4, 3))
    result = reduce_loss(losses, weights, reduction, where=where)
    truth = expected(losses, 1 if weights is None else weights, reduction, where)
    np.testing.assert_allclose(result, truth, rtol=16 * U)  # 12 positive terms

    spoiled = np.where(np.broadcast_to(where, losses.shape), losses, np.nan)
    np.testing.assert_array_equal(reduce_loss(spoiled, weights, reduction, where=where), result)


NORMALIZERS = {
    "number": 7,
    "fraction": 2.5,
    "positives": [True, False, True, True],
    "bytes": np.full((3, 100), 100, np.uint8),  # their sum is no uint8
    "halves": np.full(4097, 1, np.float16),  # no float16 either
    "integers": np.full(3, 2**31 - 1, np.int32),
    "beyond 32 bits": np.array([2**40, 2**33 + 2**20]),
    "less than 1": [0.25, 0.5],
    "none": [],
    "zeros": np.zeros((2, 3), bool),
}


@pytest.mark.parametrize("given", NORMALIZERS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("weights", [None, draw((4, 1), 1)])
@pytest.mark.parametrize("where", [None, draw((4, 3), 2) > 1])
def test_a_normalizer_takes_the_place_of_the_number(given, dtype, weights, where):
    normalizer, losses = NORMALIZERS[given], draw((4, 3), dtype=dtype)
    total = expected(losses, 1 if weights is None else weights, "sum", True if where is None else where)
    truth = total / max(np.sum(normalizer, dtype=float), 1)

    def loss(c, reduction="mean"):
        return reduce_loss(losses, weights, reduction, where=where, normalizer=c)

    # 12 positive terms; the other sum is exact, or has 3.
    np.testing.assert_allclose(loss(normalizer), truth, rtol=20 * U)
    assert loss(normalizer).shape == () and loss(normalizer).dtype == jnp.float32
    assert loss(normalizer) == loss(normalizer, "sum_over_batch_size")
    if given != "beyond 32 bits":  # no JAX array holds these
        np.testing.assert_allclose(jax.jit(loss)(jnp.asarray(normalizer)), truth, rtol=20 * U)


@pytest.mark.parametrize("normalizer", [0, 3, [True, False], jnp.zeros(0)])
def test_an_empty_batch_by_a_normalizer_is_zero(normalizer):
    value, gradient = jax.value_and_grad(partial(reduce_loss, normalizer=normalizer))(jnp.zeros((0, 3)))
    assert value == 0 and gradient.shape == (0, 3)


def test_float64_by_a_normalizer():
    with jax.enable_x64(True):
        found = reduce_loss(np.array([1.0, 2.0]), normalizer=np.array([2**40, 1]))
        assert found == 3 / (2**40 + 1) and found.dtype == jnp.float64


@pytest.mark.parametrize("scale", [0.1, 4.0])
def test_derivatives_by_a_normalizer(scale):
    """v: w / c. w: v / c. c: -sum(w v) / c^2, and 0 where the denominator is 1. Weight 0 silences NaN."""
    losses, weights, c = draw(5), draw(5, 1), scale * draw(3, 2)
    losses[0], weights[0] = np.nan, 0

    def loss(v, w, c):
        return reduce_loss(v, w, normalizer=c)

    by_losses, by_weights, by_normalizer = jax.grad(loss, (0, 1, 2))(losses, weights, c)
    amount = np.sum(c, dtype=float)
    assert (amount > 1) == (scale > 1)
    denominator, v = max(amount, 1), np.nan_to_num(np.float64(losses))
    np.testing.assert_allclose(by_losses, weights / denominator, rtol=8 * U)
    np.testing.assert_allclose(by_weights, v / denominator, rtol=8 * U)
    slope = -np.sum(weights * v) / denominator**2 if amount > 1 else 0
    np.testing.assert_allclose(by_normalizer, np.full(3, slope), rtol=16 * U)


def test_normalizers_of_a_stack():
    losses, positive = draw((5, 6)), draw((5, 6), 1) > 1

    def loss(v, c):
        return reduce_loss(v, normalizer=c)

    rows = [loss(v, c) for v, c in zip(losses, positive, strict=True)]
    np.testing.assert_allclose(jax.jit(jax.vmap(loss))(losses, positive), rows, rtol=16 * U)
    whole = jax.vmap(lambda v, c: reduce_loss(v, normalizer=c, axis_name="a"), axis_name="a")
    truth = losses.sum(dtype=float) / positive.sum()
    np.testing.assert_allclose(whole(losses, positive), np.full(5, truth), rtol=32 * U)


def test_weigh_returns_both_summands():
    weighted, weights = weigh(draw((2, 3)), draw(2, 1))
    np.testing.assert_array_equal(weights, np.repeat(draw(2, 1)[:, None], 3, axis=1))
    np.testing.assert_array_equal(weighted, draw((2, 3)) * weights)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32])
@pytest.mark.parametrize("ignored", [-1, 3, 255])
def test_counted(dtype, ignored):
    labels = np.array([[0], [3]], dtype)
    kept = counted(labels, ignored, jnp.zeros(2))
    np.testing.assert_array_equal(kept, [True, ignored != 3])
    assert counted(labels, None, jnp.zeros(2)) is None


@pytest.mark.parametrize("reduction", [*REDUCTIONS, None])
def test_transforms_commute(reduction):
    losses, weights = draw((5, 6)), draw((5, 6), 1)

    def loss(v, w):
        return reduce_loss(v, w, reduction)

    def gradient(v, w):
        return jax.grad(lambda *args: jnp.sum(loss(*args)), (0, 1))(v, w)

    for f in (loss, gradient):
        rows = [f(v, w) for v, w in zip(losses, weights, strict=True)]
        stacked = jax.tree.map(lambda *xs: np.stack(xs), *rows)
        mapped = jax.jit(jax.vmap(f))(losses, weights)
        # Another order of six terms, in three sums and a quotient.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=32 * U), mapped, stacked)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_global_reduction_is_that_of_the_global_batch(mesh, reduction, weighted):
    # Weights differ between the devices, so that a mean of means would be wrong.
    n = 4 * jax.device_count()
    losses = draw((n, 3))
    weights = np.arange(n, dtype=np.float32) if weighted else np.ones(n, np.float32)

    def shard(v, w):
        return reduce_loss(v, w if weighted else None, reduction, axis_name="data")

    truth = expected(losses, weights[:, None], reduction)
    np.testing.assert_allclose(over_mesh(mesh, shard, losses, weights), truth, rtol=3 * n * U)


def test_global_mean_over_the_valid_entries(mesh):
    losses = draw((2 * jax.device_count(), 3))
    where = np.zeros(losses.shape, bool)
    where[0], where[-1, 0] = True, True  # no entry on most devices

    def shard(v, keep):
        return reduce_loss(v, reduction="mean", where=keep, axis_name="data")

    truth = expected(losses, 1, "mean", where)
    np.testing.assert_allclose(over_mesh(mesh, shard, losses, where), truth, rtol=6 * U)


@pytest.mark.parametrize("step", [1, 7, 10**6])
def test_global_sum_by_the_number_of_positives(mesh, step):
    """As detectors divide; most devices have no positive. The number may be counted or given."""
    n = 4 * jax.device_count()
    losses, positive, scale = draw(n), np.arange(1, n + 1) % step == 0, jnp.float32(1.5)

    def by_mask(scale, v, positive, axis_name=None):
        return reduce_loss(scale * v, normalizer=positive, axis_name=axis_name)

    def by_number(scale, v, positive, axis_name=None):
        return reduce_loss(scale * v, normalizer=jnp.sum(positive), axis_name=axis_name)

    truth = losses.sum(dtype=float) / max(positive.sum(), 1)
    for loss in (by_mask, by_number):
        found = jax.value_and_grad(partial(loss, axis_name="data"))
        value, gradient = over_mesh(mesh, partial(found, scale), losses, positive)
        np.testing.assert_allclose(value, 1.5 * truth, rtol=3 * n * U)
        np.testing.assert_allclose(gradient, truth, rtol=3 * n * U)


def test_a_number_is_that_of_one_device(mesh):
    """The same number on every device, and a sum whose parts differ and have a gradient."""
    n = 4 * jax.device_count()
    losses, x, scale = draw(n), draw(n, 1), jnp.float32(1.5)
    value = over_mesh(mesh, partial(reduce_loss, normalizer=2.0, axis_name="data"), losses)
    np.testing.assert_allclose(value, losses.mean(dtype=float) * 2, rtol=3 * n * U)

    def loss(scale, v, x):
        return reduce_loss(v, normalizer=scale * x, axis_name="data")

    gradient = over_mesh(mesh, partial(jax.grad(loss), scale), losses, x)
    truth = -losses.sum(dtype=float) / x.sum(dtype=float) / 1.5**2
    np.testing.assert_allclose(gradient, truth, rtol=6 * n * U)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_global_gradient_is_that_of_the_global_batch(mesh, reduction):
    n = 4 * jax.device_count()
    x, weights, scale = draw(n), np.arange(n, dtype=np.float32), jnp.float32(1.5)

    def loss(scale, x, w, axis_name=None):
        return reduce_loss(scale * x, w, reduction, axis_name=axis_name)

    def shard(x, w):
        return jax.grad(loss)(scale, x, w, axis_name="data")

    truth = jax.grad(loss)(scale, x, weights)
    # Both are sums of n positive terms; the shards group them otherwise.
    np.testing.assert_allclose(over_mesh(mesh, shard, x, weights), truth, rtol=3 * n * U)


def test_a_padded_batch_is_the_batch_without_padding(mesh):
    """By weights and by a mask; the padding lies on some devices only."""
    n, short = 4 * jax.device_count(), 3 * jax.device_count() + 1
    x, scale = draw(n), jnp.float32(1.5)
    there = np.arange(n) < short

    def by_weight(scale, x, there, axis_name=None):
        weights = there.astype(jnp.float32)
        return reduce_loss(scale * x, weights, "mean_with_sample_weight", axis_name=axis_name)

    def by_mask(scale, x, there, axis_name=None):
        return reduce_loss(scale * x, where=there, axis_name=axis_name)

    truth = np.mean(x[:short], dtype=float)
    for loss in (by_weight, by_mask):
        found = jax.value_and_grad(partial(loss, axis_name="data"))
        value, gradient = over_mesh(mesh, partial(found, scale), x, there)
        np.testing.assert_allclose(value, 1.5 * truth, rtol=3 * n * U)
        np.testing.assert_allclose(gradient, truth, rtol=3 * n * U)


def test_the_wrong_ways_that_readme_names_are_wrong(mesh):
    """If one of these becomes right, the table of docs/keras.md must change."""
    n = 4 * jax.device_count()
    x, scale = np.arange(1, n + 1, dtype=np.float32), jnp.float32(1.5)
    valid = (np.arange(n) < 4) | (np.arange(n) % 4 == 0)  # four on the first device, one on the others

    def mean_of_means(x, valid):
        return jax.lax.pmean(reduce_loss(x, where=valid), "data")

    assert abs(over_mesh(mesh, mean_of_means, x, valid) / x[valid].mean() - 1) > 0.01

    def mean_of_local_gradients(x):
        return jax.lax.pmean(jax.grad(lambda scale: reduce_loss(scale * x))(scale), "data")

    found = over_mesh(mesh, mean_of_local_gradients, x)
    np.testing.assert_allclose(found, jax.device_count() * x.mean(dtype=float), rtol=3 * n * U)


def test_global_over_several_axes():
    losses = draw((2, 3, 4))

    def mean(v):
        return reduce_loss(v, axis_name=("a", "b"))

    mapped = jax.vmap(jax.vmap(mean, axis_name="b"), axis_name="a")(losses)
    np.testing.assert_allclose(mapped, np.full((2, 3), losses.mean()), rtol=26 * U)  # 24 terms


@pytest.mark.parametrize(("shape", "given"), UNFITTING)
def test_weights_that_do_not_fit(shape, given):
    with pytest.raises(ValueError, match="`sample_weight`") as error:
        reduce_loss(np.ones(shape, np.float32), np.ones(given, np.float32))
    assert str(shape) in str(error.value) and str(given) in str(error.value)
    # One per column, in a shape that fits; (1,) and what does not broadcast get no such advice.
    spelled = {((2, 3), (3,)): "(1, 3)"}.get((shape, given))
    assert ("give it the shape" in str(error.value)) == (spelled is not None)
    if spelled is not None:
        assert str(error.value).endswith(f"give it the shape {spelled}.")
        reduce_loss(np.ones(shape, np.float32), np.ones((1, *given), np.float32))


@pytest.mark.parametrize("reduction", ["average", "", 0, "SUM", ("mean",)])
def test_unknown_reduction_names_the_choices(reduction):
    with pytest.raises(ValueError, match="`reduction`") as error:
        reduce_loss(jnp.ones(2), None, reduction)
    assert all(repr(choice) in str(error.value) for choice in (*REDUCTIONS, "none", None))


@pytest.mark.parametrize(
    ("error", "name", "call"),
    [
        (TypeError, "losses", lambda: reduce_loss(jnp.ones(2, jnp.int32))),
        (TypeError, "sample_weight", lambda: reduce_loss(jnp.ones(2), jnp.ones(2, jnp.complex64))),
        (TypeError, "where", lambda: reduce_loss(jnp.ones(2), where=jnp.ones(2))),
        (ValueError, "where", lambda: reduce_loss(jnp.ones(2), where=jnp.ones(3, jnp.bool_))),
        (ValueError, "axis_name", lambda: reduce_loss(jnp.ones(2), None, None, axis_name="data")),
        (TypeError, "normalizer", lambda: reduce_loss(jnp.ones(2), normalizer=1j)),
        (TypeError, "normalizer", lambda: reduce_loss(jnp.ones(2), normalizer="positives")),
        (TypeError, "normalizer", lambda: reduce_loss(jnp.ones(2), normalizer=[[1], [1, 2]])),
    ],
)
def test_errors_name_the_argument(error, name, call):
    with pytest.raises(error, match=f"`{name}`"):
        call()


@pytest.mark.parametrize("kind", [lambda x: x, np.asarray, jnp.asarray, lambda x: [1.0, x]])
@pytest.mark.parametrize("wrong", [-1, -0.5, np.nan, np.inf])
def test_a_known_normalizer_is_at_least_zero(kind, wrong):
    loss = partial(reduce_loss, normalizer=kind(wrong))
    for call in (loss, jax.jit(loss)):
        with pytest.raises(ValueError, match=f"^`normalizer` must be at least 0 and finite, got {wrong}"):
            call(jnp.ones(2))


@pytest.mark.parametrize("reduction", ["mean_with_sample_weight", "sum", "none", None])
def test_a_normalizer_needs_a_mean_over_the_batch(reduction):
    wanted = '`normalizer` must be None unless `reduction` is "sum_over_batch_size" or "mean", got '
    with pytest.raises(ValueError, match=f"^{wanted}{reduction!r}.$"):
        reduce_loss(jnp.ones(2), None, reduction, normalizer=2)
    with pytest.raises(ValueError, match=f"^{wanted}{reduction!r}.$"):
        focaljax.BinaryFocalCrossentropy(reduction=reduction)([[1, 0]], jnp.ones((1, 2)), normalizer=2)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize(
    "cls",
    [
        focaljax.CategoricalFocalCrossentropy,
        focaljax.SparseCategoricalFocalCrossentropy,
        focaljax.BinaryFocalCrossentropy,
    ],
)
def test_objects_divide_by_a_normalizer(cls, dtype):
    """An ignored label takes nothing from the denominator."""
    y_pred, labels, weights = draw((4, 3)), np.array([0, 2, 1, 2]), draw(4, 1)
    sparse = "Sparse" in cls.__name__
    loss = cls(from_logits=True, dtype=dtype, **({"ignore_class": 0} if sparse else {}))
    y_true = labels if sparse else np.eye(3, dtype=np.float32)[labels]
    total = cls.from_config(loss.get_config() | {"reduction": "sum"})(y_true, y_pred, weights)
    found = loss(y_true, y_pred, weights, normalizer=labels < 2)
    np.testing.assert_array_equal(found, total / 2)  # an exact quotient
    assert found.dtype == (dtype or jnp.float32)


@pytest.mark.parametrize(
    ("dtype", "ignored", "kept"),
    [
        (jnp.uint8, 255, [False, True]),
        (jnp.uint8, -1, [True, True]),
        (jnp.uint32, 2**32 - 1, [False, True]),
        (jnp.uint32, -1, [True, True]),
        (jnp.int32, -1, [False, True]),
        (jnp.int32, 2**40, [True, True]),
    ],
)
def test_an_ignored_class_is_a_number_of_the_labels_dtype(dtype, ignored, kept):
    """The largest unsigned label is not -1; what the dtype cannot hold is nowhere."""
    labels = jnp.asarray(np.array([-1, 1]).astype(dtype))
    np.testing.assert_array_equal(counted(labels, ignored, losses=jnp.zeros(2)), kept)
    losses = focaljax.softmax_focal_loss_with_integer_labels(
        jnp.zeros((2, 3)), labels, ignore_index=ignored, gamma=0.0
    )
    first = 0 if not kept[0] else np.nan  # neither ignored nor a class
    np.testing.assert_allclose(losses, [first, np.log(3)], rtol=1e-6)


@pytest.mark.parametrize(
    ("weights", "mask", "want"),
    [
        (None, None, None),
        ([1, 2], None, [1, 2]),
        (None, [True, False], [1.0, 0.0]),
        (None, [1.0, 0.25], [1.0, 0.25]),
        (3.0, [1, 0], [3.0, 0.0]),
        ([2, 3], [1, 0], [2.0, 0.0]),
        ([2.0, np.nan], [True, False], [2.0, 0.0]),
        ([[1.0, 2.0], [3.0, 4.0]], [True, False], [[1.0, 2.0], [0.0, 0.0]]),
        ([2.0, 3.0], [[1, 0], [1, 1]], [[2.0, 0.0], [3.0, 3.0]]),
    ],
)
def test_a_mask_takes_weights_away(weights, mask, want):
    weights, mask = (x if x is None else np.asarray(x) for x in (weights, mask))
    got = masked(weights, mask)
    if want is None:
        assert got is None
        return
    assert got is not None
    np.testing.assert_array_equal(got, want)
    assert got.shape == np.shape(want)
