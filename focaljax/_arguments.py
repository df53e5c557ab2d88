"""What may be passed: every rule about arguments and every error message.

The checks run while a program is traced. They look at shapes and dtypes always, and at values only where
these are known: Python numbers, NumPy arrays and small JAX arrays outside a transformation.
"""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import core, lax
from jax.typing import ArrayLike

from focaljax import _mesh

REDUCTIONS = ("sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none", None)
LINEAR_REDUCTIONS = ("mean", "sum", None)
STRATEGIES = ("rows", "classes", None)


def known(x: ArrayLike) -> np.ndarray | None:
    """The value of `x` where it is known while tracing, else None."""
    if isinstance(x, core.Tracer):
        return None
    if isinstance(x, jax.Array):
        return np.asarray(jax.device_get(x)) if x.is_fully_addressable else None
    return np.asarray(x)


def array(name: str, x: ArrayLike) -> jax.Array:
    """`x` as a JAX array; lists and other non-arrays are named, not guessed at."""
    try:
        return jnp.asarray(x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must be an array, got {type(x).__name__}: {error}") from error


def floating(name: str, x: ArrayLike) -> jax.Array:
    """A floating-point array."""
    x = array(name, x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"`{name}` must be floating, got {x.dtype}.")
    return x


def logits(name: str, x: ArrayLike, axis: int) -> tuple[jax.Array, int]:
    """Logits (or probabilities) with at least one class, and the class axis counted from 0."""
    x = floating(name, x)
    axis = class_axis(name, x.ndim, axis)
    if x.shape[axis] == 0:
        raise ValueError(f"`{name}` must have at least one class, got shape {x.shape} with axis={axis}.")
    return x, axis


def class_axis(name: str, ndim: int, axis: int) -> int:
    """`axis` counted from 0."""
    if isinstance(axis, bool | np.bool_):
        raise TypeError(f"`axis` must be an int, got {axis!r}.")
    try:
        position = operator.index(axis)
    except TypeError:
        raise TypeError(f"`axis` must be an int, got {type(axis).__name__}.") from None
    if not -ndim <= position < ndim:
        raise ValueError(f"`axis` must be in [{-ndim}, {ndim}) for `{name}` of rank {ndim}, got {position}.")
    return position % ndim


def dense_labels(
    name: str, x: ArrayLike, like: jax.Array, like_name: str, axis: int, indexed: str | None
) -> jax.Array:
    """One label per logit, of the shape of `like`; `indexed` names the function for integer labels."""
    x = array(name, x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(f"`{name}` must be real, got {x.dtype}.")
    if x.shape != like.shape:
        hint = ""
        if indexed and x.shape == like.shape[:axis] + like.shape[axis + 1 :]:
            hint = f" For class indices use `{indexed}`."
        raise ValueError(f"`{name}` must have the shape of `{like_name}`, {like.shape}, got {x.shape}.{hint}")
    return x


def integer_labels(
    name: str,
    x: ArrayLike,
    like: jax.Array,
    like_name: str,
    axis: int,
    ignored: int | None,
    dense: str,
    classes: int,
) -> jax.Array:
    """One class index per row of `like`, of at least 32 bits; `dense` is the function for one-hot labels."""
    values = known(x) if not isinstance(x, jax.Array) else None
    x = array(name, x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        hint = f" For one-hot or soft labels use `{dense}`." if x.shape == like.shape else ""
        raise TypeError(f"`{name}` must be integer class indices, got {x.dtype}.{hint}")
    rows = like.shape[:axis] + like.shape[axis + 1 :]
    if x.shape != rows:
        hint = f" For one-hot or soft labels use `{dense}`." if x.shape == like.shape else ""
        raise ValueError(
            f"`{name}` must have shape {rows}, that of `{like_name}` without axis {axis}, "
            f"got {x.shape}.{hint}"
        )
    return _class_range(name, x, values, classes, ignored)


def class_indices(name: str, x: ArrayLike, classes: int, ignored: int | None) -> jax.Array:
    """Class indices of any shape, of at least 32 bits."""
    values = known(x) if not isinstance(x, jax.Array) else None
    x = array(name, x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"`{name}` must be integer class indices, got {x.dtype}.")
    return _class_range(name, x, values, classes, ignored)


def _class_range(
    name: str, x: jax.Array, values: np.ndarray | None, classes: int, ignored: int | None
) -> jax.Array:
    if values is not None and values.size:
        wrong = values[(values < 0) | (values >= classes)]
        wrong = wrong[wrong != ignored] if ignored is not None else wrong
        if wrong.size:
            raise ValueError(f"`{name}` must be in [0, {classes}), got {wrong.flat[0]}.")
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.int32)


def class_counts(name: str, x: ArrayLike) -> jax.Array:
    """One count per class, [C], at least 0, floating in at least float32."""
    default = jax.dtypes.canonicalize_dtype(float)
    values = known(x) if not isinstance(x, jax.Array) else None
    if values is not None and values.dtype.kind in "iu":
        x = values.astype(default)  # before JAX wraps an int64 to 32 bits
    x = array(name, x)
    if not (jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)):
        raise TypeError(f"`{name}` must be real, got {x.dtype}.")
    if x.ndim != 1 or not x.size:
        raise ValueError(f"`{name}` must have one entry per class, shape [C], got {x.shape}.")
    not_negative(name, x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(default)
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)


def weights_like(name: str, x: ArrayLike, like: jax.Array, like_name: str) -> jax.Array:
    """One real or boolean weight per entry of `like`."""
    x = array(name, x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(f"`{name}` must be real, got {x.dtype}.")
    if x.shape != like.shape:
        raise ValueError(f"`{name}` must have the shape of `{like_name}`, {like.shape}, got {x.shape}.")
    return x


def scalar_in(name: str, x: ArrayLike, lowest: float, highest: float) -> None:
    """A real scalar whose value, where known, lies in [lowest, highest]."""
    if np.shape(x) != ():
        raise ValueError(f"`{name}` must be a scalar, got shape {np.shape(x)}.")
    values = known(x)
    dtype = jnp.result_type(x) if values is None else values.dtype
    if not (dtype.kind in "fiu" or dtype == jnp.bfloat16):
        raise TypeError(f"`{name}` must be a real number, got {dtype}.")
    if values is not None and not lowest <= values <= highest:
        raise ValueError(f"`{name}` must be in [{lowest:g}, {highest:g}], got {values}.")


def positive_int(name: str, x: int) -> int:
    """A Python int of at least 1: it is a shape."""
    value = index(name, x)
    if value is None:
        raise TypeError(f"`{name}` must be an int, got NoneType.")
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value}.")
    return value


def choice(name: str, x: Any, choices: tuple) -> None:
    """One of the choices."""
    if not any(x is one or (isinstance(x, str) and x == one) for one in choices):
        raise ValueError(f"`{name}` must be one of {choices}, got {x!r}.")


def sum_dtype(name: str, x: Any) -> jnp.dtype:
    """The dtype of a stream's sums, of at least 32 bits: that named, or JAX' default."""
    dtype = jax.dtypes.canonicalize_dtype(x or float)
    if x not in (None, dtype.name) or dtype.itemsize < 4:
        raise ValueError(f"`{name}` must be float32, or float64 with `jax_enable_x64`, or None; got {x}.")
    return dtype


def option(
    name: str, x: ArrayLike, like: jax.Array, like_name: str, axis: int, dtype: jnp.dtype, classes: int
) -> jax.Array:
    """A real option in `dtype`, with the rank of `like` and its class axis at `axis`.

    It broadcasts against `like` with the class axis moved last: a scalar, `[C]`, or `[..., 1]`. Where `like`
    holds a shard of all `classes`, an option may have an entry for each of either.
    """
    if isinstance(x, list | tuple):
        x = np.asarray(x)
    x = array(name, x)
    if not (jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)):
        raise TypeError(f"`{name}` must be a real number or an array of them, got {x.dtype}.")
    last = like.shape[:axis] + like.shape[axis + 1 :] + like.shape[axis : axis + 1]
    if x.ndim and last and x.shape[-1] not in (1, last[-1], classes):
        shard = f" ({last[-1]} of a shard)" if last[-1] != classes else ""
        raise ValueError(
            f"`{name}` must have one entry per class, {classes}{shard}, or 1; got shape {x.shape}."
        )
    if x.ndim > len(last) or any(
        n not in (1, m) for n, m in zip(x.shape[-2::-1], last[-2::-1], strict=False)
    ):
        raise ValueError(
            f"`{name}` must be a scalar, [classes], or broadcast against `{like_name}` with the class axis "
            f"last, {last}; got shape {x.shape}."
        )
    x = x.astype(dtype).reshape((1,) * (len(last) - x.ndim) + x.shape)
    return jnp.moveaxis(x, -1, axis) if last else x


def mesh_axis(x: _mesh.AxisName | None, like: jax.Array, like_name: str) -> _mesh.AxisName | None:
    """None, or the mesh axes that shard the classes of `like`, known to do so."""
    if x is None:
        return None
    names = x if isinstance(x, tuple) else (x,)
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError(f"`axis_name` must be the name of a mesh axis or a tuple of names, got {x!r}.")
    if not _mesh.varies(like, x):
        raise ValueError(
            f"`axis_name` must name mesh axes that shard `{like_name}`, inside `jax.shard_map` with "
            f"check_vma=True; got {x!r} where `{like_name}` is {jax.typeof(like)}."
        )
    return x


def not_negative(name: str, x: ArrayLike) -> None:
    """Every known value is at least 0."""
    values = known(x)
    if values is not None and not np.all(values >= 0):
        raise ValueError(f"`{name}` must be at least 0, got {_first(values, ~(values >= 0))}.")


def positive(name: str, x: ArrayLike) -> None:
    """Every known value is above 0."""
    values = known(x)
    if values is not None and not np.all(values > 0):
        raise ValueError(f"`{name}` must be above 0, got {_first(values, ~(values > 0))}.")


def bounds(name: str, x: tuple[float, float]) -> tuple[float, float]:
    """Two known numbers, 0 < low <= high."""
    try:
        low, high = map(float, x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must be two known numbers, got {x!r}.") from error
    if not 0 < low <= high < float("inf"):
        raise ValueError(f"`{name}` must be 0 < low <= high, got {x!r}.")
    return low, high


def scalar_in_unit_interval(name: str, x: ArrayLike) -> None:
    """A scalar whose value, where known, lies in [0, 1]."""
    scalar_in(name, x, 0, 1)


def mask(name: str, x: ArrayLike, like: jax.Array, like_name: str) -> jax.Array:
    """A boolean array of the rank of `like` that broadcasts to its shape."""
    x = array(name, x)
    if x.dtype != jnp.bool_:
        raise TypeError(f"`{name}` must be boolean, got {x.dtype}.")
    if x.ndim not in (0, like.ndim) or any(
        n not in (1, m) for n, m in zip(x.shape, like.shape, strict=False)
    ):
        raise ValueError(
            f"`{name}` must broadcast to the shape of `{like_name}`, {like.shape}; got {x.shape}."
        )
    return x.reshape((1,) * like.ndim) if x.ndim == 0 else x


def flag(name: str, x: bool) -> bool:
    """A Python bool: it chooses the program, so it cannot be traced."""
    if isinstance(x, core.Tracer):
        raise TypeError(
            f"`{name}` must be a Python bool, got a traced value: mark it static under `jax.jit`."
        )
    if not isinstance(x, bool | np.bool_):
        raise TypeError(f"`{name}` must be a bool, got {type(x).__name__}.")
    return bool(x)


def index(name: str, x: int | None) -> int | None:
    """A Python int or None."""
    if x is None:
        return None
    if isinstance(x, bool | np.bool_ | core.Tracer):
        raise TypeError(f"`{name}` must be an int or None, got {type(x).__name__}.")
    try:
        return operator.index(x)
    except TypeError:
        raise TypeError(f"`{name}` must be an int or None, got {type(x).__name__}.") from None


def reduction(name: str | None) -> str | None:
    """One of the reductions."""
    if not any(name is choice or name == choice for choice in REDUCTIONS):
        raise ValueError(f"`reduction` must be one of {REDUCTIONS}, got {name!r}.")
    return name


def _first(values: np.ndarray, wrong: Sequence[bool] | np.ndarray) -> object:
    return values[np.asarray(wrong)].flat[0]


def untouched(name: str, x: ArrayLike, default: float, needed: str) -> None:
    """An option that would have no effect still has its default."""
    values = known(x)
    if values is None or values.shape != () or values != default:
        raise ValueError(f"`{name}` has no effect without {needed}, got {x!r}.")


def plain(name: str, x: Any) -> Any:
    """An option as plain Python values: arrays and sequences become nested tuples of numbers."""
    values = known(x)
    if values is None:
        raise TypeError(f"`{name}` of an object must be a known value, got a traced one.")
    if isinstance(x, bool) or values.dtype.kind not in "fiuV":
        raise TypeError(f"`{name}` must be a real number or an array of them, got {x!r}.")
    return x if isinstance(x, int | float) else _tuples(values.astype(np.float64).tolist())


def float_dtype(name: str, x: Any) -> str:
    """The name of a floating dtype."""
    try:
        dtype = jnp.dtype(x)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"`{name}` must be a floating dtype or None, got {x!r}.")
    return dtype.name


def _tuples(x: Any) -> Any:
    return tuple(map(_tuples, x)) if isinstance(x, list) else x


class Layer(NamedTuple):
    """A layer that fits its inputs."""

    inputs: jax.Array  # [..., D]
    kernel: jax.Array  # [D, C], or this device's shard of the classes
    bias: jax.Array | None  # [C]
    name: _mesh.AxisName | None
    logits: jax.ShapeDtypeStruct  # what they would be; in the dtype of the arithmetic


def layer(inputs: ArrayLike, kernel: ArrayLike, bias: ArrayLike | None, axis_name: Any) -> Layer:
    """Floating inputs, kernel and bias whose shapes fit."""
    x, w = floating("inputs", inputs), floating("kernel", kernel)
    if w.ndim != 2 or w.shape[1] == 0:
        raise ValueError(f"`kernel` must have the shape [D, C] with at least one class, got {w.shape}.")
    if x.ndim == 0 or x.shape[-1] != w.shape[0]:
        raise ValueError(f"`inputs` must have the shape [..., {w.shape[0]}] for `kernel`, got {x.shape}.")
    b = None if bias is None else floating("bias", bias)
    if b is not None and b.shape != w.shape[1:]:
        raise ValueError(f"`bias` must have the shape [{w.shape[1]}] for `kernel`, got {b.shape}.")
    name = mesh_axis(axis_name, w, "kernel")
    dtype = x.dtype if x.dtype.itemsize >= 4 else jnp.float32
    return Layer(x, w, b, name, jax.ShapeDtypeStruct((*x.shape[:-1], w.shape[1]), dtype))


def layer_labels(x: ArrayLike, logits: jax.ShapeDtypeStruct, ignored: int | None, classes: int) -> jax.Array:
    """One class index per example."""
    like: Any = logits
    axis = len(logits.shape) - 1
    return integer_labels("labels", x, like, "inputs", axis, ignored, "softmax_focal_loss", classes)


def layer_option(name: str, x: ArrayLike, logits: jax.ShapeDtypeStruct, classes: int) -> jax.Array:
    """A scalar, [C], or [..., 1], in the rank of the logits; not one entry per logit."""
    like: Any = logits
    found = option(name, x, like, "inputs @ kernel", len(logits.shape) - 1, logits.dtype, classes)
    if found.shape[-1] != 1 and any(n != 1 for n in found.shape[:-1]):
        raise ValueError(
            f"`{name}` must be a scalar, [classes], or one per example, [..., 1]; got shape {np.shape(x)}."
        )
    return found


def layer_weights(x: ArrayLike, logits: jax.ShapeDtypeStruct) -> jax.Array:
    """One real or boolean weight per example, or one for all."""
    x = array("weights", x)
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
    not_negative(name, x)


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
