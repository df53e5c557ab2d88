"""Every tolerance of the numerical tests, as k * eps(dtype), with its reason: one table.

An error is judged against `rtol(quantity, gamma, dtype)` times the desired result or, where terms
of both signs meet, times the sum of their absolute values (the oracle's scales). Errors are
reported in u = 2^-24, half of float32's eps.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Tolerance(NamedTuple):
    """k * eps for gamma <= 2, `steep` * eps beyond, and why."""

    k: float
    steep: float
    reason: str


TABLE = {
    "value": Tolerance(
        16, 80, "the promise: 2e-6, and 1e-5 beyond gamma = 2, as the error grows with gamma + 1"
    ),
    "gradient": Tolerance(16, 80, "the promise, for every entry: slope(u) times one exponential"),
    "gradient_gamma": Tolerance(20, 84, "the value's, times log q, which adds up to 4 roundings of its own"),
    "gradient_weights": Tolerance(16, 80, "q^gamma (-log p): the value without its weight"),
    "gradient_scale": Tolerance(
        16, 80, "soft labels: p_k sum A_c and q_k A_k may cancel; relative to the oracle's `scale`"
    ),
    "hessian": Tolerance(
        80, 80, "1e-5 of the oracle's `hessian_scale` (or `_odds`): products of two such gradients"
    ),
    "same": Tolerance(
        8, 40, "one formula compiled twice (jit, vmap, sharding): another order of the same sums"
    ),
    "keras": Tolerance(8, 8, "1e-6: agreement with another float32 library where that one does not clip"),
    "rounding": Tolerance(0.5, 0.5, "a result returned in a narrower dtype is rounded once"),
}


FLUSHED_LOG = 104.0  # |log p| where float32's p has become zero, at most (2^-150)


class _Format(NamedTuple):
    eps: float
    tiny: float  # the smallest normal number
    largest: float


def _format(dtype: object) -> _Format:
    """Of a floating dtype, its scalar type or its name; numpy alone does not know bfloat16."""
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    if name == "bfloat16":
        return _Format(2.0**-7, 2.0**-126, (2 - 2.0**-7) * 2.0**127)
    info = np.finfo(name)
    return _Format(float(info.eps), float(info.tiny), float(info.max))


def eps(dtype: object) -> float:
    """The machine epsilon of a floating dtype."""
    return _format(dtype).eps


def rtol(quantity: str, gamma: ArrayLike = 0.0, dtype: object = "float32", returned: object = None) -> float:
    """The relative tolerance of `quantity`, computed in `dtype` at the largest of `gamma`.

    `returned` is the dtype of the result where it is narrower than `dtype` (the gradient of
    bfloat16 logits): half an ulp of that is added.
    """
    tolerance = TABLE[quantity]
    k = tolerance.k if np.max(gamma) <= 2 else tolerance.steep
    narrow = returned is not None and eps(returned) > eps(dtype)
    return k * eps(dtype) + (TABLE["rounding"].k * eps(returned) if narrow else 0.0)


def flush(classes: int = 1, dtype: object = "float32", factor: ArrayLike = 1.0) -> float:
    """Results below this may be zero: C * the smallest normal number, times `factor` if above 1.

    XLA flushes subnormal numbers to zero, and so does each of the C terms of a sum. `factor` is
    what the flushed number would have been multiplied by: alpha, and `FLUSHED_LOG * (1 + gamma)`
    wherever p meets its logarithm (the derivative in gamma, the Hessian). `dtype` is that of the
    result; a float16 one keeps its subnormals: there the rounding is 2^-25, absolute.
    """
    if _format(dtype).largest < 1e5:
        return 2.0**-25
    return classes * _format(dtype).tiny * max(1.0, float(np.max(factor)))


def errors(
    actual: ArrayLike, desired: ArrayLike, scale: ArrayLike | None = None, tiny: float = 0.0
) -> NDArray[np.float64]:
    """(|actual - desired| - tiny) / scale, elementwise in float64; `scale` is |desired| if None.

    Zero where both agree, which includes an infinity for what the dtype of `actual` cannot hold;
    inf for a NaN, a wrong infinity, or a difference where the scale is zero.
    """
    largest = _format(np.asarray(actual).dtype).largest
    got = np.asarray(actual).astype(np.float64)
    want = np.asarray(desired, np.float64)
    if got.shape != want.shape:
        raise AssertionError(f"expected shape {want.shape}, got {got.shape}")
    size = np.abs(want) if scale is None else np.broadcast_to(scale, want.shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = np.maximum(np.abs(got - want) - tiny, 0.0)
        error = np.where(difference == 0, 0.0, difference / size)
    overflow = np.isinf(got) & (np.sign(got) == np.sign(want)) & (np.abs(want) > largest)
    error = np.where(overflow, 0.0, error)
    return np.where(np.isnan(error), np.inf, error)


def assert_close(
    actual: ArrayLike,
    desired: ArrayLike,
    *,
    rtol: float,
    scale: ArrayLike | None = None,
    tiny: float | None = None,
    names: Sequence[str] | None = None,
    label: str = "",
) -> None:
    """|actual - desired| <= rtol * scale + tiny everywhere, or the worst entry is reported.

    Args:
      actual: the result under test, in its own dtype.
      desired: the oracle's, in float64, of the same shape.
      rtol: from `rtol` of this file, or a number that says why at its call.
      scale: what the error is relative to; |desired| if None.
      tiny: from `flush`, with the number of classes; if None, that of one class.
      names: of the rows, that is of the first axis, for the report.
      label: what is being compared, for the report.
    """
    got = np.asarray(actual)
    if tiny is None:
        tiny = flush(dtype=got.dtype)
    error = errors(got, desired, scale, tiny)
    if not error.size or error.max() <= rtol:
        return
    worst = np.unravel_index(int(error.argmax()), error.shape)
    want = np.asarray(desired, np.float64)[worst]
    size = abs(want) if scale is None else np.broadcast_to(scale, error.shape)[worst]
    where = f"row {names[int(worst[0])]!r}, " if names is not None and len(worst) else ""
    raise AssertionError(
        f"{label + ': ' if label else ''}{int((error > rtol).sum())} of {error.size} entries are "
        f"off by more than {rtol * 2**24:.4g} u; the worst by {error[worst] * 2**24:.4g} u "
        f"(u = 2^-24) at {where}index {tuple(int(i) for i in worst)}: "
        f"got {float(got[worst])!r}, want {float(want)!r}, scale {float(size)!r}"
    )


def assert_hessians(
    found: Mapping[str, ArrayLike],
    desired: ArrayLike,
    scale: ArrayLike,
    gamma: float,
    names: Sequence[str],
    largest: float = 1.0,
) -> None:
    """Each way of differentiating twice, by its name, gives the Hessians [N, C, C] of the oracle.

    `largest` is the largest weight of a class, by which a flushed term may have been multiplied.
    """
    tiny = flush(np.shape(desired)[-1], factor=largest * FLUSHED_LOG * (1 + gamma))
    rest = {"rtol": rtol("hessian", gamma), "scale": scale, "tiny": tiny, "names": names}
    for name, second in found.items():
        assert_close(second, desired, label=f"{name} over reverse", **rest)
