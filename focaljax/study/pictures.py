"""The pictures of the report, put together from panels: one figure, one file.

Figures are made without pyplot, so that drawing needs no screen and leaves no global state behind.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from focaljax.study import panels
from focaljax.study.compare import ECE, JUDGED, LEVEL, NLL, RARE
from focaljax.study.evaluate import BINS
from focaljax.study.outcome import Outcome
from focaljax.study.settings import highlights

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
}


def draw_all(folder: Path, outcome: Outcome) -> None:
    """Write the four pictures of the report into a folder."""
    drawings: dict[str, Callable[[Outcome], Figure]] = {
        "loss_curves": _loss_curves,
        "recall_per_class": _recall_per_class,
        "reliability": _reliability,
        "summary": _summary,
    }
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # A class name may hold letters that the font lacks: boxes are drawn, which is no error.
        warnings.filterwarnings("ignore", message="Glyph")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        for name, drawing in drawings.items():
            drawing(outcome).savefig(folder / f"{name}.png", dpi=130)


def _loss_curves(outcome: Outcome) -> Figure:
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    everything = range(len(outcome.settings))
    panels.curves(left, outcome, outcome.trained.train_nll, everything)
    left.set(yscale="log", ylabel="training NLL, mean over seeds (log scale)")
    left.set_title("Training: plain cross-entropy, whatever the loss was")
    panels.curves(right, outcome, outcome.trained.test_nll, everything)
    right.set(ylabel="held-out NLL, mean over seeds")
    right.set_title(panels.title(outcome, NLL))
    _legend_below(figure, right)
    return figure


def _recall_per_class(outcome: Outcome) -> Figure:
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots()
    panels.recalls(axes, outcome, range(len(outcome.settings)))
    axes.set_title(panels.title(outcome, RARE))
    _legend_below(figure, axes)
    return figure


def _reliability(outcome: Outcome) -> Figure:
    n = len(outcome.settings)
    columns = min(4, n)
    rows = -(-n // columns)
    figure = Figure(figsize=(3.1 * columns, 3.1 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for index, axes in enumerate(grid[:n]):
        _bars(axes, outcome, index)
    for axes in grid[n:]:
        axes.set_visible(False)
    grid[0].legend(loc="upper left", fontsize=8)
    figure.supxlabel("probability of the predicted class", fontsize=10)
    figure.suptitle(
        f"Reliability on the held-out rows of all seeds, {BINS} bins (fewer than "
        f"{panels.LEAST_IN_BIN} rows: not shown); ECE is the mean over seeds",
        fontsize=11,
    )
    return figure


def _bars(axes: Axes, outcome: Outcome, index: int) -> None:
    diagram = outcome.diagrams[index]
    left = np.arange(BINS) / BINS
    bars: dict[str, Any] = {"width": 1 / BINS, "align": "edge", "edgecolor": "white"}
    right = np.where(panels.filled(outcome, index), diagram.accuracy, 0.0)
    axes.bar(left, right, color="#56b4e9", label="share that is right", **bars)
    axes.step(
        np.append(left, 1.0),
        np.append(diagram.share, diagram.share[-1]),
        where="post",
        color="#d55e00",
        label="share of all rows",
    )
    axes.plot([0, 1], [0, 1], color="black", linestyle=":", label="calibrated")
    ece = next(cell.mean.mean for cell in outcome.table[index] if cell.metric is ECE)
    axes.set_title(f"{outcome.settings[index].name}\nECE {ece:.3f}", fontsize=9.5)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.tick_params(labelbottom=True)


def _summary(outcome: Outcome) -> Figure:
    figure = Figure(figsize=(14, 8.2), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.15, 1.0))
    top, bottom = halves
    shown = highlights(outcome.settings)
    first, second, third = top.subplots(1, 3)
    panels.curves(first, outcome, outcome.trained.test_nll, shown)
    first.set(ylabel="held-out NLL, mean over seeds")
    first.set_title(panels.title(outcome, NLL))
    panels.reliabilities(second, outcome, shown)
    second.set_title(panels.title(outcome, ECE))
    panels.recalls(third, outcome, shown)
    third.set_title(panels.title(outcome, RARE))
    _legend_below(top, second)
    for axes, metric in zip(bottom.subplots(1, 3, sharey=True), JUDGED, strict=True):
        panels.differences(axes, outcome, metric)
    bottom.suptitle(
        f"Difference to cross-entropy, paired over {len(outcome.splits.seeds)} seeds, with "
        f"{LEVEL:.0%} t intervals (hollow: the interval includes 0, no difference found)",
        fontsize=11,
    )
    return figure


def _legend_below(figure: Figure | SubFigure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
