"""What one row of logits must remember: a maximum, what lies beside it, and the target.

For a row z the statistics are ``top = max z`` and ``excess = sum exp(z - top) - 1``, the sum over all but
the maximum itself. Two partial rows merge (:func:`merge`), inside a device and over chunks of a vocabulary.
Where a mesh axis shards the classes, `name`, each device has the statistics of its own; all merge at once,
by sums over the mesh (:mod:`focaljax._sharding`) of what a part weighs (:func:`fall`).

Accelerators reduce all statistics in ONE read of the logits. XLA:CPU has forms of its own
(:mod:`focaljax._softmax.cpu` and :mod:`focaljax._softmax.cpu_rivals`); :mod:`focaljax._forms` chooses when
the program is lowered.
"""

from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from focaljax import _forms, _sharding
from focaljax._entries import is_class
from focaljax._exact import shifted_exp, wide
from focaljax._softmax import cpu, cpu_rivals, one_pass

Part = tuple[jax.Array, ...]


class Rivals(NamedTuple):
    """A target and its competitors: the statistics of the integer-label losses, one entry per row."""

    top: jax.Array  # highest competing logit, or a reference exponent near it; -inf without one
    rest: jax.Array  # sum over the competitors of exp(z - top), at least 1 / e if not shared; 0 without one
    target: jax.Array  # logit of the target; NaN where the label is no class


class Peak(NamedTuple):
    """The maximum of a row and what lies beside it: the statistics of the soft-label losses."""

    top: jax.Array
    excess: jax.Array  # sum exp(z - top) over all entries but one of the highest


Stats = TypeVar("Stats", Rivals, Peak)


def settled(stats: Stats) -> tuple[Stats, jax.Array]:
    """The statistics with zeros in undefined rows, and the mask of these rows.

    A row has none with NaN or +inf among its logits, nothing but -inf, or a label that is no class. What
    follows is computed from the zeros, so that no derivative of any order multiplies NaN by 0.
    """
    undefined = jnp.isnan(sum(stats[1:], -stats[0]))
    return jax.tree.map(lambda x: jnp.where(undefined, 0, x), stats), undefined


def merge(left: Part, right: Part, *, exact: bool = False) -> Part:
    """Merges ``(top, excess, *sums)`` of two disjoint parts of a row; associative and commutative."""
    ahead = left[0] >= right[0]
    top = lax.max(left[0], right[0])
    weight = fall(lax.min(left[0], right[0]), top, exact=exact)
    high_excess = jnp.where(ahead, left[1], right[1])
    low_excess = jnp.where(ahead, right[1], left[1])
    sums = (a + b for a, b in zip(left[2:], right[2:], strict=True))
    return top, high_excess + weight * (1 + low_excess), *sums


def fall(low: jax.Array, top: jax.Array, *, exact: bool) -> jax.Array:
    """``exp(low - top)``: what a part of a row with the maximum `low` weighs beside one with `top`.

    A difference d that is rounded makes exp(d) wrong by |d| u. Beside a sum of at least 1 that is nothing,
    as |d| exp(-|d|) < 0.4; where `excess` itself is used it must be `exact`, for some more arithmetic.
    """
    weight = shifted_exp(low, top) if exact else jnp.exp(low - top)
    return jnp.where(low == top, 1, weight)  # also when both are -inf


def split_sum(
    x: jax.Array, highest: jax.Array, axis: int, name: _sharding.AxisName | None
) -> tuple[jax.Array, jax.Array]:
    """The sums of x over the highest entries of each row and over the lower ones."""
    high, low = (row_sum(jnp.where(side, x, 0), axis, name) for side in (highest, ~highest))
    return high, low


def row_sum(x: jax.Array, axis: int, name: _sharding.AxisName | None) -> jax.Array:
    """The sum over all classes, of all devices; `axis` keeps size 1."""
    return _sharding.total(jnp.sum(x, axis, keepdims=True), name)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def sums(terms: Part, axis: int, name: _sharding.AxisName | None, platform: str | None = None) -> Part:
    """The `row_sum` of each term; on accelerators all in one kernel."""
    each, on_tpu = (partial(f, axis=axis) for f in (_sum_each, one_pass.sums))
    on_gpu = partial(on_tpu, on_gpu=True)
    totals = _forms.of_platform(*terms, known=platform, like=each, cpu=each, tpu=on_tpu, default=on_gpu)
    return tuple(jnp.expand_dims(_sharding.total(x, name), axis) for x in totals)


@sums.defjvp
def _sums_jvp(axis, name, platform, primals, tangents):
    return sums(primals[0], axis, name, platform), tuple(row_sum(x, axis, name) for x in tangents[0])


def _sum_each(*terms, axis):
    return tuple(jnp.sum(x, axis) for x in terms)


def all_but_own(
    x: jax.Array, highest: jax.Array, sums: tuple[jax.Array, jax.Array], alone: jax.Array
) -> jax.Array:
    """For each entry the sum of all others, from `split_sum`, where shares near 1 are at stake.

    A lower entry may be taken back from the whole sum, which the highest dominates. The highest, if it is
    `alone`, is never in its own sum: not even as a difference that is exactly 0, for this also carries
    derivatives. Several highest entries have a share of at most 1 / 2 each.
    """
    high, low = sums
    return jnp.where(highest & alone, low, low + high - x)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def rivals(
    logits: jax.Array, labels: jax.Array, axis: int, name: _sharding.AxisName | None, shared: bool = False
) -> Rivals:
    """Statistics of the labelled class against the others, in at least float32.

    Competitors may count as none where q is below the smallest float. If they are `shared` with a gradient on
    CPU, `rest` is a sum of any size, of the exponentials that :func:`focaljax._softmax.indexed.spread` takes.

    Differentiation treats `top` as a constant: ``d rest = sum exp(z - top) dz``. Nothing else in the
    package depends on `top` but through ``top + log(rest)``, so every derivative comes out whole.
    """
    classes = logits.shape[axis]
    part = rivals_part(logits, _sharding.local(labels, classes, name), axis, shared)
    return rivals_of_all(part, labels, classes, name)


@_sharding.traced_once(static_argnames=("axis", "shared"))
def rivals_part(logits: jax.Array, labels: jax.Array, axis: int, shared: bool = False) -> Part:
    """``(top, rest, target)`` of some of the classes; 0 for a target that is not among them."""

    def on_cpu(logits, labels):
        return cpu_rivals.rivals(logits.astype(wide(logits.dtype)), labels, axis=axis, shared=shared)

    on_tpu, on_gpu = (partial(one_pass.rivals, axis=axis, on_gpu=gpu) for gpu in (False, True))

    def like(logits, labels):
        row = jnp.sum(logits, axis, dtype=wide(logits.dtype))
        return row, row, row + labels.astype(row.dtype)

    return _forms.of_platform(logits, labels, like=like, cpu=on_cpu, tpu=on_tpu, default=on_gpu)


def rivals_of_all(part: Part, labels: jax.Array, classes: int, name: _sharding.AxisName | None) -> Rivals:
    """The statistics of all devices, from the part of this one with its `classes`."""
    top, rest, target = part
    if name is not None:
        own, top = top, _sharding.highest(top, name)
        rest, target = (_sharding.total(x, name) for x in (rest * fall(own, top, exact=False), target))
    known = (labels >= 0) & (labels < classes * _sharding.shards(name))
    defined = jnp.maximum(top, target) < jnp.inf  # softmax of an infinite logit is not
    return Rivals(top, jnp.where(defined, rest, jnp.nan), jnp.where(known, target, jnp.nan))


@rivals.defjvp
def _rivals_jvp(axis, name, shared, primals, tangents):
    del shared
    logits, labels = primals
    slope = tangents[0].astype(wide(logits.dtype))
    stats = rivals(logits, labels, axis, name)
    own = is_class(_sharding.local(labels, logits.shape[axis], name), logits.shape, axis)
    unknown = jnp.isnan(stats.rest)  # a constant: 0 times NaN would be NaN
    others = jnp.where(own | jnp.expand_dims(unknown, axis), -jnp.inf, logits.astype(slope.dtype))
    top = jnp.where(unknown, 0, stats.top)
    rise = shifted_exp(others, jnp.expand_dims(top, axis)) * slope
    rise, own_slope = (jnp.squeeze(row_sum(x, axis, name), axis) for x in (rise, jnp.where(own, slope, 0)))
    return stats, Rivals(jnp.zeros_like(stats.top), rise, own_slope)


def peak(logits: jax.Array, axis: int, name: _sharding.AxisName | None, platform: str | None = None) -> Peak:
    """The maximum of each row and the excess beside it, with `axis` of size 1; constants to derivatives."""
    return peak_of_all(peak_part(lax.stop_gradient(logits), axis, platform), axis, name)


def peak_and_powers(logits: jax.Array, axis: int) -> tuple[Peak, jax.Array]:
    """The `peak` of a block on CPU, and ``exp(z - top)``, or 0 at the highest; constants to derivatives."""
    *part, powers = cpu.peak_and_powers(lax.stop_gradient(logits), axis)
    return peak_of_all(tuple(part), axis, None), powers


def known(peak: Peak, rows: jax.Array | None, axis: int) -> Peak:
    """The peak, NaN in rows that are not `known`; None means that all are."""
    if rows is None:
        return peak
    return peak._replace(excess=jnp.where(jnp.expand_dims(rows, axis), peak.excess, jnp.nan))


@_sharding.traced_once(static_argnames=("axis", "platform"))
def peak_part(logits: jax.Array, axis: int, platform: str | None = None) -> Part:
    """``(top, excess)`` of some of the classes."""

    def on_cpu(logits):
        return cpu.peak(logits.astype(wide(logits.dtype)), axis=axis)

    on_tpu, on_gpu = (partial(one_pass.peak, axis=axis, on_gpu=gpu) for gpu in (False, True))

    def like(logits):
        return (jnp.sum(logits, axis, dtype=wide(logits.dtype)),) * 2

    return _forms.of_platform(logits, known=platform, like=like, cpu=on_cpu, tpu=on_tpu, default=on_gpu)


def peak_of_all(part: Part, axis: int, name: _sharding.AxisName | None) -> Peak:
    """The peak of all devices, from the part of this one."""
    top, excess = part
    if name is not None:
        own, top = top, _sharding.highest(top, name)
        beside = fall(own, top, exact=True) * (1 + excess)
        excess = _sharding.total(jnp.where(_sharding.first(own == top, name), excess, beside), name)
    defined = jnp.isfinite(top)  # neither all -inf, nor a +inf or NaN
    return Peak(jnp.expand_dims(top, axis), jnp.expand_dims(jnp.where(defined, excess, jnp.nan), axis))
