"""A training step with Optax on real data: jitted, buffers donated, and it learns."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from sklearn.datasets import load_digits

import focaljax

CLASSES = 10
STEPS, BATCH = 60, 128


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """1797 images of 8 x 8 pixels, and their digits."""
    images, labels = map(np.asarray, load_digits(return_X_y=True))
    order = np.random.default_rng(0).permutation(len(labels))
    return (images[order] / 16).astype(np.float32), labels[order].astype(np.int32)


def init(dtype=jnp.float32) -> dict[str, jax.Array]:
    hidden, out = jax.random.split(jax.random.key(0))
    return {
        "hidden": (jax.random.normal(hidden, (64, 32)) / 8).astype(dtype),
        "out": (jax.random.normal(out, (32, CLASSES)) / 6).astype(dtype),
    }


def network(params, images) -> jax.Array:
    return jax.nn.relu(images @ params["hidden"]) @ params["out"]


def integer(logits, labels):
    alpha = jnp.linspace(0.5, 1.5, CLASSES)
    return focaljax.softmax_focal_loss_with_integer_labels(logits, labels, alpha=alpha)


def smoothed(logits, labels):
    hot = jax.nn.one_hot(labels, CLASSES)
    return focaljax.softmax_focal_loss(logits, hot, gamma=0.5, label_smoothing=0.1)


def one_against_all(logits, labels):
    hot = jax.nn.one_hot(labels, CLASSES)
    return jnp.sum(focaljax.sigmoid_focal_loss(logits, hot, alpha=0.25), axis=-1)


def keras(logits, labels):
    loss = focaljax.SparseCategoricalFocalCrossentropy(reduction=None)
    return loss(labels, jax.nn.softmax(logits))


LOSSES = (integer, smoothed, one_against_all, keras)


def mean_loss(params, loss, images, labels):
    return jnp.mean(loss(network(params, images), labels))


def step(loss, optimizer, state, batch):
    params, optimizer_state = state
    value, grads = jax.value_and_grad(mean_loss)(params, loss, *batch)
    with jax.numpy_dtype_promotion("standard"):  # Optax itself mixes dtypes
        updates, optimizer_state = optimizer.update(grads, optimizer_state, params)
    return (optax.apply_updates(params, updates), optimizer_state), value


def batches(digits, dtype=jnp.float32):
    """[STEPS, BATCH, ...], of the first 1500 images."""
    images, labels = digits
    chosen = np.random.default_rng(1).integers(0, 1500, (STEPS, BATCH))
    return jnp.asarray(images[chosen], dtype), jnp.asarray(labels[chosen])


def accuracy(params, digits) -> float:
    """On the 297 images that no batch holds."""
    images, labels = (x[1500:] for x in digits)
    found = network(params, jnp.asarray(images, params["out"].dtype)).argmax(-1)
    return float(np.mean(np.asarray(found) == labels))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_donating_step_learns(loss, dtype, digits):
    chex.clear_trace_counter()
    optimizer = optax.adam(1e-2)
    params = init(dtype)
    first = accuracy(params, digits)
    state = (params, optimizer.init(params))

    @functools.partial(jax.jit, donate_argnums=0)
    @chex.assert_max_traces(n=1)
    def donating(state, batch):
        return step(loss, optimizer, state, batch)

    values = []
    for batch in zip(*batches(digits, dtype), strict=True):
        before = state
        state, value = donating(state, batch)
        values.append(float(value))
        assert all(x.is_deleted() for x in jax.tree.leaves(before))
        assert value.dtype == jnp.float32
    assert state[0]["out"].dtype == dtype
    assert first < 0.3 and accuracy(state[0], digits) > 0.85  # chance is 0.1
    assert np.mean(values[-5:]) < 0.5 * np.mean(values[:5])


def test_steps_in_a_scan_are_the_steps(digits):
    optimizer = optax.sgd(0.5)
    params = init()
    state = (params, optimizer.init(params))
    one = functools.partial(step, integer, optimizer)
    few = jax.tree.map(lambda x: x[:5], batches(digits))
    scanned, values = jax.jit(lambda s, b: lax.scan(one, s, b))(state, few)
    jitted = jax.jit(one)
    for k in range(5):
        state, value = jitted(state, jax.tree.map(lambda x, k=k: x[k], few))
        # Five steps of one formula compiled twice: each adds the rounding of sums of 128 terms.
        np.testing.assert_allclose(values[k], value, rtol=1e-5)
    chex.assert_trees_all_close(scanned[0], state[0], rtol=1e-4, atol=1e-6)


def test_accumulated_gradients_are_those_of_the_batch(digits):
    images, labels = (x[0] for x in batches(digits))
    params = init()
    parts = optax.MultiSteps(optax.sgd(0.5), every_k_schedule=4)
    state = (params, parts.init(params))
    jitted = jax.jit(functools.partial(step, integer, parts))
    for part in zip(jnp.split(images, 4), jnp.split(labels, 4), strict=True):
        state, _ = jitted(state, part)
    whole, _ = jax.jit(functools.partial(step, integer, optax.sgd(0.5)))(
        (params, optax.sgd(0.5).init(params)), (images, labels)
    )
    # The mean of four means: another order of 128 terms of both signs.
    chex.assert_trees_all_close(state[0], whole[0], rtol=1e-5, atol=1e-6)
