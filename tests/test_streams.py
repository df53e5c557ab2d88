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


def uses_of(stream):
    return {use: call for use, call in USES.items() if hasattr(stream, use.split()[0])}


def equal(found, wanted, rtol=0.0):
    jax.tree.map_with_path(
        lambda path, a, b: np.testing.assert_allclose(a, b, rtol, err_msg=jax.tree_util.keystr(path)),
        found,
        wanted,
    )


@pytest.mark.parametrize("name", SEEING)
def test_a_foreign_state_is_refused(name):
    stream, own = STREAMS[name], FOREIGN[f"of {name}"]
    message = f"^`state` must be a {type(own).__name__} of float32 or float64 arrays of shape .*, got "

    def refused(state):
        for call in uses_of(stream).values():
            with pytest.raises((TypeError, ValueError), match=message):
                call(stream, state)

    for other, state in FOREIGN.items():
        if other != f"of {name}" and not (other.startswith("of mean") and name.startswith("mean")):
            refused(state)
            if all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state)):
                jax.eval_shape(refused, state)


@pytest.mark.parametrize("name", SEEING)
def test_a_state_that_was_away_is_taken_back(name):
    """As a checkpoint, a host, `vmap`, `scan` or another equal object hand it over."""
    stream = STREAMS[name]
    state = seen(stream, stream.init())
    leaves, structure = jax.tree.flatten(state)

    def used(state, stream=stream):
        return {use: call(stream, state) for use, call in uses_of(stream).items()}

    @jax.jit
    def of_transforms(stack):
        return jax.vmap(used)(stack), lax.scan(lambda c, x: (c, used(x)), 0, stack)[1]

    wanted = used(state)
    equal(used(jax.tree.unflatten(structure, list(map(np.asarray, leaves)))), wanted)
    equal(used(jax.device_get(state), type(stream)(**vars(stream))), wanted)
    mapped, scanned = of_transforms(jax.tree.map(lambda x: np.stack([x, x]), state))
    equal(jax.tree.map(lambda x: x[1], mapped), wanted, 1e-6)
    equal(jax.tree.map(lambda x: x[0], scanned), wanted, 1e-6)


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


def many(classes):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(16, 3)).astype(np.float32)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return rng.integers(0, 3, 16), np.pad(p, ((0, 0), (0, classes - 3)))


def test_states_are_carried_through_a_scan_on_a_mesh():
    """Each device has a state of its own from the start, and all merge after the last step."""
    streams = {name: STREAMS[name] for name in SEEING}

    def on_device(y, p):
        def step(states, batch):
            return {name: seen(stream, states[name], *batch) for name, stream in streams.items()}, ()

        batches = (y.reshape(2, -1), p.reshape(2, -1, 3))
        start = {name: stream.init(axis_name="data") for name, stream in streams.items()}
        states, _ = lax.scan(step, start, batches)
        return {name: stream.merge(states[name], axis_name="data") for name, stream in streams.items()}

    @jax.jit
    def both(y, p):
        states = jax.shard_map(on_device, mesh=mesh, in_specs=Spec("data"), out_specs=Spec())(y, p)
        whole = {name: seen(stream, stream.init(), y, p) for name, stream in streams.items()}
        return tuple({name: streams[name].result(of[name]) for name in streams} for of in (states, whole))

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    equal(*both(*many(3)), 1e-6)


OF_FOUR = {name: STREAMS[name] for name in SEEING} | {
    "counts": class_weights.ClassCounts(4),
    "bins by class": calibration.ClasswiseCalibrationError(4, bins=5),
}


@jax.jit
def results(y, p):
    return {name: stream.result(seen(stream, stream.init(), y, p)) for name, stream in OF_FOUR.items()}


@pytest.mark.parametrize("places", [("data", None), ("data", "model"), (None, "model")], ids=str)
def test_examples_and_classes_of_an_explicit_mesh(places):
    """Where their sharding is a part of their type."""
    y, p = many(4)  # so that two devices share the classes
    wanted = results(y, p)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    y = jax.device_put(y, NamedSharding(mesh, Spec(places[0])))
    p = jax.device_put(p, NamedSharding(mesh, Spec(*places)))
    with jax.set_mesh(mesh):
        equal(results(y, p), wanted, 1e-6)


@pytest.mark.parametrize("places", [("data", None), ("data", "model"), (None, "model")], ids=str)
def test_a_temperature_on_an_explicit_mesh(places):
    y, _ = many(4)
    z = np.random.default_rng(1).normal(size=(16, 4)).astype(np.float32) + 2 * np.eye(4, dtype=np.float32)[y]
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
