"""One panel of a picture each: differences, curves, recalls and reliability, drawn on given axes.

Colours follow gamma (cross-entropy has that of the text), lines and markers follow alpha. They are of
middle lightness, to be seen on white and on black. Titles state what is seen, in this outcome's numbers.
"""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from focaljax.study import tally
from focaljax.study.compare import ECE, LEVEL, NLL, NOTHING, RARE, Metric, cell, corrected_t
from focaljax.study.outcome import Outcome
from focaljax.study.settings import ADJUSTED, highlights

GREY = "#8a8a8a"
RAMP = LinearSegmentedColormap.from_list("gamma", ["#2f9e8f", "#3f7fd0", "#9464c8", "#d0588c"])
OF_ADJUSTED = "#d1822b"
LOOKS = {"none": ("-", "o"), "balanced": ("--", "s"), "effective": (":", "^"), ADJUSTED: ("-.", "D")}
LEAST_IN_BIN = 10
MANY_EPOCHS = 30
MOST_TICKS = 24
MOST_LETTERS = 40
LONGEST_NAME = 14


def look(outcome: Outcome, index: int) -> dict[str, Any]:
    """Return the colour, line and marker of one setting, the same in every picture."""
    setting = outcome.study.settings[index]
    gammas = sorted({s.gamma for s in outcome.study.settings if s.gamma > 0.0})
    colour: Any = matplotlib.rcParams["text.color"]
    if setting.alpha == ADJUSTED:
        colour = OF_ADJUSTED
    elif setting.gamma > 0.0:
        colour = RAMP(gammas.index(setting.gamma) / max(1, len(gammas) - 1))
    line, marker = LOOKS[setting.alpha]
    return {"color": colour, "label": setting.name, "linestyle": line, "marker": marker}


def shown(outcome: Outcome) -> list[int]:
    """Return the settings that pictures show: those fixed beforehand, and what is recommended."""
    return list(dict.fromkeys([*highlights(outcome.study.settings), outcome.recommendation.index]))


def differences(axes: Axes, outcome: Outcome, metric: Metric) -> None:
    """Draw each setting's paired difference to cross-entropy, at both times, with corrected intervals."""
    axes.axvline(0.0, color=matplotlib.rcParams["text.color"], linewidth=1)
    paper = matplotlib.rcParams["axes.facecolor"]
    settings = outcome.study.settings[1:]
    for results, offset, size, alpha in zip(outcome.both, (0.16, -0.2), (6.0, 3.5), (1.0, 0.55), strict=True):
        for index in range(1, len(settings) + 1):
            compared = cell(results.table[index], metric)
            difference, style = compared.difference, look(outcome, index)
            style |= {"linestyle": "", "markersize": size, "elinewidth": size / 3, "alpha": alpha}
            if compared.verdict == NOTHING:
                style["markerfacecolor"] = paper
            reach = difference.high - difference.mean
            axes.errorbar(difference.mean, offset - index, xerr=reach, **style)
    axes.set_yticks([-i for i in range(1, len(settings) + 1)], [s.short for s in settings])
    axes.set_ylim(-len(settings) - 0.7, -0.3)
    axes.margins(x=0.08)
    better = "right" if metric.higher_is_better else "left"
    axes.set_xlabel(f"difference to cross-entropy ({better} is better)")
    verdicts = [cell(row, metric).verdict for row in outcome.stopped.table[1:]]
    counted = ", ".join(f"{verdicts.count(word)} {word}" for word in ("better", "worse") if word in verdicts)
    axes.set_title(f"{metric.title}: {counted or NOTHING}")


def curves(axes: Axes, outcome: Outcome) -> None:
    """Draw the test NLL over epochs, mean over runs; a mark where runs stop early, on average."""
    nll = outcome.nll[:, 1].mean(axis=(1, 2))
    stop = outcome.best_epoch.mean(axis=(0, 1))
    epochs = np.arange(1, len(nll) + 1)
    for index in shown(outcome):
        style = look(outcome, index)
        marker = {"marker": style.pop("marker"), "color": style["color"], "linestyle": "", "markersize": 6}
        axes.plot(epochs, nll[:, index], linewidth=1.7, **style)
        axes.plot(stop[index], np.interp(stop[index], epochs, nll[:, index]), **marker)
    scale = "log" if len(epochs) >= MANY_EPOCHS else "linear"
    axes.set(xscale=scale, yscale="log", xlabel="epoch", ylabel="NLL of the test folds")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    if scale == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:.2g}"))
    axes.tick_params(axis="y", which="minor", labelsize=8)
    axes.set_title(title(outcome, NLL))


def recalls(axes: Axes, outcome: Outcome) -> None:
    """Draw the recall of every class stopped early, the most frequent on the left, with intervals."""
    counts, indices = outcome.class_counts, shown(outcome)
    order = np.argsort(-counts, kind="stable")
    for place, index in enumerate(indices):
        recall = outcome.stopped.recall[:, :, index].reshape(-1, len(order))[:, order]
        intervals = [corrected_t(column, outcome.study.folds.test_share) for column in recall.T]
        mean = np.array([i.mean for i in intervals])
        reach = [i.high - i.mean for i in intervals] if len(order) <= MOST_TICKS else None
        offset = 0.5 * ((place + 0.5) / len(indices) - 0.5)
        style: dict[str, Any] = look(outcome, index) | {
            "linewidth": 1.0,
            "markersize": 3.5,
            "elinewidth": 0.8,
        }
        axes.errorbar(np.arange(len(order)) + offset, mean, reach, **style)
    names = [class_name(outcome, k) for k in order]
    step = -(-len(names) // MOST_TICKS)
    few = len(names) * max(map(len, names)) <= MOST_LETTERS
    words = [f"{n}\n{counts[k]}" if few else f"{n} ({counts[k]})" for n, k in zip(names, order, strict=True)]
    turned: dict[str, Any] = {} if few else {"rotation": 50, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(0, len(names), step), words[::step], fontsize=8.5, **turned)
    axes.set(xlabel="class and its rows", ylabel="recall", ylim=(-0.02, 1.04))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_title(title(outcome, RARE))


def reliabilities(axes: Axes, outcome: Outcome) -> None:
    """Draw accuracy over confidence stopped early, all test folds together; only bins with enough rows."""
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.2)
    diagonal: Any = {"rotation": 45, "transform_rotates_text": True, "rotation_mode": "anchor"}
    axes.text(0.05, 0.065, "calibrated", color=GREY, fontsize=8.5, **diagonal)
    for index in shown(outcome):
        bins = outcome.stopped.test.bins[:, :, index].sum(axis=(0, 1))
        diagram, full = tally.reliability(bins), bins[:, 0] >= LEAST_IN_BIN
        style = look(outcome, index) | {"linewidth": 1.4, "markersize": 4}
        axes.plot(diagram.confidence[full], diagram.accuracy[full], **style)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set(xlabel="probability of the predicted class", ylabel="share that is right")
    axes.set_title(title(outcome, ECE))


def title(outcome: Outcome, metric: Metric) -> str:
    """Say how a metric differs between cross-entropy and the first setting shown beside it.

    That setting is fixed before any result is seen (unweighted focal loss with gamma nearest to 2, if
    there is one), so the title cannot pick its winner.
    """
    other = shown(outcome)[1:2] or [len(outcome.study.settings) - 1]
    ours, base = (cell(outcome.stopped.table[i], metric) for i in (*other, 0))
    numbers = f"{ours.mean.mean:.3f} with {ours.setting.short}, {base.mean.mean:.3f} with cross-entropy"
    if ours.verdict == NOTHING:
        return f"{metric.title}: {NOTHING},\n{numbers}"
    return f"{metric.title} is {'higher' if ours.difference.mean > 0 else 'lower'}:\n{numbers}"


def class_name(outcome: Outcome, index: int) -> str:
    """Return a class's name, shortened, with nothing in it that matplotlib reads as mathematics."""
    name = " ".join(outcome.study.problem.class_names[index].split())
    half = LONGEST_NAME // 2
    short = name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[1 - half :]}"
    return short.replace("$", r"\$")


def explanation(outcome: Outcome) -> str:
    """Say how to read the differences."""
    return (
        f"Large marks: {outcome.stopped.when}; small ones: {outcome.end.when}. {LEVEL:.0%} t intervals over "
        "the runs, corrected for shared training rows; filled: better or worse after Holm's correction."
    )


def legend(axes: Axes) -> tuple[list[Any], list[str]]:
    """Return what a legend under the axes shows: each setting once."""
    handles, labels = axes.get_legend_handles_labels()
    found = dict(zip(labels, handles, strict=True))
    return list(found.values()), list(found)
