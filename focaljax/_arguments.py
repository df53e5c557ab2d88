"""Rules about arguments, and their error messages.

The rules run while a program is traced. They look at shapes and dtypes always, and at values where these are
known: Python numbers, lists, NumPy arrays, and small JAX arrays outside a transformation. JAX arrays of
labels may be large and are never read.
"""

import dataclasses
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import core, lax
from jax.typing import ArrayLike

from focaljax import _sharding
from focaljax._exact import wide
from focaljax.terms import Focal, Poly, Term

# An array, a number, or lists of them.
Values = ArrayLike | Sequence[ArrayLike | Sequence[ArrayLike | Sequence[ArrayLike]]]
Reduction = Literal["sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none"] | None
SoftLabels = Literal["mixture", "linear", "quality", "cross_entropy"] | None
Strategy = Literal["rows", "classes"] | None
Normalization = Literal["examples", "classes", "sum", "max"] | None
IGNORED = " -1, -100, 255 usually mark entries to ignore: give these the weight 0."
SMALL = 2**20  # entries of a JAX array that is copied to the host to be looked at


def known(x: Any) -> np.ndarray | None:
    """The value of `x` where it is known while tracing, else None."""
    if isinstance(x, jax.Array) and not isinstance(x, core.Tracer):
        return np.asarray(jax.device_get(x)) if x.is_fully_addressable and x.size <= SMALL else None
    return on_host(x)


def on_host(x: Any) -> np.ndarray | None:
    """`x` as a NumPy array of numbers, where it is none of JAX'; its integers may be of any size."""
    if isinstance(x, jax.Array):
        return None
    try:
        values = np.asarray(x)
        rounded = values.dtype == np.float64 and isinstance(x, list | tuple)
        exact = np.asarray(x, object) if rounded else values
    except (TypeError, ValueError):  # traced entries, or a ragged list
        return None
    if exact.size and exact.dtype == object and all(type(one) is int for one in exact.flat):
        return exact  # NumPy rounds a list of 2^63 and -1
    return values if values.dtype != object else None


def array(name: str, x: Any) -> jax.Array:
    """`x` as a JAX array; lists and other non-arrays are named, not guessed at."""
    try:
        if not isinstance(x, str):  # JAX takes a letter for a dtype
            return jnp.asarray(x)
        error = "a string"
    except (TypeError, ValueError, OverflowError) as found:
        error = found
    raise TypeError(f"`{name}` must be an array, got {type(x).__name__}: {error}")


def without_gradient(*arguments: Any) -> tuple[Any, ...]:
    """The arguments without derivatives."""
    return jax.tree.map(lambda x: lax.stop_gradient(x) if isinstance(x, jax.Array) else x, arguments)


# Numbers and words.


def integer(name: str, x: Any, also: str = "") -> int:
    """A Python int."""
    try:
        if not isinstance(x, bool | np.bool_ | core.Tracer):
            return operator.index(x)
    except TypeError:
        pass
    raise TypeError(f"`{name}` must be an int{also}, got {type(x).__name__}.")


def index(name: str, x: Any) -> int | None:
    """A Python int or None."""
    return None if x is None else integer(name, x, " or None")


def positive_int(name: str, x: Any, also: str = "") -> int:
    """A Python int of at least 1: it is a shape."""
    value = integer(name, x, also)
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value}.")
    return value


def at_least_one(name: str, x: Any) -> int | None:
    """A positive int or None."""
    return None if x is None else positive_int(name, x, " or None")


def flag(name: str, x: Any) -> bool:
    """A Python bool: it chooses the program, so it cannot be traced."""
    if isinstance(x, core.Tracer):
        raise TypeError(f"`{name}` must be a bool, got a traced value: mark it static under `jax.jit`.")
    if not isinstance(x, bool | np.bool_):
        raise TypeError(f"`{name}` must be a bool, got {type(x).__name__}.")
    return bool(x)


def choice(name: str, x: Any, words: Any) -> Any:
    """One of the words of a `Literal`, or None."""
    choices = (*get_args(get_args(words)[0]), None)
    if not any(x is one or (isinstance(x, str) and x == one) for one in choices):
        raise ValueError(f"`{name}` must be one of {choices}, got {x!r}.")
    return x


def needs_mean(reduction: Any, normalizer: Any) -> None:
    """A `normalizer` comes with a reduction that divides by a number of losses."""
    if normalizer is not None and reduction not in ("sum_over_batch_size", "mean"):
        raise ValueError(
            '`normalizer` must be None unless `reduction` is "sum_over_batch_size" or "mean", '
            f"got {reduction!r}."
        )


def scalar_in(name: str, x: Any, lowest: float, highest: float) -> None:
    """A real scalar whose value, where known, lies in [lowest, highest] and is finite."""
    values = known(x)
    found = _numbers(name, array(name, x) if values is None else values, "a real number")
    if found.shape != ():
        raise ValueError(f"`{name}` must be a scalar, got shape {found.shape}.")
    in_range(name, values, lowest, highest)


def in_range(
    name: str, values: np.ndarray | None, lowest: float, highest: float, hints: dict[int, str] | None = None
) -> None:
    """All known values lie in [lowest, highest] and are finite; `hints` are for what is usual outside."""
    if values is None:
        return
    with np.errstate(invalid="ignore"):  # NaN compares as False
        inside = (values >= lowest) & (values <= highest) & (abs(values) < math.inf)
        wrong = values[~inside]
    if wrong.size:
        wanted = f"in [{lowest:g}, {highest:g}]" if highest < math.inf else f"at least {lowest:g} and finite"
        wanted = wanted if lowest > -math.inf else "finite"
        hint = next((hint for mark, hint in (hints or {}).items() if mark in wrong), "")
        raise ValueError(f"`{name}` must be {wanted}, got {wrong[0]}.{hint}")


def positive(name: str, x: Any) -> None:
    """Known values, all at least 0, are above it."""
    values = known(x)
    if values is not None and np.any(values == 0):
        raise ValueError(f"`{name}` must be above 0, got {values[values == 0][0]}.")


def bounds(name: str, x: Any) -> tuple[float, float]:
    """Two known numbers, 0 < low <= high."""
    try:
        low, high = map(float, x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must be two known numbers, got {x!r}.") from error
    if not 0 < low <= high < float("inf"):
        raise ValueError(f"`{name}` must be 0 < low <= high, got {x!r}.")
    return low, high


def cap(x: Any) -> float | None:
    """A positive Python number: it is part of the program."""
    if x is None:
        return None
    if isinstance(x, core.Tracer) or isinstance(x, bool) or not isinstance(x, int | float | np.number):
        raise TypeError(f"`logit_soft_cap` must be a Python number or None, got {type(x).__name__}.")
    if not 0 < x < np.inf:
        raise ValueError(f"`logit_soft_cap` must be positive and finite, got {x}.")
    return float(x)


def precision(x: Any) -> Any:
    """What `jax.numpy.matmul` takes, in a form that can be hashed."""
    if x is None or isinstance(x, str | lax.Precision | lax.DotAlgorithmPreset | lax.DotAlgorithm):
        return x
    if isinstance(x, list | tuple) and len(x) == 2:
        return tuple(x)
    raise TypeError(f"`precision` must be a JAX matmul precision or None, got {x!r}.")


def size_of_chunks(strategy: str, size: Any) -> None:
    """Classes in chunks need their number; in an exported program it may be a symbol."""
    if strategy == "classes" and not isinstance(size, int):
        raise ValueError(
            f'`strategy` "classes" needs a known number of classes, got {size}; "rows" does not.'
        )


def float_dtype(name: str, x: Any) -> str | None:
    """The name of a floating dtype, or None."""
    if x is None:
        return None
    try:
        dtype = jnp.dtype(x)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"`{name}` must be a floating dtype or None, got {x!r}.")
    return dtype.name


def sum_dtype(name: str, x: Any) -> jnp.dtype:
    """The dtype of a stream's sums, of at least 32 bits: that named, or JAX' default."""
    dtype = jax.dtypes.canonicalize_dtype(x or float)
    if x not in (None, dtype.name) or dtype.itemsize < 4:
        raise ValueError(f"`{name}` must be float32, or float64 with `jax_enable_x64`, or None; got {x}.")
    return dtype


# Logits, inputs and the class axis.


def floating(name: str, x: Any) -> jax.Array:
    """A floating-point array."""
    x = array(name, x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"`{name}` must be floating, got {x.dtype}.")
    return x


def logits(name: str, x: Any, axis: Any) -> tuple[jax.Array, int]:
    """Logits (or probabilities) with at least one class, and the class axis counted from 0."""
    x = floating(name, x)
    axis = class_axis(name, x.ndim, axis)
    if x.shape[axis] == 0:
        raise ValueError(f"`{name}` must have at least one class, got shape {x.shape} with axis={axis}.")
    return x, axis


def class_axis(name: str, ndim: int, axis: Any) -> int:
    """`axis` counted from 0."""
    position = integer("axis", axis)
    if not -ndim <= position < ndim:
        raise ValueError(f"`axis` must be in [{-ndim}, {ndim}) for `{name}` of rank {ndim}, got {position}.")
    return position % ndim


class Layer(NamedTuple):
    """A layer that fits its inputs."""

    inputs: jax.Array  # [..., D]
    kernel: jax.Array  # [D, C], or this device's shard of the classes
    bias: jax.Array | None  # [C]
    name: _sharding.AxisName | None
    logits: jax.ShapeDtypeStruct  # what they would be; in the dtype of the arithmetic


def layer(inputs: Any, kernel: Any, bias: Any, axis_name: Any) -> Layer:
    """Floating inputs, kernel and bias whose shapes fit."""
    x, w = floating("inputs", inputs), floating("kernel", kernel)
    if w.ndim != 2 or w.shape[1] == 0:
        raise ValueError(f"`kernel` must have the shape [D, C] with at least one class, got {w.shape}.")
    if x.ndim == 0 or x.shape[-1] != w.shape[0]:
        raise ValueError(f"`inputs` must have the shape [..., {w.shape[0]}] for `kernel`, got {x.shape}.")
    b = None if bias is None else floating("bias", bias)
    if b is not None and b.shape != w.shape[1:]:
        raise ValueError(f"`bias` must have the shape [{w.shape[1]}] for `kernel`, got {b.shape}.")
    name = mesh_axis(axis_name, w, "kernel", w.shape[1])
    return Layer(x, w, b, name, jax.ShapeDtypeStruct((*x.shape[:-1], w.shape[1]), wide(x.dtype)))


def mesh_axis(x: Any, like: jax.Array, like_name: str, classes: int) -> _sharding.AxisName | None:
    """None, or the axes that shard the classes of `like`, of which a shard has so many."""
    if x is None:
        return None
    names = x if isinstance(x, tuple) else (x,)
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError(f"`axis_name` must be the name of a mesh axis or a tuple of names, got {x!r}.")
    summed_axis(x)
    tracked = _sharding.is_tracked(x)
    if tracked and not _sharding.varies(like, x):
        kind = jax.typeof(like)
        raise ValueError(f"`axis_name` must name axes that shard `{like_name}`, {kind}; got {x!r}.")
    if not tracked and classes == 1:  # an option of size 1 could be that of the class, or of all
        needs = f"needs at least 2 classes of `{like_name}` per device"
        raise ValueError(f"`axis_name` {needs} outside `jax.shard_map(..., check_vma=True)`, got 1.")
    return x


def summed_axis(x: Any, name: str = "axis_name") -> _sharding.AxisName | None:
    """None, or axes of `jax.shard_map` or `jax.vmap` over which something is summed."""
    try:
        for one in _sharding.names(x):
            lax.axis_size(one)
    except (NameError, TypeError, ValueError) as error:
        raise ValueError(
            f"`{name}` must name an axis of `jax.shard_map` or `jax.vmap` around the call, got {x!r}."
        ) from error
    return x


# Labels, weights and masks.


def dense_labels(
    name: str,
    x: Any,
    like: jax.Array,
    like_name: str,
    axis: int,
    indexed: str | None,
    where: Any = None,
    highest: float = math.inf,
) -> jax.Array:
    """One label per logit, of the shape of `like`; `indexed` names the function for integer labels.

    Known labels that a mask leaves lie in [0, highest]. What an unknown mask leaves is unknown.
    """
    values = on_host(x)
    x = real(name, x)
    if x.shape != like.shape:
        hint = ""
        if indexed and x.shape == like.shape[:axis] + like.shape[axis + 1 :]:
            hint = f" For class indices use `{indexed}`."
        raise ValueError(f"`{name}` must have the shape of `{like_name}`, {like.shape}, got {x.shape}.{hint}")
    if values is not None and where is not None:
        kept = known(where)
        values = None if kept is None else values[np.broadcast_to(kept, values.shape)]
    in_range(name, values, 0, highest, dict.fromkeys((-1, -100, 255), IGNORED))
    return x


def integer_labels(
    name: str,
    x: Any,
    like: Any,
    like_name: str,
    axis: int,
    ignored: int | None,
    dense: str,
    classes: int,
) -> tuple[jax.Array, int | None]:
    """One class index per row of `like`, and what is ignored; `dense` is the function for one-hot labels."""
    without = [like.shape[:i] + like.shape[i + 1 :] for i in range(like.ndim)]

    def hint(shape: tuple[int, ...]) -> str:
        if shape == like.shape:
            return f" For one-hot or soft labels use `{dense}`."
        meant = [i for i, rows in enumerate(without) if rows == shape != without[axis]]
        return f" Do the classes lie along axis {meant[0]} of `{like_name}`?" if meant else ""

    x, ignored = class_indices(name, x, classes, ignored, hint)
    if x.shape != (rows := without[axis]):
        raise ValueError(
            f"`{name}` must have shape {rows}, that of `{like_name}` without axis {axis}, "
            f"got {x.shape}.{hint(x.shape)}"
        )
    return x, ignored


def positives(
    name: str, x: Any, like: Any, like_name: str, axis: int, ignored: int | None, classes: int
) -> tuple[jax.Array, int | None]:
    """The indices of the positive classes of each row along a last axis, and what is ignored."""
    x, ignored = class_indices(name, x, classes, ignored, outside=True)
    rows = like.shape[:axis] + like.shape[axis + 1 :]
    if x.ndim not in (len(rows), len(rows) + 1) or x.shape[: len(rows)] != rows:
        raise ValueError(
            f"`{name}` must have shape {rows}, that of `{like_name}` without axis {axis}, or with one axis "
            f"more, {(*rows, 'L')}; got {x.shape}."
        )
    return jnp.expand_dims(x, -1) if x.ndim == len(rows) else x, ignored


def class_indices(
    name: str,
    x: Any,
    classes: int,
    ignored: int | None,
    hint: Callable[[tuple[int, ...]], str] = lambda shape: "",
    outside: bool = False,
) -> tuple[jax.Array, int | None]:
    """Class indices of at least 32 bits, and the one that is ignored, None if none of them can be.

    Known values are looked at before JAX narrows them. They are classes or ignored, unless others may lie
    `outside`: these become -1, and an ignored label that is no class -2.
    """
    values = on_host(x)
    if values is not None and values.dtype.kind in "iuO":
        inside, marked = (values >= 0) & (values < classes), values == ignored
        wrong = values[~(inside | marked)]
        if wrong.size and not outside:
            raise ValueError(f"`{name}` must be in [0, {classes}), got {wrong[0]}.{hint(values.shape)}")
        narrow = np.full(values.shape, -1, np.int32)
        narrow[marked] = -2
        narrow[inside] = values[inside]
        return jnp.asarray(narrow), ignored if ignored is None or 0 <= ignored < classes else -2
    x = array(name, x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"`{name}` must be integer class indices, got {x.dtype}.{hint(x.shape)}")
    info = jnp.iinfo(x.dtype)
    ignored = ignored if ignored is not None and info.min <= ignored <= info.max else None
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.int32), ignored


def whole_numbers(name: str, x: Any, ignored: int | None) -> Any:
    """Class indices from what may be floating, as Keras hands them over.

    Known values are whole numbers. Of unknown ones those that are not become an index that is no class and
    not the ignored one, so that their loss is NaN.
    """
    values = on_host(x)
    if values is not None and values.dtype.kind in "iuO":
        return values
    labels: Any = array(name, x) if values is None else values
    if not jnp.issubdtype(labels.dtype, jnp.floating):
        return labels
    if values is None:
        whole = (labels == jnp.floor(labels)) & (jnp.abs(labels) < 2.0**31)
        return jnp.where(whole, labels, -2 if ignored == -1 else -1).astype(jnp.int32)
    wrong = values[~((values == np.floor(values)) & (np.abs(values) < 2**63))]
    if wrong.size:
        raise ValueError(f"`{name}` must be whole numbers, the indices of classes, got {wrong[0]}.")
    return values.astype(np.int64)


def is_ignored(name: str, x: Any, ignored: Any) -> Any:
    """Where a label is the ignored one, whatever its dtype can hold."""
    values = on_host(x)
    if values is not None:
        return values == ignored
    x = array(name, x)
    if jnp.issubdtype(x.dtype, jnp.integer):
        info = jnp.iinfo(x.dtype)
        if not info.min <= ignored <= info.max:  # uint8 has no -1
            return jnp.zeros(x.shape, bool)
    return x == jnp.asarray(ignored, x.dtype)


def class_counts(name: str, x: Any) -> jax.Array:
    """One count per class, [C], at least 0, floating in at least float32."""
    default = jax.dtypes.canonicalize_dtype(float)
    x = _numbers(name, amounts(name, x), "real")
    if x.ndim != 1 or not x.size:
        raise ValueError(f"`{name}` must have one entry per class, shape [C], got {x.shape}.")
    return x.astype(default) if not jnp.issubdtype(x.dtype, jnp.floating) or x.dtype.itemsize < 4 else x


def amounts(name: str, x: Any) -> jax.Array:
    """A real or boolean array; known entries are at least 0 and finite."""
    values = known(x)
    if values is not None and not isinstance(x, jax.Array) and values.dtype.kind in "iu":
        x = values.astype(np.float64)  # before JAX wraps an int64 to 32 bits
    x = real(name, x)
    in_range(name, values, 0, math.inf)
    return x


def real(name: str, x: Any) -> jax.Array:
    """A real or boolean array."""
    x = array(name, x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(f"`{name}` must be real, got {x.dtype}.")
    return x


def weights(name: str, x: Any, shape: tuple[int, ...]) -> jax.Array:
    """One real or boolean weight per label, or one for all."""
    x = real(name, x)
    if x.shape not in ((), shape):
        raise ValueError(f"`{name}` must be a scalar or have the shape of `labels`, {shape}; got {x.shape}.")
    return jnp.broadcast_to(x, shape)


def label_weights(x: Any, labels: jax.Array, rows: tuple[int, ...]) -> jax.Array:
    """How much of each row's label each of its classes is; known entries are at least 0 and finite."""
    x = amounts("label_weights", x)
    if x.shape != labels.shape or x.ndim != len(rows) + 1 or x.shape[:-1] != rows:
        raise ValueError(
            f"`label_weights` and `labels` must have one shape, {(*rows, 'L')}: that of `inputs` with the "
            f"classes of an example in the place of its last axis; got {x.shape} and {labels.shape}."
        )
    return x


def mask(name: str, x: Any, like: jax.Array, like_name: str) -> jax.Array:
    """A boolean array of the rank of `like` that broadcasts to its shape."""
    x = array(name, x)
    if x.dtype != jnp.bool_:
        raise TypeError(f"`{name}` must be boolean, got {x.dtype}.")
    sizes = zip(x.shape, like.shape, strict=False)
    if x.ndim not in (0, like.ndim) or any(n not in (1, m) for n, m in sizes):
        raise ValueError(
            f"`{name}` must broadcast to the shape of `{like_name}`, {like.shape}; got {x.shape}."
        )
    return x.reshape((1,) * like.ndim) if x.ndim == 0 else x


# Options.


def _numbers(name: str, x: Any, what: str) -> Any:
    """An array of real numbers; booleans are none."""
    if not (jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)):
        raise TypeError(f"`{name}` must be {what}, got {x.dtype}.")
    return x


def option(
    name: str,
    x: Any,
    like: Any,
    like_name: str,
    axis: int,
    dtype: Any,
    classes: int,
    highest: float = math.inf,
    lowest: float = 0,
) -> jax.Array:
    """A real option in `dtype`, with the rank of `like` and its class axis at `axis`.

    It broadcasts against `like` with the class axis moved last: a scalar, `[C]`, or `[..., 1]`. Where `like`
    holds a shard of all `classes`, an option may have an entry for each of either. Known values lie in
    [lowest, highest] and are finite.
    """
    values = known(x)
    if values is not None and not isinstance(x, jax.Array) and values.dtype.kind in "iuf":
        x = values.astype(np.float64)  # before JAX wraps an int64 to 32 bits
    x = _numbers(name, array(name, x), "a real number or an array of them")
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
    in_range(name, values, lowest, highest, {-1: " None is no weights."} if name == "alpha" else None)
    x = x.astype(dtype).reshape((1,) * (len(last) - x.ndim) + x.shape)
    return jnp.moveaxis(x, -1, axis) if last else x


def layer_option(name: str, x: Any, logits: jax.ShapeDtypeStruct, classes: int, **limits: float) -> jax.Array:
    """A scalar, [C], or [..., 1], in the rank of the logits; not one entry per logit."""
    axis = len(logits.shape) - 1
    found = option(name, x, logits, "inputs @ kernel", axis, logits.dtype, classes, **limits)
    if found.shape[-1] != 1 and any(n != 1 for n in found.shape[:-1]):
        raise ValueError(
            f"`{name}` must be a scalar, [classes], or one per example, [..., 1]; got shape {np.shape(x)}."
        )
    return found


def layer_mask(x: Any, logits: jax.ShapeDtypeStruct, classes: int) -> jax.Array:
    """Booleans [C], or [..., 1], in the rank of the logits."""
    x = array("where", x)
    if x.dtype != jnp.bool_:
        raise TypeError(f"`where` must be boolean, got {x.dtype}.")
    of_rows, of_classes = (*logits.shape[:-1], 1), ((classes,), logits.shape[-1:])
    if x.shape != of_rows and x.shape not in of_classes:
        raise ValueError(
            f"`where` must have one entry per class, [{classes}], or per example, {of_rows}; got {x.shape}."
        )
    return x.reshape((1,) * (len(of_rows) - x.ndim) + x.shape)


def soft_labels(x: Any, term: Any) -> str:
    """How labels between 0 and 1 are read: by a name that the term has, or by its own default."""
    powers = term is None or type(term) in (Focal, Poly)
    choice("soft_labels", x, SoftLabels)
    if x not in (None, "linear") and not powers:
        raise ValueError(
            f'`soft_labels` must be "linear" or None for {type(term).__name__}, got {x!r}, which Focal '
            "and Poly have."
        )
    return x or ("mixture" if powers else "linear")


def term(x: Any, gamma: Any, option: Callable[..., jax.Array], binary: bool = False) -> Term:
    """A term with its options as `option` makes them; without one, `gamma` is that of focal loss.

    Only a `binary` loss takes one whose two answers differ.
    """
    if x is None:
        return Focal(option("gamma", gamma))
    if not isinstance(x, Term) or type(x) is Term:
        got = "Term itself" if type(x) is Term else type(x).__name__
        raise TypeError(f"`term` must be a focaljax.terms.Term or None, got {got}.")
    if x.binary and not binary:
        raise ValueError(f'`term` {type(x).__name__} is for sigmoid losses: a softmax has no answer "no".')
    values = known(gamma)
    if values is None or values.shape != () or values != 2:
        raise ValueError(
            f"`gamma` is short for `term=Focal(gamma)`: give one of the two, got gamma={gamma!r}."
        )
    return _term_options(x, "term.", option)


def _term_options(x: Term, prefix: str, option: Callable[..., jax.Array]) -> Term:
    def made(name: str) -> Any:
        value, (lowest, highest) = getattr(x, name), x.ranges.get(name, (-math.inf, math.inf))
        if isinstance(value, Term):
            return _term_options(value, f"{prefix}{name}.", option)
        return option(prefix + name, value, lowest=lowest, highest=highest)

    fields: Any = dataclasses.fields(cast(Any, x))
    return dataclasses.replace(cast(Any, x), **{field.name: made(field.name) for field in fields})


def untouched(name: str, x: Any, default: float, needed: str) -> None:
    """An option that would have no effect still has its default."""
    values = known(x)
    if values is None or values.shape != () or values != default:
        raise ValueError(f"`{name}` has no effect without {needed}, got {x!r}.")
