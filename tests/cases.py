"""Hard rows: the same ones in every run, for every loss.

A case is (name, logits float32 [C], target). `rows(C)` stacks all cases of one C, for vectorised
tests; `names(C)` says which is which; `limits(C)` keeps the rows with an infinite loss apart.
`soft_rows(C)` has labels and alpha per class, `sigmoid_grid()` binary labels.

With dtype "bfloat16" or "float16" every logit is first rounded to a number of that dtype (kept as
float32), so that a low-precision input is exactly the question that the oracle answers.
"""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

CLASSES = (1, 2, 3, 10, 100, 1000, 100_000)
GAMMAS = (0.0, 1e-3, 0.25, 0.5, 1.0, 1.5, 2.0, 5.0)
DTYPES = ("float32", "bfloat16", "float16")

# Where float32 formulas break: 1 - p loses bits (1e-8), all of p's neighbourhood of 1 (9 to 17),
# exp is subnormal (88) or zero (104), and far beyond.
GAPS = tuple(
    sign * gap
    for gap in (1e-8, 1e-4, 0.5, 1.0, 9.0, 11.0, 13.0, 15.0, 17.0, 30.0, 88.0, 104.0, 1e3, 1e4)
    for sign in (1.0, -1.0)
)
SCALES = (0.1, 1.0, 3.0, 10.0, 30.0, 100.0)
SIGMOID_LOGITS = (0.0, *GAPS)
SIGMOID_LABELS = (0.0, 1.0, 0.3, 1e-6, 1 - 1e-6)

Float32 = NDArray[np.float32]
Ints = NDArray[np.int32]


class Case(NamedTuple):
    """One row with an integer label."""

    name: str
    logits: Float32
    target: int


class Rows(NamedTuple):
    """Rows with integer labels: logits [N, C], targets [N]."""

    logits: Float32
    targets: Ints


class SoftRows(NamedTuple):
    """Rows with a label and a weight per class, each [N, C]; the names of the N rows."""

    logits: Float32
    labels: Float32
    alpha: Float32
    names: list[str]

    @property
    def weights(self) -> NDArray[np.float64]:
        """alpha * labels, exact in float64."""
        return self.alpha.astype(np.float64) * self.labels.astype(np.float64)


def representable(x: ArrayLike, dtype: str) -> Float32:
    """x as float32, rounded to numbers of `dtype`; finite stays finite in float16 (65504)."""
    x = np.asarray(x, np.float32)
    if dtype == "float32":
        return x
    if dtype == "float16":
        half = np.where(np.isfinite(x), np.clip(x, -65504, 65504), x)
        return half.astype(np.float16).astype(np.float32)
    if dtype == "bfloat16":  # the upper half of a float32, rounded to nearest even
        bits = x.view(np.uint32)
        bits = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return (bits & np.uint32(0xFFFF0000)).view(np.float32)
    raise ValueError(f"`dtype` must be one of {DTYPES}, got {dtype!r}.")


def _normal(classes: int, scale: float, seed: int) -> Float32:
    return (scale * np.random.default_rng([classes, seed]).normal(size=classes)).astype(np.float32)


def _with_target(others: Float32, target: int, logit: float) -> Float32:
    logits = others.copy()
    logits[target] = logit
    return logits


def _competitors(classes: int, target: int, seed: int = 0) -> Float32:
    """Normal logits; those that are not the target's have their maximum at exactly 0."""
    logits = _normal(classes, 1.0, seed)
    return logits - np.delete(logits, target).max()


def _log_sum_exp(logits: Float32) -> float:
    x = logits.astype(np.float64)
    return float(x.max() + np.log(np.exp(x - x.max()).sum()))


def _alone() -> Iterator[Case]:
    for z in (0.0, 1.0, -1.0, 1e-30, 1e4, -1e4, 3e38, -3e38):
        yield Case(f"only class, {z:g}", np.array([z], np.float32), 0)


def _gaps(classes: int) -> Iterator[Case]:
    """The target above and below its best competitor; the others differ, or all equal it."""
    for i, gap in enumerate(GAPS):
        target = (7 * i) % classes
        yield Case(f"gap {gap:g}", _with_target(_competitors(classes, target), target, gap), target)
        if classes > 2:
            yield Case(
                f"gap {gap:g}, others equal",
                _with_target(np.zeros(classes, np.float32), target, gap),
                target,
            )


def _halves(classes: int) -> Iterator[Case]:
    """p near 1/2: the target near the log-sum-exp of the others."""
    target = classes // 2
    logits = _competitors(classes, target, seed=1)
    lse = _log_sum_exp(np.delete(logits, target))
    for u in (0.0, 1e-6, -1e-6, 1e-3, -1e-3, 0.1, -0.1):
        yield Case(f"log-odds {u:g}", _with_target(logits, target, lse + u), target)


def _ties(classes: int) -> Iterator[Case]:
    last = classes - 1
    logits = _competitors(classes, 0)
    yield Case("target ties with the best", _with_target(logits, 0, 0.0), 0)
    logits = logits.copy()
    logits[1:] = np.minimum(logits[1:], -1.0)
    logits[[1, last]] = -1.0
    yield Case("best competitors tie, target above", _with_target(logits, 0, 0.5), 0)
    yield Case("best competitors tie, target below", _with_target(logits, 0, -7.0), 0)
    for z in (0.0, 1.0, -3e4, 3e38):
        yield Case(f"all equal {z:g}", np.full(classes, z, np.float32), last)


def _offsets(classes: int) -> Iterator[Case]:
    """Large common offsets, up to where the difference of two logits is not a float32."""
    for offset in (1e4, -1e4):
        for gap in (1.0, 17.0, -17.0, 90.0):
            logits = _competitors(classes, 0, seed=2) + np.float32(offset)
            yield Case(f"offset {offset:g}, gap {gap:g}", _with_target(logits, 0, offset + gap), 0)
    huge = np.full(classes, 3e38, np.float32)
    below = float(np.nextafter(np.float32(3e38), np.float32(0)))
    yield Case("3e38, target an ulp below", _with_target(huge, 0, below), 0)
    yield Case("1.5e38 over -1.5e38", _with_target(np.full_like(huge, -1.5e38), 0, 1.5e38), 0)
    yield Case("-1.5e38 under 1.5e38", _with_target(np.full_like(huge, 1.5e38), 0, -1.5e38), 0)
    yield Case("3e38 over -3e38", _with_target(-huge, 0, 3e38), 0)
    yield Case("1e-45 over 0", _with_target(np.zeros(classes, np.float32), 0, 1e-45), 0)


def _dead(classes: int) -> Iterator[Case]:
    """Classes at -inf."""
    dead, last = np.full(classes, -np.inf, np.float32), classes - 1
    for z in (0.0, -100.0, 3e38):
        yield Case(f"all others -inf, target {z:g}", _with_target(dead, last, z), last)
    if classes > 2:
        for gap in (0.0, 5.0, -5.0, 100.0, -100.0):
            one = _with_target(_with_target(dead, 1, 0.0), 0, gap)
            yield Case(f"one live competitor, gap {gap:g}", one, 0)
        some = _normal(classes, 2.0, 3)
        some[::2] = -np.inf
        yield Case("every second class -inf", some, 1)


def _randoms(classes: int) -> Iterator[Case]:
    for i, scale in enumerate(SCALES):
        logits = _normal(classes, scale, 10 + i)
        yield Case(f"normal * {scale:g}", logits, (3 * i) % classes)
        yield Case(f"normal * {scale:g}, target best", logits, int(logits.argmax()))
        yield Case(f"normal * {scale:g}, target worst", logits, int(logits.argmin()))


def _vast(classes: int) -> Iterator[Case]:
    """Six rows for a vocabulary; all but the first have few distinct logits (a fast oracle)."""
    coarse = representable(_normal(classes, 1.0, 20), "bfloat16")
    coarse -= np.delete(coarse, 7).max()
    lse = _log_sum_exp(np.delete(coarse, 7))
    some = coarse.copy()
    some[classes // 100 :] = -np.inf
    yield Case("normal * 3", _normal(classes, 3.0, 21), classes - 1)
    yield Case("all equal", np.zeros(classes, np.float32), classes // 2)
    yield Case("gap 17, others equal", _with_target(np.zeros(classes, np.float32), 5, 17.0), 5)
    yield Case("log-odds 1e-3", _with_target(coarse, 7, lse + 1e-3), 7)
    yield Case("offset 1e4, gap -17", _with_target(coarse, 7, -17.0) + np.float32(1e4), 7)
    yield Case("99 of 100 classes -inf, gap 9", _with_target(some, 7, 9.0), 7)


@cache
def cases(classes: int, dtype: str = "float32") -> tuple[Case, ...]:
    """All cases of one number of classes: 8 for one, 6 for 1e5 and more, else 76 to 110."""
    if classes == 1:
        found = _alone()
    elif classes >= 100_000:
        found = _vast(classes)
    else:
        kinds = (_gaps, _halves, _ties, _offsets, _dead, _randoms)
        found = (case for kind in kinds for case in kind(classes))
    return tuple(c._replace(logits=representable(c.logits, dtype)) for c in found)


def _stack(found: tuple[Case, ...]) -> Rows:
    return Rows(np.stack([c.logits for c in found]), np.array([c.target for c in found], np.int32))


def rows(classes: int, dtype: str = "float32") -> Rows:
    """The cases of one number of classes as one batch (logits [N, C], targets [N])."""
    return _stack(cases(classes, dtype))


def names(classes: int) -> list[str]:
    """The name of each row of `rows(classes)`."""
    return [case.name for case in cases(classes)]


def limits(classes: int, dtype: str = "float32") -> Rows:
    """Rows whose loss is +inf, or beyond float32, with a finite gradient (two classes or more)."""
    found = [
        Case("target -inf", _with_target(_normal(classes, scale, 30), target, -np.inf), target)
        for scale in (1.0, 30.0)
        for target in (0, classes - 1)
    ]
    huge = np.full(classes, 3e38, np.float32)
    found.append(Case("-3e38 under 3e38", _with_target(huge, 0, -3e38), 0))
    return _stack(tuple(c._replace(logits=representable(c.logits, dtype)) for c in found))


def _labels(classes: int, logits: Float32, target: int, seed: int) -> Iterator[tuple[str, Float32]]:
    """Named label rows; classes at -inf get a zero label in each."""
    generator = np.random.default_rng([classes, seed])
    live = np.isfinite(logits)
    hot = np.zeros(classes)
    hot[target] = 1.0
    for concentration in (1.0, 0.05):
        label = generator.dirichlet(np.full(classes, concentration)) * live
        label[label < 1e-30] = 0.0  # nothing subnormal
        yield f"Dirichlet({concentration:g})", label.astype(np.float32)
    for s in (0.1, 1e-3):
        yield f"smoothed {s:g}", (((1 - s) * hot + s / classes) * live).astype(np.float32)
    yield "one-hot", hot.astype(np.float32)
    mixed = hot * 0.7
    mixed[int(np.argmax(np.where(live, logits, -np.inf)))] += 0.3
    yield "mixed 0.7, 0.3", mixed.astype(np.float32)


def soft_rows(classes: int, dtype: str = "float32") -> SoftRows:
    """Hard rows times labels: Dirichlet, smoothed, one-hot, mixed, with zeros under -inf logits.

    Alpha is 1 in every second row, and in (0, 4] per class in the others.
    """
    chosen = [
        case
        for case in cases(classes, dtype)
        if classes == 1
        or case.name in ("3e38, target an ulp below", "every second class -inf", "all equal 0")
        or case.name.startswith(("all others -inf, target 0", "log-odds", "normal"))
        or case.name in {f"gap {gap:g}" for gap in (1e-8, 1.0, -1.0, 9.0, 17.0, -30.0, 88.0, 1e3)}
    ]
    chosen = chosen[:: 4 if classes >= 1000 else 1]  # dense weights are slow in the oracle
    generator = np.random.default_rng([classes, 40])
    found = []
    for i, case in enumerate(chosen):
        labels = _labels(classes, case.logits, case.target, 41 + i)
        for j, (kind, label) in enumerate(labels):
            alpha = np.float32(4.0) * (1 - generator.random(classes, np.float32))
            if (i + j) % 2:
                alpha = np.ones(classes, np.float32)
            found.append((case.logits, label, alpha, f"{case.name}; {kind}"))
    logits, labels, alphas, called = zip(*found, strict=True)
    return SoftRows(np.stack(logits), np.stack(labels), np.stack(alphas), list(called))


def sigmoid_grid(dtype: str = "float32") -> tuple[Float32, Float32]:
    """Hard logits and labels, z [M] and y [M]; z is representable in `dtype`, y is float32."""
    z, y = np.meshgrid(np.array(SIGMOID_LOGITS), np.array(SIGMOID_LABELS, np.float32))
    return representable(z.ravel(), dtype), y.ravel()
