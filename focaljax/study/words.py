"""What one study says in words: what helped, what hurt, and what its numbers do not show."""

from focaljax.study.compare import JUDGED, LEVEL, METRICS, Comparison, Metric
from focaljax.study.evaluate import BINS
from focaljax.study.outcome import Outcome


def headline(outcome: Outcome) -> str:
    """Count, in one sentence, what helped."""
    counts = []
    for metric in JUDGED:
        verdicts = [c.verdict for c in _judged(outcome, metric)]
        counts.append(f"{metric.name} {verdicts.count('better')} / {verdicts.count('worse')}")
    others = len(outcome.settings) - 1
    return f"Better / worse than cross-entropy, out of {others}: {', '.join(counts)}."


def findings(outcome: Outcome) -> list[str]:
    """List what helped, what hurt and where no difference was found, with paired intervals."""
    said = []
    for metric in JUDGED:
        for word in ("better", "worse", "no difference found"):
            found = [c for c in _judged(outcome, metric) if c.verdict == word]
            if found:
                listed = "; ".join(f"{c.setting.name} {c.difference}" for c in found)
                said.append(f"{metric.name}, {word}: {listed}.")
    return said


def caveats(outcome: Outcome) -> list[str]:
    """Say what the numbers do not show, and how early stopping would have changed them."""
    comparisons = len(METRICS) * (len(outcome.settings) - 1)
    best = outcome.trained.test_nll.mean(axis=1).min(axis=1)
    stopped = "; ".join(
        f"{setting.name} {nll:.3f}" for setting, nll in zip(outcome.settings, best, strict=True)
    )
    return [
        f"Intervals are {LEVEL:.0%} Student t over {len(outcome.splits.seeds)} seeds (split, "
        f"initialisation, batches), paired by seed, not corrected for {comparisons} comparisons: "
        f"if nothing differed, {(1 - LEVEL) * comparisons:.1f} of them would still exclude 0 on "
        "average. They speak of this data and this network only.",
        f"ECE takes {BINS} equal bins of the top class's probability. There was no early stopping "
        "and no temperature scaling; with either, what focal loss gains in calibration usually "
        "shrinks.",
        f"NLL at the best epoch of each mean curve, as early stopping might find it: {stopped}.",
    ]


def _judged(outcome: Outcome, metric: Metric) -> list[Comparison]:
    return [c for row in outcome.table[1:] for c in row if c.metric is metric]
