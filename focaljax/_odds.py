"""Five exact numbers of one class, and how they move with its log-odds.

They are computed by whoever knows the logits, each in the form that keeps its last bits. Here they are
differentiated, by one closed rule along the log-odds ``u``:

    p = sigmoid(u)    q = sigmoid(-u)    dp = pq du    dq = -pq du    dlog p = q du    dlog q = -p du
    phi = -p log(p) / q                  dphi = (phi - p) du

The rule uses nothing but the five numbers, so derivatives of every order stay finite and exact.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike


class Odds(NamedTuple):
    """The probability of a class and its complement, neither computed from the other near 1.

    Attributes:
      p: Probability of the class.
      q: ``1 - p``.
      log_p: ``log p``, -inf at p = 0.
      log_q: ``log q``; 0 where q underflows, as it only multiplies terms that vanish there.
      phi: ``-p log(p) / q`` in [0, 1], with its limits: 1 as p -> 1, 0 as p -> 0.

    Example:
      >>> odds = Odds.at(jnp.log(3.0))
      >>> print(f"{odds.p:.2f} {odds.q:.2f} {odds.phi:.4f} {odds.power_of_q(2.0):.4f}")  # -3 log 0.75, 0.25^2
      0.75 0.25 0.8630 0.0625
    """

    p: jax.Array
    q: jax.Array
    log_p: jax.Array
    log_q: jax.Array
    phi: jax.Array

    @classmethod
    def at(cls, log_odds: ArrayLike) -> "Odds":
        """The odds of a class at a log-odds, ``p = sigmoid(log_odds)``, differentiable along it.

        Args:
          log_odds: Floating, any shape.

        Returns:
          Five arrays of that shape, each to its last bits.
        """
        u = jnp.asarray(log_odds)
        z = lax.stop_gradient(u)
        r = jnp.exp(-jnp.abs(z))
        high, low, log_high = 1 / (1 + r), r / (1 + r), -jnp.log1p(r)
        p, q = jnp.where(z >= 0, high, low), jnp.where(z >= 0, low, high)
        log_p, log_q = (jnp.where(x >= 0, log_high, x + log_high) for x in (z, -z))
        return along(u, complete(p, q, log_p, log_q))

    def power_of_q(self, exponent: ArrayLike) -> jax.Array:
        """``q ** exponent``, with derivatives that stay finite as q -> 0, also for exponents below 1.

        Args:
          exponent: At least 0.

        Returns:
          The power, in the shape and dtype of `q`.
        """
        return power(self.q, self.log_q, jnp.asarray(exponent, self.q.dtype))


def complete(p: jax.Array, q: jax.Array, log_p: jax.Array, log_q: jax.Array) -> Odds:
    """The odds with `phi` computed from the other four numbers."""
    return Odds(p, q, log_p, jnp.where(q > 0, log_q, 0), _phi(p, q, log_p))


def _phi(p: jax.Array, q: jax.Array, log_p: jax.Array) -> jax.Array:
    """``-p log_p / q`` with its two limits; of `p` and `q` only the ratio counts."""
    entropy = p * -jnp.maximum(log_p, jnp.finfo(log_p.dtype).min)  # p -> 0: 0 * -inf; the limit is 0
    return jnp.where(q > 0, entropy / jnp.where(q > 0, q, 1), 1)  # q -> 0: 0 / 0; the limit is 1


def odds_from_gap(gap: jax.Array, err: jax.Array, rest: jax.Array) -> Odds:
    """The odds of a logit that lies `gap + err` above a reference, such as its highest competitor.

    `rest` is the sum of exp(competitor - reference), 1 / e or more for a negative gap, 0 without competitors.
    Every branch adds numbers of one sign only. A loss and its slope use each exponential, logarithm and
    quotient in one place: of one with several uses XLA:CPU makes a kernel, and of all that these share.
    """
    ahead = gap >= 0
    low = jnp.exp(-jnp.abs(gap)) * (1 - jnp.where(ahead, err, -err))
    own = jnp.where(ahead, 1, low)
    others = rest * jnp.where(ahead, low, 1)
    total = own + others
    log_total = jnp.log1p(jnp.where(ahead, others, (rest - 1) + own))
    log_p = -((log_total - jnp.where(ahead, 0, err)) - jnp.where(ahead, 0, gap))
    leads = own > others
    ratio = jnp.where(leads, others, own) / jnp.where(leads, own, others)
    log_q = jnp.where(leads, jnp.log(others / total), -jnp.log1p(ratio))
    # phi of the parts rather than of p and q: where only a slope is wanted, nothing divides for p.
    q = jnp.where(others > 0, others / total, 0)
    return Odds(own / total, q, log_p, jnp.where(others > 0, log_q, 0), _phi(own, others, log_p))


@jax.custom_jvp
def along(u: jax.Array, odds: Odds) -> Odds:
    """The odds with the closed rule of their derivatives along `u`; the value of `u` is not used."""
    del u
    return odds


@along.defjvp
def _along_jvp(primals, tangents):
    u, odds = primals
    du, _ = tangents
    odds = along(u, odds)
    return odds, _moved(odds.p, jax.tree.map(lambda rise: rise * du, rises(odds)))


def _moved(p: jax.Array, by: Odds) -> Odds:
    """The derivatives, 0 for log q where p = 0: its cotangent, a multiple of log p, may be infinite there."""
    return by._replace(log_q=jnp.where(p == 0, 0, by.log_q))


def rises(odds: Odds) -> Odds:
    """The derivative of each of the five along the log-odds."""
    p, q, _, _, phi = odds
    return Odds(p * q, -p * q, q, -p, phi - p)


@jax.custom_jvp
def finite(odds: Odds) -> Odds:
    """The odds with a finite ``log p``, so that ``p * log p`` has its limit 0 and not 0 * inf."""
    return odds._replace(log_p=jnp.maximum(odds.log_p, jnp.finfo(odds.log_p.dtype).min))


@finite.defjvp
def _finite_jvp(primals, tangents):
    return finite(*primals), *tangents


def in_parts(value: Callable[[Odds], jax.Array], odds: Odds) -> tuple[jax.Array, jax.Array]:
    """A loss as a finite part, which has the derivatives, and infinity where it is infinite, else 0."""
    limit = lax.stop_gradient(value(odds))
    return value(finite(odds)), jnp.where(jnp.isinf(limit), limit, 0)


def inverse_of_q(odds: Odds) -> jax.Array:
    """``1 / q``, and 0 where q underflows: what it multiplies vanishes too."""
    known = odds.q >= jnp.finfo(odds.q.dtype).tiny
    q, log_q = jnp.where(known, odds.q, 1), jnp.where(known, odds.log_q, 0)
    return jnp.where(known, power(q, log_q, -jnp.ones_like(q)), 0)


@jax.custom_jvp
def beyond(odds: Odds, margin: jax.Array) -> Odds:
    """The odds with ``max(q - margin, 0)`` in the place of q (Ridnik et al. 2021)."""
    excess = jnp.maximum(odds.q - margin, 0)
    p = jnp.where(excess > 0, odds.p + margin, 1)
    log_p = jnp.where(excess < 0.5, jnp.log1p(-excess), jnp.log(p))
    log_p = jnp.where(margin == 0, odds.log_p, log_p)  # to its last bits, also where p underflows
    log_q = jnp.where(excess < 0.5, jnp.log(jnp.where(excess > 0, excess, 1)), jnp.log1p(-p))
    return complete(p, excess, log_p, log_q)


@beyond.defjvp
def _beyond_jvp(primals, tangents):
    (odds, margin), (d_odds, d_margin) = primals, tangents
    found = beyond(odds, margin)
    p, inverse, none = found.p, inverse_of_q(found), margin == 0
    by_odds = jnp.where(none, 0, d_odds.p / jnp.where(none, 1, p))
    by_margin = d_margin / jnp.maximum(p, 2.0**-60)  # bounded, as its square appears further on
    rise = jnp.where(found.q > 0, by_odds + by_margin, 0)  # of log p
    further = Odds(p * rise, -p * rise, rise, -p * rise * inverse, (found.phi - p) * rise * inverse)
    return found, jax.tree.map(lambda same, x: jnp.where(none, same, 0) + x, d_odds, _moved(p, further))


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


@jax.custom_jvp
def scaled(weight: jax.Array, x: jax.Array) -> jax.Array:
    """``weight * x`` where a weight of 0 silences NaN and infinity, in value and in gradient.

    It is also the limit of the products that meet here, such as ``log q * -log p`` as p -> 0.
    """
    return weight * jnp.where(weight == 0, 0, x)


@partial(scaled.defjvp, symbolic_zeros=True)
def _scaled_jvp(primals, tangents):
    """Only what is not finite is masked: the derivative by a weight that happens to be 0 is still x."""
    weight, x = primals
    silenced = (weight == 0) & ~jnp.isfinite(x)
    found = scaled(weight, x)
    moved = [
        jnp.where(silenced, 0, factor) * dx
        for factor, dx in ((x, tangents[0]), (weight, tangents[1]))
        if not isinstance(dx, SymbolicZero)
    ]
    return found, sum(moved, jnp.zeros_like(found))
