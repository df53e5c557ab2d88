"""Focal loss of independent labels: one binary question per logit.

``p = sigmoid(z)``, ``m = y q + (1 - y) p`` is the probability that the answer is wrong,
``bce = -y log p - (1 - y) log q``, and the loss is ``w * m^gamma * bce``. For labels 0 and 1 it is the
categorical loss at the log-odds ``(2y - 1) z``; soft labels follow Keras, Optax and torchvision.

    dL/dz = w * m^gamma * (gamma * (1 - 2y) * (pq / m) * bce + (1 - y) p - y q)

``pq / m`` is bounded and computed without a division by a vanishing m, so gamma < 1 is an ordinary case.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from focaljax import _modulation, _statistics


class Answer(NamedTuple):
    """What the loss and its derivatives need to know of one logit and its label."""

    m: jax.Array  # y q + (1 - y) p
    log_m: jax.Array  # finite also where m underflows
    bce: jax.Array
    lean: jax.Array  # (1 - y) p - y q = d bce / dz
    tilt: jax.Array  # q - p = dm / dy
    ratio: jax.Array  # p q / m
    phi: jax.Array  # bce / m


@jax.custom_vjp
def sigmoid(logits: jax.Array, labels: jax.Array, weights: jax.Array, gamma: jax.Array) -> jax.Array:
    """One loss per logit; all operands have the shape of `logits`.

    An entry whose weight or whose cotangent is 0 is silent, whatever its logit holds.
    """
    return _fwd(logits, labels, weights, gamma)[0]


def _fwd(logits, labels, weights, gamma):
    answer = _answer(logits.astype(gamma.dtype), labels)
    modulation = _modulation.power(answer.m, answer.log_m, gamma)
    loss = _modulation.scaled(weights, modulation * answer.bce)
    return loss, (logits, labels, weights, gamma)


@partial(jax.jit, inline=True)  # eager gradients run one program too
def _bwd(residuals, ct):
    logits, labels, weights, gamma = residuals
    logits = _statistics.apart(logits)
    z = logits.astype(gamma.dtype)
    answer = _answer(z, labels)
    modulation = _modulation.power(answer.m, answer.log_m, gamma)
    surprise = _modulation.scaled(answer.ratio, answer.bce)  # z -> -inf at y = 1: 0 * inf; the limit is 0
    slope = modulation * (gamma * (1 - 2 * labels) * surprise + answer.lean)
    # The label's gradient does not vanish with m: m^gamma must survive where m itself underflows.
    lasting = jnp.where(answer.m == 0, jnp.exp(gamma * answer.log_m), modulation)
    drift = _modulation.scaled(lasting, gamma * answer.tilt * answer.phi - z)
    focal = modulation * answer.bce
    return (
        _modulation.scaled(weights * ct, slope).astype(logits.dtype),
        _modulation.scaled(weights * ct, drift),
        _modulation.scaled(ct, focal),
        _modulation.scaled(weights * ct, _modulation.scaled(answer.log_m, focal)),
    )


def _answer(z, labels):
    return _along(z, labels, lax.stop_gradient(_numbers(z, labels)))


def _numbers(z, y):
    positive, no = z >= 0, 1 - y  # y is never taken for 1 - (1 - y)
    r = jnp.exp(-jnp.abs(z))
    likely, unlikely = 1 / (1 + r), r / (1 + r)
    p, q = jnp.where(positive, likely, unlikely), jnp.where(positive, unlikely, likely)
    log_likely = -jnp.log1p(r)
    log_p = jnp.where(positive, log_likely, z + log_likely)
    log_q = jnp.where(positive, log_likely - z, log_likely)
    bce = -(_modulation.scaled(y, log_p) + _modulation.scaled(no, log_q))

    agreed, refused = jnp.where(positive, y, no), jnp.where(positive, no, y)
    wrong = agreed * r + refused  # = m * (1 + r)
    m, right = wrong * likely, (agreed + refused * r) * likely
    log_m = jnp.where(m < 0.5, jnp.log(m), jnp.log1p(-right))
    log_m = jnp.where(refused == 0, log_likely - jnp.abs(z), log_m)
    log_m = jnp.maximum(log_m, jnp.finfo(z.dtype).min)
    ratio = likely * jnp.where(wrong == 0, 1, r / jnp.where(wrong == 0, 1, wrong))  # r -> 0, y hard: r / r
    phi = jnp.where(m == 0, 1, bce / jnp.where(m == 0, 1, m))  # bce -> m as both vanish
    return Answer(m, log_m, bce, no * p - y * q, -jnp.tanh(z / 2), ratio, phi)


@jax.custom_jvp
def _along(z: jax.Array, y: jax.Array, answer: Answer) -> Answer:
    """The same numbers, differentiated in closed form along the logit and the label."""
    del z, y
    return answer


@_along.defjvp
def _along_jvp(primals, tangents):
    z, y, answer = primals
    dz, dy, _ = tangents
    answer = _along(z, y, answer)
    m, _, _, lean, tilt, ratio, phi = answer
    inverse = jnp.where(m == 0, 0, 1 / jnp.where(m == 0, 1, m))
    dlog_m = (1 - 2 * y) * ratio * dz + tilt * inverse * dy
    dbce = lean * dz - z * dy
    return answer, Answer(
        m=m * dlog_m,
        log_m=dlog_m,
        bce=dbce,
        lean=ratio * m * dz - dy,
        tilt=-2 * ratio * m * dz,
        ratio=ratio * (tilt * dz - dlog_m),
        phi=inverse * dbce - phi * dlog_m,
    )


sigmoid.defvjp(_fwd, _bwd)
