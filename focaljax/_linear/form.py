"""A form of a linear loss as two differentiable operations, from its losses and their gradients.

`total` is for a sum: its gradients are made with its value, and wait to be multiplied by its cotangent.
`each` is for single losses. Both also return what is logged, which has no gradient.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from focaljax import _sharding

# From `How` and operands as in :mod:`focaljax._linear.layer` to losses, or their sum, and what is logged.
Operation = Callable[..., Any]


class Form(NamedTuple):
    """The operations of one loss, chunked in one way."""

    total: Operation
    each: Operation


def form(losses: Any, gradient: Any) -> Form:
    """From ``losses(how, *operands)`` and ``gradient(how, *operands, ct, waits=False)``.

    `losses` returns the losses and what is logged; `gradient` the same, and the gradients by all operands but
    `fixed` of the losses' sum weighed by `ct`, in a dtype that can wait for a cotangent if it `waits`.
    """

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def total(how, x, head, fixed, rows, classes):
        found, logs = losses(how, x, head, fixed, rows, classes)
        return jnp.sum(found), logs

    def total_fwd(how, x, head, fixed, rows, classes):
        ones = jnp.ones_like(rows.weight)
        (found, logs), gradients = gradient(how, x, head, fixed, rows, classes, ones, waits=True)
        like = jax.tree.map(lambda x: jnp.zeros((0,), x.dtype), (x, head, rows, classes))
        return (jnp.sum(found), logs), (gradients, like)

    @partial(jax.jit, static_argnums=0, inline=True)
    def total_bwd(how, residuals, ct):
        gradients, like = residuals
        scaled = jax.tree.map(lambda g, x: (g.astype(ct[0].dtype) * ct[0]).astype(x.dtype), gradients, like)
        return _with_fixed(scaled)

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def each(how, x, head, fixed, rows, classes):
        return losses(how, x, head, fixed, rows, classes)

    def each_fwd(how, *operands):
        return losses(how, *operands), operands

    @partial(jax.jit, static_argnums=0, inline=True)
    def each_bwd(how, operands, ct):
        return _with_fixed(gradient(how, *operands, ct[0])[1])

    def total_or_summed(how: Any, *operands: Any) -> Any:
        """Gradients can wait for one cotangent of all devices, as where JAX tracks the axis."""
        return (total if _sharding.is_tracked(how.name) else summed(each))(how, *operands)

    total.defvjp(total_fwd, total_bwd)
    each.defvjp(each_fwd, each_bwd)
    return Form(total_or_summed, each)


def summed(each: Operation) -> Operation:
    """The sum of the losses of `each`, whose backward pass computes the logits again."""

    def total(how: Any, *operands: Any) -> Any:
        losses, logs = each(how, *operands)
        return jnp.sum(losses), logs

    return total


def _with_fixed(gradients):
    dx, d_head, d_rows, d_classes = gradients
    return dx, d_head, None, d_rows, d_classes
