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
    Advice,
    Comparison,
    corrected_t,
)

if TYPE_CHECKING:
    from focaljax.study.outcome import Outcome

MOST_NAMES = 4
MARKS = "+ better, - worse than cross-entropy, corrected for shared rows and many settings"


def headline(outcome: "Outcome") -> str:
    """Say in one sentence what to use."""
    advice, name = outcome.advice, outcome.metric.name
    leader = outcome.tables[outcome.stopped.when][advice.shown][outcome.metric]
    if advice.verdict == BETTER:
        return f"For {name}, use {leader.setting.name}: better than cross-entropy, {leader.difference}."
    if advice.verdict == EQUAL:
        return (
            f"No difference worth having: in {name} nothing is better than cross-entropy by more than "
            f"{outcome.margin:g}. Keep that."
        )
    if leader.gain[0] > 0:
        return f"Undecided: in {name} {leader.setting.name} leads cross-entropy, {leader.difference}."
    return f"Undecided: in {name} cross-entropy leads, but not surely; next is {leader.setting.name}, {leader.difference}."


def reasons(outcome: "Outcome") -> list[str]:
    """Say why, what it costs elsewhere, what choosing is worth, and what holds without early stopping."""
    advice = outcome.advice
    said = _why_better(outcome) if advice.verdict == BETTER else _why_not(outcome)
    return [*said, _choosing(outcome), _without_stopping(outcome)]


def code(outcome: "Outcome") -> str:
    """Return the lines of the loss to use, or, while that is undecided, of the one to try."""
    advice = outcome.advice
    setting = outcome.settings[advice.shown]
    first = {BETTER: "To use", EQUAL: "To keep"}.get(advice.verdict, "Undecided. To try")
    return f"# {first}: {setting.name}.\n{setting.call(len(outcome.class_names))}"


def marked(compared: Comparison) -> str:
    """Return a mean with the mark of its verdict."""
    return f"{compared.mean.mean:.3f} {({'better': '+', 'worse': '-'}).get(compared.verdict, ' ')}"


def caveats(outcome: "Outcome") -> list[str]:
    """Say what the numbers do not show."""
    said = [
        f"Intervals are {LEVEL:.0%} t intervals over {runs(outcome)}, paired, and widened because the runs "
        "share training rows (Nadeau and Bengio 2003). Verdicts are corrected for the number of settings "
        "that differ (Holm), in each metric and at each time by itself. They speak of this data and this "
        "network only.",
        f"{outcome.stopped.when.capitalize()}: after the epoch of lowest plain NLL on the validation fold. "
        f"{outcome.end.when.capitalize()}: after the last epoch, when the learning rate is 0.",
        "NLL and ECE (equal bins of the predicted class's probability) are those of the softmax as it is. At "
        "its minimum a focal or weighted loss does not give the class probabilities: "
        "focaljax.calibration.log_posterior recovers them (NLL and ECE of posteriors), and a temperature that "
        "was fitted on the validation fold follows in calibrated NLL and ECE. Fair to all losses are the "
        "calibrated ones.",
        "Weights and shifts of logits move the threshold between classes: balanced accuracy sees that, AUROC "
        "and average precision (each class against the rest, means over classes) do not. Logit "
        "adjustment does so in the training of cross-entropy, post-hoc logit adjustment after it, at no cost "
        "(Menon et al. 2021).",
    ]
    last = (outcome.best_epoch[..., 0] == len(outcome.nll)).mean()
    if last > 0.5:
        said.append(
            f"In {last:.0%} of the runs of cross-entropy the last of {len(outcome.nll)} epochs was the "
            "best: more (--epochs) may change the picture."
        )
    return said


def sentence(note: str) -> str:
    """Return a note with a capital and a full stop."""
    return f"{note[:1].upper()}{note[1:]}."


def runs(outcome: "Outcome") -> str:
    """Say how many runs a mean is over."""
    seeds = len(outcome.seeds)
    return f"{outcome.folds} folds x {seeds} seed{'s' * (seeds > 1)}"


def _why_better(outcome: "Outcome") -> list[str]:
    advice, table, metric = outcome.advice, outcome.tables[outcome.stopped.when], outcome.metric
    mine, leader, base = (table[i][metric] for i in (advice.shown, advice.leader, 0))
    said = [
        f"Its {metric.name} is {mine.mean.mean:.3f}, against {base.mean.mean:.3f} with cross-entropy, over "
        f"{runs(outcome)}, {outcome.stopped.when}; p = {mine.p:.2g} after Holm's correction for the "
        f"{len(table) - 1} other settings."
    ]
    if advice.shown != advice.leader:
        said.append(
            f"The best mean has {leader.setting.name}, {leader.mean.mean:.3f}, but between the two {NOTHING}; "
            "this one is the plainer."
        )
    others = [i for i in advice.alike if i not in (advice.shown, advice.leader)]
    if others:
        said.append(f"As good, as far as can be told: {_names(outcome, others)}.")
    return said + _threshold(outcome) + _costs(outcome)


def _why_not(outcome: "Outcome") -> list[str]:
    advice, table, metric = outcome.advice, outcome.tables[outcome.stopped.when], outcome.metric
    over = f"over {runs(outcome)}, {outcome.stopped.when}"
    surely = [i for i, row in enumerate(table) if row[metric].verdict == BETTER]
    worse = [i for i, row in enumerate(table) if row[metric].verdict == "worse"]
    reach = max(row[metric].gain[2] for row in table[1:])
    if advice.verdict == EQUAL:
        said = [
            f"The {LEVEL:.0%} intervals of the {len(table) - 1} other settings, {over}, reach {reach:.3f} at most "
            f"on the better side; less than {outcome.margin:g} (--margin) is not worth having."
        ]
        if surely:
            said.append(f"Better for sure, but by less than that: {_names(outcome, surely)}.")
    else:
        said = [
            f"None of the {len(table) - 1} other settings is surely better {over}, after Holm's correction for "
            f"their number; but by up to {reach:.3f} one may be, more than the {outcome.margin:g} (--margin) "
            "that would be worth having.",
            _deciding(outcome, advice),
        ]
    return [*said, *([f"Surely worse: {_names(outcome, worse)}."] if worse else [])]


def _deciding(outcome: "Outcome", advice: Advice) -> str:
    floor = (
        f"{advice.of_folds:.0%} of the variance of this mean comes from training rows that runs share, "
        f"1/(K-2) with K = {outcome.folds} folds, which no --seeds lower"
    )
    if advice.deciding is None:
        return f"What would decide it: more rows. {floor}; more --folds do, but hardly enough here."
    folds, seeds = advice.deciding
    option = f"--folds {folds}" if folds != outcome.folds else f"--seeds {seeds}"
    return f"What would decide it, if runs go on to vary as these do: {option}. {floor}."


def _choosing(outcome: "Outcome") -> str:
    return (
        "Had each run taken the setting that is best on its validation fold, "
        f"{outcome.metric.name} on its test fold would differ from cross-entropy by {outcome.advice.chosen}."
    )


def _without_stopping(outcome: "Outcome") -> str:
    advice = outcome.advise(outcome.end)
    compared = outcome.tables[outcome.end.when][advice.shown][outcome.metric]
    if advice.verdict == EQUAL:
        return f"{outcome.end.when.capitalize()} (no early stopping) there is no difference worth having."
    word = {BETTER: "better is"}.get(
        advice.verdict,
        "it is undecided; next is" if compared.gain[0] <= 0 else "it is undecided; in the lead is",
    )
    return f"{outcome.end.when.capitalize()} (no early stopping) {word} {compared.setting.name}, {compared.difference}."


def _threshold(outcome: "Outcome") -> list[str]:
    """Say whether a gain in balanced accuracy may be no more than a moved threshold."""
    advice, table = outcome.advice, outcome.tables[outcome.stopped.when]
    divided = [i for i, s in enumerate(outcome.settings) if s.alpha == POST_HOC]
    if outcome.metric is not BALANCED or not divided:
        return []
    if advice.shown == divided[0]:
        return ["It is trained as cross-entropy is; only its threshold between classes is moved, afterwards."]
    test = outcome.stopped.test[BALANCED.field].reshape(-1, len(outcome.settings))
    against = corrected_t(test[:, advice.shown] - test[:, divided[0]], outcome.test_share)
    ranked = [f"{m.name} {table[advice.shown][m].difference}" for m in (AUROC, PRECISION)]
    return [
        f"Against {outcome.settings[divided[0]].name}, which only moves the threshold after the training, it "
        f"differs by {against}; where no threshold matters: {' and '.join(ranked)}."
    ]


def _costs(outcome: "Outcome") -> list[str]:
    row = outcome.tables[outcome.stopped.when][outcome.advice.shown]
    others = [row[metric] for metric in JUDGED if metric is not outcome.metric]
    said = [f"its {c.metric.name} is {c.verdict}: {c.difference}" for c in others if c.verdict != NOTHING]
    if said:
        return [f"Beside that, {'; '.join(said)}."]
    return [f"In {', '.join(c.metric.name for c in others)} {NOTHING}."]


def _names(outcome: "Outcome", which: list[int]) -> str:
    names = [outcome.settings[i].name for i in which]
    more = f"; and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return "; ".join(names[:MOST_NAMES]) + more
