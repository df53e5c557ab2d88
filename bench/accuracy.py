"""`python -m bench accuracy`: every contender against the 60-digit oracle on the hard rows of the tests.

The rows are where formulas break: gaps between logits from 1e-8 to 1e4, ties, offsets, -inf competitors, 1 to
1e5 classes. They are float32 numbers, so that the oracle answers the very question that is asked.
"""

import warnings
from argparse import Namespace
from typing import Any

import numpy as np

from bench import agreement, tables
from bench.console import progress, say, show
from bench.contenders import Contender, contenders
from bench.results import Writer, header
from bench.truth import hard, tolerances

ALIVE = 1e-30  # a gradient of the label above this must not be zero
OFF = 0.01  # relative: a value that is wrong by more is wrong
ALPHA = {"softmax": None, "sigmoid": 0.25}


def main(args: Namespace) -> int:
    """Judges all contenders and writes the results; compiled PyTorch is left out, it is the eager formula."""
    found, absent = contenders("cpu")
    found = [c for c in found if c.framework == "jax" or not c.compiled]
    classes, gammas = (hard.CLASSES, hard.GAMMAS) if not args.quick else ((2,), (0.0, 2.0))
    result = header("accuracy") | {"absent": [a._asdict() for a in absent], "rows": []}
    for contender in absent:
        say(f"absent: {contender.name} ({contender.reason})")
    warnings.filterwarnings("ignore", "(In loss|You are using a softmax)")  # Keras, of a single class
    totals: dict[tuple[str, str, float], dict[str, Any]] = {}
    with Writer(args.out, result, say) as writer, progress() as bar:
        task = bar.add_task("", total=(len(classes) + 1) * len(gammas))
        for count in (0, *classes):  # 0: the sigmoid grid
            for gamma in gammas:
                bar.update(task, description=f"{count or 'sigmoid'} classes, gamma {gamma:g}")
                for contender, judged in judge_all(count, gamma, found):
                    key = contender.family, contender.name, gamma
                    totals[key] = merged(totals.get(key), judged)
                    totals[key]["note"] = contender.note
                bar.advance(task)
            result["rows"] = [
                {"family": family, "contender": name, "gamma": gamma, **total}
                for (family, name, gamma), total in sorted(
                    totals.items(), key=lambda item: item[0][0] != "softmax"
                )
            ]
            writer.write()
    show(tables.accuracy(result))
    return 0


def judge_all(count: int, gamma: float, found: list[Contender]) -> Any:
    """(contender, its errors) on all rows of so many classes, or on the sigmoid grid."""
    family = "softmax" if count else "sigmoid"
    racing = [c for c in found if c.family == family and (c.focal or gamma == 0)]
    logits, labels = rows(count)
    weights = agreement.oracle.one_hot(labels, count) if count else labels
    if not racing:
        return
    truth = agreement.truth(racing[0]._replace(focal=True), logits, weights, gamma, ALPHA[family])
    plain = truth if count else agreement.truth(racing[0]._replace(focal=False), logits, weights, 0.0, None)
    for contender in racing:
        given = labels if contender.indices else weights.astype(np.float32)
        losses, gradient = agreement.on(contender).evaluate(
            contender, logits, given, gamma, -1, ALPHA[family]
        )
        want = truth if contender.focal else plain
        yield contender, judged(losses, gradient, want.value, want.grad, labels if count else None)


def rows(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Hard logits [N, C] and targets [N]; without classes sigmoid logits and hard labels, [M, 1] each."""
    if count:
        return hard.rows(count)
    logits, labels = hard.sigmoid_grid()
    certain = (labels == 0) | (labels == 1)  # of soft labels not all libraries have the same loss
    return logits[certain][:, None], labels[certain][:, None]


def judged(
    losses: np.ndarray, gradient: np.ndarray, value: np.ndarray, grad: np.ndarray, targets: np.ndarray | None
) -> dict[str, Any]:
    """Counts of rows, and the worst relative errors of what is finite."""
    count = grad.shape[-1]
    tiny = tolerances.flush(count)  # below it XLA flushes to zero
    value_error, gradient_error = relative(losses, value, tiny), relative(gradient, grad, tiny)
    own = np.arange(len(grad)), (0 if targets is None else targets)
    dead = (gradient[own] == 0) & (np.abs(grad[own]) > ALIVE)
    bad_value = ~np.isfinite(losses).reshape(len(grad), -1).all(-1)
    bad_gradient = ~np.isfinite(gradient).all(-1)
    wrong = ~(value_error.reshape(len(grad), -1) <= OFF).all(-1)
    return {
        "rows": len(grad),
        "bad_value": int(bad_value.sum()),
        "bad_gradient": int(bad_gradient.sum()),
        "dead": int(dead.sum()),
        "off": int(wrong.sum()),
        "worst_value": worst(value_error),
        "worst_gradient": worst(gradient_error),
    }


def relative(got: np.ndarray, want: np.ndarray, tiny: float) -> np.ndarray:
    """|got - want| / |want|, forgiving what is flushed; NaN where `got` is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.maximum(np.abs(got.astype(np.float64) - want) - tiny, 0.0)
        return np.where(np.isfinite(got), difference / np.maximum(np.abs(want), tiny), np.nan)


def worst(errors: np.ndarray) -> float:
    """The largest that is a number."""
    return float(np.max(errors, where=~np.isnan(errors), initial=0.0))


def merged(total: dict[str, Any] | None, more: dict[str, Any]) -> dict[str, Any]:
    """Counts added, the worse of the errors."""
    if total is None:
        return dict(more)
    pick = {key: max if key.startswith("worst") else int.__add__ for key in more}
    return {key: pick[key](total[key], x) for key, x in more.items()}
