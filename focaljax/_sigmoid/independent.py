"""Losses of independent labels: one binary question per logit.

``p = sigmoid(z)``, and for labels 0 and 1 the loss is that of a softmax at the log-odds ``(2y - 1) z``. A
label between has four readings, each an operation here:

    linear   y * yes(z) + (1 - y) * no(z), what the two answers cost; of every term
    mixture, quality and cross_entropy   ``m^gamma * bce`` of focal and poly loss, see `powers`

Where no label lies between, `hard` computes one answer instead of two.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from focaljax import _entries, _sharding
from focaljax._odds import Odds, in_parts, scaled
from focaljax._sigmoid import powers
from focaljax.terms import Term


class Answers(NamedTuple):
    """Label, mask and options of each logit, all of its shape."""

    yes: jax.Array  # the label
    no: jax.Array  # 1 - yes, as exactly as the caller knows it
    weights: jax.Array  # an entry of weight 0, or of cotangent 0, is silent whatever its logit holds
    term: Term


def asked(
    yes: jax.Array,
    kept: Any,
    weights: jax.Array,
    term: Term,
    alpha: jax.Array | None,
    smoothing: jax.Array | None,
    reading: str,
) -> Answers:
    """The :class:`Answers` of labels `yes`, from options that broadcast to them.

    `alpha` weighs the answer "yes" and ``1 - alpha`` the answer "no". What is not `kept` is silent.
    """
    if kept is not None:
        yes = jnp.where(kept, yes, 0)
    no, zeros = 1 - yes, _entries.zeros(yes, yes.dtype)
    weights = weights + zeros
    if smoothing is not None:  # each from its own parts: 1 - s / 2 would lose the digits of s
        yes, no = (y * (1 - smoothing) + smoothing / 2 for y in (yes, no))
    if alpha is not None and reading == "linear":
        yes, no = alpha * yes, (1 - alpha) * no
    elif alpha is not None:
        weights = weights * (alpha * yes + (1 - alpha) * no)
    if kept is not None:
        weights = jnp.where(kept, weights, 0)
    return Answers(yes, no, weights, jax.tree.map(lambda x: x + zeros, term))


@_sharding.traced_once(static_argnames="read")
def losses(read: Callable, z: jax.Array, answers: Answers) -> jax.Array:
    """One loss per logit, by a reading of labels.

    ``read(z, yes, no, term)`` is the loss in two parts: finite, with derivatives, and infinity or 0.
    """
    yes, no, weights, term = answers
    z, undefined = _settled(z.astype(weights.dtype))
    loss, infinity = read(z, yes, no, term)
    loss = scaled(weights, loss) + jnp.where(weights == 0, 0, infinity)
    return jnp.where(undefined, jnp.where(weights == 0, 0, jnp.nan), loss)


def gradients(read: Callable, z: jax.Array, answers: Answers, ct: jax.Array) -> tuple[jax.Array, Answers]:
    """The gradients of the losses weighed by `ct`, by the logits and by the answers."""
    yes, no, weights, term = answers
    z, undefined = _settled(z.astype(weights.dtype))
    silent = (weights == 0) | (ct == 0)
    loss, pull_back, infinity = jax.vjp(read, z, yes, no, term, has_aux=True)
    by_z, by_yes, by_no, by_term = pull_back(jnp.ones_like(loss))
    infinite = infinity != 0
    by_yes, by_no = jnp.where(infinite, -z, by_yes), jnp.where(infinite, 0, by_no)

    def found(x):
        return jnp.where(undefined, jnp.where(silent, 0, jnp.nan), scaled(ct, x))

    def weighted(x):  # ct times the weight may overflow where x is 0
        return found(scaled(weights, x))

    by_weights = found(loss + jnp.where(weights == 0, 0, infinity))
    return weighted(by_z), Answers(
        weighted(by_yes), weighted(by_no), by_weights, jax.tree.map(weighted, by_term)
    )


def _operation(read: Callable[..., tuple[jax.Array, jax.Array]]) -> Callable[..., Any]:
    """One loss per logit by a reading of labels, from logits and what the answers are made of.

    ``answers(zeros, fixed, moving)`` makes them: `fixed` has no gradient. It runs again for the gradient, so
    that what has the size of the logits need not be stored.
    """

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def loss_of(answers, logits, fixed, moving):
        return fwd(answers, logits, fixed, moving)[0]

    def fwd(answers, logits, fixed, moving):
        return losses(read, logits, answers(logits, fixed, moving)), (logits, fixed, moving)

    @partial(jax.jit, static_argnums=0, inline=True)  # eager gradients run one program too
    def bwd(answers, residuals, ct):
        logits, fixed, moving = residuals
        z = _entries.apart(logits)
        fixed = jax.tree.map(_entries.apart, fixed)
        made, spread = jax.vjp(partial(answers, logits, fixed), moving)
        by_z, by_answers = gradients(read, z, made, ct)
        none = jax.tree.map(lambda x: None, fixed)
        return by_z.astype(logits.dtype), none, *spread(by_answers)

    loss_of.defvjp(fwd, bwd)
    return loss_of


def _settled(z):
    """The logits with 0 in the place of NaN, and where that was: no derivative multiplies it by 0."""
    undefined = jnp.isnan(z)
    return jnp.where(undefined, 0, z), undefined


def _hard(z, yes, no, term):
    """Of labels 0 and 1 only, where two answers of one term are one term at ``(2y - 1) z``."""
    if term.binary:
        return _linear(z, yes, no, term)
    return in_parts(term.value, Odds.at(jnp.where(yes == 1, z, -z)))


def _linear(z, yes, no, term):
    other, at = term.negative(Odds.at(-z))
    (a, a_infinite), (b, b_infinite) = in_parts(term.value, Odds.at(z)), in_parts(other.value, at)
    y, n = lax.stop_gradient((yes, no))  # infinity has no derivative
    return scaled(yes, a) + scaled(no, b), scaled(y, a_infinite) + scaled(n, b_infinite)


READINGS = {
    "hard": _hard,
    "linear": _linear,
    "mixture": partial(powers.loss_of, "mixture"),
    "quality": partial(powers.loss_of, "quality"),
    "cross_entropy": partial(powers.loss_of, "cross_entropy"),
}
# `hard` only with a matmul beside: alone XLA:CPU stores its parts (value and gradient of [4096, 1000],
# 2 cores: 52 ms, of `mixture` 24), where a v5e needs two thirds of the clocks of `mixture`.
OPERATIONS = {name: _operation(read) for name, read in READINGS.items() if name != "hard"}
