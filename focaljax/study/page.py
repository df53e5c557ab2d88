"""The report as one page: self-contained HTML, with its pictures, for any screen, light or dark."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from focaljax.study import panels, pictures, words
from focaljax.study.compare import JUDGED, METRICS, Comparison, better, cell
from focaljax.study.outcome import Outcome, Results
from focaljax.study.settings import ADJUSTED

CAPTIONS = {
    **{
        metric.field: f"{metric.title}: difference to cross-entropy, setting by setting." for metric in JUDGED
    },
    "loss_curves": "NLL on the test folds after each epoch, mean over the runs; the marks are where early "
    "stopping, which sees the validation folds only, stops on average.",
    "recall_per_class": "Recall of each class on the test folds, stopped early, with 95 % intervals over the "
    "runs; the most frequent class is on the left.",
    "reliability": "How often predictions of a given probability are right, stopped early, all test folds of "
    f"all seeds together; bins with fewer than {panels.LEAST_IN_BIN} rows are left out.",
}


@dataclass(frozen=True)
class Cell:
    """A table cell: what it shows, its class in the style sheet, and what it shows in small letters."""

    text: str
    kind: str = ""
    below: str = ""


def write(path: Path, outcome: Outcome, content: dict[str, Any]) -> None:
    """Write the page of an outcome and of the numbers in report.json."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"zip": zip, "sentence": words.sentence}
    page = environment.get_template("page.html.j2").render(
        content=content,
        metric=outcome.metric,
        runs=words.runs(outcome),
        grid=_grid(outcome),
        tables=[(results.when, _table(outcome, results)) for results in outcome.both],
        metrics=METRICS,
        pictures={name: Markup(pictures.svg(name, outcome)) for name in pictures.PANELS},
        captions=CAPTIONS,
        reading=panels.explanation(outcome),
    )
    path.write_text(page, encoding="utf-8")


def _grid(outcome: Outcome) -> dict[str, Any]:
    """Gamma by alpha: the criterion, stopped early; and logit adjustment beside it."""
    rows = {row[0].setting: cell(row, outcome.metric) for row in outcome.stopped.table}
    chosen = outcome.study.settings[outcome.recommendation.index]
    regular = [s for s in rows if s.alpha != ADJUSTED]
    alphas = list(dict.fromkeys(s.alpha for s in regular))
    gammas = sorted({s.gamma for s in regular})

    def at(gamma: float, alpha: str) -> Cell:
        found = [s for s in regular if (s.gamma, s.alpha) == (gamma, alpha)]
        return _compared(rows[found[0]], found[0] == chosen) if found else Cell("")

    adjusted = next(s for s in rows if s.alpha == ADJUSTED)
    return {
        "alphas": alphas,
        "rows": [(f"{gamma:g}", [at(gamma, alpha) for alpha in alphas]) for gamma in gammas],
        "adjusted": _compared(rows[adjusted], adjusted == chosen),
    }


def _table(outcome: Outcome, results: Results) -> list[tuple[str, list[Cell]]]:
    """All settings and metrics, the best by the criterion first."""
    metric = outcome.metric
    rows = sorted(results.table, key=lambda row: -better(metric, cell(row, metric).mean.mean))
    return [(row[0].setting.name, [_compared(c) for c in row]) for row in rows]


def _compared(c: Comparison, chosen: bool = False) -> Cell:
    kind = c.verdict if c.verdict in ("better", "worse", "baseline") else ""
    below = "cross-entropy" if kind == "baseline" else str(c.difference)
    return Cell(f"{c.mean.mean:.3f}", f"{kind} chosen" if chosen else kind, below)
