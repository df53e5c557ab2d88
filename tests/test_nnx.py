"""focaljax' metrics in Flax NNX: a training loop as people write it, and the laws of its metric."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flax")

import optax
from flax import nnx

import focaljax
from focaljax import calibration, metrics
from focaljax.nnx import Metric

FOCAL = metrics.SparseCategoricalFocalCrossentropy(from_logits=True)
pytestmark = pytest.mark.usefixtures("jax_defaults")


def batches(n=50, parts=3):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(n, 3)).astype(np.float32))
    labels = jnp.asarray(rng.integers(0, 3, n))
    cuts = [0, *sorted(rng.integers(1, n, parts - 1).tolist()), n]
    return logits, labels, [slice(*ends) for ends in itertools.pairwise(cuts)]


def test_in_a_multi_metric_the_mean_is_over_examples():
    logits, labels, parts = batches()
    several = nnx.MultiMetric(
        accuracy=nnx.metrics.Accuracy(),
        focal=Metric(FOCAL),
        ece=Metric(calibration.ExpectedCalibrationError(from_logits=True)),
    )
    for part in parts:
        several.update(logits=logits[part], labels=labels[part])
    got = several.compute()
    assert set(got) == {"accuracy", "focal", "ece"}
    losses = focaljax.sparse_categorical_focal_crossentropy(labels, logits, from_logits=True)
    np.testing.assert_allclose(got["focal"], losses.mean(), rtol=1e-6)
    ece = calibration.ExpectedCalibrationError(from_logits=True)
    np.testing.assert_allclose(got["ece"], ece.result(ece.update(ece.init(), labels, logits)), rtol=1e-6)
    several.reset()
    assert several.compute()["focal"] == 0


def test_a_mask_of_a_multi_metric_is_everyones():
    logits, labels, _ = batches()
    several = nnx.MultiMetric(accuracy=nnx.metrics.Accuracy(), focal=Metric(FOCAL))
    first = jnp.arange(50) < 7
    several.update(logits=logits.at[7:].set(jnp.nan), labels=labels, mask=first)
    got = several.compute()
    want = FOCAL.result(FOCAL.update(FOCAL.init(), labels[:7], logits[:7]))
    np.testing.assert_allclose(got["focal"], want, rtol=1e-6)
    np.testing.assert_allclose(got["accuracy"], (logits[:7].argmax(1) == labels[:7]).mean(), rtol=1e-6)
    several.reset()
    several.update(logits=logits, labels=labels, mask={"focal": first})
    np.testing.assert_allclose(several.compute()["focal"], want, rtol=1e-6)


def test_a_training_loop():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(64, 4)).astype(np.float32))
    y = jnp.argmax(x[:, :3], 1)
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-1), wrt=nnx.Param)
    focal = nnx.MultiMetric(focal=Metric(FOCAL))

    @nnx.jit
    def step(model, optimizer, focal, x, y):
        def objective(model):
            logits = model(x)
            return focaljax.softmax_focal_loss_with_integer_labels(logits, y).mean(), logits

        gradient, logits = nnx.grad(objective, has_aux=True)(model)
        optimizer.update(model, gradient)
        focal.update(logits=logits, labels=y)

    history = []
    for _ in range(20):
        focal.reset()
        step(model, optimizer, focal, x, y)
        history.append(float(focal.compute()["focal"]))
    assert history[-1] < history[0] / 2


def test_the_state_is_that_of_the_metric():
    logits, labels, _ = batches()
    one = Metric(FOCAL)
    one.update(logits=logits, labels=labels)
    state = one.state()
    plain = FOCAL.update(FOCAL.init(), labels, logits)
    assert type(state) is metrics.MeanState
    jax.tree.map(np.testing.assert_array_equal, state, plain)
    graph, variables = nnx.split(one)
    assert set(nnx.to_pure_dict(variables)) == set(vars(plain))
    jax.tree.map(np.testing.assert_array_equal, nnx.merge(graph, variables).state(), plain)


def test_keywords_and_weights():
    logits, labels, _ = batches()
    weights = jnp.asarray(np.random.default_rng(1).uniform(0, 2, 50), jnp.float32)
    metric = metrics.SparseCategoricalFocalCrossentropy()
    one = Metric(metric, y_pred="p", y_true="y", sample_weight="w")
    p = jax.nn.softmax(logits)
    one.update(p=p, y=labels, w=weights, unused=1)
    want = metric.result(metric.update(metric.init(), labels, p, weights))
    np.testing.assert_array_equal(one.compute(), want)
    with pytest.raises(TypeError, match=r"`p` must be a keyword of `update`, got \['logits', 'y'\]"):
        one.update(logits=logits, y=labels)
