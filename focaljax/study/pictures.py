"""The pictures of the report: one panel, one file; all of them on one sheet; and as SVG for the page.

Colours follow gamma (cross-entropy has that of the text), lines and markers follow alpha; titles state what
is seen, in this outcome's numbers. Figures are made without pyplot, so that drawing needs no screen and
leaves no global state behind. In the SVG the colours of text, lines and paper are variables of the page.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from focaljax.study import verdict
from focaljax.study.outcome import Outcome
from focaljax.study.settings import ADJUSTED, POST_HOC, highlights
from focaljax.study.verdict import LEVEL, NOTHING, Metric, corrected_t
from focaljax.study.words import PASSES

GREY = "#8a8a8a"
RAMP = LinearSegmentedColormap.from_list("gamma", ["#2f9e8f", "#3f7fd0", "#9464c8", "#d0588c"])
MOVED = {ADJUSTED: "#d1822b", POST_HOC: "#a8a02a"}  # of settings that move logits
LOOKS = {
    "none": ("-", "o"),
    "balanced": ("--", "s"),
    "effective": (":", "^"),
    ADJUSTED: ("-.", "D"),
    POST_HOC: ("-.", "v"),
}
LEAST_IN_BIN = 10
MOST_NAMES = 100  # classes of a picture; on the sheet SOME
SOME = 24
LONGEST_NAME = 18
SHEET = "summary"
READING = (
    f"Differences to cross-entropy with {LEVEL:.0%} t intervals over the runs, corrected for shared training "
    "rows; filled: better or worse after Holm's correction. In NLL and ECE the small marks are calibrated: "
    "the posteriors behind the loss, with a temperature of the validation fold."
)
# Colours that stand for variables of the page, in SVG; and what they are in a PNG.
INK, RULE, PAPER = ("#010203", "black"), ("#040506", "#e6e6e6"), ("#070809", "white")
VARIABLES = {INK[0]: "var(--ink)", RULE[0]: "var(--rule)", PAPER[0]: "var(--paper)"}

Panel = Callable[[Axes, Outcome], None]


def differences(axes: Axes, outcome: Outcome, metrics: tuple[Metric, ...]) -> None:
    """Draw each setting's paired difference to cross-entropy, stopped early, with corrected intervals."""
    axes.axvline(0.0, color=matplotlib.rcParams["text.color"], linewidth=1)
    paper, table = matplotlib.rcParams["axes.facecolor"], outcome.table
    settings = outcome.settings[1:]
    for metric, offset, size in zip(metrics, (0.16, -0.2), (6.0, 3.5), strict=False):
        for index in range(1, len(settings) + 1):
            compared = table[index][metric]
            d, style = compared.difference, _look(outcome, index)
            style |= {"linestyle": "", "markersize": size, "elinewidth": size / 3}
            if compared.verdict == NOTHING:
                style["markerfacecolor"] = paper
            axes.errorbar(d.mean, offset - index, xerr=[[d.mean - d.low], [d.high - d.mean]], **style)
    axes.set_yticks([-i for i in range(1, len(settings) + 1)], [s.short for s in settings])
    axes.set_ylim(-len(settings) - 0.7, -0.3)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.margins(x=0.08)
    side = "right" if metrics[0].higher_is_better else "left"
    axes.set_xlabel(f"difference to cross-entropy ({side} is better)")
    verdicts = [row[metrics[0]].verdict for row in table[1:]]
    counted = ", ".join(f"{verdicts.count(word)} {word}" for word in ("better", "worse") if word in verdicts)
    axes.set_title(f"{metrics[0].title}: {counted or NOTHING}")


def curves(axes: Axes, outcome: Outcome) -> None:
    """Draw the test NLL over epochs, mean over runs; a mark where runs stop early, on average."""
    nll, stop = outcome.nll[:, 1].mean(axis=(1, 2)), outcome.best_epoch.mean(axis=(0, 1))
    epochs = np.arange(1, len(nll) + 1)
    for index in (i for i in _shown(outcome) if i < nll.shape[1]):
        style = _look(outcome, index)
        marker = {"marker": style.pop("marker"), "color": style["color"], "linestyle": "", "markersize": 6}
        axes.plot(epochs, nll[:, index], linewidth=1.7, **style)
        axes.plot(stop[index], np.interp(stop[index], epochs, nll[:, index]), **marker)
    axes.set(xlabel=PASSES[outcome.model], ylabel="NLL of the test folds", title=_title(outcome, verdict.NLL))
    for axis, values in ((axes.xaxis, epochs), (axes.yaxis, nll)):
        if values.max() > 8 * values.min():  # so many that 1, 2, 5, 10 are ticks enough
            (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        else:
            axis.set_major_locator(MaxNLocator(5, integer=axis is axes.xaxis))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())


def recalls(axes: Axes, outcome: Outcome, most: int = MOST_NAMES) -> None:
    """Draw the recall of each class stopped early, the rarest below, with intervals; of many, the rarest."""
    order = np.argsort(-outcome.class_counts, kind="stable")[-most:]
    places, shown = np.arange(len(order)), _shown(outcome)
    for place, index in enumerate(shown):
        recall = outcome.stopped.recall[:, :, index].reshape(-1, len(outcome.class_counts))[:, order]
        intervals = [corrected_t(column, outcome.test_share, 0.0, 1.0) for column in recall.T]
        mean = np.array([i.mean for i in intervals])
        reach = np.array([[i.mean - i.low, i.high - i.mean] for i in intervals]).T
        style = _look(outcome, index) | {"linestyle": "", "markersize": 3.5, "elinewidth": 0.8}
        offset = 0.7 * ((place + 0.5) / len(shown) - 0.5)
        axes.errorbar(mean, places + offset, xerr=reach if len(order) <= SOME else None, **style)
    names = [f"{_class_name(outcome.class_names[k])} ({outcome.class_counts[k]})" for k in order]
    axes.set_yticks(places, names, fontsize=8.5 if len(order) <= SOME else 6.5)
    axes.set(xlabel="recall", xlim=(-0.02, 1.02), ylim=(len(order) - 0.4, -0.6))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    few = f"\n(the {most} rarest of {len(outcome.class_counts)} classes)"
    axes.set_title(_title(outcome, verdict.RARE) + few * (len(order) < len(outcome.class_counts)))


def reliabilities(axes: Axes, outcome: Outcome) -> None:
    """Draw accuracy over confidence stopped early, all test folds together; only bins with enough rows."""
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.2)
    diagonal: Any = {"rotation": 45, "transform_rotates_text": True, "rotation_mode": "anchor"}
    axes.text(0.05, 0.065, "calibrated", color=GREY, fontsize=8.5, **diagonal)
    rows = outcome.class_counts.sum() * len(outcome.seeds)
    for index in _shown(outcome):
        share, confidence, accuracy = map(np.asarray, outcome.stopped.reliability[index])
        full = share * rows >= LEAST_IN_BIN
        style = _look(outcome, index) | {"linewidth": 1.4, "markersize": 4}
        axes.plot(confidence[full], accuracy[full], **style)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set(xlabel="probability of the predicted class", ylabel="share that is right")
    axes.set_title(_title(outcome, verdict.ECE))


OF_SETTINGS: dict[str, Panel] = {  # the settings are on their axis: no legend
    "balanced_accuracy": partial(differences, metrics=(verdict.BALANCED,)),
    "average_precision": partial(differences, metrics=(verdict.PRECISION,)),
    "nll": partial(differences, metrics=(verdict.NLL, verdict.NLL_CALIBRATED)),
    "ece": partial(differences, metrics=(verdict.ECE, verdict.ECE_CALIBRATED)),
}
PANELS = OF_SETTINGS | {"loss_curves": curves, "recall_per_class": recalls, "reliability": reliabilities}


def make(outcome: Outcome) -> dict[str, bytes]:
    """Return the panels and the sheet as PNG, by the names of their files."""
    with _style(1):
        figures = {f"{name}.png": (_alone(name, outcome), 150) for name in PANELS}
        figures[f"{SHEET}.png"] = _sheet(outcome), 110
        return {name: _saved(figure, format="png", dpi=dpi) for name, (figure, dpi) in figures.items()}


def svg(name: str, outcome: Outcome) -> str:
    """Return a panel as an <svg> element; its ids begin with the name, so that many fit on one page."""
    with _style(0):
        options: Any = {"format": "svg", "metadata": {"Date": None}, "transparent": True}
        element = _saved(_alone(name, outcome), **options).decode()
    element = re.sub(r"^.*?(?=<svg)", "", element, flags=re.S)
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.S)
    element = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", element)
    for colour, variable in VARIABLES.items():
        element = element.replace(colour, variable)
    return element


def _saved(figure: Figure, **options: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, **options)
    return file.getvalue()


def _alone(name: str, outcome: Outcome) -> Figure:
    height = 4.6
    if name in OF_SETTINGS:
        height = max(3.0, 1.1 + 0.24 * (len(outcome.settings) - 1))
    elif name == "recall_per_class":
        classes = min(MOST_NAMES, len(outcome.class_counts))
        height = max(3.6, 1.9 + (0.3 if classes <= SOME else 0.14) * classes)
    figure = Figure(figsize=(5.2, height), layout="constrained")
    axes = figure.subplots()
    PANELS[name](axes, outcome)
    if name not in OF_SETTINGS:
        figure.legend(*_legend(axes), loc="outside lower center", ncols=2)
    return figure


def _sheet(outcome: Outcome) -> Figure:
    heights = [max(3.0, 1.1 + 0.22 * (len(outcome.settings) - 1)), 4.9]
    figure = Figure(figsize=(17, sum(heights) + 0.8), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=heights)
    above = halves[0].subplots(1, len(OF_SETTINGS), sharey=True)
    for axes, panel in zip(above, OF_SETTINGS.values(), strict=True):
        panel(axes, outcome)
        axes.set_xlabel(axes.get_xlabel().replace("difference to cross-entropy ", ""))
    halves[0].suptitle(READING.replace("filled:", "\nfilled:"), fontsize=10)
    below = halves[1].subplots(1, 3)
    for axes, panel in zip(below, (curves, partial(recalls, most=SOME), reliabilities), strict=True):
        panel(axes, outcome)
    halves[1].legend(*_legend(below[-1]), loc="outside lower center", ncols=6)
    return figure


def _look(outcome: Outcome, index: int) -> dict[str, Any]:
    """Return the colour, line and marker of one setting, the same in every picture."""
    setting = outcome.settings[index]
    gammas = sorted({s.gamma for s in outcome.settings if s.gamma > 0.0})
    colour: Any = MOVED.get(setting.alpha, matplotlib.rcParams["text.color"])
    if setting.gamma > 0.0:
        colour = RAMP(gammas.index(setting.gamma) / max(1, len(gammas) - 1))
    line, marker = LOOKS[setting.alpha]
    return {"color": colour, "label": setting.short, "linestyle": line, "marker": marker}


def _shown(outcome: Outcome) -> list[int]:
    """Return the settings that pictures show: those fixed beforehand, and the one of the advice."""
    return list(dict.fromkeys([*highlights(outcome.settings), outcome.advice.shown]))


def _legend(axes: Axes) -> tuple[list[Any], list[str]]:
    handles, labels = axes.get_legend_handles_labels()
    found = dict(zip(labels, handles, strict=True))
    return list(found.values()), list(found)


def _title(outcome: Outcome, metric: Metric) -> str:
    """Say how a metric differs between cross-entropy and the first setting shown beside it.

    That setting is fixed before any result is seen (unweighted focal loss with gamma nearest to 2, if
    there is one), so the title cannot pick its winner.
    """
    other = _shown(outcome)[1:2] or [len(outcome.settings) - 1]
    ours, base = (outcome.table[i][metric] for i in (*other, 0))
    numbers = f"{ours.mean.mean:.3f} with {ours.setting.short}, {base.mean.mean:.3f} with cross-entropy"
    if ours.verdict == NOTHING:
        return f"{metric.title}: {NOTHING},\n{numbers}"
    return f"{metric.title} is {'higher' if ours.difference.mean > 0 else 'lower'}:\n{numbers}"


def _class_name(name: str) -> str:
    """Return a class's name, shortened, with nothing in it that matplotlib reads as mathematics."""
    name, half = " ".join(name.split()), LONGEST_NAME // 2
    if len(name) > LONGEST_NAME:
        name = f"{name[:half]}…{name[-half + 1 :]}"
    return name.replace("$", r"\$")


@contextmanager
def _style(colours: int) -> Iterator[None]:
    ink, rule, paper = (pair[colours] for pair in (INK, RULE, PAPER))
    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = {
        **{"font.size": 10, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left"},
        **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.linewidth": 0.8},
        **{"axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 9, "grid.color": rule},
        **{"svg.fonttype": "none", "svg.hashsalt": "focaljax"},
        **dict.fromkeys(("figure.facecolor", "axes.facecolor"), paper),
        **dict.fromkeys(inked, ink),
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # A class name may hold letters that the font lacks: boxes are drawn, which is no error.
        warnings.filterwarnings("ignore", message="Glyph")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        yield
