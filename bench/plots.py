"""One picture per result: log axes, colours of Okabe and Ito, a marker for each colour.

The docstring of each is its alternative text in README.md.
"""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from bench.contenders import COPY
from bench.tables import GRADIENT, Result

COLOURS = ["#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#F0E442"]
MARKERS = "osD^vP*Xp"


def _look(index: int) -> dict[str, Any]:
    index %= len(COLOURS)
    edge = {"markeredgecolor": "black", "markeredgewidth": 0.4}
    return {"color": COLOURS[index], "marker": MARKERS[index], **edge}


def _dots(axes: Axes, rows: Any, series: str, x: str, line: float, title: str) -> None:
    """Contenders down, one marker per value of `series`, on a log axis with a line."""
    names = list(rows.contender.unique())
    for i, (kind, own) in enumerate(rows.groupby(series, sort=False)):
        places = own.contender.map(names.index)
        axes.plot(own[x], places, linestyle="", label=kind, alpha=0.85, **_look(i + 1))
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xscale="log", title=title)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", which="both", alpha=0.25)
    axes.axvline(line, color="black", linewidth=1)


def _grid(down: int, across: int, height: float) -> tuple[Figure, Any]:
    return plt.subplots(down, across, figsize=(11, height), squeeze=False, layout="constrained")


def _legend(figure: Figure, axes: Axes, columns: int) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=columns)


def _panels(rows: Any, series: str, x: str, line: float, words: str) -> Figure:
    """One of dots per case and dtype, two beside each other."""
    panels = list(rows.groupby(["case", "dtype"], sort=False))
    down = -(-len(panels) // 2)
    figure, grid = _grid(down, 2, 3.4 * down)
    for axes, ((case, dtype), own) in zip(grid.flat, panels, strict=False):
        _dots(axes, own, series, x, line, f"{case} {own['shape'].iloc[0]}, {dtype}")
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    _legend(figure, grid[0, 0], rows[series].nunique())
    figure.supxlabel(f"{words} (log scale; {'left is faster' if line == 1 else f'the line is {line}'})")
    return figure


def speed(result: Result) -> Figure:
    """Times of all contenders as ratios to Optax's cross-entropy."""
    rows = pd.DataFrame(result["rows"])
    rows = rows[(rows.contender != COPY) & rows.ratio.notna()]
    return _panels(rows, "program", "ratio", 1, "time as a ratio to Optax's cross-entropy")


def schedule(result: Result) -> Figure:
    """Estimated time of the compiled programs, per chip."""
    rows = pd.DataFrame(result["rows"]).query(
        "case in ('rows', 'head') and program != 'value' and ms.notna()"
    )
    rows = rows.assign(passes=rows.ms / rows.unit)
    return _panels(rows, "chip", "passes", 3, "estimated time in passes, value and gradient")


def compiled(result: Result) -> Figure:
    """Passes over the logits of the compiled programs, per chip."""
    rows = pd.DataFrame(result["rows"]).rename(columns={"loss": "contender"})
    panels = list(rows.query("gradient and shape == 'rows' and passes.notna()").groupby("dtype", sort=False))
    figure, grid = _grid(1, len(panels), 4.2)
    for axes, (dtype, own) in zip(grid.flat, panels, strict=True):
        _dots(axes, own, "target", "passes", 3, str(dtype))
    _legend(figure, grid[0, 0], 4)
    figure.supxlabel("passes over the logits, value and gradient (log scale; the line is 3)")
    return figure


def accuracy(result: Result) -> Figure:
    """Errors of all contenders on hard rows, against gamma."""
    rows = pd.DataFrame(result["rows"]).query("family == 'softmax'")
    gammas, names = list(rows.gamma.unique()), rows.contender.nunique()
    figure, ((left, right),) = _grid(1, 2, 4.2)
    for i, (name, own) in enumerate(rows.groupby("contender", sort=False)):
        x = own.gamma.map(gammas.index) + 0.03 * (i - names / 2)
        left.plot(x, own.worst_gradient.clip(1e-8, 1.0), label=name, linewidth=1, **_look(i))
        right.plot(x, (own.bad_gradient + own.dead) / own["rows"], linewidth=1, **_look(i))
    left.set(yscale="log", ylabel="worst relative error (log scale)")
    left.set_title("Gradient, where it is finite; 1 is 1 or more")
    right.set_title("Rows whose gradient is not finite, or wrongly zero")
    right.yaxis.set_major_formatter(PercentFormatter(1))
    for axes in (left, right):
        axes.set_xticks(range(len(gammas)), [f"{gamma:g}" for gamma in gammas])
        axes.set_xlabel("gamma")
        axes.grid(axis="y", alpha=0.25)
    _legend(figure, left, 4)
    return figure


def pictures(result: Result) -> Figure:
    """Time of pictures as a ratio to Optax's cross-entropy, against their pixels."""
    programs = list(pd.DataFrame(result["rows"]).groupby("program", sort=False))
    figure, grid = _grid(1, len(programs), 4.2)
    for axes, (program, rows) in zip(grid.flat, programs, strict=True):
        for i, (classes, own) in enumerate(rows.groupby("classes", sort=False)):
            axes.loglog(own.side**2, own.ratio, label=f"{classes} classes", **_look(i))
        axes.axhline(1, color="black", linewidth=1)
        axes.set(title=program, xlabel="pixels of one picture", ylabel="ratio, lower is faster")
        axes.grid(which="both", alpha=0.2)
    _legend(figure, grid[0, 0], 6)
    return figure


def growth(result: Result) -> Figure:
    """Time and memory against the numbers of rows and of classes."""
    alongs = list(pd.DataFrame(result["rows"]).groupby("along", sort=False))
    figure, grid = _grid(2, len(alongs), 7.5)
    for column, (along, rows) in enumerate(alongs):
        for axes, key, unit in zip(grid[:, column], ("seconds", "memory"), ("seconds", "bytes"), strict=True):
            for i, (name, own) in enumerate(rows.groupby("contender", sort=False)):
                axes.loglog(own["size"], own[key], label=name, **_look(i))
            axes.set_xlabel(f"{along} ({rows.fixed.iloc[0]})")
            axes.set_ylabel(f"{unit} of {GRADIENT}")
            axes.grid(which="both", alpha=0.2)
    _legend(figure, grid[0, 0], 3)
    return figure


PLOTS = {plot.__name__: plot for plot in (speed, pictures, accuracy, growth, compiled, schedule)}


def draw(bench: str, result: Result, file: Path) -> None:
    """Writes the picture; the same result gives the same file."""
    figure = PLOTS[bench](result)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)
