"""Focal loss of labels between 0 and 1: powers of how wrong an answer is, and their derivatives.

By a reading of the labels, with ``bce = -y log p - (1 - y) log q``, the loss is ``m^gamma * bce`` and

    mixture        m = y q + (1 - y) p, the probability that the answer is wrong
    quality        m = |y - p|
    cross_entropy  m = 1 - exp(-bce)
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from focaljax._odds import scaled
from focaljax.terms import Poly


def loss_of(
    reading: str, z: jax.Array, y: jax.Array, no: jax.Array, term: Any
) -> tuple[jax.Array, jax.Array]:
    """``m^gamma * bce``, with ``epsilon * m^(gamma + 1)`` added for poly loss; and infinity where it is."""
    question = Question(z, y, no, _wrong(reading, *lax.stop_gradient((z, y, no))))
    loss = product(reading, (1, 0, 1, 0), question, term.gamma)
    if isinstance(term, Poly):
        loss = loss + term.epsilon * product(reading, (1, 0, 0, 0), question, term.gamma)
    return loss, jnp.where(question.wrong.bce == jnp.inf, jnp.inf, 0)


class Wrong(NamedTuple):
    """How wrong an answer is, and what the derivatives of its powers need beside.

    All of them are sums of products of four numbers that stay bounded as m vanishes. With

        ratio = p q / m    phi = bce / m    lean = (d bce / dz) / m = ((1 - y) p - y q) / m

    a :func:`product` is ``m^s ratio^i phi^j lean^k``, and its derivatives are products again: along the logit
    of the same exponent s, along the label of s - 1. So gamma < 1 is an ordinary case. In the loss
    s = gamma + 1 and j = 1.
    """

    m: jax.Array
    log_m: jax.Array  # finite also where m underflows
    right: jax.Array  # 1 - m
    bce: jax.Array
    slope: jax.Array  # of bce along the logit: lean * m
    ratio: jax.Array
    phi: jax.Array
    lean: jax.Array


class Question(NamedTuple):
    """A logit and its label; `no` and `wrong` move with these and carry no derivative of their own."""

    z: jax.Array
    y: jax.Array
    no: jax.Array
    wrong: Wrong


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def product(reading: str, powers: tuple[int, ...], question: Question, gamma: jax.Array) -> jax.Array:
    """``m^(gamma + shift) * ratio^i * phi^j * lean^k`` for ``powers = (shift, i, j, k)``."""
    shift, i, j, k = powers
    m, log_m, _, bce, slope, ratio, phi, lean = question.wrong
    if shift > 0:  # finite whatever m is, and some of the divisions by m are saved
        left, n = shift - j, min(k, shift - j)
        found = jnp.power(m, gamma) * m ** (left - n) * jnp.minimum(bce, _most(m)) ** j
        return found * slope**n * ratio**i * lean ** (k - n)
    # It does not vanish with m: m^gamma must survive where m itself underflows.
    found = jnp.where(m == 0, jnp.exp((gamma + shift) * log_m), jnp.power(m, gamma + shift))
    found = scaled(found, jnp.minimum(phi, _most(m)) ** j) if j else found
    found = scaled(ratio, found) if i else found
    return found * (ratio ** max(i - 1, 0) * lean**k)


@product.defjvp
def _product_jvp(reading, powers, primals, tangents):
    question, gamma = primals
    d_question, d_gamma = tangents
    shift, i, j, k = powers
    left, tilt = gamma + (shift - i - j - k), _tilt(question.z)  # of m
    along, step, by_label = _rise_of_m(reading, question)

    def other(*steps):
        return product(reading, tuple(a + b for a, b in zip(powers, steps, strict=True)), question, gamma)

    by_z = (lax.mul if shift > 0 else scaled)(left * along, other(*step))  # of the same exponent: finite too
    by_y = scaled(left * by_label, other(-1, 0, 0, 0))
    if i:
        by_z += i * tilt * other(0, 0, 0, 0)
    if j:
        by_z += j * other(0, 0, -1, 1)
        by_y -= j * _bounded(question.z) * other(-1, 0, -1, 0)
    if k:
        by_z += k * other(0, 1, 0, -1)
        by_y -= k * other(-1, 0, 0, -1)
    here = other(0, 0, 0, 0)
    by_gamma = scaled(_log_m(reading, question), here)
    return here, by_z * d_question.z + _bounded(by_y) * d_question.y + by_gamma * d_gamma


def _rise_of_m(reading, question):
    """``(d m / dz) / m`` as a factor and the powers of a product, and ``d m / dy``."""
    if reading == "mixture":
        return question.no - question.y, (0, 1, 0, 0), _tilt(question.z)
    if reading == "quality":
        side = question.wrong.lean
        return side, (0, 1, 0, 0), -side
    right = _right(question)
    return right, (0, 0, 0, 1), -scaled(right, _bounded(question.z))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _log_m(reading, question):
    return question.wrong.log_m


@_log_m.defjvp
def _log_m_jvp(reading, primals, tangents):
    (question,), (d_question,) = primals, tangents
    zero = jnp.zeros_like(question.z)
    along, step, by_label = _rise_of_m(reading, question)
    by_z = along * product(reading, step, question, zero)
    by_y = by_label * product(reading, (-1, 0, 0, 0), question, zero)
    return _log_m(reading, question), by_z * d_question.z + _bounded(by_y) * d_question.y


@jax.custom_jvp
def _right(question):
    """``exp(-bce)``."""
    return question.wrong.right


@_right.defjvp
def _right_jvp(primals, tangents):
    (question,), (d_question,) = primals, tangents
    right = _right(question)
    by_z = product("cross_entropy", (1, 0, 0, 1), question, jnp.zeros_like(question.z))
    return right, -right * by_z * d_question.z + scaled(right, _bounded(question.z)) * d_question.y


def _wrong(reading, z, y, no):
    positive, size = z >= 0, jnp.abs(z)
    r = jnp.exp(-size)
    likely, unlikelihood = 1 / (1 + r), jnp.log1p(r)
    agreed, refused = jnp.where(positive, y, no), jnp.where(positive, no, y)
    bce = scaled(refused, size) + unlikelihood  # as y + no = 1
    lean = refused - agreed * r  # this, and m and right, are times 1 / likely
    if reading == "mixture":
        m, right = agreed * r + refused, agreed + refused * r
    elif reading == "quality":
        m = jnp.abs(lean)
        right = jnp.where(lean > 0, agreed * (1 + r) + r, refused * (1 + r) + 1)
    else:
        right = jnp.exp(-bce) * (1 + r)
        m = jnp.where(refused == 0, r, -jnp.expm1(-bce) * (1 + r))
    p, q = (likely * jnp.where(side, 1, r) for side in (positive, ~positive))
    slope = no * p - y * q
    hard, some = refused == 0, jnp.where(m == 0, 1, m)
    ratio = likely * jnp.where(m == 0, jnp.where(hard, 1.0, 0.0), r / some)  # r -> 0, y hard: r / r
    lean = jnp.where(m == 0, jnp.where(hard, -1.0, 0.0), lean / some) * jnp.where(positive, 1.0, -1.0)
    m, right = m * likely, right * likely
    log_m = jnp.where(m < 0.5, jnp.log(m), jnp.log1p(-right))
    log_m = jnp.where(hard, -unlikelihood - size, log_m)
    log_m = jnp.maximum(log_m, jnp.finfo(z.dtype).min)
    phi = jnp.where(m == 0, 1, bce / jnp.where(m == 0, 1, m))  # bce -> m as both vanish
    return Wrong(m, log_m, right, bce, slope, ratio, phi, lean)


@jax.custom_jvp
def _tilt(z):
    """``q - p = dm / dy``."""
    return -jnp.tanh(z / 2)


@_tilt.defjvp
def _tilt_jvp(primals, tangents):
    half = jnp.exp(-jnp.abs(primals[0]))  # 2 p q, where 1 - tanh^2 would cancel
    return _tilt(*primals), -2 * (half / (1 + half)) / (1 + half) * tangents[0]


def _most(x):
    """A number of that dtype that can still be multiplied."""
    return float(jnp.finfo(x.dtype).max) * 2.0**-20


def _bounded(x):
    """`x` where it multiplies a derivative that may be 0: inf * 0 would be NaN."""
    return jnp.clip(x, -_most(x), _most(x))
