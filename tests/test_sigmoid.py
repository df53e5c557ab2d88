"""The sigmoid operation against the oracle: value, every gradient, second derivative, infinite logits."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tolerances

from focaljax import sigmoid_focal_loss

pytestmark = pytest.mark.gpu

LIMITS = np.float32([np.inf, -np.inf])


def loss_of(z, y, gamma):
    return sigmoid_focal_loss(z, y, gamma=gamma)


def elementwise(f):
    return jax.jit(jax.vmap(f, (0, 0, None)))


VALUE = elementwise(loss_of)
BY_LOGIT, BY_LABEL, BY_GAMMA = (elementwise(jax.grad(loss_of, i)) for i in range(3))
SECOND = elementwise(jax.grad(jax.grad(loss_of)))


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("gamma", cases.GAMMAS)
def test_value_and_derivatives_are_the_oracle_s(gamma, dtype):
    z, y = cases.sigmoid_grid(dtype)
    truth = oracle.sigmoid_focal(z, y, gamma)
    z = jnp.asarray(z).astype(dtype)
    flush = tolerances.flush()
    logs = flush * tolerances.FLUSHED_LOG * (1 + gamma)
    narrow = tolerances.rtol("gradient", gamma, returned=dtype)
    table = [
        (VALUE, truth.value, None, tolerances.rtol("value", gamma), flush),
        (BY_LOGIT, truth.grad, truth.scale, narrow, tolerances.flush(1, dtype)),
        (BY_LABEL, truth.grad_y, truth.scale_y, tolerances.rtol("gradient", gamma), logs),
        (BY_GAMMA, truth.grad_gamma, None, tolerances.rtol("gradient_gamma", gamma), logs),
    ]
    if dtype == "float32":  # the second derivative of a rounded first one is of its dtype
        table.append((SECOND, truth.grad2, truth.scale2, tolerances.rtol("hessian", gamma), logs))
    for f, want, scale, rtol, tiny in table:
        tolerances.assert_close(f(z, y, jnp.float32(gamma)), want, scale=scale, rtol=rtol, tiny=tiny)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_hard_labels_are_exact_in_every_entry(gamma):
    """Without soft labels no terms cancel: the error is relative to the derivative itself."""
    z, y = cases.sigmoid_grid()
    hard = (y == 0) | (y == 1)
    z, y = z[hard], y[hard]
    truth = oracle.sigmoid_focal(z, y, gamma)
    tolerances.assert_close(
        BY_LOGIT(z, y, jnp.float32(gamma)),
        truth.grad,
        rtol=tolerances.rtol("gradient", gamma),
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_infinite_logits_have_the_limits(gamma):
    for label in (0.0, 1.0, 0.3):
        y = np.full(2, label, np.float32)
        truth = oracle.sigmoid_focal(LIMITS, y, gamma)
        tolerances.assert_close(
            VALUE(LIMITS, y, jnp.float32(gamma)), truth.value, rtol=tolerances.rtol("value")
        )
        tolerances.assert_close(
            BY_LOGIT(LIMITS, y, jnp.float32(gamma)),
            truth.grad,
            rtol=tolerances.rtol("gradient"),
        )


def test_alpha_weighs_the_positive_and_the_negative_answer():
    z, y = cases.sigmoid_grid()
    plain = sigmoid_focal_loss(z, y)
    weighed = sigmoid_focal_loss(z, y, alpha=0.25)
    tolerances.assert_close(
        weighed, np.asarray(plain) * (0.25 * y + 0.75 * (1 - y)), rtol=tolerances.rtol("same")
    )
    by_alpha = jax.grad(lambda a: jnp.sum(sigmoid_focal_loss(z, y, alpha=a)))(jnp.float32(0.25))
    want = np.asarray(plain, np.float64) * (2 * y - 1)
    tolerances.assert_close(by_alpha, want.sum(), rtol=tolerances.rtol("same"), scale=np.abs(want).sum())
