"""What one study says in words: what to use and why, and what its numbers do not show."""

from focaljax.study.compare import JUDGED, LEVEL, NOTHING, cell
from focaljax.study.outcome import END, STOPPED, Outcome, Results
from focaljax.study.recommend import Recommendation
from focaljax.study.tally import BINS

MOST_NAMES = 4


def headline(outcome: Outcome) -> str:
    """Say in one sentence what to use."""
    advice, metric = outcome.recommendation, outcome.metric.name
    if not advice.found:
        return f"No difference found: by {metric} nothing is better than plain cross-entropy. Keep that."
    return f"For {metric}, use {outcome.study.settings[advice.index].name}."


def reasons(outcome: Outcome) -> list[str]:
    """Say why, what it costs elsewhere, what choosing is worth, and what holds without early stopping."""
    advice, table = outcome.recommendation, outcome.stopped.table
    settings, metric = outcome.study.settings, outcome.metric
    if advice.found:
        mine, best, base = (cell(table[i], metric) for i in (advice.index, advice.best, 0))
        said = [
            f"Its {metric.name} is {mine.mean.mean:.3f}, against {base.mean.mean:.3f} with cross-entropy: "
            f"{mine.difference} over {runs(outcome)}, {STOPPED}; p = {mine.p:.2g} after Holm's correction "
            f"for {len(settings) - 1} settings."
        ]
        if advice.index != advice.best:
            said.append(
                f"The best mean has {best.setting.name}, {best.mean.mean:.3f}, but between the two no "
                "difference was found; this one is the plainer."
            )
        others = [i for i in advice.alike if i not in (advice.index, advice.best)]
        if others:
            said.append(f"As good, as far as can be told: {_names([settings[i].name for i in others])}.")
        said += _costs(outcome)
    else:
        worse = [row[0].setting.name for row in table if cell(row, metric).verdict == "worse"]
        said = [
            f"{len(settings) - 1} settings were compared with cross-entropy over {runs(outcome)}, {STOPPED}; "
            "after Holm's correction for their number none of them is better. That is no proof of equality: "
            "more rows, --folds or --seeds may show what these cannot."
        ]
        if worse:
            said.append(f"Worse: {_names(worse)}.")
    return [*said, _choosing(outcome), _without_stopping(outcome)]


def findings(results: Results) -> list[str]:
    """List what helped, what hurt and where no difference was found, with paired intervals."""
    said = []
    for metric in JUDGED:
        cells = [cell(row, metric) for row in results.table[1:]]
        for word in ("better", "worse", NOTHING):
            found = [c for c in cells if c.verdict == word]
            if found:
                listed = "; ".join(f"{c.setting.name} {c.difference}" for c in found)
                said.append(f"{metric.name}, {results.when}, {word}: {listed}.")
    return said


def caveats(outcome: Outcome) -> list[str]:
    """Say what the numbers do not show."""
    said = [
        f"Intervals are {LEVEL:.0%} t intervals over {runs(outcome)}, paired, and widened because the runs "
        "share training rows (Nadeau and Bengio 2003). Verdicts are corrected for the number of settings "
        "(Holm), in each metric and at each time by itself. They speak of this data and this network only.",
        f"{STOPPED.capitalize()}: after the epoch of lowest plain NLL on the validation fold. "
        f"{END.capitalize()}: after the last epoch, when the learning rate is 0.",
        f"NLL and ECE ({BINS} equal bins of the predicted class's probability) are those of the network's "
        "softmax as it is. At its minimum a focal loss does not give the class probabilities, but "
        "focaljax.calibration.log_posterior recovers them from it; with that, or with a temperature, ECE "
        "usually differs less.",
        "Weights and logit adjustment make a network say what the classes would be if all were as frequent; "
        "NLL, ECE and accuracy are measured as frequent as they are. Logit adjustment (Menon et al. 2021) is "
        "no focal loss but a baseline.",
    ]
    last = (outcome.best_epoch[..., 0] == outcome.study.epochs).mean()
    if last > 0.5:
        said.append(
            f"In {last:.0%} of the runs of cross-entropy the last of {outcome.study.epochs} epochs was the "
            "best: more (--epochs) may change the picture."
        )
    return said


def sentence(note: str) -> str:
    """Return a note with a capital and a full stop."""
    return f"{note[:1].upper()}{note[1:]}."


def runs(outcome: Outcome) -> str:
    """Say how many runs a mean is over."""
    seeds, folds, _ = outcome.study.shape
    return f"{folds} folds x {seeds} seed{'s' * (seeds > 1)}"


def _choosing(outcome: Outcome) -> str:
    gain, metric = outcome.recommendation.chosen, outcome.metric
    said = (
        "What choosing is worth: had each run taken the setting that is best on its validation fold, "
        f"{metric.name} on its test fold would differ from cross-entropy by {gain}."
    )
    surely = not gain.low <= 0.0 <= gain.high and (gain.mean > 0) == metric.higher_is_better
    if not surely or outcome.recommendation.found:
        return said
    return f"{said} So choosing pays, though no single setting stands out."


def _without_stopping(outcome: Outcome) -> str:
    other: Recommendation = outcome.end.recommendation(outcome.metric)
    name = outcome.study.settings[other.index].name
    if not other.found:
        return f"{END.capitalize()} (no early stopping) no difference was found."
    same = "the same: " if other.index == outcome.recommendation.index else ""
    gain = cell(outcome.end.table[other.index], outcome.metric).difference
    return f"{END.capitalize()} (no early stopping) the choice is {same}{name}, {gain}."


def _costs(outcome: Outcome) -> list[str]:
    row = outcome.stopped.table[outcome.recommendation.index]
    others = [cell(row, metric) for metric in JUDGED if metric is not outcome.metric]
    said = [f"its {c.metric.name} is {c.verdict}: {c.difference}" for c in others if c.verdict != NOTHING]
    if said:
        return [f"Beside that, {'; '.join(said)}."]
    return [f"In {' and '.join(c.metric.name for c in others)} no difference was found."]


def _names(names: list[str]) -> str:
    more = f"; and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return "; ".join(names[:MOST_NAMES]) + more
