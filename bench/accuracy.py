"""`python -m bench accuracy`: every contender against the 60-digit oracle on the hard rows of the tests.

The rows are where formulas break: gaps between logits from 1e-8 to 1e4, ties, offsets, -inf competitors, 1 to
1e5 classes. They are float32 numbers, so that the oracle answers the very question that is asked.
"""

import warnings
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import cases as hard
import numpy as np
import oracle
import pandas as pd
import tolerances

from bench import agreement
from bench.contenders import Contender, contenders
from bench.results import collect, header, say

ALIVE = 1e-30  # a gradient of the label above this must not be zero
OFF = 0.01  # relative: a value that is wrong by more is wrong
ALPHA = {"softmax": None, "sigmoid": 0.25}
Array = np.ndarray
Errors = dict[str, Any]
TOTALS = dict.fromkeys(("rows", "bad_value", "bad_gradient", "dead", "off"), "sum")
TOTALS |= {"worst_value": "max", "worst_gradient": "max", "note": "first"}


def main(args: Namespace) -> int:
    """Judges all contenders and writes the results; compiled PyTorch is left out, it is the eager formula."""
    found, absent = contenders("cpu")
    found = [c for c in found if c.framework == "jax" or not c.compiled]
    classes, gammas = (hard.CLASSES, hard.GAMMAS) if not args.quick else ((2,), (0.0, 2.0))
    result = header("accuracy") | {"absent": [a._asdict() for a in absent], "rows": []}
    for contender in absent:
        say(f"absent: {contender.name} ({contender.reason})")
    warnings.filterwarnings("ignore", "(In loss|You are using a softmax)")  # Keras, of a single class
    every: list[Errors] = []

    def do(job: tuple[int, float]) -> None:
        every.extend(judge_all(*job, found))
        groups = pd.DataFrame(every).groupby(["family", "contender", "gamma"], sort=False, as_index=False)
        rows = groups.agg(TOTALS).to_dict("records")
        result["rows"] = sorted(rows, key=lambda row: row["family"] != "softmax")

    jobs = [(count, gamma) for count in (0, *classes) for gamma in gammas]  # 0: the sigmoid grid
    collect(args, result, [(f"{n or 'sigmoid'} classes, gamma {g:g}", (n, g)) for n, g in jobs], do)
    return 0


def judge_all(count: int, gamma: float, found: list[Contender]) -> Iterator[Errors]:
    """The errors of each contender on all rows of so many classes, or on the sigmoid grid."""
    family = "softmax" if count else "sigmoid"
    racing, alpha = [c for c in found if c.family == family and (c.focal or gamma == 0)], ALPHA[family]
    if count:
        logits, labels = hard.rows(count)
        weights = oracle.one_hot(labels, count)
    else:
        logits, labels = (x[:, None] for x in hard.sigmoid_grid())
        certain = (labels[:, 0] == 0) | (labels[:, 0] == 1)  # of soft labels not all have the same loss
        logits, labels = logits[certain], labels[certain]
        weights = labels
    truths: dict[bool, Any] = {}  # at gamma 0 the softmax has one, the sigmoid one with alpha and one without
    for c in racing:
        if (kind := family == "softmax" or c.focal) not in truths:
            truths[kind] = agreement.truth(c, logits, weights, gamma, alpha)
        want, given = truths[kind], labels if c.indices else weights.astype(np.float32)
        losses, gradient = agreement.on(c).evaluate(c, logits, given, gamma, -1, alpha)
        errors = judged(losses, gradient, want.value, want.grad, labels if count else None)
        yield {"family": family, "contender": c.name, "gamma": gamma, **errors, "note": c.note}


def judged(losses: Array, gradient: Array, value: Array, grad: Array, targets: Array | None) -> Errors:
    """Counts of rows, and the worst relative errors of what is finite."""
    count = len(grad)
    tiny = tolerances.flush(grad.shape[-1])  # below it XLA flushes to zero
    errors = {"worst_value": relative(losses, value, tiny), "worst_gradient": relative(gradient, grad, tiny)}
    own = np.arange(count), (0 if targets is None else targets)
    flags = {
        "bad_value": ~np.isfinite(losses).reshape(count, -1).all(-1),
        "bad_gradient": ~np.isfinite(gradient).all(-1),
        "dead": (gradient[own] == 0) & (np.abs(grad[own]) > ALIVE),
        "off": ~(errors["worst_value"].reshape(count, -1) <= OFF).all(-1),
    }
    counts = {key: int(flag.sum()) for key, flag in flags.items()}
    worst = {key: float(np.max(x, where=~np.isnan(x), initial=0.0)) for key, x in errors.items()}
    return {"rows": count, **counts, **worst}


def relative(got: Array, want: Array, tiny: float) -> Array:
    """|got - want| / |want|, forgiving what is flushed; NaN where `got` is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.maximum(np.abs(got.astype(np.float64) - want) - tiny, 0.0)
        return np.where(np.isfinite(got), difference / np.maximum(np.abs(want), tiny), np.nan)
