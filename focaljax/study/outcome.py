"""All that one study found, in one place: what the terminal, the pictures, the page and a notebook tell."""

import html
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from focaljax.study import words
from focaljax.study.measures import Results
from focaljax.study.settings import Setting
from focaljax.study.verdict import JUDGED, LEVEL, METRICS, Advice, Metric, Table, advise, compare


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
      model: "network" or "trees".
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
    model: str = "network"
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def test_share(self) -> float:
        """Held-out rows per training row, which says how much the training sets overlap."""
        return 1 / (self.folds - 2)

    @cached_property
    def table(self) -> Table:
        """Every comparison, stopped early."""
        return compare(self.settings, self.stopped.test, self.test_share)

    @cached_property
    def table_at_end(self) -> Table:
        """Every comparison at the end of training."""
        return compare(self.settings, self.end.test, self.test_share)

    @cached_property
    def advice(self) -> Advice:
        """What to use, for who stops early."""
        return self._advise(self.table, self.stopped)

    @cached_property
    def advice_at_end(self) -> Advice:
        """What to use, for who trains to the end."""
        return self._advise(self.table_at_end, self.end)

    def _advise(self, table: Table, results: Results) -> Advice:
        validation, test = results.validation[self.metric.field], results.test[self.metric.field]
        return advise(self.metric, self.margin, table, validation, test, int(self.class_counts.min()))

    @property
    def best_epoch(self) -> np.ndarray:
        """[S, K, A'], counted from 1."""
        return self.nll[:, 0].argmin(axis=0) + 1

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per setting, with each metric's mean, difference to cross-entropy and verdict."""
        return _frame(self.table)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """Two rows per run, stopped early and at the end, with a column per metric and per class's recall."""
        shape = (len(self.settings), len(self.seeds), self.folds)
        a, s, k = (x.ravel() for x in np.indices(shape))
        trained, parts = np.where(a < self.best_epoch.shape[-1], a, 0), []
        for results in (self.stopped, self.end):
            columns: dict[str, Any] = {"setting": [self.settings[i].name for i in a]}
            columns |= {name: [getattr(self.settings[i], name) for i in a] for name in ("gamma", "alpha")}
            columns |= {"seed": np.array(self.seeds)[s], "fold": k + 1, "when": results.when}
            columns["epoch"] = self.best_epoch[s, k, trained] if results is self.stopped else len(self.nll)
            columns |= {m.field: results.test[m.field][s, k, a] for m in METRICS}
            recall = results.recall[s, k, a].T
            columns |= {f"recall[{name}]": of for name, of in zip(self.class_names, recall, strict=True)}
            parts.append(pd.DataFrame(columns))
        return pd.concat(parts, ignore_index=True)

    def numbers(self) -> dict[str, Any]:
        """Return what the report says, but for single runs, as one JSON object."""
        advice, names = self.advice, [s.name for s in self.settings]
        tables = {self.stopped.when: self.table, self.end.when: self.table_at_end}
        return {
            **self.about,
            "interval": f"{LEVEL:.0%} corrected t over folds and seeds, paired; verdicts after Holm",
            "recommendation": {
                "for": self.metric.name,
                "when": self.stopped.when,
                "margin": self.margin,
                "verdict": advice.verdict,
                "setting": None if advice.index is None else names[advice.index],
                "leader": names[advice.leader],
                "headline": words.headline(self),
                "reasons": words.reasons(self),
                "code": words.code(self),
                "not_told_from_the_leader": [names[i] for i in advice.alike],
                "gain_of_choosing_on_validation": list(advice.chosen),
            },
            "caveats": words.caveats(self),
            "results": {when: _nested(_frame(table)) for when, table in tables.items()},
            "curves": {
                "what": "plain NLL after each epoch, mean over runs; one list per setting with a training",
                "validation_nll": self.nll[:, 0].mean(axis=(1, 2)).T.tolist(),
                "test_nll": self.nll[:, 1].mean(axis=(1, 2)).T.tolist(),
            },
        }

    def save(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Write the report into a new or empty folder; return its page.

        Raises:
          focaljax.study.StudyError: the folder has something in it, or cannot be written.
        """
        from focaljax.study import report

        return report.save(self, Path(folder), overwrite)

    def _repr_html_(self) -> str:
        """Show the headline, the reasons and the means in a notebook."""
        cells = {m.name: [words.marked(row[m]) for row in self.table] for m in JUDGED}
        shown = pd.DataFrame(cells, index=pd.Index([s.name for s in self.settings]))
        listed = "".join(f"<li>{html.escape(reason)}</li>" for reason in words.reasons(self))
        head = f"<p><b>{html.escape(words.headline(self))}</b></p><ul>{listed}</ul>"
        return f"{head}<pre>{html.escape(words.code(self))}</pre>{shown.to_html()}<p>{words.MARKS}</p>"

    def __repr__(self) -> str:
        """Read like the headline."""
        return f"<Outcome: {words.headline(self)}>"


def _frame(table: Table) -> pd.DataFrame:
    rows = {}
    for row in table:
        cells = rows[next(iter(row.values())).setting.name] = {}
        for metric, c in row.items():
            of = {"mean": c.mean.mean, "difference": c.difference.mean, "low": c.difference.low}
            of |= {"high": c.difference.high, "p": c.p, "verdict": c.verdict}
            cells |= {(metric.name, name): value for name, value in of.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("setting")


def _nested(frame: pd.DataFrame) -> dict[str, dict[str, dict[str, Any]]]:
    nested: dict = {}
    for (metric, name), column in frame.to_dict().items():  # pyright: ignore[reportGeneralTypeIssues]
        for setting, value in column.items():
            nested.setdefault(setting, {}).setdefault(metric, {})[name] = value
    return nested
