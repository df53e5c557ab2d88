"""What may be passed to the linear layer with its loss: rules and messages beside those of `_checks`."""

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import core, lax
from jax.typing import ArrayLike

from focaljax import _checks, _mesh

REDUCTIONS = ("mean", "sum", None)
STRATEGIES = ("rows", "classes", None)


class Layer(NamedTuple):
    """A layer that fits its inputs."""

    inputs: jax.Array  # [..., D]
    kernel: jax.Array  # [D, C], or this device's shard of the classes
    bias: jax.Array | None  # [C]
    name: _mesh.AxisName | None
    logits: jax.ShapeDtypeStruct  # what they would be; in the dtype of the arithmetic


def layer(inputs: ArrayLike, kernel: ArrayLike, bias: ArrayLike | None, axis_name: Any) -> Layer:
    """Floating inputs, kernel and bias whose shapes fit."""
    x, w = _checks.floating("inputs", inputs), _checks.floating("kernel", kernel)
    if w.ndim != 2 or w.shape[1] == 0:
        raise ValueError(f"`kernel` must have the shape [D, C] with at least one class, got {w.shape}.")
    if x.ndim == 0 or x.shape[-1] != w.shape[0]:
        raise ValueError(f"`inputs` must have the shape [..., {w.shape[0]}] for `kernel`, got {x.shape}.")
    b = None if bias is None else _checks.floating("bias", bias)
    if b is not None and b.shape != w.shape[1:]:
        raise ValueError(f"`bias` must have the shape [{w.shape[1]}] for `kernel`, got {b.shape}.")
    name = _checks.mesh_axis(axis_name, w, "kernel")
    dtype = x.dtype if x.dtype.itemsize >= 4 else jnp.float32
    return Layer(x, w, b, name, jax.ShapeDtypeStruct((*x.shape[:-1], w.shape[1]), dtype))


def labels(x: ArrayLike, logits: jax.ShapeDtypeStruct, ignored: int | None, classes: int) -> jax.Array:
    """One class index per example."""
    like: Any = logits
    axis = len(logits.shape) - 1
    return _checks.integer_labels("labels", x, like, "inputs", axis, ignored, "softmax_focal_loss", classes)


def option(name: str, x: ArrayLike, logits: jax.ShapeDtypeStruct, classes: int) -> jax.Array:
    """A scalar, [C], or [..., 1], in the rank of the logits; not one entry per logit."""
    like: Any = logits
    found = _checks.option(name, x, like, "inputs @ kernel", len(logits.shape) - 1, logits.dtype, classes)
    if found.shape[-1] != 1 and any(n != 1 for n in found.shape[:-1]):
        raise ValueError(
            f"`{name}` must be a scalar, [classes], or one per example, [..., 1]; got shape {np.shape(x)}."
        )
    return found


def weights(x: ArrayLike, logits: jax.ShapeDtypeStruct) -> jax.Array:
    """One real or boolean weight per example, or one for all."""
    x = _checks.array("weights", x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(f"`weights` must be real, got {x.dtype}.")
    if x.shape not in ((), logits.shape[:-1]):
        raise ValueError(
            f"`weights` must be a scalar or have the shape of `labels`, {logits.shape[:-1]}; got {x.shape}."
        )
    return jnp.broadcast_to(x.astype(logits.dtype), logits.shape[:-1])


def factor(name: str, x: ArrayLike) -> None:
    """A real scalar, at least 0."""
    if np.shape(x) != ():
        raise ValueError(f"`{name}` must be a scalar, got shape {np.shape(x)}.")
    dtype = jnp.result_type(x)
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise TypeError(f"`{name}` must be a real number, got {dtype}.")
    _checks.not_negative(name, x)


def cap(x: float | None) -> float | None:
    """A positive Python number: it is part of the program."""
    if x is None:
        return None
    if isinstance(x, core.Tracer) or isinstance(x, bool) or not isinstance(x, int | float | np.number):
        raise TypeError(f"`logit_soft_cap` must be a Python number or None, got {type(x).__name__}.")
    if not 0 < x < np.inf:
        raise ValueError(f"`logit_soft_cap` must be positive and finite, got {x}.")
    return float(x)


def chunk(x: int | None) -> int | None:
    """A positive int or None."""
    if x is None:
        return None
    try:
        size = operator.index(x)
    except TypeError:
        raise TypeError(f"`chunk` must be an int or None, got {type(x).__name__}.") from None
    if isinstance(x, bool) or size < 1:
        raise ValueError(f"`chunk` must be at least 1, got {x!r}.")
    return size


def choice(name: str, x: str | None, choices: tuple[str | None, ...]) -> None:
    """One of some words."""
    if not any(x is one or (isinstance(x, str) and x == one) for one in choices):
        raise ValueError(f"`{name}` must be one of {choices}, got {x!r}.")


def size_of_chunks(strategy: str, size: Any) -> None:
    """Classes in chunks need their number; in an exported program it may be a symbol."""
    if strategy == "classes" and not isinstance(size, int):
        raise ValueError(
            f'`strategy` "classes" needs a known number of classes, got {size}; "rows" does not.'
        )


def precision(x: Any) -> Any:
    """What `jax.numpy.matmul` takes, in a form that can be hashed."""
    if x is None or isinstance(x, str | lax.Precision | lax.DotAlgorithmPreset | lax.DotAlgorithm):
        return x
    if isinstance(x, list | tuple) and len(x) == 2:
        return tuple(x)
    raise TypeError(f"`precision` must be a JAX matmul precision or None, got {x!r}.")
