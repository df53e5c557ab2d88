"""Sigmoid losses of a layer's logits: a row costs the sum over its classes.

A sigmoid has no statistics of a row, so a chunk of classes has its value and its gradients in one sweep:
three matmuls for a sum, 6 N D C operations, and nothing of the kernel's size but its gradient.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from focaljax import _entries, _sharding
from focaljax._exact import wide
from focaljax._linear import by_rows, chunks, layer
from focaljax._linear.chunks import zeros
from focaljax._linear.form import form
from focaljax._linear.layer import Classes, Fixed, Head, How, Rows
from focaljax._sigmoid import independent

FEW = 4  # labels: comparing with so many costs less than to store what was found


def of_rows(reading: str, z: jax.Array, fixed: Fixed, rows: Rows, classes: Classes, how: How) -> tuple:
    """Returns (losses of rows, None, pull-back to logits, rows and classes)."""
    mine = _sharding.local(fixed.labels, z.shape[1], how.name)
    loss, pull_back = _of_chunk(reading, z, fixed._replace(labels=mine), rows, classes)

    def of_all(ct):
        return pull_back(_sharding.cotangent(ct, how.name))

    return _sharding.total(loss, how.name), None, of_all


def _of_chunk(reading, z, fixed, rows, classes):
    """Returns (sum over some classes, pull-back); labels count from the first of these classes."""
    read, yes = independent.READINGS[reading], _positives(fixed.labels, z.shape).astype(rows.weight.dtype)
    kept = None if fixed.kept is None else fixed.kept[None, :]

    def asked(rows, classes):
        alpha = None if classes.alpha is None else rows.alpha[:, None] + classes.alpha[None, :]
        term = jax.tree.map(lambda r, c: r[:, None] + c[None, :], rows.term, classes.term)
        return independent.asked(yes, kept, rows.weight[:, None], term, alpha, classes.smoothing, reading)

    answers, unfold = jax.vjp(asked, rows, classes)

    def pull_back(ct):
        # XLA stores what loss and gradient share. That pays on CPU; on an H200 chunks of a million classes
        # take 0.8 of the time without, and chunks of rows 1.02 of the time and two thirds of the memory.
        again = _entries.apart(z, cpu=False)
        dz, d_answers = independent.gradients(read, again, answers, jnp.broadcast_to(ct[:, None], z.shape))
        return dz, *unfold(d_answers)

    return jnp.sum(independent.losses(read, z, answers), 1), pull_back


def _positives(labels, shape):
    """Mask of the labelled classes of a chunk; one comparison per label that a row has in it."""
    if labels.shape[1] <= FEW:
        return _entries.is_any_class(labels, shape, 1)
    here = (labels >= 0) & (labels < shape[1])
    rank = jnp.cumsum(here, 1)

    def add(k, found):
        label = jnp.sum(jnp.where(here & (rank == k + 1), labels + 1, 0), 1) - 1
        return found | _entries.is_class(label, shape, 1)

    nothing = _entries.is_class(jnp.full_like(labels[:, 0], -1), shape, 1)
    return jax.lax.fori_loop(0, jnp.max(rank[:, -1], initial=0), add, nothing)


def losses(
    reading: str, how: How, x: jax.Array, head: Head, fixed: Fixed, rows: Rows, classes: Classes
) -> Any:
    """Returns (loss of each row, None), by chunks of classes."""

    def step(sums, chunk):
        z = layer.capped(layer.logits(x, chunk.head, how), how)
        return sums + _of_chunk(reading, z, chunk.fixed, rows, chunk.classes)[0], ()

    start = zeros(rows.weight, rows.weight.dtype, like=x)
    sums, _ = chunks.sweep(step, start, how, x, head, fixed, classes)
    return _sharding.total(sums, how.name), None


def gradient(
    reading: str,
    how: How,
    x: jax.Array,
    head: Head,
    fixed: Fixed,
    rows: Rows,
    classes: Classes,
    ct: jax.Array,
    waits: bool = False,
) -> Any:
    """Returns ((losses, None), gradients of ``sum(ct * losses)``), in one sweep."""
    x, ct = layer.silenced(x, rows, ct), _sharding.cotangent(ct, how.name)
    rows = jax.tree.map(lambda r: _sharding.vary(r, _sharding.varying(x)), rows)  # summed once, not by chunk

    def step(sums, chunk):
        z = layer.logits(x, chunk.head, how)
        loss, pull_back = _of_chunk(reading, layer.capped(z, how), chunk.fixed, rows, chunk.classes)
        dz, d_rows, d_classes = pull_back(ct)
        dz, d_bias = layer.d_logits(z, dz, chunk.head, chunk.fixed.kept, how)
        dx, d_kernel = layer.d_operands(x, chunk.head.kernel, dz, how, stored=True, dtype=wide(x.dtype))
        *d_options, d_smoothing = d_classes
        return jax.tree.map(jnp.add, sums, (loss, dx, d_rows, d_smoothing)), (
            Head(d_kernel, d_bias),
            tuple(d_options),
        )

    start = (zeros(rows.weight, rows.weight.dtype), zeros(x, wide(x.dtype)))
    start += jax.tree.map(lambda x: zeros(x, x.dtype), (rows, classes.smoothing))
    options = (classes.alpha, classes.term)
    made = jax.tree.map(lambda x: zeros(x, layer.kept_dtype(x.dtype) if waits else x.dtype), (head, options))
    sums, (d_head, d_options) = chunks.sweep(step, start, how, x, head, fixed, classes, made)
    loss, dx, d_rows, d_smoothing = sums
    d_rows = jax.tree.map(partial(_sharding.of_shared, name=how.name), d_rows)
    return (_sharding.total(loss, how.name), None), (
        layer.rounded(dx, x, waits),
        d_head,
        d_rows,
        Classes(d_options[0], d_options[1], d_smoothing),
    )


def _forms(reading):
    """The forms by strategy, for one reading of soft labels."""
    here = partial(of_rows, reading)
    return {
        "rows": form(partial(by_rows.losses, here), partial(by_rows.gradient, here)),
        "classes": form(partial(losses, reading), partial(gradient, reading)),
    }


FORMS = {reading: _forms(reading) for reading in ("hard", "linear", "mixture")}
