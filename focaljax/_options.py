"""Options of objects as plain Python values, and checks of their states."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from focaljax import _arguments


def plain(name: str, x: Any, highest: float = math.inf) -> Any:
    """An option in [0, highest] as plain Python values: arrays and lists become nested tuples of numbers."""
    values = _arguments.known(x)
    if values is None:
        _arguments.array(name, x)  # names a ragged list
        raise TypeError(f"`{name}` of an object must be a known value, got a traced one.")
    if values.dtype.kind not in "fiuV":
        raise TypeError(f"`{name}` must be a real number or an array of them, got {x!r}.")
    _arguments.in_range(name, values, 0, highest)
    return x if isinstance(x, int | float) else _tuples(values.astype(np.float64).tolist())


def _tuples(x: Any) -> Any:
    return tuple(map(_tuples, x)) if isinstance(x, list) else x


def _smoothing(name: str, x: Any) -> Any:
    _arguments.scalar_in(name, x, 0, 1)
    return plain(name, x)


RULES: dict[str, Callable[[str, Any], Any]] = {
    "alpha": plain,
    "gamma": plain,
    "label_smoothing": _smoothing,
    "from_logits": _arguments.flag,
    "apply_class_balancing": _arguments.flag,
    "ignore_class": _arguments.index,
    "ignore_index": _arguments.index,
    "axis": _arguments.integer,
    "bins": _arguments.positive_int,
    "num_classes": _arguments.positive_int,
    "reduction": lambda name, x: _arguments.choice(name, x, _arguments.Reduction),
    "dtype": _arguments.float_dtype,
}


def settle(made: Any) -> None:
    """Checks the options of a frozen dataclass and stores them as plain Python values."""
    for field in dataclasses.fields(made):
        if field.name in RULES:
            object.__setattr__(made, field.name, RULES[field.name](field.name, getattr(made, field.name)))
    if hasattr(made, "apply_class_balancing"):
        positive_weight(made.alpha, made.apply_class_balancing)


def positive_weight(alpha: Any, balanced: bool) -> None:
    """The alpha of a binary loss of Keras: in [0, 1] where it is used, else untouched."""
    if balanced:
        _arguments.in_range("alpha", _arguments.known(alpha), 0, 1)
    else:
        _arguments.untouched("alpha", alpha, 0.25, "apply_class_balancing=True")


def state(x: Any, cls: Any, shape: tuple[int, ...]) -> Any:
    """Checks the state of a stream: arrays of `shape` and of one dtype, float32 or float64."""
    leaves = vars(x).values() if type(x) is cls else ()
    found = {(np.shape(leaf), str(getattr(leaf, "dtype", type(leaf).__name__))) for leaf in leaves}
    if len(found) == 1 and found <= {(shape, "float32"), (shape, "float64")}:
        return x
    got = " and ".join(f"{dtype} of shape {size}" for size, dtype in sorted(found)) or type(x).__name__
    raise (ValueError if found else TypeError)(
        f"`state` must be a {cls.__name__} of float32 or float64 arrays of shape {shape}, got {got}."
    )
