"""What differs, and what follows: better, no difference worth having, or undecided.

Each setting is trained on the same rows, initialisations and batches as cross-entropy, so the difference
is taken run by run before it is averaged. The runs share training rows, so their differences are not
independent and a plain t interval is too narrow. The corrected one widens the variance of the mean from
s^2 / J to s^2 (1 / J + n_test / n_train) for J runs (Nadeau and Bengio 2003). Of many settings one is
always best by chance: "better" and "worse" hold after Holm's correction over all settings that differ.

A setting is recommended if it is surely better than cross-entropy and may be so by more than a margin. Among
several it is not the one with the best mean, which is best by chance too, but the plainest that cannot be told
from it. If no setting's interval reaches beyond the margin, no difference is worth having: that holds for all
of them at once without a correction, as every one must pass. Else the question is open.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtr, stdtrit

from focaljax.study.settings import Setting

LEVEL = 0.95
MARGIN = 0.01
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
NLL_POSTERIOR = Metric("nll_posterior", "NLL of posteriors", False, np.inf)
NLL_CALIBRATED = Metric("nll_calibrated", "calibrated NLL", False, np.inf)
ECE = Metric("ece", "ECE", False)
ECE_POSTERIOR = Metric("ece_posterior", "ECE of posteriors", False)
ECE_CALIBRATED = Metric("ece_calibrated", "calibrated ECE", False)
RARE = Metric("rare_recall", "rare recall", True)
ACCURACY = Metric("accuracy", "accuracy", True)
JUDGED = (BALANCED, AUROC, PRECISION, NLL, NLL_CALIBRATED, ECE, ECE_CALIBRATED)
METRICS = (*JUDGED, NLL_POSTERIOR, ECE_POSTERIOR, RARE, ACCURACY)
CRITERIA = {metric.name.replace(" ", "-").lower(): metric for metric in JUDGED}


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

    @property
    def gain(self) -> tuple[float, float, float]:
        """Mean, low and high of the difference, turned so that more is better."""
        d = self.difference
        return (d.mean, d.low, d.high) if self.metric.higher_is_better else (-d.mean, -d.high, -d.low)


Table = list[dict[Metric, Comparison]]


@dataclass(frozen=True)
class Advice:
    """What to use.

    Attributes:
      metric, margin: the criterion, and the least difference worth having.
      verdict: BETTER, EQUAL or UNDECIDED.
      index: of the setting to use, 0 for cross-entropy; None where that is undecided.
      leader: of the setting with the best mean, among those that are better if there are any.
      helpful: indices of all settings that are better and may be so by more than the margin.
      alike: those of them that cannot be told from the leader.
      chosen: what choosing on the validation folds gained over cross-entropy on the test folds.
      deciding: (folds, seeds) with which the leader's difference would be told, if runs went on to vary as
        they do; None if none is enough, or it is told.
      of_folds: the share of the variance of its mean that is the folds', which no seed lowers.
    """

    metric: Metric
    margin: float
    verdict: str
    index: int | None
    leader: int
    helpful: tuple[int, ...]
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
    """Return the mean of J >= 2 runs and its interval, within what it can be; `test_share` is n_test / n_train."""
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


def distinct(differences: np.ndarray) -> np.ndarray:
    """Return which of the differences [m, J] need a test of their own: the first of equal ones, and not zeros."""
    seen = {np.zeros(differences.shape[1]).tobytes()}
    own = []
    for values in differences + 0.0:  # -0.0 becomes 0.0
        own.append(values.tobytes() not in seen)
        seen.add(values.tobytes())
    return np.array(own, bool)


def compare(settings: Sequence[Setting], measures: Mapping[str, np.ndarray], test_share: float) -> Table:
    """Compare measures [..., A] with those of setting 0, cross-entropy: all metrics for each setting."""
    table: Table = [{} for _ in settings]
    for metric in METRICS:
        values = measures[metric.field].reshape(-1, len(settings)).T
        differences = values - values[0]
        of = [corrected_t(d, test_share, -metric.highest, metric.highest) for d in differences]
        own = distinct(differences)
        adjusted = holm(np.array([of[i].p for i in np.flatnonzero(own)]))
        known = {differences[i].tobytes(): p for i, p in zip(np.flatnonzero(own), adjusted, strict=True)}
        for i, setting in enumerate(settings):
            p = float(known.get(differences[i].tobytes(), 1.0))
            mean = corrected_t(values[i], test_share, 0.0, metric.highest)
            table[i][metric] = Comparison(setting, metric, mean, of[i], p, _verdict(metric, of[i], p, i))
    return table


def advise(
    metric: Metric,
    margin: float,
    table: Table,
    validation: np.ndarray,
    test: np.ndarray,
    shape: tuple[int, int],
    most_folds: int,
) -> Advice:
    """Draw the conclusion from all comparisons, and from the values of a metric [..., A] on both kinds of rows.

    `shape` is S and K, `most_folds` how many folds the rarest class allows.
    """
    settings = [row[metric].setting for row in table]
    test, share = test.reshape(-1, len(settings)), 1 / (shape[1] - 2)
    pick = metric.better(validation.reshape(test.shape)).argmax(axis=1)
    chosen = corrected_t(test[np.arange(len(test)), pick] - test[:, 0], share)
    gains = np.array([row[metric].gain for row in table])
    may = gains[:, 2] > margin
    helpful = [i for i, row in enumerate(table) if row[metric].verdict == BETTER and may[i]]
    leader = max(helpful or range(1, len(settings)), key=lambda i: gains[i, 0])
    alike: list[int] = []
    if not may[1:].any():
        verdict, index = EQUAL, 0
    elif helpful:
        apart = [corrected_t(test[:, i] - test[:, leader], share).p for i in helpful]
        alike = [i for i, p in zip(helpful, apart, strict=True) if i == leader or p > 1 - LEVEL]
        verdict, index = BETTER, min(alike, key=lambda i: (*settings[i].plainness, i))
    else:
        verdict, index = UNDECIDED, None
    differences = test - test[:, :1]
    tests = int(distinct(differences.T[1:]).sum())
    deciding = (
        _deciding(metric.better(differences[:, leader]), shape, margin, tests, most_folds)
        if index is None
        else None
    )
    of_folds = share / (share + 1 / len(test))
    return Advice(
        metric, margin, verdict, index, leader, tuple(helpful), tuple(alike), chosen, deciding, of_folds
    )


def _deciding(
    gains: np.ndarray, shape: tuple[int, int], margin: float, tests: int, most_folds: int
) -> tuple[int, int] | None:
    """Return the fewest runs, as folds and seeds, that would tell this gain from 0 or from the margin."""
    mean, deviation, (seeds, folds) = gains.mean(), gains.std(ddof=1), shape
    tries = [(folds, s) for s in MORE_SEEDS if s > seeds] + [(k, seeds) for k in MORE_FOLDS if k > folds]
    for k, s in sorted(tries, key=lambda more: more[0] * more[1]):
        error = deviation * np.sqrt(1 / (k * s) + 1 / (k - 2))
        surely = mean > stdtrit(k * s - 1, 1 - (1 - LEVEL) / 2 / max(1, tests)) * error
        nothing = mean + stdtrit(k * s - 1, (1 + LEVEL) / 2) * error <= margin
        if k <= most_folds and (surely or nothing):
            return k, s
    return None


def _verdict(metric: Metric, difference: Interval, p: float, index: int) -> str:
    if not index:
        return "baseline"
    if p > 1 - LEVEL:
        return NOTHING
    return BETTER if metric.better(difference.mean) > 0 else "worse"
