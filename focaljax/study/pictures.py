"""The pictures of the report: one panel, one file; all of them on one sheet; and as SVG for the page.

Figures are made without pyplot, so that drawing needs no screen and leaves no global state behind. In the
SVG the colours of text, lines and paper are variables of the page's style, so that it may be dark.
"""

import io
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from focaljax.study import panels
from focaljax.study.compare import JUDGED
from focaljax.study.outcome import Outcome

Panel = Callable[[Axes, Outcome], None]
PANELS: dict[str, Panel] = {
    **{metric.field: partial(panels.differences, metric=metric) for metric in JUDGED},
    "loss_curves": panels.curves,
    "recall_per_class": panels.recalls,
    "reliability": panels.reliabilities,
}
OF_SETTINGS = tuple(metric.field for metric in JUDGED)  # the settings are on their axis: no legend
SHEET = "summary"
# Colours that stand for variables of the page, in SVG; and what they are in a PNG.
INK, RULE, PAPER = ("#010203", "black"), ("#040506", "#e6e6e6"), ("#070809", "white")
VARIABLES = {INK[0]: "var(--ink)", RULE[0]: "var(--rule)", PAPER[0]: "var(--paper)"}


def draw_all(folder: Path, outcome: Outcome) -> None:
    """Write the panels and the sheet into a folder, as PNG."""
    with _style(1):
        for name in PANELS:
            _alone(name, outcome).savefig(folder / f"{name}.png", dpi=150)
        _sheet(outcome).savefig(folder / f"{SHEET}.png", dpi=110)


def svg(name: str, outcome: Outcome) -> str:
    """Return a panel as an <svg> element; its ids begin with the name, so that many fit on one page."""
    text = io.StringIO()
    with _style(0):
        _alone(name, outcome).savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    element = re.sub(r"^.*?(?=<svg)", "", text.getvalue(), flags=re.S)
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.S)
    element = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", element)
    for colour, variable in VARIABLES.items():
        element = element.replace(colour, variable)
    return element


def _alone(name: str, outcome: Outcome) -> Figure:
    rows = len(outcome.study.settings) - 1
    height = 1.1 + 0.24 * rows if name in OF_SETTINGS else 4.6
    figure = Figure(figsize=(5.2, max(height, 3.0)), layout="constrained")
    axes = figure.subplots()
    PANELS[name](axes, outcome)
    if name not in OF_SETTINGS:
        figure.legend(*panels.legend(axes), loc="outside lower center", ncols=2)
    return figure


def _sheet(outcome: Outcome) -> Figure:
    rows = len(outcome.study.settings) - 1
    heights = [max(1.1 + 0.22 * rows, 3.0), 4.4]
    figure = Figure(figsize=(15, sum(heights) + 0.8), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=heights)
    names = list(PANELS)
    for axes, name in zip(halves[0].subplots(1, 3, sharey=True), names[:3], strict=True):
        PANELS[name](axes, outcome)
    halves[0].suptitle("\n".join(textwrap.wrap(panels.explanation(outcome), 190)), fontsize=10)
    below = halves[1].subplots(1, 3)
    for axes, name in zip(below, names[3:], strict=True):
        PANELS[name](axes, outcome)
    halves[1].legend(*panels.legend(below[-1]), loc="outside lower center", ncols=5)
    return figure


@contextmanager
def _style(colours: int) -> Iterator[None]:
    ink, rule, paper = (pair[colours] for pair in (INK, RULE, PAPER))
    style: dict[Any, Any] = {
        "font.size": 10,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.linewidth": 0.8,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "svg.fonttype": "none",
        "svg.hashsalt": "focaljax",
        "grid.color": rule,
        **dict.fromkeys(("figure.facecolor", "axes.facecolor"), paper),
        **dict.fromkeys(
            ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), ink
        ),
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # A class name may hold letters that the font lacks: boxes are drawn, which is no error.
        warnings.filterwarnings("ignore", message="Glyph")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        yield
