"""One picture per result, from its JSON: log axes, colours of Okabe and Ito, a marker for each colour."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from bench.tables import COPY, Result

COLOURS = ["#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#F0E442"]
MARKERS = "osD^vP*Xp"


def _look(index: int) -> dict[str, Any]:
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "markeredgecolor": "black",
        "markeredgewidth": 0.4,
    }


def _distinct(rows: list[Result], key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows))


def _dots(axes: Axes, rows: list[Result], series: str, x: str, title: str) -> None:
    """Contenders down, one marker per value of `series`, on a log axis with a line at 1."""
    names, kinds = _distinct(rows, "contender"), _distinct(rows, series)
    for i, kind in enumerate(kinds):
        own = [row for row in rows if row[series] == kind]
        places = [names.index(row["contender"]) for row in own]
        axes.plot([row[x] for row in own], places, linestyle="", label=kind, alpha=0.85, **_look(i + 1))
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xscale="log", title=title)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", which="both", alpha=0.25)


def speed(result: Result) -> Figure:
    """A panel per case: the ratios of all programs."""
    rows = [row for row in result["rows"] if row["contender"] != COPY and row["ratio"] is not None]
    figure = _panels(rows, "program", "ratio", 1)
    figure.supxlabel("time as a ratio to Optax's cross-entropy (log scale; left is faster)")
    return figure


def _panels(rows: list[Result], series: str, x: str, line: float) -> Figure:
    """One of dots per case and dtype, two beside each other, with a line."""
    panels = list(dict.fromkeys((row["case"], row["dtype"]) for row in rows))
    down = -(-len(panels) // 2)
    figure, grid = plt.subplots(down, 2, figsize=(11, 3.4 * down), squeeze=False, layout="constrained")
    for axes, (case, dtype) in zip(grid.flat, panels, strict=False):
        own = [row for row in rows if (row["case"], row["dtype"]) == (case, dtype)]
        _dots(axes, own, series, x, f"{case} {own[0]['shape']}, {dtype}")
        axes.axvline(line, color="black", linewidth=1)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    handles = grid[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=len(handles[1]))
    return figure


def accuracy(result: Result) -> Figure:
    """The worst gradients and the share of broken ones, against gamma, for the softmax."""
    rows = [row for row in result["rows"] if row["family"] == "softmax"]
    gammas, names = _distinct(rows, "gamma"), _distinct(rows, "contender")
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for i, name in enumerate(names):
        own = [row for row in rows if row["contender"] == name]
        x = [gammas.index(row["gamma"]) + 0.03 * (i - len(names) / 2) for row in own]
        worst = [min(max(row["worst_gradient"], 1e-8), 1.0) for row in own]
        broken = [(row["bad_gradient"] + row["dead"]) / row["rows"] for row in own]
        left.plot(x, worst, label=name, linewidth=1, **_look(i))
        right.plot(x, broken, linewidth=1, **_look(i))
    left.set(
        yscale="log",
        ylabel="worst relative error (log scale)",
        title="Gradient, where it is finite; 1 is 1 or more",
    )
    right.set(title="Rows whose gradient is not finite, or wrongly zero")
    right.yaxis.set_major_formatter(PercentFormatter(1))
    for axes in (left, right):
        axes.set_xticks(range(len(gammas)), [f"{g:g}" for g in gammas])
        axes.set_xlabel("gamma")
        axes.grid(axis="y", alpha=0.25)
    figure.legend(loc="outside upper center", ncols=4)
    return figure


def growth(result: Result) -> Figure:
    """Time and memory, against rows and against classes."""
    alongs = _distinct(result["rows"], "along")
    figure, grid = plt.subplots(2, len(alongs), figsize=(11, 7.5), squeeze=False, layout="constrained")
    for column, along in enumerate(alongs):
        rows = [row for row in result["rows"] if row["along"] == along]
        for axes, key, words in zip(
            grid[:, column], ("seconds", "memory"), ("seconds", "bytes"), strict=True
        ):
            for i, name in enumerate(_distinct(rows, "contender")):
                own = [row for row in rows if row["contender"] == name]
                axes.plot([row["size"] for row in own], [row[key] for row in own], label=name, **_look(i))
            axes.set(
                xscale="log",
                yscale="log",
                xlabel=f"{along} ({rows[0]['fixed']})",
                ylabel=f"{words} of value and gradient",
            )
            axes.grid(which="both", alpha=0.2)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def compiled(result: Result) -> Figure:
    """Passes of value and gradient for the first shape, per target."""
    rows = [row for row in result["rows"] if row["gradient"] and row["shape"] == "rows" and "passes" in row]
    rows = [row | {"contender": row["loss"]} for row in rows]
    dtypes = _distinct(rows, "dtype")
    figure, grid = plt.subplots(1, len(dtypes), figsize=(11, 4.2), squeeze=False, layout="constrained")
    for axes, dtype in zip(grid.flat, dtypes, strict=True):
        _dots(axes, [row for row in rows if row["dtype"] == dtype], "target", "passes", dtype)
        axes.axvline(3, color="black", linewidth=1)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    figure.supxlabel("passes over the logits, value and gradient (log scale; the line is 3)")
    return figure


def schedule(result: Result) -> Figure:
    """Value and gradient of rows and head in both dtypes, per chip."""
    rows = [
        r for r in result["rows"] if r["case"] in ("rows", "head") and r["program"] != "value" and "ms" in r
    ]
    rows = [row | {"passes": row["ms"] / row["unit"]} for row in rows]
    figure = _panels(rows, "chip", "passes", 3)
    figure.supxlabel("estimated time in passes, value and gradient (log scale; the line is 3)")
    return figure


PLOTS: dict[str, Callable[[Result], Figure]] = {
    "speed": speed,
    "accuracy": accuracy,
    "growth": growth,
    "compiled": compiled,
    "schedule": schedule,
}


def draw(bench: str, result: Result, file: Path) -> None:
    """Writes the picture; the same result gives the same file."""
    figure = PLOTS[bench](result)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)
