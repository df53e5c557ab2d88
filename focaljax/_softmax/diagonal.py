"""Gradient and diagonal of the Hessian of a softmax loss of class indices, for methods that move one score.

The gradient by the scores is ``pull * a`` with ``a = p - y``. Where one score moves alone, its a moves by
``p * q`` and the log-odds u of the label by ``-a / q`` of the label. So the second derivative has two parts:

    pull * p * q  -  a^2 / q * (d pull / du)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from focaljax._odds import inverse_of_q, rises
from focaljax._softmax import statistics
from focaljax._softmax.dense import odds_of
from focaljax.terms import Term


class Derivatives(NamedTuple):
    """Of the loss of each row by each of its scores."""

    gradient: jax.Array
    second: jax.Array
    right: jax.Array  # the probability of the right answer: p of the label, q of the other classes


def derivatives(scores: jax.Array, labels: jax.Array, term: Term, alpha: jax.Array | None) -> Derivatives:
    """Scores [N, C] and labels [N], classes or nothing; options are scalars or [C]."""
    own = labels[:, None] == jnp.arange(scores.shape[1], dtype=labels.dtype)[None]
    odds = odds_of(scores, statistics.peak(scores, 1, None), 1, None)

    def of_label(x):
        return jnp.sum(jnp.where(own, jnp.broadcast_to(x, own.shape), 0), 1, keepdims=True)

    target, term, alpha = jax.tree.map(of_label, (odds, term, alpha))
    pull, rise = jax.jvp(term.pull, (target,), (rises(target),))
    pull, rise = (x if alpha is None else alpha * x for x in (pull, rise))
    a = jnp.where(own, -odds.q, odds.p)
    share = jnp.where(own, 1, odds.p * inverse_of_q(target))  # |a| / q
    second = pull * odds.p * odds.q - jnp.abs(a) * share * rise
    return Derivatives(pull * a, second, jnp.where(own, odds.p, odds.q))
