"""What the study concludes: verdicts keep their level, and headline, reasons, code and JSON say the same."""

import json
import re
from itertools import cycle

import numpy as np
import pytest

stats = pytest.importorskip("scipy.stats")
pytest.importorskip("optax")
pytest.importorskip("pandas")
pytest.importorskip("jinja2")

from focaljax.calibration import Reliability  # noqa: E402
from focaljax.study import verdict, words  # noqa: E402
from focaljax.study.measures import Results  # noqa: E402
from focaljax.study.outcome import Outcome  # noqa: E402
from focaljax.study.settings import BASELINE, POST_HOC, Setting, choose  # noqa: E402
from focaljax.study.verdict import BETTER, EQUAL, UNDECIDED, Metric  # noqa: E402

SETTINGS, _ = choose([0.0, 1.0, 2.0], ["none", "balanced"], np.array([90, 10]))
SEEDS, FOLDS = 3, 5
SHARE = 1 / (FOLDS - 2)
#          CE g=1 g=2 bal bal1 bal2 adjusted post-hoc
NOTHING = (0.0,) * 8
SURE_OF_ONE = (0.1, 0.1, 0.1, 0.001, 0.1, 0.1, 0.1, 0.1)
# Each kind of outcome: effects in standard deviations of a run's difference, these, the margin, and the
# verdict that must follow. An effect is told from 0 at about 2, of 15 runs of which a third is shared.
KINDS = {
    "one is better": ((0, 0, 0, 8, 0, 0, 0, 0), 0.04, 0.01, BETTER),
    "the plainest of equals": ((0, 0, 0, 8, 8, 8.1, 0, -8), 0.04, 0.01, BETTER),
    "after the training as well": ((0, 0, 0, 8, 0, 0, 0, 8), 0.04, 0.01, BETTER),
    "better, by less than the margin": ((0, 0, 0, 5, 0, 0, 0, 0), 0.001, 0.05, EQUAL),
    "all the same to the last bit": (NOTHING, 0.0, 0.01, EQUAL),
    "nothing within a wide margin": (NOTHING, 0.002, 0.05, EQUAL),
    "all are worse": ((0, -9, -9, -9, -9, -9, -9, -9), 0.04, 0.01, EQUAL),
    "one leads": ((0, 0, 0, 1.2, 0, 0, 0, 0), 0.04, 0.01, UNDECIDED),
    "cross-entropy leads": ((0, -1, -1, -1, -1, -1, -1, -1), 0.04, 0.01, UNDECIDED),
    "one is worse, others open": ((0, -9, 0, 0, 0, 0, 0, 0), 0.04, 0.01, UNDECIDED),
    "sure of too little, another leads": ((0, 0, 0.2, 5, 0, 0, 0, 0), SURE_OF_ONE, 0.05, UNDECIDED),
    "sure of too little, none else": (
        (0, -0.2, -0.2, 5, -0.2, -0.2, -0.2, -0.2),
        SURE_OF_ONE,
        0.05,
        UNDECIDED,
    ),
}


def simulated(rng: np.random.Generator, effects, runs: int = SEEDS * FOLDS) -> np.ndarray:
    """Values [runs, settings] whose differences correlate over runs as shared training rows make them."""
    effects = np.asarray(effects, float)
    together = np.sqrt(SHARE / (1 + SHARE)) * rng.normal(size=(1, len(effects)))
    alone = np.sqrt(1 / (1 + SHARE)) * rng.normal(size=(runs, len(effects)))
    values = rng.normal(size=(runs, 1)) + together + alone + effects
    values[:, 0] = values[:, 0] - together[0, 0] - alone[:, 0]
    return values


def made_up(values: np.ndarray, metric: Metric, margin: float = 0.01) -> Outcome:
    """An outcome whose criterion has these values [S K, A], and whose other measures do not differ."""
    shape = (SEEDS, FOLDS, len(SETTINGS))
    measures = {m.field: np.full(shape, 0.5) for m in verdict.METRICS}
    measures[metric.field] = values.reshape(shape)
    recall, none = np.full((*shape, 2), 0.5), np.full(3, np.nan)
    of = [
        Results(when, measures, measures, recall, [Reliability(none, none, none)] * len(SETTINGS))
        for when in ("stopped early", "at the end of training")
    ]
    nll = np.full((2, 2, SEEDS, FOLDS, len(SETTINGS) - 1), 0.5)
    counts = np.array([90, 10])
    return Outcome(SETTINGS, (0, 1, 2), FOLDS, ("a", "b"), counts, metric, margin, *of, nll)


def of_kind(kind: str, metric: Metric) -> Outcome:
    effects, deviation, margin, _ = KINDS[kind]
    return of_effects(effects, deviation, margin, metric)


def of_effects(effects, deviation, margin: float, metric: Metric) -> Outcome:
    """Differences to cross-entropy with exactly these means and deviations over the runs."""
    noise = np.random.default_rng(1).normal(size=(SEEDS * FOLDS, len(SETTINGS)))
    noise = (noise - noise.mean(axis=0)) / noise.std(axis=0, ddof=1)
    noise[:, 0] = 0.0
    return made_up(0.5 + np.asarray(deviation) * metric.better(noise + np.asarray(effects)), metric, margin)


# Of balanced accuracy more is said than of the others, which take turns.
OTHERS = cycle(name for name, metric in verdict.CRITERIA.items() if metric is not verdict.BALANCED)


@pytest.mark.parametrize(
    ("kind", "criterion"),
    [(kind, criterion) for kind in KINDS for criterion in ("balanced-accuracy", next(OTHERS))],
)
def test_headline_reasons_code_and_json_never_contradict_each_other(kind: str, criterion: str):
    metric = verdict.CRITERIA[criterion]
    outcome = of_kind(kind, metric)
    advice, expected = outcome.advice, KINDS[kind][3]
    assert advice.verdict == expected
    numbers = json.loads(json.dumps(outcome.numbers(), allow_nan=False))
    said = numbers["recommendation"]
    headline, reasons, code = said["headline"], " ".join(said["reasons"]), said["code"]
    everything = f"{headline} {reasons} {code} {outcome._repr_html_()}"
    used = None if advice.index is None else SETTINGS[advice.index]
    assert said["verdict"] == expected and said["setting"] == (used and used.name)
    starts = {
        BETTER: "For ",
        EQUAL: "No difference worth having",
        UNDECIDED: "Undecided",
    }
    for verdict_, start in starts.items():  # each has its own sentence, and no other's
        assert headline.startswith(start) == (verdict_ == expected)
    assert ("use " in headline) == (expected == BETTER)
    assert ("Keep that" in everything) == (expected == EQUAL)
    assert ("What would decide it" in everything) == (expected == UNDECIDED)
    assert code.startswith({BETTER: "# To use", EQUAL: "# To keep"}.get(expected, "# Undecided. To try"))
    shown = SETTINGS[advice.shown]
    assert code.splitlines()[0].endswith(f": {shown.name}.") and code.endswith(shown.call(2))
    if expected == EQUAL:
        assert used == BASELINE
    else:
        assert shown.name in headline
        assert outcome.table[advice.shown][metric].gain[2] > outcome.margin
    for setting, row in zip(SETTINGS, outcome.table, strict=True):  # green in the table, and said
        if row[metric].verdict == BETTER and expected != BETTER:
            assert re.search(rf"Surely better, but by less than [0-9.]+: {setting.name}\.", reasons)
    if expected == BETTER:
        assert shown == used and outcome.table[advice.index][metric].verdict == BETTER
    assert re.search("choosing pays|nothing is better(?! than cross-entropy by more)", everything) is None
    # The end of training has the same results here: it must be given the same verdict.
    last = said["reasons"][-1]
    words_of = {BETTER: "better is", EQUAL: "no difference worth having", UNDECIDED: "it is undecided"}
    assert last.startswith("At the end of training") and words_of[expected] in last
    in_json = numbers["results"]["stopped early"]
    for setting, row in zip(SETTINGS, outcome.table, strict=True):
        assert in_json[setting.name][metric.name]["verdict"] == row[metric].verdict


def test_what_moves_only_the_threshold_is_the_plainest():
    outcome = of_kind("after the training as well", verdict.BALANCED)
    assert outcome.settings[outcome.advice.shown].alpha == POST_HOC
    assert "only its threshold" in " ".join(words.reasons(outcome))
    alone = of_kind("one is better", verdict.BALANCED)
    assert "AUROC +0.000 [+0.000, +0.000]" in " ".join(words.reasons(alone))


def test_the_plainest_of_equals_is_recommended_and_the_leader_named():
    outcome = of_kind("the plainest of equals", verdict.AUROC)
    assert outcome.advice.index == 3 and set(outcome.advice.alike) == {3, 4, 5}
    assert outcome.settings[outcome.advice.leader].name in " ".join(words.reasons(outcome))


def test_what_would_decide_it():
    """By hand: t = effect / sqrt(1 / J + 1 / (K - 2)), against t(1 - 0.025 / 7, J - 1) = 3.1 to 2.8."""
    few = of_kind("one leads", verdict.BALANCED)
    assert few.advice.deciding == (10, 3)  # 1.2 / 0.398 = 3.0; more seeds end at 1.2 / 0.586 = 2.0
    floor = "--folds 10. 83% of the variance of this mean comes from training rows that runs share"
    assert floor in " ".join(words.reasons(few))
    object.__setattr__(few, "class_counts", np.array([90, 6]))
    del few.__dict__["advice"]
    assert few.advice.deciding is None and "more rows" in " ".join(words.reasons(few))
    nearly = of_effects((0, 0, 0, 1.9, 0, 0, 0, 0), 0.04, 0.01, verdict.NLL)
    assert nearly.advice.deciding == (5, 5) and "--seeds 5." in " ".join(words.reasons(nearly))


# Statistics.


def test_the_corrected_interval():
    values = np.array([0.1, 0.3, 0.2, 0.5, 0.4])
    plain = stats.ttest_1samp(values, 0.0)
    got = verdict.corrected_t(values, 0.0)
    assert (got.mean, got.p) == (pytest.approx(0.3), pytest.approx(plain.pvalue))
    assert (got.low, got.high) == pytest.approx(tuple(plain.confidence_interval(0.95)))
    wider = verdict.corrected_t(values, 1 / 3)  # by hand: s^2 = 0.025, t(0.975, 4) = 2.776445
    assert wider.high - wider.mean == pytest.approx(2.776445 * (0.025 * (1 / 5 + 1 / 3)) ** 0.5, rel=1e-6)
    assert verdict.corrected_t(np.zeros(3), 0.5).p == 1.0
    assert verdict.corrected_t(np.ones(3), 0.5).p == 0.0
    assert verdict.corrected_t(np.array([0.9, 1.0, 1.0]), 1.0, 0.0, 1.0).high == 1.0


def test_holm_by_hand():
    np.testing.assert_allclose(verdict.holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(verdict.holm(np.array([0.9, 0.6])), [1.0, 1.0])


def test_settings_that_are_the_same_count_once():
    rng = np.random.default_rng(3)
    values = rng.normal(size=(15, 1)) + 0.3 * rng.normal(size=(15, 4))
    values[:, 1:] += 0.5
    doubled = np.concatenate([values, values[:, :1], values[:, 1:], values[:, 1:]], axis=1)
    few, many = (
        verdict.compare([Setting(float(i)) for i in range(v.shape[1])], dict.fromkeys(names, v), SHARE)
        for v in (values, doubled)
        for names in [[m.field for m in verdict.METRICS]]
    )
    for metric in verdict.METRICS:
        p = [row[metric].p for row in few]
        assert [row[metric].p for row in many] == [*p, 1.0, *p[1:], *p[1:]]


def test_intervals_stay_within_what_a_measure_can_be():
    rng = np.random.default_rng(2)
    outcome = made_up(0.9 + 0.1 * rng.random((SEEDS * FOLDS, len(SETTINGS))), verdict.BALANCED)
    for row in outcome.table:
        for metric, c in row.items():
            assert 0.0 <= c.mean.low <= c.mean.high <= metric.highest
            assert -metric.highest <= c.difference.low <= c.difference.high <= metric.highest


@pytest.fixture
def one_metric(monkeypatch):
    """The others decide nothing, and take their time."""
    monkeypatch.setattr(verdict, "METRICS", (verdict.NLL,))


@pytest.mark.usefixtures("one_metric")
def test_where_nothing_helps_something_is_recommended_no_more_often_than_promised():
    rng, trials = np.random.default_rng(5), 300
    found = 0
    for _ in range(trials):
        found += made_up(simulated(rng, NOTHING), verdict.NLL).advice.verdict == BETTER
    assert found <= stats.binom.isf(1e-4, trials, 1 - verdict.LEVEL)


@pytest.mark.usefixtures("one_metric")
def test_where_something_helps_it_is_seldom_called_not_worth_having():
    """The claim of equality keeps its level too: the margin lies at the effect itself."""
    rng, trials, effect = np.random.default_rng(7), 300, 6.0
    effects = np.zeros(len(SETTINGS))
    effects[3] = effect
    called = sum(
        made_up(-simulated(rng, effects), verdict.NLL, margin=effect).advice.verdict == EQUAL
        for _ in range(trials)
    )
    assert called <= stats.binom.isf(1e-4, trials, 1 - verdict.LEVEL)


def test_a_choice_that_validation_misled_gains_nothing():
    test, validation = np.zeros((1, 6, 3)), np.zeros((1, 6, 3))
    validation[..., 2], test[..., 2] = 1.0, -1.0
    settings = (BASELINE, Setting(1.0), Setting(2.0))
    table = verdict.compare(settings, {m.field: test for m in verdict.METRICS}, 1 / 4)
    advice = verdict.advise(verdict.BALANCED, 0.01, table, validation, test, 10)
    assert advice.index == 0 and advice.chosen.mean == -1.0


def test_a_network_that_is_still_learning_is_named_beside_the_verdict():
    """Early stopping that is stopped by the last epoch has not stopped."""
    outcome = of_kind("one is better", verdict.BALANCED)
    assert "--epochs" not in " ".join(words.reasons(outcome))
    outcome.nll[-1] = 0.4
    assert (
        "In 100% of the runs of cross-entropy the last of 2 epochs was the best" in words.reasons(outcome)[-2]
    )
