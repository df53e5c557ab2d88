"""States belong to their stream: another class, shape or dtype is refused, a copy of its own is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from focaljax import calibration, class_weights, metrics

Y, P = jnp.array([0, 2, 1, 1]), jax.nn.softmax(jnp.arange(12.0).reshape(4, 3))
STREAMS = {
    "mean": metrics.SparseCategoricalFocalCrossentropy(),
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


def seen(stream, state):
    args = (Y,) if isinstance(stream, class_weights.ClassCounts) else (Y, P)
    return stream.update(state, *args)


USES = {
    "update": seen,
    "merge": lambda stream, state: stream.merge(stream.init(), state),
    "merge alone": lambda stream, state: stream.merge(state),
    "result": lambda stream, state: stream.result(state),
    "reliability": lambda stream, state: stream.reliability(state),
}


CASES = [(name, use) for name in SEEING for use in USES if hasattr(STREAMS[name], use.split()[0])]


@pytest.mark.parametrize(
    ("name", "use", "other"), [(*case, key) for case in CASES for key in FOREIGN if key != f"of {case[0]}"]
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
