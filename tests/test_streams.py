"""States belong to their stream: another class, shape or dtype is refused, a copy of its own is not."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as Spec

from focaljax import calibration, class_weights, metrics

Y, P = jnp.array([0, 2, 1, 1]), jax.nn.softmax(jnp.arange(12.0).reshape(4, 3))
STREAMS = {
    "mean": metrics.SparseCategoricalFocalCrossentropy(),
    "mean of losses": metrics.Mean(),
    "counts": class_weights.ClassCounts(3),
    "counts of one": class_weights.ClassCounts(1),
    "bins": calibration.ExpectedCalibrationError(bins=5),
    "other bins": calibration.ExpectedCalibrationError(bins=3),
    "bins by class": calibration.ClasswiseCalibrationError(3, bins=5),
    "bins of one class": calibration.ClasswiseCalibrationError(1, bins=5),
}
SEEING = [name for name in STREAMS if not name.endswith(("one", "one class"))]


def of_two_dtypes(state):
    (first, *rest), structure = jax.tree.flatten(state)
    return jax.tree.unflatten(structure, [first, *(np.asarray(x, np.float64) for x in rest)])


FOREIGN = {
    **{f"of {name}": stream.init() for name, stream in STREAMS.items()},
    "nothing": None,
    "a number": 0.0,
    "a tuple": (jnp.zeros(()), jnp.zeros(())),
    "a dict": {"count": jnp.zeros(3), "count_compensation": jnp.zeros(3)},
    **{f"{dtype} {name}": jax.tree.map(lambda x, d=dtype: x.astype(d), STREAMS[name].init())
       for name in SEEING for dtype in ("float16", "bfloat16", "int32")},
    **{f"stacked {name}": jax.tree.map(lambda x: jnp.stack([x, x]), STREAMS[name].init()) for name in SEEING},
    **{f"mixed {name}": of_two_dtypes(STREAMS[name].init()) for name in SEEING},
    **{f"{name} with a hole": jax.tree.map(lambda _: None, STREAMS[name].init()) for name in SEEING},
}  # fmt: skip


def seen(stream, state, y=Y, p=P):
    if isinstance(stream, metrics.Mean):
        return stream.update(state, jnp.max(p, -1))
    return stream.update(state, *((y,) if isinstance(stream, class_weights.ClassCounts) else (y, p)))


USES = {
    "update": seen,
    "merge": lambda stream, state: stream.merge(stream.init(), state),
    "merge alone": lambda stream, state: stream.merge(state),
    "result": lambda stream, state: stream.result(state),
    "reliability": lambda stream, state: stream.reliability(state),
}


CASES = [(name, use) for name in SEEING for use in USES if hasattr(STREAMS[name], use.split()[0])]


@pytest.mark.parametrize(
    ("name", "use", "other"),
    [
        (*case, key)
        for case in CASES
        for key in FOREIGN
        if key != f"of {case[0]}" and not (key.startswith("of mean") and case[0].startswith("mean"))
    ],
)
def test_a_foreign_state_is_refused(name, use, other):
    stream, state = STREAMS[name], FOREIGN[other]
    message = (
        f"^`state` must be a {type(stream.init()).__name__} of float32 or float64 arrays of shape .*, got "
    )
    with pytest.raises((TypeError, ValueError), match=message):
        USES[use](stream, state)
    if all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state)):
        with pytest.raises((TypeError, ValueError), match=message):
            jax.eval_shape(lambda x: USES[use](stream, x), state)


@pytest.mark.parametrize(("name", "use"), CASES)
def test_a_state_that_was_away_is_taken_back(name, use):
    """As a checkpoint, a host, `vmap`, `scan` or another equal object hand it over."""
    stream = STREAMS[name]
    state = seen(stream, stream.init())
    leaves, structure = jax.tree.flatten(state)
    wanted = USES[use](stream, state)

    def same(found, rtol=0.0):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol), found, wanted)

    same(USES[use](stream, jax.tree.unflatten(structure, list(map(np.asarray, leaves)))))
    same(USES[use](type(stream)(**vars(stream)), jax.device_get(state)))
    stack = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    mapped = jax.vmap(lambda x: USES[use](stream, x))(stack)
    same(jax.tree.map(lambda x: x[1], mapped), 1e-6)
    scanned = lax.scan(lambda c, x: (c, USES[use](stream, x)), 0, stack)[1]
    same(jax.tree.map(lambda x: x[0], scanned), 1e-6)


def equal(found, wanted, rtol=0.0):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol), found, wanted)


@pytest.mark.parametrize("name", SEEING)
def test_states_go_through_pickle_and_flax(name):
    serialization = pytest.importorskip("flax.serialization")
    pytest.importorskip("focaljax.nnx")
    stream = STREAMS[name]
    state = seen(stream, stream.init())
    equal(pickle.loads(pickle.dumps(state)), state)
    found = serialization.from_bytes(stream.init(), serialization.to_bytes(state))
    assert type(found) is type(state)
    equal(found, state)
    equal(stream.result(found), stream.result(state))


def many(rows=16):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(rows, 3)), "float32")
    return jnp.asarray(rng.integers(0, 3, rows)), jax.nn.softmax(logits)


@pytest.mark.parametrize("name", SEEING)
def test_a_state_is_carried_through_a_scan_on_a_mesh(name):
    """Each device has a state of its own from the start, and all merge after the last step."""
    stream, (y, p) = STREAMS[name], many()

    def on_device(y, p):
        def step(state, batch):
            return seen(stream, state, *batch), ()

        batches = (y.reshape(2, -1), p.reshape(2, -1, 3))
        return stream.merge(lax.scan(step, stream.init(axis_name="data"), batches)[0], axis_name="data")

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    specs = {"in_specs": (Spec("data"), Spec("data")), "out_specs": Spec()}
    found = jax.jit(jax.shard_map(on_device, mesh=mesh, **specs))(y, p)
    equal(stream.result(found), stream.result(seen(stream, stream.init(), y, p)), 1e-6)


@pytest.mark.parametrize("places", [("data", None), ("data", "model"), (None, "model")], ids=str)
@pytest.mark.parametrize("name", SEEING)
def test_examples_and_classes_of_an_explicit_mesh(name, places):
    """Where their sharding is a part of their type."""
    y, p = many()
    p = jnp.concatenate([p, jnp.zeros((16, 1))], 1)  # so that two devices share the classes
    streams = {**STREAMS, "counts": class_weights.ClassCounts(4)}
    stream = streams.get(name, STREAMS[name])
    if name == "bins by class":
        stream = calibration.ClasswiseCalibrationError(4, bins=5)
    wanted = stream.result(seen(stream, stream.init(), y, p))
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    y = jax.device_put(y, NamedSharding(mesh, Spec(places[0])))
    p = jax.device_put(p, NamedSharding(mesh, Spec(*places)))
    with jax.set_mesh(mesh):
        found = jax.jit(lambda y, p: stream.result(seen(stream, stream.init(), y, p)))(y, p)
    equal(found, wanted, 1e-6)


@pytest.mark.parametrize("places", [("data", None), ("data", "model"), (None, "model")], ids=str)
def test_a_temperature_on_an_explicit_mesh(places):
    y, _ = many()
    z = jnp.asarray(np.random.default_rng(1).normal(size=(16, 4)), "float32") + 2 * jax.nn.one_hot(y, 4)
    wanted = calibration.fit_temperature(z, y)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    y = jax.device_put(y, NamedSharding(mesh, Spec(places[0])))
    z = jax.device_put(z, NamedSharding(mesh, Spec(*places)))
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(jax.jit(calibration.fit_temperature)(z, y), wanted, rtol=1e-5)


def test_the_mean_of_losses_is_that_of_their_reduction():
    losses = jnp.array([1.0, 2.0, jnp.nan, 4.0])
    weights, where = jnp.array([1.0, 0.5, 1.0, 2.0]), jnp.array([True, True, False, True])
    metric = metrics.Mean()
    state = metric.update(metric.init(), losses, weights, where=where)
    np.testing.assert_allclose(metric.result(state), (1 + 1 + 8) / 3.5, rtol=1e-7)
    assert not np.any(jax.grad(lambda x: metric.result(metric.update(metric.init(), x)))(losses[:2]))
    with pytest.raises(TypeError, match="`losses` must be floating, got int32"):
        metric.update(metric.init(), jnp.arange(3))
