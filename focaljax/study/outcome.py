"""All that one study found, in one place: what the terminal, the pictures, the page and a notebook tell."""

import html
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from focaljax.calibration import Reliability
from focaljax.study import words
from focaljax.study.data import rarest
from focaljax.study.measures import ECE, Results
from focaljax.study.settings import Setting
from focaljax.study.verdict import (
    JUDGED,
    LEVEL,
    METRICS,
    Advice,
    Metric,
    Table,
    advise,
    compare,
)

STOPPED, END = "stopped early", "at the end of training"


@dataclass(frozen=True)
class Outcome:
    """A finished study of S seeds, K folds and A settings.

    Attributes:
      settings: A, cross-entropy first.
      seeds: S numbers.
      folds: K.
      class_names, class_counts: of the C classes, [C].
      metric, margin: the criterion, and the least difference in it worth having.
      stopped, end: what the runs are worth, stopped early and at the end of training.
      nll: [epochs, 2, S, K, A'] after each epoch, of validation and test rows, of settings with a training.
      about: what else the report says of the data and the training.
    """

    settings: tuple[Setting, ...]
    seeds: tuple[int, ...]
    folds: int
    class_names: tuple[str, ...]
    class_counts: np.ndarray
    metric: Metric
    margin: float
    stopped: Results
    end: Results
    nll: np.ndarray
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def both(self) -> tuple[Results, Results]:
        """Stopped early, which the advice goes by, and at the end of training."""
        return self.stopped, self.end

    @property
    def test_share(self) -> float:
        """Held-out rows per training row, which says how much the training sets overlap."""
        return 1 / (self.folds - 2)

    @cached_property
    def tables(self) -> dict[str, Table]:
        """Every comparison, by the time."""
        return {r.when: compare(self.settings, r.test, self.test_share) for r in self.both}

    @cached_property
    def advice(self) -> Advice:
        """What to use, for who stops early."""
        return self.advise(self.stopped)

    def advise(self, results: Results) -> Advice:
        """Return what to use by the results at one time."""
        values = (results.validation[self.metric.field], results.test[self.metric.field])
        shape, most = (len(self.seeds), self.folds), int(self.class_counts.min())
        return advise(self.metric, self.margin, self.tables[results.when], *values, shape, most)

    @property
    def best_epoch(self) -> np.ndarray:
        """[S, K, A'], counted from 1."""
        return self.nll[:, 0].argmin(axis=0) + 1

    @property
    def rare(self) -> list[str]:
        """The rarest third of the classes."""
        return [self.class_names[k] for k in rarest(self.class_counts)]

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per setting: per metric the mean, the difference to cross-entropy, its interval, the verdict."""
        rows = {}
        for row in self.tables[self.stopped.when]:
            cells = {}
            for metric, c in row.items():
                d = c.difference
                cells |= {(metric.name, "mean"): c.mean.mean, (metric.name, "difference"): d.mean}
                cells |= {(metric.name, "low"): d.low, (metric.name, "high"): d.high, (metric.name, "p"): c.p}
                cells |= {(metric.name, "verdict"): c.verdict}
            rows[row[self.metric].setting.name] = cells
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("setting")

    @cached_property
    def runs(self) -> pd.DataFrame:
        """Two rows per run, stopped early and at the end, with a column per metric and per class's recall."""
        order = list(product(range(len(self.settings)), range(len(self.seeds)), range(self.folds)))
        a, s, k = np.array(order).T
        parts = []
        for results in self.both:
            epoch = (
                self.best_epoch if results is self.stopped else np.full(self.best_epoch.shape, len(self.nll))
            )
            columns = {
                "setting": [self.settings[i].name for i in a],
                "gamma": [self.settings[i].gamma for i in a],
                "alpha": [self.settings[i].alpha for i in a],
                "seed": np.array(self.seeds)[s],
                "fold": k + 1,
                "when": results.when,
                "epoch": epoch[s, k, np.where(a < epoch.shape[-1], a, 0)],
            }
            columns |= {m.field: results.test[m.field][s, k, a] for m in METRICS}
            recalls = {
                f"recall[{name}]": results.recall[s, k, a, c] for c, name in enumerate(self.class_names)
            }
            parts.append(pd.DataFrame(columns | recalls))
        return pd.concat(parts, ignore_index=True)

    def numbers(self) -> dict[str, Any]:
        """Return everything the report says, but for single runs, as one JSON object."""
        advice, names = self.advice, [s.name for s in self.settings]
        used = None if advice.index is None else names[advice.index]
        return {
            **self.about,
            "settings": [{"name": s.name, **asdict(s)} for s in self.settings],
            "interval": f"{LEVEL:.0%} corrected t over folds and seeds, paired; verdicts after Holm",
            "recommendation": {
                "for": self.metric.name,
                "when": self.stopped.when,
                "margin": self.margin,
                "verdict": advice.verdict,
                "setting": used,
                "leader": names[advice.leader],
                "headline": words.headline(self),
                "reasons": words.reasons(self),
                "code": words.code(self),
                "better_than_cross_entropy": [names[i] for i in advice.helpful],
                "not_told_from_the_leader": [names[i] for i in advice.alike],
                "gain_of_choosing_on_validation": asdict(advice.chosen),
            },
            "caveats": words.caveats(self),
            "results": {when: [_summary(row) for row in table] for when, table in self.tables.items()},
            "curves": {
                "what": "plain NLL after each epoch, mean over runs; one list per setting with a training",
                "validation_nll": self.nll[:, 0].mean(axis=(1, 2)).T.tolist(),
                "test_nll": self.nll[:, 1].mean(axis=(1, 2)).T.tolist(),
            },
            "reliability": {
                r.when: {
                    "as it is": [*map(_diagram, r.reliability)],
                    "calibrated": [*map(_diagram, r.calibrated)],
                }
                for r in self.both
            },
            "ece_bins": ECE.bins,
        }

    def save(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Write the report into a new or empty folder; return its page.

        Raises:
          StudyError: the folder has something in it, or cannot be written.
        """
        from focaljax.study import report

        return report.save(self, Path(folder), overwrite)

    def _repr_html_(self) -> str:
        """Show the headline, the reasons and the means in a notebook."""
        table = self.tables[self.stopped.when]
        cells = {m.name: [words.marked(row[m]) for row in table] for m in JUDGED}
        shown = pd.DataFrame(cells, index=[row[self.metric].setting.name for row in table])
        listed = "".join(f"<li>{html.escape(reason)}</li>" for reason in words.reasons(self))
        code = html.escape(words.code(self))
        head = f"<p><b>{html.escape(words.headline(self))}</b></p><ul>{listed}</ul><pre>{code}</pre>"
        return f"{head}{shown.to_html()}<p>{html.escape(words.MARKS)}</p>"

    def __repr__(self) -> str:
        """Read like the headline."""
        return f"<Outcome: {words.headline(self)}>"


def _summary(row: dict) -> dict[str, Any]:
    cells = {
        metric.field: {
            "mean": _finite(asdict(c.mean)),
            "difference_to_cross_entropy": _finite(asdict(c.difference)),
            "p_after_holm": c.p,
            "verdict": c.verdict,
        }
        for metric, c in row.items()
    }
    return {"setting": row[METRICS[0]].setting.name, **cells}


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if np.isfinite(value) else None for name, value in values.items()}


def _diagram(diagram: Reliability) -> dict[str, list[float | None]]:
    return {
        name: [float(v) if np.isfinite(v) else None for v in values]
        for name, values in diagram._asdict().items()
    }
