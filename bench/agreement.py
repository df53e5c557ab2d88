"""Whether all contenders compute the same numbers: without that a comparison of their times says nothing.

Before anything is timed each is compared with the 60-digit oracle on a few ordinary examples; then, in every
case, the loss and the sum of the absolute gradient with ours, or with the baseline for plain cross-entropies.
"""

import importlib
from typing import Any

import numpy as np
import oracle

from bench.contenders import BASELINE, OURS, Contender

TOLERANCE = 1e-4  # relative, in float32, of examples that ask for nothing special
WITHIN_CASE = {"float32": 1e-3, "bfloat16": 5e-2}  # of sums over millions, rounded by each as it likes
DISAGREES = "DISAGREES: {contender} in {case} {dtype} by {difference:.1e}"


class Disagreement(Exception):
    """A contender computes another loss than it claims."""


def on(contender: Contender) -> Any:
    """The module that runs a contender."""
    return importlib.import_module(f"bench.on_{contender.framework}")


def truth(contender: Contender, logits: Any, weights: Any, gamma: float, alpha: float | None) -> Any:
    """The oracle's `value` and `grad`: of rows, or of entries with labels `weights`."""
    gamma = gamma if contender.focal else 0.0
    if contender.family == "softmax":
        return oracle.batch(logits, weights, gamma)
    if alpha is None or not contender.focal:
        return oracle.sigmoid_focal(logits, weights, gamma)
    return oracle.sigmoid_focal(logits, weights, gamma, np.where(weights > 0, alpha, 1 - alpha))


def check(contender: Contender) -> float:
    """The largest difference to the oracle, relative to the largest number of its kind.

    Raises:
      Disagreement: It is not small.
    """
    logits, worst = np.random.default_rng(1).standard_normal((6, 5)).astype(np.float32), [0.0]
    if contender.family == "sigmoid":
        alpha, weights = 0.25, (np.arange(30) % 3 == 0).reshape(6, 5).astype(np.float32)
        labels = weights
    else:
        targets, alpha = (np.arange(6) % 5).astype(np.int32), None
        weights = oracle.one_hot(targets, 5)
        labels = targets if contender.indices else weights.astype(np.float32)
    for gamma in (0.0, 2.0) if contender.focal else (0.0,):
        want = truth(contender, logits, weights, gamma, alpha)
        got = on(contender).evaluate(contender, logits, labels, gamma, -1, alpha)
        for found, wanted in zip(got, (want.value, want.grad), strict=True):
            worst.append(np.max(np.abs(found - wanted)) / np.max(np.abs(wanted)))
    if not np.max(worst) <= TOLERANCE:  # NaN too
        raise Disagreement(f"{contender.name} ({contender.family}) is {np.max(worst):.1e} off the oracle")
    return float(np.max(worst))


def within_case(probes: dict[str, Any], contenders: list[Contender], dtype: str) -> dict[str, float]:
    """How far the probes are from the reference of their kind, for those that are too far."""
    far = {}
    for contender in contenders:
        reference = probes.get(OURS if contender.focal else BASELINE, probes[contender.name])
        pairs = zip(probes[contender.name], reference, strict=True)
        found = max(abs(got - want) / max(abs(want), 1e-30) for got, want in pairs)
        if not found <= WITHIN_CASE[dtype]:
            far[contender.name] = found if np.isfinite(found) else 1e30
    return far
