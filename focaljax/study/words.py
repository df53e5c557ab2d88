"""What one study says in words: what to use and why, and what its numbers do not show.

All sentences follow from `Advice.verdict`: the headline, the reasons and the code can only say the same.
"""

from typing import TYPE_CHECKING

from focaljax.study.settings import POST_HOC
from focaljax.study.verdict import (
    AUROC,
    BALANCED,
    BETTER,
    EQUAL,
    JUDGED,
    LEVEL,
    NOTHING,
    PRECISION,
    UNDECIDED,
    Comparison,
    corrected_t,
)

if TYPE_CHECKING:
    from focaljax.study.outcome import Outcome

MOST_NAMES = 4
PASSES = {"network": "epoch", "trees": "round"}  # over the training rows
MARKS = "+ better, - worse than cross-entropy, corrected for shared rows and many settings"


def headline(outcome: "Outcome") -> str:
    """Say in one sentence what to use."""
    advice, name = outcome.advice, outcome.metric.name
    shown = outcome.table[advice.shown][outcome.metric]
    if advice.verdict == BETTER:
        return f"For {name}, use {shown.setting.name}: better than cross-entropy, {shown.difference}."
    if advice.verdict == EQUAL:
        better = f"nothing is better than cross-entropy by more than {outcome.margin:g}. Keep that."
        return f"No difference worth having: in {name} {better}"
    return f"Undecided: in {name} {_leads(shown)}."


def reasons(outcome: "Outcome") -> list[str]:
    """Say why, what it costs elsewhere, what choosing is worth, and what holds without early stopping."""
    advice, metric = outcome.advice, outcome.metric
    said = {BETTER: _why_better, EQUAL: _why_equal}.get(advice.verdict, _why_undecided)(outcome)
    surely = {BETTER: f"Surely better, but by less than {outcome.margin:g}", "worse": "Surely worse"}
    for verdict, what in surely.items():
        which = [i for i, row in enumerate(outcome.table) if row[metric].verdict == verdict]
        if which and advice.verdict != BETTER:
            said.append(f"{what}: {_names(outcome, which)}.")
    said.append(
        f"Had each run taken the setting that is best on its validation fold, {metric.name} on its test "
        f"fold would differ from cross-entropy by {advice.chosen}."
    )
    unfinished = (outcome.best_epoch[..., 0] == len(outcome.nll)).mean()
    if unfinished > 0.5:
        said.append(
            f"In {unfinished:.0%} of the runs of cross-entropy the last of {len(outcome.nll)} "
            f"{PASSES[outcome.model]}s was the best: more (--epochs) may change all of this."
        )
    end = outcome.table_at_end[outcome.advice_at_end.shown][metric]
    then = {BETTER: f"better is {end.setting.name}, {end.difference}"}
    then |= {EQUAL: "there is no difference worth having", UNDECIDED: f"it is undecided: {_leads(end)}"}
    last = f"{outcome.end.when.capitalize()} (no early stopping) {then[outcome.advice_at_end.verdict]}."
    return [*said, last]


def code(outcome: "Outcome") -> str:
    """Return the lines of the loss to use, or, while that is undecided, of the one to try."""
    setting = outcome.settings[outcome.advice.shown]
    first = {BETTER: "To use", EQUAL: "To keep"}.get(outcome.advice.verdict, "Undecided. To try")
    call = setting.call(len(outcome.class_names), outcome.model == "trees")
    return f"# {first}: {setting.name}.\n{call}"


def marked(compared: Comparison) -> str:
    """Return a mean with the mark of its verdict."""
    return f"{compared.mean.mean:.3f} {({'better': '+', 'worse': '-'}).get(compared.verdict, ' ')}"


def caveats(outcome: "Outcome") -> list[str]:
    """Say what the numbers do not show."""
    unit = PASSES[outcome.model]
    end = ", when the learning rate is 0" if outcome.model == "network" else ""
    return [
        f"Intervals are {LEVEL:.0%} t intervals over {runs(outcome)}, paired, and widened because the "
        "runs share training rows (Nadeau and Bengio 2003). Verdicts are corrected for the number of "
        "settings that differ (Holm), in each metric and at each time by itself. They speak of this data "
        "and this model only.",
        f"{outcome.stopped.when.capitalize()}: after the {unit} of lowest plain NLL on the validation fold. "
        f"{outcome.end.when.capitalize()}: after the last {unit}{end}.",
        "NLL and ECE (equal bins of the predicted class's probability) are those of the softmax as it "
        "is. At its minimum a focal or weighted loss does not give the class probabilities: "
        "focaljax.calibration.log_posterior recovers them (NLL and ECE of posteriors), and a temperature, "
        "fitted on the validation fold and one wrong row more, follows in calibrated NLL and ECE. Fair to "
        "all losses are the calibrated ones.",
        "Weights and shifts of logits move the threshold between classes: balanced accuracy sees that, "
        "AUROC and average precision (each class against the rest; of two, the rarer) do not. Logit "
        "adjustment does so in the training of cross-entropy, post-hoc logit adjustment after it, at no "
        "cost (Menon et al. 2021).",
    ]


def sentence(note: str) -> str:
    """Return a note with a capital and a full stop."""
    return f"{note[:1].upper()}{note[1:]}."


def runs(outcome: "Outcome") -> str:
    """Say how many runs a mean is over."""
    seeds = len(outcome.seeds)
    return f"{outcome.folds} folds x {seeds} seed{'s' * (seeds > 1)}"


def _leads(shown: Comparison) -> str:
    if shown.gain[0] > 0:
        return f"{shown.setting.name} leads cross-entropy, {shown.difference}"
    return f"cross-entropy leads {shown.setting.name}, but not surely: the difference is {shown.difference}"


def _why_better(outcome: "Outcome") -> list[str]:
    advice, metric, table = outcome.advice, outcome.metric, outcome.table
    mine, leader, base = (table[i][metric] for i in (advice.shown, advice.leader, 0))
    said = [
        f"Its {metric.name} is {mine.mean.mean:.3f}, against {base.mean.mean:.3f} with cross-entropy, over "
        f"{runs(outcome)}, {outcome.stopped.when}; p = {mine.p:.2g} after Holm's correction for "
        f"{len(table) - 1} settings."
    ]
    if advice.shown != advice.leader:
        said.append(
            f"The best mean has {leader.setting.name}, {leader.mean.mean:.3f}, but it is not surely better "
            "than this one, which changes less of cross-entropy."
        )
    others = [i for i in advice.alike if i not in (advice.shown, advice.leader)]
    if others:
        said.append(f"As good, as far as can be told: {_names(outcome, others)}.")
    row = table[advice.shown]
    costs = [(m.name, row[m]) for m in JUDGED if m is not metric and row[m].verdict != NOTHING]
    listed = "; ".join(f"its {name} is {c.verdict}, {c.difference}" for name, c in costs)
    return [*said, *_threshold(outcome), f"Beside that, {listed}." if costs else f"Elsewhere {NOTHING}."]


def _why_equal(outcome: "Outcome") -> list[str]:
    return [
        f"The {LEVEL:.0%} intervals of all other settings ({len(outcome.table) - 1}), over {runs(outcome)}, "
        f"{outcome.stopped.when}, reach {_reach(outcome):.3f} at most on the better side; less than "
        f"{outcome.margin:g} (--margin) is not worth having."
    ]


def _why_undecided(outcome: "Outcome") -> list[str]:
    advice = outcome.advice
    floor = (
        f"{advice.of_folds:.0%} of the variance of this mean comes from training rows that runs share: more "
        "--seeds do not lower that part"
    )
    decides = f"What would decide it: more rows. {floor}, more --folds do, but hardly enough here."
    if advice.deciding is not None:
        folds, seeds = advice.deciding
        option = f"--folds {folds}" if folds != outcome.folds else f"--seeds {seeds}"
        decides = f"What would decide it, if runs go on to vary as these do: {option}. {floor}."
    possible = sum(row[outcome.metric].gain[2] > outcome.margin for row in outcome.table)
    return [
        f"Of {len(outcome.table) - 1} settings beside cross-entropy {possible} may be better by more than "
        f"{outcome.margin:g} (--margin), one by up to {_reach(outcome):.3f}; but none of these surely is, "
        f"over {runs(outcome)}, {outcome.stopped.when}, corrected for their number (Holm).",
        decides,
    ]


def _threshold(outcome: "Outcome") -> list[str]:
    """Say whether a gain in balanced accuracy may be no more than a moved threshold."""
    shown, post_hoc = outcome.advice.shown, [i for i, s in enumerate(outcome.settings) if s.alpha == POST_HOC]
    if outcome.metric is not BALANCED or not post_hoc:
        return []
    if shown == post_hoc[0]:
        return ["It is trained as cross-entropy is; only its threshold between classes is moved, afterwards."]
    test = outcome.stopped.test[BALANCED.field].reshape(-1, len(outcome.settings))
    against = corrected_t(test[:, shown] - test[:, post_hoc[0]], outcome.test_share, -1.0, 1.0)
    ranked = [f"{m.name} {outcome.table[shown][m].difference}" for m in (AUROC, PRECISION)]
    return [
        f"Against {POST_HOC}, which only moves the threshold after the training, it differs by {against}; "
        f"where no threshold matters: {' and '.join(ranked)}."
    ]


def _reach(outcome: "Outcome") -> float:
    """How much better the best setting may be."""
    return max(row[outcome.metric].gain[2] for row in outcome.table[1:])


def _names(outcome: "Outcome", which: list[int]) -> str:
    names = [outcome.settings[i].name for i in which]
    more = f"; and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return "; ".join(names[:MOST_NAMES]) + more
