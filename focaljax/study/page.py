"""The report as one page: self-contained HTML, with its pictures, for any screen, light or dark."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from focaljax.study import pictures, words
from focaljax.study.data import rarest
from focaljax.study.outcome import Outcome
from focaljax.study.settings import ALPHAS
from focaljax.study.verdict import METRICS

CAPTIONS = {
    "loss_curves": "NLL on the test folds after each epoch, mean over the runs; the marks are where early "
    "stopping, which sees the validation folds only, stops on average.",
    "recall_per_class": "Recall of each class on the test folds, stopped early, with 95 % intervals over the "
    f"runs where there are at most {pictures.SOME} classes; the most frequent class is at the top.",
    "reliability": "How often predictions of a given probability are right, stopped early, as they are, all "
    f"test folds of all seeds together; bins with fewer than {pictures.LEAST_IN_BIN} rows are left out.",
}


def make(outcome: Outcome, numbers: dict[str, Any]) -> str:
    """Return the page of an outcome and of the numbers in report.json."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"zip": zip, "sentence": words.sentence}
    return environment.get_template("page.html.j2").render(
        content=numbers,
        outcome=outcome,
        runs=words.runs(outcome),
        grid=_grid(outcome),
        tables={
            results.when: sorted(table, key=lambda row: -row[outcome.metric].gain[0])
            for results, table in ((outcome.stopped, outcome.table), (outcome.end, outcome.table_at_end))
        },
        rare=[outcome.class_names[k] for k in rarest(outcome.class_counts)],
        metrics=METRICS,
        pictures={name: Markup(pictures.svg(name, outcome)) for name in pictures.PANELS},
        captions=CAPTIONS,
        reading=pictures.READING,
    )


def _grid(outcome: Outcome) -> dict[str, Any]:
    """Gamma by alpha: the criterion, stopped early; and beside it the settings that move logits."""
    cells = {row[outcome.metric].setting: row[outcome.metric] for row in outcome.table}
    alphas = [a for a in ALPHAS if any(s.alpha == a for s in cells)]
    return {
        "alphas": alphas,
        "rows": {
            g: [next((c for s, c in cells.items() if (s.gamma, s.alpha) == (g, a)), None) for a in alphas]
            for g in sorted({s.gamma for s in cells})
        },
        "moved": [c for s, c in cells.items() if s.alpha not in ALPHAS],
        "shown": outcome.table[outcome.advice.shown][outcome.metric],
    }
