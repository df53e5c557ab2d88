"""One panel of a picture each: curves, recalls, reliability and differences, drawn on given axes.

Colours follow gamma (cross-entropy black, then a colour-blind safe ramp), dashes and squares mean
balanced alpha. Titles state what is seen, with the numbers of this outcome.
"""

from collections.abc import Iterable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, PercentFormatter, StrMethodFormatter

from focaljax.study.compare import Metric, t_interval
from focaljax.study.outcome import Outcome
from focaljax.study.settings import highlights

GREY = "#8a8a8a"
LEAST_IN_BIN = 10
MOST_TICKS = 24
MOST_INTERVALS = 24
MOST_LETTERS = 48
LONGEST_NAME = 14


def look(outcome: Outcome, index: int) -> dict[str, Any]:
    """Return the colour, line and marker of one setting, the same in every picture."""
    setting = outcome.settings[index]
    gammas = sorted({s.gamma for s in outcome.settings if s.gamma > 0.0})
    colour: Any = "black"
    if setting.gamma > 0.0:
        place = gammas.index(setting.gamma) / max(1, len(gammas) - 1)
        colour = matplotlib.colormaps["viridis"](0.15 + 0.65 * place)
    plain = setting.alpha == "none"
    style = {"linestyle": "-" if plain else "--", "marker": "o" if plain else "s"}
    return {"color": colour, "label": setting.name, **style}


def curves(axes: Axes, outcome: Outcome, nll: np.ndarray, shown: Iterable[int]) -> None:
    """Draw NLL [A, S, E] over epochs, mean over seeds; the log scale shows both ends."""
    epochs = np.arange(1, nll.shape[2] + 1)
    for index in shown:
        style = look(outcome, index) | {"marker": None, "linewidth": 1.8}
        axes.plot(epochs, nll[index].mean(axis=0), **style)
    axes.set(xscale="log", xlabel="epoch (log scale)")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def recalls(axes: Axes, outcome: Outcome, shown: Iterable[int]) -> None:
    """Draw the recall of every class, the most frequent on the left, with 95 % intervals."""
    counts = outcome.problem.train_counts
    order = np.argsort(-counts, kind="stable")
    shown = list(shown)
    for place, index in enumerate(shown):
        recall = np.stack([m.recall for m in outcome.runs[index]])[:, order]
        intervals = [t_interval(column) for column in recall.T]
        mean = np.array([i.mean for i in intervals])
        reach = [i.high - i.mean for i in intervals] if len(order) <= MOST_INTERVALS else None
        offset = 0.5 * ((place + 0.5) / len(shown) - 0.5)
        style = look(outcome, index) | {"linewidth": 1.2, "markersize": 4, "elinewidth": 1}
        axes.errorbar(np.arange(len(order)) + offset, mean, reach, **style)
    names = [class_name(outcome, k) for k in order]
    step = -(-len(names) // MOST_TICKS)
    if len(names) * max(map(len, names)) <= MOST_LETTERS:
        words = [f"{name}\n{counts[k]}" for name, k in zip(names, order, strict=True)]
        turned: dict[str, Any] = {}
    else:
        words = [f"{name} ({counts[k]})" for name, k in zip(names, order, strict=True)]
        turned = {"rotation": 50, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(0, len(names), step), words[::step], fontsize=8.5, **turned)
    axes.set(xlabel="class and its training rows", ylabel="recall", ylim=(-0.02, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def reliabilities(axes: Axes, outcome: Outcome, shown: Iterable[int]) -> None:
    """Draw accuracy over confidence, one point per bin that holds enough rows."""
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.2)
    diagonal: Any = {"rotation": 45, "transform_rotates_text": True, "rotation_mode": "anchor"}
    axes.text(0.05, 0.065, "calibrated", color=GREY, fontsize=8.5, **diagonal)
    for index in shown:
        diagram = outcome.diagrams[index]
        full = filled(outcome, index)
        style = look(outcome, index) | {"linewidth": 1.4, "markersize": 4}
        axes.plot(diagram.confidence[full], diagram.accuracy[full], **style)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set(xlabel="probability of the predicted class", ylabel="share that is right")


def filled(outcome: Outcome, index: int) -> np.ndarray:
    """Return which bins of a reliability diagram hold enough rows to be shown."""
    share = np.asarray(outcome.diagrams[index].share)
    return share * outcome.splits.test.size > LEAST_IN_BIN - 0.5


def differences(axes: Axes, outcome: Outcome, metric: Metric) -> None:
    """Draw each setting's paired difference to cross-entropy with its 95 % interval."""
    axes.axvline(0.0, color="black", linewidth=1)
    for index, row in enumerate(outcome.table[1:], start=1):
        cell = next(c for c in row if c.metric is metric)
        mean, style = cell.difference.mean, look(outcome, index)
        style["linestyle"] = ""
        if cell.verdict == "no difference found":
            style["markerfacecolor"] = "white"
        reach = cell.difference.high - mean
        axes.errorbar(mean, -index, xerr=reach, markersize=6, elinewidth=2, **style)
    names = [s.name for s in outcome.settings[1:]]
    axes.set_yticks([-i for i in range(1, len(names) + 1)], names)
    axes.set_ylim(-len(names) - 0.6, -0.4)
    axes.margins(x=0.12)
    better = "right" if metric.higher_is_better else "left"
    axes.set_xlabel(f"difference ({better} is better)")
    verdicts = [c.verdict for row in outcome.table[1:] for c in row if c.metric is metric]
    counted = [f"{verdicts.count(word)} {word}" for word in ("better", "worse")]
    axes.set_title(f"{metric.title}: {', '.join(counted)}")


def title(outcome: Outcome, metric: Metric) -> str:
    """Say how a metric differs between cross-entropy and the first highlighted setting.

    That setting is fixed before any result is seen (unweighted focal loss with gamma nearest to 2,
    if there is one), so the title cannot pick its winner.
    """
    other = highlights(outcome.settings)[1]
    ours, base = (next(c for c in outcome.table[i] if c.metric is metric) for i in (other, 0))
    name, mean, baseline = outcome.settings[other].name, ours.mean.mean, base.mean.mean
    if ours.verdict == "no difference found":
        return f"{metric.title}: no difference found\n{mean:.3f} {name}, {baseline:.3f} cross-entropy"
    seen = "higher" if ours.difference.mean > 0 else "lower"
    against = f"{mean:.3f}, against {baseline:.3f} with cross-entropy"
    return f"{metric.title} is {seen} with {name}:\n{against}"


def class_name(outcome: Outcome, index: int) -> str:
    """Return a class's name, shortened, with nothing in it that matplotlib reads as mathematics."""
    name = " ".join(outcome.problem.class_names[index].split())
    half = LONGEST_NAME // 2
    short = name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[1 - half :]}"
    return short.replace("$", r"\$")
