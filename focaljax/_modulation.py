"""The arithmetic of one number: how a log-odds becomes a focal value and a focal slope.

Everything the family needs of one class is held by five numbers, its :class:`Odds`. They are computed
by whoever knows the logits, each in the form that keeps its last bits, and are differentiated here by
one closed rule along the log-odds ``u``:

    p = sigmoid(u)    q = sigmoid(-u)    dp = pq du    dq = -pq du    dlog p = q du    dlog q = -p du

The rule speaks of nothing but the five numbers, so derivatives of every order stay finite and exact.

Reference: Lin et al., "Focal Loss for Dense Object Detection", 2018, equations 3 to 5.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Odds(NamedTuple):
    """A probability and its complement, neither of them computed from the other near 1."""

    p: jax.Array  # probability of the class
    q: jax.Array  # 1 - p
    log_p: jax.Array
    log_q: jax.Array  # 0 where q underflows: it only ever multiplies terms that vanish there
    phi: jax.Array  # -p log(p) / q, in (0, 1]: 1 as p -> 1, 0 as p -> 0


def complete(p: jax.Array, q: jax.Array, log_p: jax.Array, log_q: jax.Array) -> Odds:
    """Adds `phi` to the other four."""
    return Odds(p, q, log_p, jnp.where(q > 0, log_q, 0), _phi(p, q, log_p))


def _phi(p: jax.Array, q: jax.Array, log_p: jax.Array) -> jax.Array:
    """``-p log_p / q`` with its two limits; of `p` and `q` only the ratio counts."""
    entropy = -p * jnp.where(p > 0, log_p, 0)  # p -> 0: 0 * -inf; the limit is 0
    return jnp.where(q > 0, entropy / jnp.where(q > 0, q, 1), 1)  # q -> 0: 0 / 0; the limit is 1


def odds_from_gap(gap: jax.Array, err: jax.Array, rest: jax.Array) -> Odds:
    """The odds of a logit that lies `gap + err` above its highest competitor.

    `rest` is the sum of exp(competitor - highest competitor), at least 1, or 0 without competitors.
    Every branch adds numbers of one sign only.
    """
    ahead = gap >= 0
    decay = jnp.exp(-jnp.abs(gap))
    own = jnp.where(ahead, 1, decay * (1 + err))
    others = rest * jnp.where(ahead, decay * (1 - err), 1)
    total = own + others
    log_total = jnp.log1p(jnp.where(ahead, others, (rest - 1) + own))
    log_p = jnp.where(ahead, -log_total, gap + (err - log_total))
    leads = own > others
    ratio = jnp.where(leads, others, own) / jnp.where(leads, own, others)
    log_q = jnp.where(leads, jnp.log(others / total), -jnp.log1p(ratio))
    # phi of the parts rather than of p and q: where only a slope is wanted, nothing divides for p.
    return Odds(own / total, others / total, log_p, jnp.where(others > 0, log_q, 0), _phi(own, others, log_p))


@jax.custom_jvp
def along(u: jax.Array, odds: Odds) -> Odds:
    """The same odds, differentiated by the closed rule along `u`; the value of `u` is not used."""
    del u
    return odds


@along.defjvp
def _along_jvp(primals, tangents):
    u, odds = primals
    du, _ = tangents
    odds = along(u, odds)
    p, q, log_p, log_q, phi = odds
    return odds, Odds(p * q * du, -p * q * du, q * du, -p * du, (phi - p) * du)


@jax.custom_jvp
def power(base: jax.Array, log_base: jax.Array, exponent: jax.Array) -> jax.Array:
    """``base ** exponent``, differentiated through the logarithm: no negative power appears."""
    del log_base
    return jnp.power(base, exponent)


@power.defjvp
def _power_jvp(primals, tangents):
    base, log_base, exponent = primals
    _, dlog_base, dexponent = tangents
    value = power(base, log_base, exponent)
    return value, value * (exponent * dlog_base + log_base * dexponent)


def focal(odds: Odds, gamma: jax.Array) -> jax.Array:
    """The loss of one class: ``q^gamma * (-log p)``."""
    return power(odds.q, odds.log_q, gamma) * -odds.log_p


def pull(odds: Odds, gamma: jax.Array) -> jax.Array:
    """How strongly a class pulls its logit up: ``-d focal / du = q * pull``, at least 0.

    ``pull = q^gamma * (1 + gamma * phi)``; no power is negative and no term cancels.
    """
    return power(odds.q, odds.log_q, gamma) * (1 + gamma * odds.phi)


def scaled(weight: jax.Array, x: jax.Array) -> jax.Array:
    """``weight * x`` where a weight of 0 silences NaN and infinity, in value and in gradient.

    It is also the limit of the products that meet here, such as ``log q * -log p`` as p -> 0.

    Only what is not finite is masked, so the derivative by a weight that happens to be 0 is still x.
    """
    return weight * jnp.where((weight == 0) & ~jnp.isfinite(x), 0, x)
