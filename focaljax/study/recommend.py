"""Which gamma and which alpha: a recommendation by one criterion, or that no difference was found.

Recommended is a setting that is better than cross-entropy after Holm's correction. Among several it is
not the one with the best mean, which is best by chance too, but the plainest that cannot be told from it:
fewest departures from cross-entropy, then the smallest gamma. What choosing is worth in all is measured
apart, without favour: each run takes the setting that is best on its validation fold, and its test fold
says what that gained.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from focaljax.study.compare import (
    JUDGED,
    LEVEL,
    Comparison,
    Interval,
    Metric,
    better,
    cell,
    corrected_t,
)

CRITERIA = {metric.name.replace(" ", "-").lower(): metric for metric in JUDGED}


@dataclass(frozen=True)
class Recommendation:
    """What to use.

    Attributes:
      metric: the criterion.
      index: of the recommended setting; 0, cross-entropy, where no difference was found in its disfavour.
      best: of the setting with the best mean among those that are better; `index` or one that cannot be
        told from it.
      helpful: indices of all settings that are better than cross-entropy.
      alike: those of them that cannot be told from `best`.
      chosen: what choosing on the validation folds gained over cross-entropy on the test folds.
    """

    metric: Metric
    index: int
    best: int
    helpful: tuple[int, ...]
    alike: tuple[int, ...]
    chosen: Interval

    @property
    def found(self) -> bool:
        """Whether anything is better than cross-entropy."""
        return self.index != 0


def recommend(
    metric: Metric,
    table: Sequence[Sequence[Comparison]],
    validation: np.ndarray,
    test: np.ndarray,
    test_share: float,
) -> Recommendation:
    """Recommend by all comparisons, and by the values of a metric [..., A] on validation and test folds."""
    settings = [row[0].setting for row in table]
    test = test.reshape(-1, len(settings))
    runs, pick = np.arange(len(test)), better(metric, validation.reshape(test.shape)).argmax(axis=1)
    chosen = corrected_t(test[runs, pick] - test[:, 0], test_share)
    helpful = [i for i, row in enumerate(table) if cell(row, metric).verdict == "better"]
    if not helpful:
        return Recommendation(metric, 0, 0, (), (), chosen)
    best = max(helpful, key=lambda i: better(metric, test.mean(axis=0))[i])
    against = [corrected_t(test[:, i] - test[:, best], test_share).p for i in helpful]
    alike = [i for i, p in zip(helpful, against, strict=True) if i == best or p > 1 - LEVEL]
    plainest = min(alike, key=lambda i: (settings[i].knobs, settings[i].gamma, i))
    return Recommendation(metric, plainest, best, tuple(helpful), tuple(alike), chosen)
