"""The sweep behind `python -m focaljax`: folds, blocks, runs, measures and verdicts keep their laws."""

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

optax = pytest.importorskip("optax")
sklearn_metrics = pytest.importorskip("sklearn.metrics")
sklearn_weights = pytest.importorskip("sklearn.utils.class_weight")
stats = pytest.importorskip("scipy.stats")

from focaljax import softmax_focal_loss_with_integer_labels  # noqa: E402
from focaljax.calibration import ExpectedCalibrationError  # noqa: E402
from focaljax.study import blocks, checkpoint, compare, data, folds, network, recommend, tally, train  # noqa: E402
from focaljax.study.errors import DivergedError, StudyError  # noqa: E402
from focaljax.study.settings import ADJUSTED, ALPHAS, BASELINE, Setting, choose, highlights  # noqa: E402

SETTINGS = (
    BASELINE,
    Setting(2.0),
    Setting(0.5, "balanced"),
    Setting(0.0, "effective"),
    Setting(0.0, ADJUSTED),
)
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
        category_names=("d", "e"),
        levels=(("missing", "u", "v"), ("missing", "w")),
        class_names=("k", "l", "m"),
        description="made up",
    )


def study(
    of: data.Problem, settings=SETTINGS, seeds=(7, 8), count=4, epochs=2, block_rows=100
) -> train.Study:
    return train.Study(of, folds.deal(of, seeds, count), settings, epochs, block_rows)


@pytest.fixture(scope="module")
def base() -> tuple[train.Study, train.Progress, list[train.Progress], int]:
    """Train in several blocks; keep what was passed on after each, and how often the loss was traced."""
    traces, passed, of = [], [], study(problem())

    def counted(*arguments, **options):
        traces.append(options)
        return softmax_focal_loss_with_integer_labels(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "softmax_focal_loss_with_integer_labels", counted)
        done = train.train(of, on_block=lambda p: passed.append(jax.tree.map(np.asarray, p)))
    return of, done, passed, len(traces)


def params(progress: train.Progress) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(progress.state.params)]


# Folds.


@pytest.mark.parametrize(("rows", "count"), [(240, 3), (61, 5), (folds.STRETCH + 500, 4)])
def test_folds_are_stratified_partitions(rows: int, count: int):
    of = problem(rows)
    dealt = folds.deal(of, (0, 1, 2), count)
    assert dealt.of.shape == (rows, 3) and dealt.of.max() == count - 1
    for s in range(3):
        for k in range(3):
            sizes = np.bincount(dealt.of[of.labels == k, s], minlength=count)
            assert sizes.max() - sizes.min() <= 1
            np.testing.assert_array_equal(sizes, dealt.class_counts[s, :, k])
    assert (dealt.of[:, 0] != dealt.of[:, 1]).mean() > 0.3
    np.testing.assert_array_equal(folds.deal(of, (1,), count).of[:, 0], dealt.of[:, 1])


def test_training_rows_standardise_each_run():
    of = problem()
    dealt = folds.deal(of, (3, 4), 5)
    assert dealt.missing == (1,)
    for s in range(2):
        for k in range(5):
            mine = of.numbers[~np.isin(dealt.of[:, s], [k, (k + 1) % 5])]
            np.testing.assert_allclose(dealt.mean[s, k], np.nanmean(mine, axis=0), atol=1e-6)
            np.testing.assert_allclose(dealt.scale[s, k], 1 / np.nanstd(mine, axis=0), rtol=1e-5)
            counts = np.bincount(of.labels[~np.isin(dealt.of[:, s], [k, (k + 1) % 5])], minlength=3)
            np.testing.assert_array_equal(dealt.train_counts[s, k], counts)
    assert dealt.test_share == pytest.approx(1 / 3)


def test_a_rare_class_makes_fewer_folds_or_an_error():
    of = problem()
    labels = np.where(np.arange(240) < 4, 1, 0).astype(np.int32)
    of = replace(of, labels=labels, class_names=("k", "l"))
    count, note = folds.choose_count(of, None)
    assert count == 4 and note is not None and "class 'l' has 4 rows" in note
    assert folds.choose_count(of, 3) == (3, None)
    with pytest.raises(StudyError, match="class 'l' has 4 rows; with 5 folds each class needs 5"):
        folds.choose_count(of, 5)
    assert folds.choose_count(problem(), None) == (folds.USUAL, None)


# Blocks.


@pytest.mark.parametrize("most", [1000, 100, 37])
def test_every_row_is_measured_once_and_trains_only_where_it_may(most: int):
    of = replace(problem(), numbers=np.arange(240, dtype=np.float32)[:, None])
    dealt = folds.deal(of, (7, 8), 4)
    reader = blocks.Reader(of, dealt, most)
    seen = [[[[] for _ in range(4)] for _ in range(2)] for _ in range(2)]
    for block, picks in reader.measuring():
        for role, s, k in np.ndindex(2, 2, 4):
            rows = picks.rows[role, s, k][picks.counts[role, s, k] > 0]
            seen[role][s][k] += block.numbers[rows, 0].astype(int).tolist()
    for s, k in np.ndindex(2, 4):
        for role, fold in ((0, (k + 1) % 4), (1, k)):
            assert seen[role][s][k] == np.flatnonzero(dealt.of[:, s] == fold).tolist()
    orders = []
    for epoch in range(2):
        trained = []
        for block, picks in reader.training(epoch):
            rows = picks.rows[0, 1][picks.counts[0, 1] > 0]
            trained += block.numbers[rows, 0].astype(int).tolist()
        assert len(set(trained)) == len(trained) > 0.8 * 120
        assert np.isin(dealt.of[trained, 0], [3, 0]).all()  # run 1 tests on fold 1, validates on fold 2
        orders.append(trained)
    assert orders[0] != orders[1]


def test_an_epoch_can_begin_in_its_middle():
    of = problem()
    reader = blocks.Reader(of, folds.deal(of, (7,), 4), 100)
    whole, rest = list(reader.training(3)), list(reader.training(3, 2))
    assert len(whole) == reader.count == 3
    jax.tree.map(np.testing.assert_array_equal, whole[2:], rest)


# Runs.


def test_one_program_trains_every_run_and_they_differ(base):
    of, done, _, traces = base
    assert traces == 1
    assert done.nll.shape == (2, 2, 2, 4, len(SETTINGS)) and np.isfinite(done.nll).all()
    first = np.asarray(done.state.params["w1"]).reshape(-1, *done.state.params["w1"].shape[3:])
    assert len({w.tobytes() for w in first}) == 2 * 4 * len(SETTINGS)
    assert of.reader.count == 3


def test_gamma_0_without_alpha_is_cross_entropy(base):
    """One run, written again with Optax' own loss and plain indexing."""
    of, done, _, _ = base
    s, k = 1, 2
    about, dealt = network.columns(of.problem, of.folds), of.folds
    optimizer = optax.adam(optax.cosine_decay_schedule(train.LEARNING_RATE, 2 * 3 * of.reader.steps[0]))
    weights = network.initial(jax.random.key(8), about.width, 3)
    state = optimizer.init(weights)

    @jax.jit
    def step(weights, state, x, y, counts):
        def objective(weights):
            logits = network.logits(weights, x)
            losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, y)
            return jnp.sum(losses * counts) / jnp.sum(counts)

        updates, state = optimizer.update(jax.grad(objective)(weights), state)
        return optax.apply_updates(weights, updates), state

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for epoch in range(2):
            for block, picks in of.reader.training(epoch):
                for rows, counts in zip(picks.rows[s, k], picks.counts[s, k], strict=True):
                    x = network.inputs(
                        about,
                        block.numbers[rows],
                        block.categories[rows],
                        dealt.mean[s, k],
                        dealt.scale[s, k],
                    )
                    weights, state = step(weights, state, x, block.labels[rows], counts)
    for name, value in weights.items():
        np.testing.assert_allclose(done.state.params[name][s, k, 0], value, rtol=CLOSE, atol=CLOSE)


def test_permuted_settings_and_single_seeds_are_the_same_runs(base):
    of, done, _, _ = base
    order = [3, 1]
    alone = train.train(study(of.problem, tuple(SETTINGS[i] for i in order), seeds=(8,)))
    np.testing.assert_allclose(alone.nll[:, :, 0], done.nll[:, :, 1][..., order], rtol=CLOSE)
    for mine, all_of_them in zip(params(alone), params(done), strict=True):
        np.testing.assert_allclose(mine[0], all_of_them[1][:, order], rtol=CLOSE, atol=CLOSE)


def test_held_out_rows_never_influence_a_run(base):
    of, done, _, _ = base
    spoilt, k = of.problem.numbers.copy(), 1
    held_out = of.folds.of[:, 0] == k
    spoilt[held_out] = np.where(np.isnan(spoilt[held_out]), np.nan, 1e6)
    spoilt[held_out, 1] = np.nan
    again = train.train(study(replace(of.problem, numbers=spoilt)))
    changed = 0
    for new, old in zip(params(again), params(done), strict=True):
        np.testing.assert_array_equal(new[0, k], old[0, k])  # tests on these rows
        np.testing.assert_array_equal(new[0, k - 1], old[0, k - 1])  # stops by them
        changed += np.abs(new[0, k + 1] - old[0, k + 1]).max()
    assert changed > 0


def test_resumed_is_uninterrupted_bit_for_bit(base, tmp_path: Path):
    of, done, passed, _ = base
    assert [(p.epoch, p.block) for p in passed] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
    unfinished = checkpoint.Unfinished(tmp_path / "out")
    unfinished.begin({"a": 1}, resume=False, overwrite=False)
    unfinished.save(passed[4])
    again = train.train(of, unfinished.load(train.start(of)))
    jax.tree.map(
        np.testing.assert_array_equal, jax.tree.map(np.asarray, done), jax.tree.map(np.asarray, again)
    )


def test_the_best_epoch_is_chosen_by_validation_alone(base):
    _, done, passed, _ = base
    after_first = passed[3]
    later = done.nll[1, 0] < done.nll[0, 0]
    best, first, last = (tally.mean_nll(t) for t in (done.best, after_first.last, done.last))
    np.testing.assert_array_equal(best, np.where(later, last, first))
    np.testing.assert_array_equal(done.nll[1], last)


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(folds, "STRETCH", 500)

    def needed(rows: int) -> tuple[int, int, int]:
        """Bytes that dealing folds and training allocate at most in NumPy, and that lie in JAX arrays."""
        stored, of = {}, problem(rows)
        for name in ("numbers", "categories", "labels"):
            array = getattr(of, name)
            stored[name] = np.memmap(tmp_path / f"{name}{rows}", array.dtype, "w+", shape=array.shape)
            stored[name][:] = array
        whole, live = replace(problem(10), **stored), []

        def look(progress: train.Progress) -> None:
            """Count from the first call on, which comes after the compilation."""
            live.append(sum(x.nbytes for x in jax.live_arrays()))
            if not tracemalloc.is_tracing():
                tracemalloc.start()

        try:
            tracemalloc.start()
            dealt = folds.deal(whole, (0,), 3, tmp_path)
            dealing = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            train.train(train.Study(whole, dealt, (BASELINE,), 1, 500), on_block=look)
            return dealing, tracemalloc.get_traced_memory()[1], max(live)
        finally:
            tracemalloc.stop()

    more = 14_000 * (3 + 2 + 1) * 4  # bytes that the additional rows have on disk
    for small, large in zip(needed(2_000), needed(16_000), strict=True):
        assert large < small + more / 4


def test_diverged_training_is_an_error():
    nll = np.zeros((2, 2, 4, len(SETTINGS)))
    nll[1, 1, 2, 3] = np.nan
    with pytest.raises(
        DivergedError, match="diverged with cross-entropy with effective alpha, seed 8, fold 3"
    ):
        train._check_finite(study(problem()), nll)


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
    np.testing.assert_array_equal(Setting(0.0, "balanced").logit_shift(counts), 0.0)


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


def test_cross_entropy_is_first_and_nothing_runs_twice():
    chosen = choose([2.0, 0.0, 2.0], ["balanced", "none"])
    assert chosen[0] == BASELINE and chosen[-1] == Setting(0.0, ADJUSTED)
    assert len(set(chosen)) == len(chosen) == 5
    assert len(choose(None, None)) == 5 * len(ALPHAS) + 1
    names = [choose(None, None)[i].name for i in highlights(choose(None, None))]
    assert names == [
        "cross-entropy",
        "focal gamma=2",
        "cross-entropy with balanced alpha",
        "focal gamma=2 with balanced alpha",
    ]


# Measures.


def test_measures_agree_with_scikit_learn_and_focaljax():
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(400, 5)).astype(np.float32)
    labels = np.sort(np.append(np.arange(5), rng.choice(5, 395, p=[0.4, 0.3, 0.15, 0.1, 0.05]))).astype(
        np.int32
    )
    counts = np.ones(500, np.float32)
    counts[400:] = 0.0
    filled = np.concatenate([logits, np.full((100, 5), np.nan, np.float32)])
    of_rows = jax.jit(tally.of_rows)
    total = None
    for part in np.split(np.arange(500), 2):  # the last hundred only fill
        total = tally.add(total, of_rows(filled[part], np.pad(labels, (0, 100))[part], counts[part]))
    assert total is not None
    got, predicted = tally.measures(total), logits.argmax(1)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    recall = sklearn_metrics.recall_score(labels, predicted, average=None)
    np.testing.assert_array_equal(total.confusion, sklearn_metrics.confusion_matrix(labels, predicted))
    np.testing.assert_allclose(tally.recall(total), recall)
    assert got["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(labels, predicted))
    assert got["balanced_accuracy"] == pytest.approx(
        sklearn_metrics.balanced_accuracy_score(labels, predicted)
    )
    assert got["nll"] == pytest.approx(sklearn_metrics.log_loss(labels, p), rel=1e-6)
    assert got["rare_recall"] == pytest.approx(recall[4])
    metric = ExpectedCalibrationError(tally.BINS, from_logits=True)
    assert got["ece"] == pytest.approx(
        float(metric.result(metric.update(metric.init(), labels, logits))), rel=1e-4
    )


def test_a_reliability_diagram_by_hand():
    bins = np.zeros((tally.BINS, 3))
    bins[8], bins[13] = (2, 1.2, 1), (2, 1.8, 2)  # confidence 0.6 and 0.9; accuracy 0.5 and 1
    diagram = tally.reliability(bins)
    assert diagram.share[8] == 0.5 and diagram.confidence[8] == 0.6 and diagram.accuracy[13] == 1.0
    assert np.isnan(diagram.accuracy).sum() == tally.BINS - 2


# Verdicts.


def test_the_corrected_interval():
    values = np.array([0.1, 0.3, 0.2, 0.5, 0.4])
    plain = stats.ttest_1samp(values, 0.0)
    got = compare.corrected_t(values, 0.0)
    assert (got.mean, got.p) == (pytest.approx(0.3), pytest.approx(plain.pvalue))
    assert (got.low, got.high) == pytest.approx(tuple(plain.confidence_interval(0.95)))
    wider = compare.corrected_t(values, 1 / 3)  # by hand: s^2 = 0.025, t(0.975, 4) = 2.776445
    assert wider.high - wider.mean == pytest.approx(2.776445 * (0.025 * (1 / 5 + 1 / 3)) ** 0.5, rel=1e-6)
    assert compare.corrected_t(np.zeros(3), 0.5).p == 1.0
    assert compare.corrected_t(np.ones(3), 0.5).p == 0.0


def test_holm_by_hand():
    np.testing.assert_allclose(compare.holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(compare.holm(np.array([0.9, 0.6])), [1.0, 1.0])


def simulated(
    rng: np.random.Generator, effects: np.ndarray, runs: int = 15, share: float = 1 / 3
) -> np.ndarray:
    """Values [runs, settings] whose differences correlate over runs as shared training rows make them."""
    shape = (runs, len(effects))
    together = np.sqrt(share / (1 + share)) * rng.normal(size=(1, len(effects)))
    alone = np.sqrt(1 / (1 + share)) * rng.normal(size=shape)
    values = rng.normal(size=(runs, 1)) + together + alone + effects
    values[:, 0] = values[:, 0] - together[0, 0] - alone[:, 0]
    return values


def recommended(values: np.ndarray, metric: compare.Metric = compare.BALANCED) -> recommend.Recommendation:
    settings = choose([0.0, 1.0, 2.0], ["none", "balanced"])
    measures = {m.field: values for m in compare.METRICS}
    table = compare.compare(settings, measures, 1 / 3)
    return recommend.recommend(metric, table, values, values, 1 / 3)


def test_where_nothing_helps_something_is_recommended_no_more_often_than_promised():
    rng, trials = np.random.default_rng(5), 600
    found = sum(recommended(simulated(rng, np.zeros(7))).found for _ in range(trials))
    assert found <= stats.binom.isf(1e-4, trials, 1 - compare.LEVEL)


def test_what_helps_is_recommended_and_the_plainest_of_equals():
    rng = np.random.default_rng(6)
    #                 CE   g=1  g=2  bal  bal1 bal2 adjusted
    effects = np.array([0, 0.0, 0.0, 20, 20.0, 20.3, -20])
    advice = recommended(simulated(rng, effects))
    assert advice.found and advice.index == 3 and set(advice.helpful) == {3, 4, 5}
    assert advice.best in advice.alike and advice.chosen.low > 0
    lower_is_better = recommended(-simulated(rng, effects), compare.NLL)
    assert lower_is_better.index == 3 and lower_is_better.chosen.high < 0
    clear = recommended(simulated(rng, np.array([0, 0, 0, 20, 20, 60, 0])))
    assert clear.index == clear.best == 5 and clear.alike == (5,)


def test_a_choice_that_validation_misled_gains_nothing():
    test = np.zeros((6, 3))
    validation = np.zeros((6, 3))
    validation[:, 2], test[:, 2] = 1.0, -1.0
    settings = (BASELINE, Setting(1.0), Setting(2.0))
    table = compare.compare(settings, {m.field: test for m in compare.METRICS}, 1 / 3)
    advice = recommend.recommend(compare.BALANCED, table, validation, test, 1 / 3)
    assert not advice.found and advice.chosen.mean == -1.0
