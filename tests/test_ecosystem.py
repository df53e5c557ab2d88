"""Real use beside other libraries: clu's collections, an Equinox model, Orbax checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import focaljax
from focaljax import calibration, class_weights, metrics
from focaljax.clu import metric_class

FOCAL = metrics.SparseCategoricalFocalCrossentropy(from_logits=True)


@pytest.fixture(autouse=True)
def as_others_need_it():
    """JAX' own defaults: other libraries promote shapes and dtypes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def batch(n=24, seed=0):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(n, 3)).astype(np.float32))
    return x, jnp.argmax(x + jnp.asarray(rng.gumbel(size=(n, 3)), jnp.float32), 1)


def test_the_form_of_clu():
    Focal = metric_class(FOCAL)
    (a, ya), (b, yb) = batch(24, 0), batch(5, 1)
    one, two = (
        Focal.from_model_output(logits=a, labels=ya, other=1),
        Focal.from_model_output(logits=b, labels=yb),
    )
    both = Focal.empty().merge(one).merge(two)
    state = FOCAL.update(FOCAL.update(FOCAL.init(), ya, a), yb, b)
    np.testing.assert_allclose(both.compute(), FOCAL.result(state), rtol=1e-6)
    gathered = jax.tree.map(lambda *x: jnp.stack(x), one, two)
    np.testing.assert_allclose(gathered.reduce().compute(), both.compute(), rtol=1e-6)
    masked = Focal.from_model_output(logits=a.at[5:].set(jnp.nan), labels=ya, mask=jnp.arange(24) < 5)
    np.testing.assert_allclose(
        masked.compute(), FOCAL.result(FOCAL.update(FOCAL.init(), ya[:5], a[:5])), rtol=1e-6
    )
    top = calibration.ExpectedCalibrationError()
    ECE = metric_class(top, y_pred="p", y_true="y")
    want = top.result(top.update(top.init(), ya, jax.nn.softmax(a)))
    np.testing.assert_allclose(ECE.from_model_output(p=jax.nn.softmax(a), y=ya).compute(), want, rtol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_in_a_collection_of_clu():
    clu = pytest.importorskip("clu.metrics")
    Both = clu.Collection.create(accuracy=clu.Accuracy, focal=metric_class(FOCAL))
    step = jax.jit(lambda seen, x, y: seen.merge(Both.single_from_model_output(logits=x, labels=y)))
    seen = Both.empty()
    for seed, n in ((0, 24), (1, 5)):
        seen = step(seen, *batch(n, seed))
    got = seen.compute()
    x, y = (jnp.concatenate(parts) for parts in zip(batch(24, 0), batch(5, 1), strict=True))
    losses = focaljax.sparse_categorical_focal_crossentropy(y, x, from_logits=True)
    np.testing.assert_allclose(got["focal"], losses.mean(), rtol=1e-6)
    np.testing.assert_allclose(got["accuracy"], (jnp.argmax(x, 1) == y).mean(), rtol=1e-6)


def test_an_equinox_model_with_class_weights():
    eqx = pytest.importorskip("equinox")
    optax = pytest.importorskip("optax")
    x, y = batch(60)
    alpha = class_weights.inverse_frequency(jnp.bincount(y, length=3))
    model = eqx.nn.MLP(3, 3, 8, 1, key=jax.random.key(0))
    optimizer = optax.adam(1e-2)

    @eqx.filter_jit
    def step(model, state, seen):
        def objective(model):
            logits = jax.vmap(model)(x)
            losses = focaljax.softmax_focal_loss_with_integer_labels(logits, y, gamma=2.0, alpha=alpha)
            return losses.mean(), logits

        (loss, logits), gradient = eqx.filter_value_and_grad(objective, has_aux=True)(model)
        updates, state = optimizer.update(gradient, state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), state, FOCAL.update(seen, y, logits), loss

    state, seen, history = optimizer.init(eqx.filter(model, eqx.is_array)), FOCAL.init(), []
    for _ in range(50):
        model, state, seen, loss = step(model, state, seen)
        history.append(float(loss))
    assert history[-1] < history[0]
    assert seen.weight == 50 * 60


@pytest.mark.parametrize(
    "metric",
    [FOCAL, calibration.ClasswiseCalibrationError(3, from_logits=True), class_weights.ClassCounts(3)],
    ids=lambda metric: type(metric).__name__,
)
def test_orbax_keeps_what_was_seen(metric, tmp_path):
    checkpoint = pytest.importorskip("orbax.checkpoint")
    x, y = batch()
    state = metric.update(metric.init(), y, *(() if isinstance(metric, class_weights.ClassCounts) else (x,)))
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(metric.init))
    assert type(restored) is type(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
