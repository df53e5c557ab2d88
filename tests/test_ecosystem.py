"""Real use beside other libraries: clu's collections, metrax, an Equinox model, Orbax checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("clu")

import clu.metrics
import clu.values

import focaljax
from focaljax import calibration, class_weights, metrics
from focaljax.clu import metric_class

FOCAL = metrics.SparseCategoricalFocalCrossentropy(from_logits=True)
pytestmark = pytest.mark.usefixtures("jax_defaults")


def batch(n=24, seed=0):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(n, 3)).astype(np.float32))
    return x, jnp.argmax(x + jnp.asarray(rng.gumbel(size=(n, 3)), jnp.float32), 1)


def test_the_form_of_clu():
    Focal = metric_class(FOCAL)
    assert issubclass(Focal, clu.metrics.Metric)
    (a, ya), (b, yb) = batch(24, 0), batch(5, 1)
    one, two = (
        Focal.from_model_output(logits=a, labels=ya, other=1),
        Focal.from_model_output(logits=b, labels=yb),
    )
    both = Focal.empty().merge(one).merge(two)
    state = FOCAL.update(FOCAL.update(FOCAL.init(), ya, a), yb, b)
    np.testing.assert_allclose(both.compute(), FOCAL.result(state), rtol=1e-6)
    value = both.compute_value()
    assert isinstance(value, clu.values.Scalar) and value.value == both.compute()
    gathered = jax.tree.map(lambda *x: jnp.stack(x), one, two)
    np.testing.assert_allclose(gathered.reduce().compute(), both.compute(), rtol=1e-6)
    top = calibration.ExpectedCalibrationError()
    ECE = metric_class(top, y_pred="p", y_true="y")
    want = top.result(top.update(top.init(), ya, jax.nn.softmax(a)))
    np.testing.assert_allclose(ECE.from_model_output(p=jax.nn.softmax(a), y=ya).compute(), want, rtol=1e-6)


def test_weights_and_masks_of_clu():
    Focal = metric_class(FOCAL)
    x, y = batch(24)
    dirty, first = x.at[5:].set(jnp.nan), jnp.arange(24) < 5
    masked = Focal.from_model_output(logits=dirty, labels=y, mask=first)
    np.testing.assert_allclose(
        masked.compute(), FOCAL.result(FOCAL.update(FOCAL.init(), y[:5], x[:5])), rtol=1e-6
    )
    weights = jnp.arange(1.0, 25.0)
    want = FOCAL.result(FOCAL.update(FOCAL.init(), y[:5], x[:5], weights[:5]))
    weighed = Focal.from_model_output(logits=dirty, labels=y, mask=first, sample_weight=weights)
    np.testing.assert_allclose(weighed.compute(), want, rtol=1e-6)
    rows = Focal.from_model_output(
        logits=dirty[:, None], labels=y[:, None], mask=first, sample_weight=weights[:, None]
    )
    np.testing.assert_allclose(rows.compute(), want, rtol=1e-6)


def test_outputs_of_other_names_in_clu():
    Focal = metric_class(FOCAL)
    x, y = batch(24)
    Head = Focal.from_fun(lambda head, classes, **_: {"logits": head, "labels": classes})
    one = Head.from_model_output(head=x, classes=y, mask=jnp.arange(24) < 5)
    assert isinstance(one, Focal)
    want = FOCAL.result(FOCAL.update(FOCAL.init(), y[:5], x[:5]))
    np.testing.assert_allclose(Head.empty().merge(one).compute(), want, rtol=1e-6)
    with pytest.raises(TypeError, match="`logits`, `labels` must be keywords, got 1 by position"):
        Focal.from_output("head").from_model_output(head=x)
    with pytest.raises(TypeError, match=r"`labels` must be a keyword of the outputs, got \['logits'\]"):
        Focal.from_model_output(logits=x)


def test_in_a_collection_of_clu():
    Both = clu.metrics.Collection.create(accuracy=clu.metrics.Accuracy, focal=metric_class(FOCAL))
    step = jax.jit(lambda seen, x, y: seen.merge(Both.single_from_model_output(logits=x, labels=y)))
    seen = Both.empty()
    for seed, n in ((0, 24), (1, 5)):
        seen = step(seen, *batch(n, seed))
    got = seen.compute()
    x, y = (jnp.concatenate(parts) for parts in zip(batch(24, 0), batch(5, 1), strict=True))
    losses = focaljax.sparse_categorical_focal_crossentropy(y, x, from_logits=True)
    np.testing.assert_allclose(got["focal"], losses.mean(), rtol=1e-6)
    np.testing.assert_allclose(got["accuracy"], (jnp.argmax(x, 1) == y).mean(), rtol=1e-6)
    assert {name: value.value for name, value in seen.compute_values().items()} == got


def test_devices_gather_in_a_collection_of_clu():
    Both = clu.metrics.Collection.create(accuracy=clu.metrics.Accuracy, focal=metric_class(FOCAL))
    x, y = batch(24)
    shards = x.reshape(4, 6, 3), y.reshape(4, 6)
    gathered = jax.vmap(
        lambda x, y: Both.gather_from_model_output(axis_name="data", logits=x, labels=y), axis_name="data"
    )(*shards)
    one = Both.single_from_model_output(logits=x, labels=y)
    got = gathered.unreplicate().compute()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, one.compute())


def test_beside_metrics_of_metrax():
    metrax, wrapper = (pytest.importorskip(name) for name in ("metrax", "metrax.nnx.nnx_wrapper"))
    binary = metrics.BinaryFocalCrossentropy()
    Focal = metric_class(binary, y_pred="predictions", sample_weight="sample_weights")
    rng = np.random.default_rng(0)
    p, y, w = (jnp.asarray(rng.uniform(size=(8, 1)), jnp.float32) for _ in range(3))
    y = jnp.round(y)
    want = binary.result(binary.update(binary.init(), y, p, w))

    Both = clu.metrics.Collection.create(mse=metrax.MSE, focal=Focal)
    seen = Both.empty()
    for part in (slice(5), slice(5, 8)):
        outputs = {"predictions": p[part], "labels": y[part], "sample_weights": w[part]}
        seen = seen.merge(Both.single_from_model_output(**outputs))
    np.testing.assert_allclose(seen.compute()["focal"], want, rtol=1e-6)
    np.testing.assert_allclose(seen.compute()["mse"], (w * (p - y) ** 2).sum() / w.sum(), rtol=1e-5)

    class FocalNNX(wrapper.NnxWrapper):  # as metrax.nnx makes its own
        def __init__(self):
            super().__init__(Focal)

    in_nnx = FocalNNX()
    in_nnx.update(predictions=p[:5], labels=y[:5], sample_weights=w[:5])
    in_nnx.update(predictions=p[5:], labels=y[5:], sample_weights=w[5:])
    np.testing.assert_allclose(in_nnx.compute(), want, rtol=1e-6)


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
