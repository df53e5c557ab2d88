"""Healthy steps pass JAX' own checks: no NaN on the way, no division by 0, no index out of bounds."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import focaljax
from focaljax import _forms, linear_sigmoid_focal_loss, linear_softmax_focal_loss

pytestmark = pytest.mark.usefixtures("one_device")

ROWS, CLASSES, WIDTH = 6, 72, 4  # two chunks, each of more classes than a mask is best for on CPU
RNG = np.random.default_rng(0)
LOGITS = (3 * RNG.normal(size=(ROWS, CLASSES))).astype("float32")
KERNEL = RNG.normal(size=(WIDTH, CLASSES)).astype("float32")
LABELS = jnp.array([0, 1, 1, 3, 4, -1])
LISTS = jnp.array([[0, 1, -1], [3, 3, 3], [-1, -1, -1], [4, 0, 5], [1, 3, 4], [-7, -1, -1]])
WHERE = np.arange(CLASSES) != 2
SOFT = jax.nn.one_hot(LABELS, CLASSES)

indexed = partial(focaljax.softmax_focal_loss_with_integer_labels, labels=LABELS, ignore_index=-1)
CASES = {
    "integer": indexed,
    "integer, masked, alpha per class": partial(indexed, where=WHERE[None], alpha=np.ones(CLASSES)),
    "integer, masked and smoothed": partial(indexed, where=WHERE[None], label_smoothing=0.1),
    "soft, masked and smoothed": partial(
        focaljax.softmax_focal_loss, labels=SOFT, where=WHERE[None], label_smoothing=0.1
    ),
    "sigmoid": partial(focaljax.sigmoid_focal_loss, labels=SOFT, where=WHERE[None]),
    "sigmoid, indices": partial(
        focaljax.sigmoid_focal_loss_with_integer_labels, labels=LISTS, ignore_index=-7, where=WHERE[None]
    ),
}
LINEAR = {
    "softmax": partial(linear_softmax_focal_loss, labels=LABELS, ignore_index=-1),
    "softmax, smoothed": partial(
        linear_softmax_focal_loss, labels=LABELS, ignore_index=-1, label_smoothing=0.1
    ),
    "sigmoid": partial(linear_sigmoid_focal_loss, labels=LISTS, ignore_index=-7),
}


def of_layer(loss, strategy, reduction):
    chunk = {"rows": 2, "classes": 36}[strategy]
    chosen = partial(loss, kernel=KERNEL, where=WHERE, strategy=strategy, chunk=chunk, reduction=reduction)
    return lambda z: chosen(z[:, :WIDTH])


CASES |= {
    f"linear {name}, {strategy}, {reduction}": of_layer(loss, strategy, reduction)
    for name, loss in LINEAR.items()
    for strategy, reduction in (("rows", "mean"), ("classes", "mean"), ("classes", None))
    if name == "sigmoid" or reduction  # by classes a softmax' mean is that of its single losses
}


@pytest.fixture(autouse=True)
def forms_are_looked_into(monkeypatch):
    """Checks see what is traced, and a form of CPU is traced when a program is lowered."""
    monkeypatch.setattr(_forms, "of_platform", lambda *operands, cpu, **_: cpu(*operands))


@pytest.mark.parametrize("case", CASES)
def test_a_healthy_step_passes(case):
    """With logits of usual size, and some whose exponentials overflow and underflow; nothing is infinite."""

    @jax.jit
    @partial(checkify.checkify, errors=checkify.float_checks | checkify.index_checks)
    def step(z):
        return jax.value_and_grad(lambda z: jnp.sum(CASES[case](z)))(z)

    with jax.debug_infs(True):
        for scale in (1.0, 40.0):
            step(np.float32(scale) * LOGITS)[0].throw()


def test_a_sick_step_is_seen():
    """The law above looks at something."""

    @jax.jit
    @partial(checkify.checkify, errors=checkify.float_checks)
    def step(z):
        return jnp.sum(indexed(z))

    assert "nan" in str(step(np.where(np.arange(CLASSES) == 1, np.float32("nan"), LOGITS))[0].get())
