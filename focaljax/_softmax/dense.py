"""Loss of soft labels: every class of a row carries a term of its own weight.

``L = sum_k w_k * value(u_k)`` is linear in the weights ``w = alpha * y``. With ``A_k = w_k * pull(u_k)``,
where ``-q_k * A_k`` is the slope of term k along its own log-odds,

    dL/dz_k = p_k * sum_{c != k} A_c - q_k * A_k

For p_k <= 1/2 the sum over all classes may be taken and ``p_k * A_k`` given back without harm. Only the
highest class can be above 1/2; its own term is left out of the sum from the start, as the highest is left
out of `excess`, so neither q nor the gradient is ever the difference of two numbers near 1.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from focaljax import _entries, _exact, _forms, _odds, _sharding
from focaljax._exact import wide
from focaljax._odds import scaled
from focaljax._softmax import cpu, one_pass, statistics
from focaljax._softmax.statistics import Peak
from focaljax.terms import Detached, Focal, Poly, Term, by_options, value_of


class Pulls(NamedTuple):
    """Sums of A over the classes of each row; NaN in an undefined row with a nonzero weight."""

    highest: jax.Array
    lower: jax.Array  # of all but the highest


class Gradients(NamedTuple):
    """Gradients by the operands, in their shapes."""

    logits: jax.Array
    weights: jax.Array
    term: Term


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def dense(
    logits: jax.Array,
    weights: jax.Array,
    term: Term,
    axis: int,
    name: _sharding.AxisName | None = None,
    known: jax.Array | None = None,
) -> jax.Array:
    """One loss per row; `weights` has the shape of `logits`.

    The options of `term` broadcast to that. A class of weight 0 adds nothing, even at a logit -inf; a row of
    such classes, or one whose cotangent is 0, is silent whatever its logits hold. `name` is the mesh axis of
    sharded classes. A row that is not `known` has no answer.
    """
    return _fwd(logits, weights, term, axis, name, known)[0]


def _fwd(logits, weights, term, axis, name, known):
    peak, loss, totals = _of_rows(logits, weights, term, known, axis=axis, name=name)
    return jnp.squeeze(loss, axis), (logits, weights, term, peak, totals)


@_sharding.traced_once(static_argnames=("axis", "name"))
def _of_rows(logits, weights, term, known, *, axis, name):
    """The peak, the loss and the pulls of each row; on CPU of a large batch block by block."""

    def of_some(logits, weights, term, known, platform=None):
        z = logits.astype(weights.dtype)
        read = logits if wide(logits.dtype) == weights.dtype else z  # blocks widen what they read themselves
        if platform == "cpu" and cpu.stores_powers(z, axis):
            peak, powers = statistics.peak_and_powers(z, axis)
        else:
            peak, powers = statistics.peak(read, axis, name, platform), None
        peak = statistics.known(peak, known, axis)
        return peak, *sums(z, weights, term, peak, axis, name, platform, powers)

    if name is not None:  # what the shards exchange is traced where their axis is known
        return of_some(logits, weights, term, known)
    on_cpu, on_tpu, on_gpu = (partial(of_some, platform=platform) for platform in ("cpu", "tpu", "gpu"))
    on_cpu = partial(cpu.in_blocks, on_cpu, axis)

    def like(logits, weights, term, known):
        del known
        row = jnp.sum(logits, axis, weights.dtype, keepdims=True)
        loss = jnp.sum(sum(jax.tree.leaves(term), weights), axis, keepdims=True) + row
        return Peak(row, row), loss, Pulls(loss, loss)

    @jax.custom_jvp
    def of_all(*operands):
        return _forms.of_platform(*operands, like=like, cpu=on_cpu, tpu=on_tpu, default=on_gpu)

    @of_all.defjvp
    def of_all_jvp(primals, tangents):
        either = partial(lax.platform_dependent, cpu=on_cpu, default=of_some)
        return jax.jvp(of_some if cpu.blocks(logits, axis)[1] == 1 else either, primals, tangents)

    return of_all(logits, weights, term, known)


@partial(jax.jit, static_argnums=(0, 1), inline=True)  # eager gradients run one program too
def _bwd(axis, name, residuals, ct):
    logits, weights, term, peak, totals = residuals
    z, narrow = logits.astype(ct.dtype), logits.dtype != ct.dtype
    found = gradients(z, weights, term, peak, totals, ct, axis, name, narrow)
    return found.logits.astype(logits.dtype), found.weights, found.term, None


@_sharding.traced_once(static_argnames=("axis", "name", "platform"))
def sums(
    z: jax.Array,
    weights: jax.Array,
    term: Term,
    peak: Peak,
    axis: int,
    name: _sharding.AxisName | None,
    platform: str | None = None,
    powers: jax.Array | None = None,
) -> tuple[jax.Array, Pulls]:
    """Returns (loss, pulls) of each row, with `axis` of size 1; `powers` as in :func:`odds_of`.

    The pulls of the highest come from numbers of the row, but on TPUs, which share odds for nothing. Without
    the parts of :func:`focaljax._odds.in_parts` a value takes 0.9 of its time on a TPU; of up to eight last
    classes LLVM would then make no vectors, for 1.5 to 2 times it on CPU.
    """

    def each(of_odds, peak, powers=powers, at=lambda z, top: z):
        peak, undefined = statistics.settled(peak)
        there = jnp.where(undefined, 0, z)
        odds = odds_of(there, peak, axis, name, at(there, peak.top), powers, plain=_is_plain(term))
        marks = jnp.where(weights == 0, 0, jnp.nan)
        return jnp.where(undefined, marks, scaled(weights, of_odds(odds))), there == peak.top

    def top_of(z, top):
        return top + _entries.zeros(z, z.dtype)  # of the sharding of z

    of_highest = partial(_entries.by_platform, known=platform, cpu=top_of, tpu=lambda z, _: z, default=top_of)
    # Odds that two sums share XLA would store, which pays in few cases.
    cached, packed = cpu.is_cached(z, axis), one_pass.is_packed(z, axis)
    again = _entries.apart(peak, cpu=not cached, gpu=not packed, known=platform)

    def value(odds):
        return _entries.by_platform(term, odds, known=platform, cpu=_value_in_parts, default=value_of)

    values, _ = each(value, peak)
    lower, highest = each(term.pull, again)
    top, at_top = each(term.pull, peak, powers=None, at=of_highest)
    parts = values, jnp.where(highest, 0, lower), jnp.where(at_top, top, 0)
    loss, low, high = statistics.sums(parts, axis, name, platform)
    return loss, Pulls(high, low)


def _value_in_parts(term, odds):
    return jnp.add(*_odds.in_parts(term.value, odds))


def gradients(
    z: jax.Array,
    weights: jax.Array,
    term: Term,
    peak: Peak,
    totals: Pulls,
    ct: jax.Array,
    axis: int,
    name: _sharding.AxisName | None,
    narrow: bool = False,
) -> Gradients:
    """The gradients of the losses weighed by `ct`, one per row, for some classes of the rows.

    That by the logits will be `narrow`, in 16 bits: the rounding error of ``z - top`` is less than theirs.
    """
    ct = jnp.expand_dims(_sharding.cotangent(ct, name), axis)
    peak, totals = _entries.apart((peak, totals))
    peak, undefined = statistics.settled(peak)
    silent = undefined & ((ct == 0) | ((totals.highest == 0) & (totals.lower == 0)))
    ct = jnp.where(undefined, jnp.where(silent, 0, jnp.nan), ct)
    z, totals = jax.tree.map(lambda x: jnp.where(undefined, 0, x), (z, totals))

    exact = odds_of(z, peak, axis, name)
    odds = odds_of(z, peak, axis, name, plain=True) if narrow and _is_plain(term) else exact
    value, pulls = value_of(term, odds), scaled(weights, term.pull(odds))
    others = statistics.all_but_own(pulls, z == peak.top, totals, peak.excess < 1)
    # An option for each entry, at the place of `z` on a mesh: else all its cotangents would be gathered.
    options = by_options(jax.tree.map(lambda x: x + _entries.zeros(z, x.dtype), term), exact)

    def of_option(option, x):
        x = scaled(ct, scaled(weights, x))  # ct times the weight may overflow where x is 0
        return jnp.sum(x, [i for i, n in enumerate(option.shape) if n == 1], keepdims=True)

    return Gradients(
        logits=scaled(ct, odds.p * others - odds.q * pulls),
        # A class of weight 0 stays silent where its loss would be infinite: alpha * y sends this to both.
        weights=scaled(ct, jnp.where((weights == 0) & jnp.isinf(value), 0, value)),
        term=jax.tree.map(of_option, term, options),
    )


def _is_plain(term):
    """Whether p counts only beside 1 in the value and the pull, so that the odds may be plain ones."""
    return type(term) in (Focal, Poly) or (type(term) is Detached and _is_plain(term.term))


def odds_of(
    z: jax.Array,
    peak: Peak,
    axis: int,
    name: _sharding.AxisName | None,
    at: jax.Array | None = None,
    powers: jax.Array | None = None,
    *,
    plain: bool = False,
) -> _odds.Odds:
    """The odds of every class against all the others; `peak` is settled.

    The numbers are those `at` other logits, where only entries that have them are used. `powers` are
    ``exp(z - top)`` of all but the highest, where they are known.

    `plain` numbers leave out the rounding error of ``z - top``, but not in their derivatives. A gap d that is
    rounded makes the p of a lower class wrong by |d| u. Beside 1, as in q and in a pull, that is nothing, as
    |d| exp(-|d|) < 0.4; and log p is wrong by u.
    """
    if plain:
        return _plain_odds(z, peak, at, powers, axis, name)
    numbers = _numbers(z if at is None else at, peak, powers)
    return _odds.along(_log_odds(z, peak, axis, name), lax.stop_gradient(numbers))


@partial(jax.custom_jvp, nondiff_argnums=(4, 5))
def _plain_odds(z, peak, at, powers, axis, name):
    del axis, name
    return _numbers(z if at is None else at, peak, powers, plain=True)


@_plain_odds.defjvp
def _plain_odds_jvp(axis, name, primals, tangents):
    z, peak, at, _ = primals
    moved = jax.jvp(lambda z: odds_of(z, peak, axis, name, at), (z,), tangents[:1])[1]
    return _plain_odds(*primals, axis, name), moved


def _numbers(z, peak, powers, *, plain=False):
    top, excess = peak
    gap, err = (z - top, 0) if plain else _exact.below(z, top)
    highest = z == top
    total = 1 + excess
    p = (jnp.exp(gap) * (1 + err) if powers is None else jnp.where(highest, 1, powers)) / total
    q = jnp.where(highest, excess / total, 1 - p)
    log_top = -jnp.log1p(excess)
    alone = excess < 1
    log_rest = jnp.where(alone, jnp.log(excess) + log_top, -jnp.log1p(1 / jnp.where(alone, 1, excess)))
    log_q = jnp.where(highest, log_rest, jnp.log1p(-p))
    return _odds.complete(p, q, gap + (err + log_top), log_q)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _log_odds(z, peak, axis, name):
    """A carrier of the derivative ``du_k = dz_k - sum_{j != k} p_j / q_k dz_j``; its value is not used."""
    del peak, axis, name
    return z


@_log_odds.defjvp
def _log_odds_jvp(axis, name, primals, tangents):
    z, peak = primals
    dz = tangents[0]
    odds = odds_of(z, peak, axis, name)
    rise, highest = odds.p * dz, z == peak.top
    sums = statistics.split_sum(rise, highest, axis, name)
    others = statistics.all_but_own(rise, highest, sums, peak.excess < 1)
    # 1 / q by its logarithm, whose derivative is bounded; q -> 0: there are no others.
    inverse = _odds.power(jnp.where(odds.q > 0, odds.q, 1), odds.log_q, -jnp.ones_like(z))
    share = others * jnp.where(odds.q > 0, inverse, 0)
    return _log_odds(z, peak, axis, name), dz - share


dense.defvjp(_fwd, _bwd)
