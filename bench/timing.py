"""Times of several calls that can be compared: interleaved in one process, so that all meet the same machine.

Every round times each call once, in a new random order, and a ratio is taken within its round.
"""

import math
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Call = Callable[[int], None]  # call(n) does its work n times and returns when the last result is there


class Effort(NamedTuple):
    """How long to measure."""

    seconds: float  # for all rounds of one set of calls
    least: int  # rounds, even if that takes longer
    most: int
    aim: float  # seconds of one measurement: shorter calls are repeated inside it


EFFORT = {
    "cpu": Effort(seconds=10.0, least=5, most=31, aim=0.003),
    "gpu": Effort(seconds=4.0, least=11, most=51, aim=0.020),
    "quick": Effort(seconds=0.1, least=2, most=3, aim=0.0),
}


class Timing(NamedTuple):
    """Seconds of one call: median and quartiles, and the median of its ratio to the baseline."""

    seconds: float
    low: float
    high: float
    ratio: float | None
    rounds: int


def repeated(run: Callable[[], Any], wait: Callable[[Any], Any]) -> Call:
    """A call of `run`, which waits for its last result."""

    def call(times: int) -> None:
        result = None
        for _ in range(times):
            result = run()
        wait(result)

    return call


def timed(call: Call, repeats: int = 1) -> float:
    """Seconds per repetition."""
    start = time.perf_counter()
    call(repeats)
    return (time.perf_counter() - start) / repeats


def interleaved(calls: Mapping[str, Call], effort: Effort, baseline: str) -> dict[str, Timing]:
    """The timing of every call; all have been called once before, which compiles them."""
    first = {name: timed(call) for name, call in calls.items()}
    repeats = {name: max(1, min(100, math.ceil(effort.aim / t))) for name, t in first.items()}
    one_round = sum(first[name] * n for name, n in repeats.items())
    rounds = max(effort.least, min(effort.most, int(effort.seconds / one_round)))
    order, shuffle = list(calls), random.Random(0).shuffle
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            seconds[name].append(timed(calls[name], repeats[name]))
    base, found = seconds.get(baseline), {}
    for name, measured in seconds.items():
        low, median, high = np.quantile(measured, (0.25, 0.5, 0.75)).tolist()
        ratio = None if base is None else float(np.median(np.divide(measured, base)))
        found[name] = Timing(median, low, high, ratio, rounds)
    return found
