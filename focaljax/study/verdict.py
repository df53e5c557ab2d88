"""What differs, and what follows: better, no difference worth having, or undecided.

Each setting is trained on the same rows, initialisations and batches as cross-entropy, so the difference
is taken run by run before it is averaged. The runs share training rows, so their differences are not
independent and a plain t interval is too narrow. The corrected one widens the variance of the mean from
s^2 / J to s^2 (1 / J + n_test / n_train) for J runs (Nadeau and Bengio 2003). Of many settings one is
always best by chance: "better" and "worse" hold after Holm's correction over all settings that differ.

A setting is recommended if it is surely better than cross-entropy and may be so by more than a margin. Of
several it is not the one with the best mean, which is best by chance too, but the plainest that cannot be
told from it. If no setting's interval reaches beyond the margin, no difference is worth having: that holds
for all of them at once without a correction, as every one must pass. Else the question is open.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from focaljax.study.settings import Setting

LEVEL = 0.95
NOTHING = "no difference found"
BETTER, EQUAL, UNDECIDED = "better", "no difference worth having", "undecided"
MORE_FOLDS, MORE_SEEDS = (10, 20, 50), (5, 10, 20)


@dataclass(frozen=True)
class Metric:
    """A column of the results: its field among the measures, its name, and what values it has."""

    field: str
    name: str
    higher_is_better: bool
    highest: float = 1.0

    @property
    def title(self) -> str:
        """The name at the start of a sentence."""
        return self.name[0].upper() + self.name[1:]

    def better(self, values: Any) -> Any:
        """Return values of which the larger is the better."""
        return values if self.higher_is_better else -values


BALANCED = Metric("balanced_accuracy", "balanced accuracy", True)
AUROC = Metric("auroc", "AUROC", True)
PRECISION = Metric("average_precision", "average precision", True)
NLL = Metric("nll", "NLL", False, np.inf)
NLL_CALIBRATED = Metric("nll_calibrated", "calibrated NLL", False, np.inf)
ECE = Metric("ece", "ECE", False)
ECE_CALIBRATED = Metric("ece_calibrated", "calibrated ECE", False)
RARE = Metric("rare_recall", "rare recall", True)
JUDGED = (BALANCED, AUROC, PRECISION, NLL, NLL_CALIBRATED, ECE, ECE_CALIBRATED)
METRICS = (
    *JUDGED,
    Metric("nll_posterior", "NLL of posteriors", False, np.inf),
    Metric("ece_posterior", "ECE of posteriors", False),
    RARE,
    Metric("accuracy", "accuracy", True),
)
CRITERIA = {metric.name.replace(" ", "-").lower(): metric for metric in JUDGED}


class Interval(NamedTuple):
    """A mean over runs, the ends of its corrected 95 % t interval, and the p-value of "it is 0"."""

    mean: float
    low: float
    high: float
    p: float

    def __str__(self) -> str:
        """Read like `-0.123 [-0.150, -0.096]`."""
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


class Comparison(NamedTuple):
    """One setting on one metric: its mean, its difference to cross-entropy, Holm's p, and the verdict.

    `gain` are mean, low and high of the difference, turned so that more is better.
    """

    setting: Setting
    mean: Interval
    difference: Interval
    p: float
    verdict: str
    gain: tuple[float, float, float]


Table = list[dict[Metric, Comparison]]


@dataclass(frozen=True)
class Advice:
    """What to use.

    Attributes:
      verdict: BETTER, EQUAL or UNDECIDED.
      index: of the setting to use, 0 for cross-entropy; None where that is undecided.
      leader: of the setting with the best mean, among those that are better and worth having; if there are
        none, among those that may be; if there are none, among all.
      alike: indices of all that are better, may be so by more than the margin, and cannot be told from it.
      chosen: what choosing on the validation folds gained over cross-entropy on the test folds.
      deciding: (folds, seeds) that would tell the leader's difference, if runs went on to vary as they do;
        None if none is enough, or it is told.
      of_folds: the share of the variance of its mean that is the folds', which no seed lowers.
    """

    verdict: str
    index: int | None
    leader: int
    alike: tuple[int, ...]
    chosen: Interval
    deciding: tuple[int, int] | None
    of_folds: float

    @property
    def shown(self) -> int:
        """Whose code is shown: what to use, or what to try."""
        return self.leader if self.index is None else self.index


def corrected_t(
    values: np.ndarray, test_share: float, low: float = -np.inf, high: float = np.inf
) -> Interval:
    """Return the mean of J >= 2 runs, its interval, within bounds; `test_share` is n_test / n_train."""
    mean, runs = float(values.mean()), values.size
    error = float(values.std(ddof=1)) * np.sqrt(1 / runs + test_share)
    half = float(stdtrit(runs - 1, (1 + LEVEL) / 2) * error)
    if error > 0:
        p = 2 * float(stdtr(runs - 1, -abs(mean) / error))
    else:  # all runs agree to the last bit: the same, or surely not
        p = 1.0 if mean == 0 else 0.0
    return Interval(mean, max(low, mean - half), min(high, mean + half), p)


def holm(p: np.ndarray) -> np.ndarray:
    """Return the p-values [m] adjusted for being m (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def compare(settings: Sequence[Setting], measures: Mapping[str, np.ndarray], test_share: float) -> Table:
    """Compare measures [..., A] with those of setting 0, cross-entropy: all metrics for each setting.

    Settings that are equal in every run are one in the correction, and one that equals cross-entropy is none.
    """
    table: Table = [{} for _ in settings]
    for metric in METRICS:
        values = measures[metric.field].reshape(-1, len(settings)).T
        of = [corrected_t(d, test_share, -metric.highest, metric.highest) for d in values - values[0]]
        tests = _distinct(values)
        adjusted = {0: 1.0} | dict(zip(tests, holm(np.array([of[i].p for i in tests])), strict=True))
        for i, setting in enumerate(settings):
            p = float(adjusted[next(j for j in adjusted if np.array_equal(values[i], values[j]))])
            verdict = NOTHING if p > 1 - LEVEL else BETTER if metric.better(of[i].mean) > 0 else "worse"
            mean, *ends = map(metric.better, of[i][:3])
            gain = (mean, min(ends), max(ends))
            mean = corrected_t(values[i], test_share, 0.0, metric.highest)
            table[i][metric] = Comparison(setting, mean, of[i], p, verdict if i else "baseline", gain)
    return table


def advise(
    metric: Metric,
    margin: float,
    table: Table,
    validation: np.ndarray,
    test: np.ndarray,
    most_folds: int,
) -> Advice:
    """Draw the conclusion from all comparisons, and from the values of a metric [S, K, A] on held-out rows.

    `most_folds` is how many folds the rarest class allows.
    """
    shape, test = test.shape[:2], test.reshape(-1, len(table))
    share, settings = 1 / (shape[1] - 2), [row[metric].setting for row in table]
    pick = metric.better(validation.reshape(test.shape)).argmax(axis=1)
    chosen = corrected_t(test[range(len(test)), pick] - test[:, 0], share, -metric.highest, metric.highest)
    gains = np.array([row[metric].gain for row in table])
    possible = np.flatnonzero(gains[:, 2] > margin).tolist()
    helpful = [i for i in possible if table[i][metric].verdict == BETTER]
    leader = max(helpful or possible or range(1, len(settings)), key=lambda i: gains[i, 0])
    alike, deciding = [], None
    if not possible:
        verdict, index = EQUAL, 0
    elif helpful:
        apart = [corrected_t(test[:, i] - test[:, leader], share).p for i in helpful]
        alike = [i for i, p in zip(helpful, apart, strict=True) if i == leader or p > 1 - LEVEL]
        verdict, index = BETTER, min(alike, key=lambda i: (*settings[i].plainness, i))
    else:
        verdict, index = UNDECIDED, None
        gain = metric.better(test[:, leader] - test[:, 0])
        deciding = _deciding(gain, shape, margin, len(_distinct(test.T)), most_folds)
    of_folds = share / (share + 1 / len(test))
    return Advice(verdict, index, leader, tuple(alike), chosen, deciding, of_folds)


def _distinct(values: np.ndarray) -> list[int]:
    """Return which of the settings [A, J] need a test of their own: not what equals one before it."""
    return [i for i in range(1, len(values)) if not (values[:i] == values[i]).all(axis=1).any()]


def _deciding(
    gains: np.ndarray, shape: tuple[int, int], margin: float, tests: int, most_folds: int
) -> tuple[int, int] | None:
    """Return the fewest runs, as folds and seeds, that would tell this gain from 0 or from the margin."""
    mean, deviation, (seeds, folds) = gains.mean(), gains.std(ddof=1), shape
    tries = [(folds, s) for s in MORE_SEEDS if s > seeds]
    tries += [(k, seeds) for k in MORE_FOLDS if folds < k <= most_folds]
    for k, s in sorted(tries, key=lambda more: more[0] * more[1]):
        error = deviation * np.sqrt(1 / (k * s) + 1 / (k - 2))
        surely = mean > stdtrit(k * s - 1, 1 - (1 - LEVEL) / 2 / max(1, tests)) * error
        nothing = mean + stdtrit(k * s - 1, (1 + LEVEL) / 2) * error <= margin
        if surely or nothing:
            return k, s
    return None
