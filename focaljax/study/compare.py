"""What helped: paired differences to cross-entropy over seeds, with 95 % t intervals.

Each setting is trained on the same splits, initialisations and batches as cross-entropy, so the
difference is taken seed by seed before it is averaged. The interval covers the randomness of the
seeds on this data; it says nothing of other data, and is a little narrow because splits overlap.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from focaljax.study.evaluate import Measures
from focaljax.study.settings import Setting

LEVEL = 0.95


@dataclass(frozen=True)
class Metric:
    """A column of the results: its field in `Measures`, its names, and which way is better."""

    field: str
    name: str
    title: str
    higher_is_better: bool


NLL = Metric("nll", "NLL", "Held-out NLL", False)
ECE = Metric("ece", "ECE", "Calibration error (ECE)", False)
BALANCED = Metric("balanced_accuracy", "balanced accuracy", "Balanced accuracy", True)
RARE = Metric("rare_recall", "rare recall", "Rare-class recall", True)
ACCURACY = Metric("accuracy", "accuracy", "Accuracy", True)
METRICS = (NLL, ECE, BALANCED, RARE, ACCURACY)
JUDGED = (NLL, ECE, BALANCED)


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and the ends of its 95 % t interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """Read like `-0.123 [-0.150, -0.096]`."""
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass(frozen=True)
class Comparison:
    """One setting on one metric: its own mean, its difference to cross-entropy, and the verdict."""

    setting: Setting
    metric: Metric
    mean: Interval
    difference: Interval
    verdict: str


def t_interval(values: np.ndarray) -> Interval:
    """Return the mean of at least two values with its 95 % Student t interval."""
    mean, n = values.mean(), len(values)
    half = stdtrit(n - 1, (1 + LEVEL) / 2) * values.std(ddof=1) / np.sqrt(n)
    return Interval(float(mean), float(mean - half), float(mean + half))


def verdict(difference: Interval, metric: Metric) -> str:
    """Return "better" or "worse" if the interval excludes 0, else "no difference found"."""
    if difference.low <= 0.0 <= difference.high:
        return "no difference found"
    return "better" if (difference.low > 0.0) == metric.higher_is_better else "worse"


def compare(settings: Sequence[Setting], runs: Sequence[Sequence[Measures]]) -> list[list[Comparison]]:
    """Compare `runs[setting][seed]` with `runs[0]`, cross-entropy: metrics for each setting."""
    table = []
    for setting, measures in zip(settings, runs, strict=True):
        row = []
        for metric in METRICS:
            values = np.array([getattr(m, metric.field) for m in measures])
            baseline = np.array([getattr(m, metric.field) for m in runs[0]])
            difference = t_interval(values - baseline)
            judgement = verdict(difference, metric) if measures is not runs[0] else "baseline"
            row.append(Comparison(setting, metric, t_interval(values), difference, judgement))
        table.append(row)
    return table
