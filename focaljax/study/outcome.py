"""All that one study found, in one place: what the terminal, the pictures and the folder tell."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from focaljax.study import tally
from focaljax.study.compare import Comparison, Metric, compare
from focaljax.study.recommend import Recommendation, recommend
from focaljax.study.tally import Tally
from focaljax.study.train import Progress, Study

STOPPED, END = "stopped early", "at the end of training"


@dataclass(frozen=True)
class Results:
    """What runs are worth at one time, [S, K, A, ...]: "stopped early", or "at the end of training"."""

    when: str
    validation: Tally
    test: Tally
    study: Study

    @cached_property
    def measures(self) -> dict[str, np.ndarray]:
        """The measures [S, K, A] on the test folds."""
        return tally.measures(self.test)

    @cached_property
    def recall(self) -> np.ndarray:
        """[S, K, A, C] on the test folds."""
        return tally.recall(self.test)

    @cached_property
    def table(self) -> list[list[Comparison]]:
        """One comparison per setting and metric."""
        return compare(self.study.settings, self.measures, self.study.folds.test_share)

    def recommendation(self, metric: Metric) -> Recommendation:
        """What to use by this metric."""
        validation = tally.measures(self.validation)[metric.field]
        test = self.measures[metric.field]
        return recommend(metric, self.table, validation, test, self.study.folds.test_share)


@dataclass(frozen=True)
class Outcome:
    """A finished study: its criterion, what its runs are worth at both times, and [E, 2, S, K, A] NLL."""

    study: Study
    metric: Metric
    stopped: Results
    end: Results
    nll: np.ndarray

    @property
    def both(self) -> tuple[Results, Results]:
        """Stopped early, which the recommendation goes by, and at the end of training."""
        return self.stopped, self.end

    @cached_property
    def recommendation(self) -> Recommendation:
        """What to use, for who stops early."""
        return self.stopped.recommendation(self.metric)

    @property
    def best_epoch(self) -> np.ndarray:
        """[S, K, A], counted from 1."""
        return self.nll[:, 0].argmin(axis=0) + 1

    @property
    def class_counts(self) -> np.ndarray:
        """[C] rows in the data."""
        return self.study.folds.class_counts[0].sum(axis=0)


def outcome(study: Study, metric: Metric, progress: Progress) -> Outcome:
    """Return what the finished runs found, judged by one metric."""

    def results(when: str, sums: Tally) -> Results:
        validation, test = (Tally(*(x[role] for x in sums)) for role in (0, 1))
        return Results(when, validation, test, study)

    return Outcome(study, metric, results(STOPPED, progress.best), results(END, progress.last), progress.nll)
