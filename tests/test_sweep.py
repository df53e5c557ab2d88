"""The sweep behind `python -m focaljax`: folds, runs and measures keep their laws."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

lightgbm = pytest.importorskip("lightgbm")
optax = pytest.importorskip("optax")
pytest.importorskip("pandas")
pytest.importorskip("jinja2")
sklearn_metrics = pytest.importorskip("sklearn.metrics")
sklearn_weights = pytest.importorskip("sklearn.utils.class_weight")

from focaljax import softmax_focal_loss_with_integer_labels  # noqa: E402
from focaljax.boosting import Objective  # noqa: E402
from focaljax.calibration import ExpectedCalibrationError, fit_temperature, log_posterior  # noqa: E402
from focaljax.study import data, folds, measures, network  # noqa: E402
from focaljax.study.errors import StudyError  # noqa: E402
from focaljax.study.network import Fold, Rows  # noqa: E402
from focaljax.study.settings import (  # noqa: E402
    ADJUSTED,
    ALPHAS,
    BASELINE,
    POST_HOC,
    Setting,
    choose,
    highlights,
    log_priors,
)

SETTINGS = (
    BASELINE,
    Setting(2.0),
    Setting(0.5, "balanced"),
    Setting(0.0, "effective"),
    Setting(0.0, ADJUSTED),
    Setting(0.0, POST_HOC),
)
TRAINED = len(SETTINGS) - 1
CLOSE = 2e-3  # batched products differ in their last bits with the shape of the batch; steps amplify that


def problem(rows: int = 240, seed: int = 0) -> data.Problem:
    """Numbers, missing cells, categories and three classes, sorted by class, as files often are."""
    rng = np.random.default_rng(seed)
    labels = np.sort(rng.choice(3, rows, p=[0.6, 0.3, 0.1])).astype(np.int32)
    numbers = (rng.normal(size=(rows, 3)) + labels[:, None]).astype(np.float32)
    numbers[rng.random(rows) < 0.2, 1] = np.nan
    coins = rng.integers(0, 2, rows)
    return data.Problem(
        numbers=numbers,
        categories=np.stack([(labels + coins) % 3, coins], axis=1).astype(np.int32),
        labels=labels,
        number_names=("a", "b", "c"),
        levels={"d": ("u", "v"), "e": ("w",)},
        class_names=("k", "l", "m"),
        description="made up",
    )


def study(of: data.Problem, settings=SETTINGS, seeds=(7, 8), count=4, epochs=2) -> network.Study:
    return network.Study(of, folds.deal(of, seeds, count), settings, epochs)


@pytest.fixture(scope="module")
def base() -> tuple[network.Study, network.Networks, list[tuple[str, int, int]], int]:
    """Train in several parts per epoch; keep what progress was told, and how often the loss was traced."""
    traces, told = [], []

    def counted(*arguments, **options):
        traces.append(options)
        return softmax_focal_loss_with_integer_labels(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "softmax_focal_loss_with_integer_labels", counted)
        patch.setattr(folds, "PART", 1)
        of = study(problem())
        done = network.fit(of, lambda *what: told.append(what))
    return of, done, told, len(traces)


def params(model: network.Networks) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model.state.params)]


# Folds.


@pytest.mark.parametrize(("rows", "count"), [(240, 3), (61, 5)])
def test_folds_are_stratified_partitions(rows: int, count: int):
    of = problem(rows)
    dealt = folds.deal(of, (0, 1, 2), count)
    assert dealt.of.shape == (3, rows) and dealt.of.max() == count - 1
    for s, k in np.ndindex(3, 3):
        sizes = np.bincount(dealt.of[s, of.labels == k], minlength=count)
        assert sizes.max() - sizes.min() <= 1
    assert (dealt.of[0] != dealt.of[1]).mean() > 0.3
    np.testing.assert_array_equal(folds.deal(of, (1,), count).of[0], dealt.of[1])


def test_training_rows_standardise_each_run():
    of = problem()
    dealt = folds.deal(of, (3, 4), 5)
    assert dealt.missing == (1,)
    for s, k in np.ndindex(2, 5):
        mine = ~np.isin(dealt.of[s], [k, (k + 1) % 5])
        np.testing.assert_allclose(dealt.mean[s, k], np.nanmean(of.numbers[mine], axis=0), atol=1e-6)
        np.testing.assert_allclose(dealt.scale[s, k], 1 / np.nanstd(of.numbers[mine], axis=0), rtol=1e-5)
        np.testing.assert_array_equal(dealt.class_counts[s, k], np.bincount(of.labels[mine], minlength=3))


def test_a_rare_class_makes_fewer_folds_or_an_error():
    labels = np.where(np.arange(240) < 4, 1, 0).astype(np.int32)
    of = replace(problem(), labels=labels, class_names=("k", "l"))
    count, notes = folds.choose_count(of, None)
    assert count == 4 and "class 'l' has 4 rows" in notes[0]
    assert folds.choose_count(of, 3) == (3, [])
    with pytest.raises(StudyError, match="class 'l' has 4 rows; with 5 folds each class needs at least 5"):
        folds.choose_count(of, 5)
    assert folds.choose_count(problem(), None) == (folds.USUAL, [])


@pytest.mark.parametrize("part", [1, 200])
def test_every_row_is_measured_once_and_trains_only_where_it_may(part: int, monkeypatch):
    monkeypatch.setattr(folds, "PART", part)
    dealt = folds.deal(problem(), (7, 8), 4)
    picks = dealt.measuring()
    for s, k in np.ndindex(2, 4):
        for role, fold in ((0, (k + 1) % 4), (1, k)):
            rows = picks.rows[role, s, k][picks.counts[role, s, k] > 0]
            assert rows.tolist() == np.flatnonzero(dealt.of[s] == fold).tolist()
    orders = []
    for epoch in range(2):
        parts = list(dealt.training(epoch))
        assert len(parts) == dealt.steps[0] == (2 if part == 1 else 1)
        trained = np.concatenate([rows[0, 1].ravel() for rows in parts])
        assert len(set(trained)) == len(trained) > 0.95 * 120
        assert np.isin(dealt.of[0, trained], [3, 0]).all()  # run 1 tests on fold 1, validates on fold 2
        orders.append(trained.tolist())
    assert orders[0] != orders[1]


# Runs.


def test_one_program_trains_every_run_and_they_differ(base):
    _, done, told, traces = base
    assert traces == 1
    assert done.nll.shape == (2, 2, 2, 4, TRAINED) and np.isfinite(done.nll).all()
    first = np.asarray(done.state.params["w1"]).reshape(-1, *done.state.params["w1"].shape[3:])
    assert len({w.tobytes() for w in first}) == 2 * 4 * TRAINED
    assert [of[1:] for of in told] == [(0, 1), (0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


def test_gamma_0_without_alpha_is_cross_entropy(base):
    """One run, written again with Optax' own loss and plain indexing."""
    of, done, _, _ = base
    s, k, dealt = 1, 2, of.folds
    rows = Rows(of.problem.numbers, of.problem.categories, of.problem.labels)
    optimizer = optax.adam(optax.cosine_decay_schedule(network.LEARNING_RATE, 2 * 2))
    weights = network.initial(jax.random.key(8), of.width, 3)
    state = optimizer.init(weights)

    @jax.jit
    def step(weights, state, x, y):
        def objective(weights):
            logits = network.outputs(weights, x)
            return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, y))

        updates, state = optimizer.update(jax.grad(objective)(weights), state)
        return optax.apply_updates(weights, updates), state

    with (
        pytest.MonkeyPatch.context() as patch,
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        patch.setattr(folds, "PART", 1)
        for part in (part for epoch in range(2) for part in dealt.training(epoch)):
            mine = Rows(*(x[part[s, k, 0]] for x in rows))
            x = network.inputs(of, mine, Fold(dealt.mean[s, k], dealt.scale[s, k]))
            weights, state = step(weights, state, x, mine.labels)
    for name, value in weights.items():
        np.testing.assert_allclose(done.state.params[name][s, k, 0], value, rtol=CLOSE, atol=CLOSE)


def test_permuted_settings_and_single_seeds_are_the_same_runs(base, monkeypatch):
    of, done, _, _ = base
    monkeypatch.setattr(folds, "PART", 1)
    order = [3, 1]
    alone = network.fit(study(of.problem, tuple(SETTINGS[i] for i in order), seeds=(8,)))
    np.testing.assert_allclose(alone.nll[:, :, 0], done.nll[:, :, 1][..., order], rtol=CLOSE)
    for mine, all_of_them in zip(params(alone), params(done), strict=True):
        np.testing.assert_allclose(mine[0], all_of_them[1][:, order], rtol=CLOSE, atol=CLOSE)


def test_held_out_rows_never_influence_a_run(base, monkeypatch):
    of, done, _, _ = base
    monkeypatch.setattr(folds, "PART", 1)
    spoilt, k = of.problem.numbers.copy(), 1
    held_out = of.folds.of[0] == k
    spoilt[held_out] = np.where(np.isnan(spoilt[held_out]), np.nan, 1e6)
    spoilt[held_out, 1] = np.nan
    again = network.fit(study(replace(of.problem, numbers=spoilt)))
    changed = 0
    for new, old in zip(params(again), params(done), strict=True):
        np.testing.assert_array_equal(new[0, k], old[0, k])  # tests on these rows
        np.testing.assert_array_equal(new[0, k - 1], old[0, k - 1])  # stops by them
        changed += np.abs(new[0, k + 1] - old[0, k + 1]).max()
    assert changed > 0


def test_the_best_epoch_is_chosen_by_validation_alone(base):
    _, done, _, _ = base
    np.testing.assert_array_equal(done.state.lowest, done.nll[:, 0].min(axis=0).astype(np.float32))
    for s, k, a in np.ndindex(2, 4, TRAINED):
        same = np.array_equal(done.state.best["w1"][s, k, a], done.state.params["w1"][s, k, a])
        assert same == (done.nll[1, 0, s, k, a] < done.nll[0, 0, s, k, a])


def test_diverged_training_is_an_error(monkeypatch):
    monkeypatch.setattr(network, "LEARNING_RATE", 1e38)
    with pytest.raises(StudyError, match="diverged with cross-entropy, seed 7, fold 1"):
        network.fit(study(problem(), (BASELINE,), epochs=3))


# Settings.


def test_class_weights_and_priors():
    counts = np.array([[60, 30, 10], [50, 25, 25]])
    labels = np.repeat(np.arange(3), counts[0])
    balanced = sklearn_weights.compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(Setting(2.0, "balanced").class_weights(counts)[0], balanced, rtol=1e-6)
    beta = 1 - 3 / 100
    effective = 1 / (1 - beta ** counts[0])
    got = Setting(0.0, "effective").class_weights(counts)[0]
    np.testing.assert_allclose(got, effective * 100 / (effective * counts[0]).sum(), rtol=1e-5)
    np.testing.assert_array_equal(Setting(2.0).class_weights(counts), 1.0)
    np.testing.assert_allclose(np.exp(Setting(0.0, ADJUSTED).logit_shift(counts)).sum(-1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(Setting(0.0, POST_HOC).logit_shift(counts), 0.0)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_the_recommended_call_is_the_loss_that_was_trained(setting: Setting):
    rng = np.random.default_rng(2)
    train_labels = np.repeat(np.arange(3), [60, 30, 10])
    logits, labels = jnp.asarray(rng.normal(size=(8, 3)), jnp.float32), jnp.asarray(rng.integers(0, 3, 8))
    names: dict[str, Any] = {"train_labels": jnp.asarray(train_labels), "logits": logits, "labels": labels}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(setting.call(3), names)
    counts = np.array([60, 30, 10])
    trained = softmax_focal_loss_with_integer_labels(
        logits + setting.logit_shift(counts)[None, :],
        labels,
        gamma=setting.gamma,
        alpha=jnp.asarray(setting.class_weights(counts)),
    )
    np.testing.assert_allclose(names["losses"], trained, rtol=1e-5)
    if setting.alpha == POST_HOC:
        np.testing.assert_allclose(names["logits"], logits - log_priors(counts)[None, :], rtol=1e-5)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_the_recommended_objective_is_the_one_that_trees_were_trained_with(setting: Setting):
    counts = np.array([60, 30, 10])
    train_labels, scores = np.repeat(np.arange(3), counts), np.random.default_rng(2).normal(size=(100, 3))
    names: dict[str, Any] = {"train_labels": train_labels, "logits": scores.copy()}
    exec(setting.call(3, trees=True), names)
    trained = Objective("softmax", gamma=setting.gamma, alpha=setting.class_weights(counts))
    for found, wanted in zip(
        names["objective"](train_labels, scores), trained(train_labels, scores), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    start = np.broadcast_to(setting.logit_shift(counts), (100, 3))
    np.testing.assert_allclose(names.get("init_score", np.zeros((100, 3))), start, rtol=1e-6)
    lightgbm.Dataset(scores, train_labels, init_score=names.get("init_score")).construct()
    if setting.alpha == POST_HOC:
        np.testing.assert_allclose(names["logits"], scores - log_priors(counts), rtol=1e-5)


def test_cross_entropy_is_first_and_nothing_runs_twice():
    counts = np.array([90, 10])
    chosen, notes = choose([2.0, 0.0, 2.0], ["balanced", "none"], counts)
    assert chosen[0] == BASELINE and chosen[-2:] == (Setting(0.0, ADJUSTED), Setting(0.0, POST_HOC))
    assert len(set(chosen)) == len(chosen) == 6 and not notes
    every, _ = choose(None, None, counts)
    assert len(every) == 5 * len(ALPHAS) + 2
    assert [every[i].short for i in highlights(every)] == [
        "CE",
        "gamma 2",
        "CE, balanced",
        "gamma 2, balanced",
    ]


def test_where_classes_are_balanced_their_weights_are_one_setting():
    chosen, notes = choose([0.0, 2.0], None, np.array([50, 50, 51]))
    assert chosen == (BASELINE, Setting(2.0)) and len(notes) == 4
    assert choose([2.0], ["balanced"], np.array([50, 50]))[0] == (BASELINE, Setting(2.0, "balanced"))


# Measures.


def test_measures_agree_with_scikit_learn_and_focaljax():
    rng = np.random.default_rng(0)
    logits = (3 * rng.normal(size=(2, 400, 5))).astype(np.float32)
    logits[:, 7:20] = logits[:, 5:6]  # ties
    one = np.append(np.arange(5), rng.choice(5, 395, p=[0.4, 0.3, 0.15, 0.1, 0.05])).astype(np.int32)
    labels, counts = np.stack([one, one[::-1]]), np.ones((2, 400), np.float32)
    counts[:, 300:] = 0.0
    gamma, alpha, back = 2.0, np.array([1, 2, 3, 4, 5], np.float32), np.arange(5, dtype=np.float32) / 5
    got = measures.judge(logits, labels, counts, np.float32(gamma), alpha, 0 * back, back)
    posterior = [log_posterior(z[:300] + back[None, :], gamma=gamma, alpha=alpha) for z in logits]
    # One wrong row more: of each row a share, with the likeliest of the other classes as its label.
    others = np.where(np.eye(5)[labels[0, :300]] == 1, -np.inf, posterior[0]).argmax(1)
    twice = np.tile(posterior[0], (2, 1)), np.append(labels[0, :300], others)
    temperature = fit_temperature(*twice, sample_weight=np.repeat(np.float32([1, 1 / 300]), 300))
    metric = ExpectedCalibrationError(measures.ECE.bins, from_logits=True)
    for role in (0, 1):
        y, predicted = labels[role, :300], logits[role, :300].argmax(1)
        np.testing.assert_allclose(
            got.recall[role], sklearn_metrics.recall_score(y, predicted, average=None), rtol=1e-6
        )
        assert got.accuracy[role] == pytest.approx(sklearn_metrics.accuracy_score(y, predicted))
        for i, z in enumerate((logits[role, :300], posterior[role], posterior[role] / temperature)):
            p = np.asarray(jax.nn.softmax(z), np.float64)
            nll = sklearn_metrics.log_loss(y, p / p.sum(axis=1, keepdims=True))
            assert got.nll[i, role] == pytest.approx(nll, rel=1e-4)
            ece = metric.result(metric.update(metric.init(), y, z))
            assert got.ece[i, role] == pytest.approx(float(ece), rel=1e-4)
        auroc, precision = measures.rankings(np.asarray(got.score[role, :300]), y, range(5))
        hot, p = np.eye(5)[y], np.asarray(jax.nn.softmax(logits[role, :300]))
        assert auroc == pytest.approx(sklearn_metrics.roc_auc_score(hot, p), rel=1e-6)
        assert precision == pytest.approx(sklearn_metrics.average_precision_score(hot, p), rel=1e-6)


def test_ranks_tell_certain_rows_apart():
    logits = np.array([[[40.0, 0.0], [41.0, 0.0], [0.0, 41.0], [0.0, 40.0]]] * 2, np.float32)
    args = np.array([[0, 0, 1, 1]] * 2), np.ones((2, 4), np.float32), np.float32(0.0), np.ones(2, np.float32)
    got = measures.judge(logits, *args, np.zeros(2, np.float32), np.zeros(2, np.float32))
    assert len(set(np.asarray(got.score[1, :, 0]).tolist())) == 4


def test_results_are_of_each_run_and_setting(base):
    of, model, _, _ = base
    told = []
    at_end = measures.results(of, model, False, "at the end", lambda *what: told.append(what))
    assert told[-1] == ("measuring held-out rows, at the end", 2 * 4 * 6, 2 * 4 * 6)
    np.testing.assert_allclose(at_end.test["nll"][..., :TRAINED], model.nll[-1, 1], rtol=1e-5)
    np.testing.assert_allclose(at_end.validation["nll"][..., :TRAINED], model.nll[-1, 0], rtol=1e-5)
    stopped = measures.results(of, model, True, "stopped", network.silent)
    np.testing.assert_allclose(
        stopped.validation["nll"][..., :TRAINED], model.nll[:, 0].min(axis=0), rtol=1e-5
    )
    # Taking the priors out again leaves cross-entropy, whose likelihood no shift of the threshold changes.
    for name in ("nll_posterior", "nll_calibrated", "ece_calibrated"):
        np.testing.assert_array_equal(at_end.test[name][..., -1], at_end.test[name][..., 0])
    assert (at_end.test["nll"][..., -1] > at_end.test["nll"][..., 0]).all()
    by_hand = np.asarray(model.logits(False, 1, 2, 0))[1]
    rows, real = of.folds.measuring().rows[1, 1, 2].ravel(), of.folds.measuring().counts[1, 1, 2].ravel() > 0
    priors = log_priors(of.folds.class_counts[1, 2])
    right = (by_hand - priors[None, :]).argmax(axis=1)[real] == of.problem.labels[rows][real]
    assert at_end.test["accuracy"][1, 2, -1] == pytest.approx(right.mean())
    diagram = at_end.reliability[0]
    assert np.nansum(np.asarray(diagram.share)) == pytest.approx(1.0)
