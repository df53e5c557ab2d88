"""What helped: differences to cross-entropy, paired over folds and seeds.

Each setting is trained on the same rows, initialisations and batches as cross-entropy, so the difference
is taken run by run before it is averaged. The runs share training rows, so their differences are not
independent and a plain t interval is too narrow. The corrected one widens the variance of the mean from
s^2 / J to s^2 (1 / J + n_test / n_train) for J runs (Nadeau and Bengio 2003). Of many settings one is
always best by chance: a verdict holds after Holm's correction over all settings that a metric compares.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtr, stdtrit

from focaljax.study.settings import Setting

LEVEL = 0.95
NOTHING = "no difference found"


@dataclass(frozen=True)
class Metric:
    """A column of the results: its field among the measures, its names, and which way is better."""

    field: str
    name: str
    title: str
    higher_is_better: bool


NLL = Metric("nll", "NLL", "Negative log-likelihood", False)
ECE = Metric("ece", "ECE", "Calibration error (ECE)", False)
BALANCED = Metric("balanced_accuracy", "balanced accuracy", "Balanced accuracy", True)
RARE = Metric("rare_recall", "rare recall", "Rare-class recall", True)
ACCURACY = Metric("accuracy", "accuracy", "Accuracy", True)
METRICS = (BALANCED, NLL, ECE, RARE, ACCURACY)
JUDGED = (BALANCED, NLL, ECE)


@dataclass(frozen=True)
class Interval:
    """A mean over runs, the ends of its corrected 95 % t interval, and the p-value of "it is 0"."""

    mean: float
    low: float
    high: float
    p: float

    def __str__(self) -> str:
        """Read like `-0.123 [-0.150, -0.096]`."""
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass(frozen=True)
class Comparison:
    """One setting on one metric: its mean, its difference to cross-entropy, and the verdict.

    `p` is Holm's, over all settings of this metric.
    """

    setting: Setting
    metric: Metric
    mean: Interval
    difference: Interval
    p: float
    verdict: str


def corrected_t(values: np.ndarray, test_share: float) -> Interval:
    """Return the mean of J >= 2 runs with its interval; `test_share` is n_test / n_train."""
    mean, runs = float(values.mean()), values.size
    error = float(values.std(ddof=1)) * np.sqrt(1 / runs + test_share)
    half = float(stdtrit(runs - 1, (1 + LEVEL) / 2) * error)
    if error > 0:
        p = 2 * float(stdtr(runs - 1, -abs(mean) / error))
    else:  # all runs agree to the last bit: the same, or surely not
        p = 1.0 if mean == 0 else 0.0
    return Interval(mean, mean - half, mean + half, p)


def holm(p: np.ndarray) -> np.ndarray:
    """Return the p-values [m] adjusted for being m (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def compare(
    settings: Sequence[Setting], measures: dict[str, np.ndarray], test_share: float
) -> list[list[Comparison]]:
    """Compare measures [..., A] with those of setting 0, cross-entropy: `METRICS` for each setting."""
    columns = []
    for metric in METRICS:
        values = measures[metric.field].reshape(-1, len(settings)).T
        means = [corrected_t(v, test_share) for v in values]
        differences = [corrected_t(v - values[0], test_share) for v in values]
        adjusted = [1.0, *holm(np.array([d.p for d in differences[1:]]))]
        columns.append(
            [
                Comparison(s, metric, m, d, float(p), _verdict(metric, d.mean, p) if i else "baseline")
                for i, (s, m, d, p) in enumerate(zip(settings, means, differences, adjusted, strict=True))
            ]
        )
    return [list(row) for row in zip(*columns, strict=True)]


def cell(row: Sequence[Comparison], metric: Metric) -> Comparison:
    """Return one setting's comparison on one metric."""
    return row[METRICS.index(metric)]


def better(metric: Metric, values: Any) -> Any:
    """Return values of which the larger is the better."""
    return values if metric.higher_is_better else -values


def _verdict(metric: Metric, mean: float, p: float) -> str:
    if p > 1 - LEVEL:
        return NOTHING
    return "better" if (mean > 0) == metric.higher_is_better else "worse"
