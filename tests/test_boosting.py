"""The objective of boosted trees: exact derivatives, a curvature to train by, and both libraries."""

import copy
import pickle
import subprocess
import sys
from functools import partial
from typing import Any, NamedTuple

import cases
import jax
import numpy as np
import oracle
import pytest
import tolerances
from pairs import every_pair

from focaljax import sigmoid_focal_loss, softmax_focal_loss_with_integer_labels
from focaljax.boosting import Objective
from focaljax.calibration import log_posterior
from focaljax.terms import Asymmetric, Detached, Focal, Poly, Term

pytest.importorskip("lightgbm")
pytest.importorskip("xgboost")

import lightgbm
import xgboost
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.metrics import roc_auc_score
from sklearn.multioutput import MultiOutputClassifier

GAMMAS = (0.0, 0.5, 2.0, 5.0)
LOGITS = np.linspace(-40, 40, 41, dtype=np.float32)  # times 4 gammas and 2 answers: 328 questions
RNG = np.random.default_rng(0)


class Squared(Term):
    """A user's."""

    scale: Any = 1.0

    def value(self, odds):
        return self.scale * odds.q**2


TERMS = [Detached(Focal(2.0)), Squared(3.0)]  # beside those that the oracle judges


# Exactness.


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("answer", [0.0, 1.0])
def test_a_sigmoid_s_derivatives_are_the_oracle_s(gamma, answer):
    truth = oracle.sigmoid_focal(LOGITS, answer, gamma)
    labels = np.full_like(LOGITS, answer)
    gradient, second = Objective("sigmoid", gamma, curvature="exact")(labels, LOGITS)
    assert gradient.dtype == second.dtype == np.float32
    tiny = tolerances.flush(factor=tolerances.FLUSHED_LOG * (1 + gamma))
    tolerances.assert_close(gradient, truth.grad, rtol=tolerances.rtol("gradient", gamma), tiny=tiny)
    close = partial(tolerances.assert_close, scale=truth.scale2, tiny=tiny)
    close(second, truth.grad2, rtol=tolerances.rtol("hessian", gamma))


@every_pair(gamma=GAMMAS, classes=[2, 3, 10], term=["focal", "poly"])
def test_a_softmax_s_derivatives_are_the_oracle_s(gamma, classes, term):
    make, kind = {"focal": (Focal, oracle._Term), "poly": (Poly, oracle.poly(1.0))}[term]
    logits, targets = cases.rows(classes)
    alpha = np.linspace(0.5, 2, classes)
    truth = oracle.batch(logits, oracle.one_hot(targets, classes, alpha[targets]), gamma, kind)
    gradient, second = Objective("softmax", term=make(gamma), alpha=alpha, curvature="exact")(targets, logits)
    tiny = tolerances.flush(classes, factor=2 * tolerances.FLUSHED_LOG * (1 + gamma))
    own = partial(np.diagonal, axis1=1, axis2=2)
    close = partial(tolerances.assert_close, tiny=tiny, names=cases.names(classes))
    close(gradient, truth.grad, rtol=tolerances.rtol("gradient", gamma))
    scale = own(truth.hessian_scale)
    close(second, own(truth.hessian), scale=scale, rtol=tolerances.rtol("hessian", gamma))


def hessians_and_gradients(loss_of):
    """Of each row, in one program."""

    def of_row(z, label):
        def slope(z):
            gradient = jax.grad(loss_of)(z, label)
            return gradient, gradient

        return jax.jacfwd(slope, has_aux=True)(z)

    return jax.jit(jax.vmap(of_row))


@pytest.mark.parametrize("term", TERMS, ids=str)
def test_a_softmax_s_derivatives_are_those_of_the_loss(term):
    scores, labels = 3 * RNG.normal(size=(20, 4)).astype(np.float32), RNG.integers(0, 4, 20)

    def loss_of(z, labels):
        return softmax_focal_loss_with_integer_labels(z, labels, term=term)

    gradient, second = Objective("softmax", term=term, curvature="exact")(labels, scores)
    hessians, gradients = map(np.asarray, hessians_and_gradients(loss_of)(scores, labels))
    np.testing.assert_allclose(gradient, gradients, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(second, np.diagonal(hessians, axis1=1, axis2=2), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("term", [*TERMS, Asymmetric(1.0, 4.0, 0.05)], ids=str)
def test_a_sigmoid_s_derivatives_are_those_of_the_loss(term):
    scores, labels = 3 * RNG.normal(size=(20, 3)).astype(np.float32), RNG.integers(0, 2, (20, 3))

    def loss_of(z, label):
        return sigmoid_focal_loss(z, label, term=term, alpha=0.3)

    gradient, second = Objective("sigmoid", term=term, alpha=0.3, curvature="exact")(labels, scores)
    seconds, gradients = hessians_and_gradients(loss_of)(scores.ravel(), np.float32(labels).ravel())
    np.testing.assert_allclose(gradient.ravel(), gradients, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(second.ravel(), seconds, rtol=1e-4, atol=1e-6)


# The curvature to train by.


@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_curvature_bounds_the_second_derivative_and_the_step(gamma):
    scores = np.stack([LOGITS, np.zeros_like(LOGITS)], 1)
    for kind, given in (("sigmoid", LOGITS), ("softmax", scores)):
        for answer in (0, 1):
            labels = np.full(len(LOGITS), answer)
            gradient, curvature = Objective(kind, gamma)(labels, given)
            _, second = Objective(kind, gamma, curvature="exact")(labels, given)
            assert (curvature >= second).all() and (second < 0).any() == (gamma > 0)
            assert (4 * curvature >= abs(gradient)).all()
            assert (curvature > 0)[gradient != 0].all()


def test_without_gamma_it_is_the_cross_entropy_s():
    scores = np.linspace(-1, 12, 27)  # of the labelled answer: from p = 0.27
    p = 1 / (1 + np.exp(-scores))
    _, curvature = Objective("sigmoid", gamma=0.0)(np.ones(27), scores)
    np.testing.assert_allclose(curvature, p * (1 - p), rtol=2e-6)
    _, curvature = Objective("softmax", gamma=0.0)(np.zeros(27, int), np.stack([scores, 0 * scores], 1))
    np.testing.assert_allclose(curvature, 2 * (p * (1 - p))[:, None] * np.ones(2), rtol=2e-6)


# Weights, start, metric and probabilities.


def test_weights_multiply():
    scores, labels = RNG.normal(size=(6, 3)), RNG.integers(0, 3, 6)
    weights = np.array([0.0, 1.0, 2.0, 0.5, 1.0, 3.0])
    for objective, y in ((Objective("softmax"), labels), (Objective("sigmoid"), scores > 0)):
        plain, weighed = objective(y, scores), objective(y, scores, weights)
        for a, b in zip(plain, weighed, strict=True):
            np.testing.assert_allclose(weights[:, None] * a, b, rtol=1e-6)
        twice = objective.loss(np.repeat(y, 2, 0), np.repeat(scores, 2, 0), np.repeat(weights, 2))
        each = [objective.loss(y[[i]], scores[[i]]) for i in range(6)]
        np.testing.assert_allclose(
            objective.loss(y, scores, weights), np.average(each, weights=weights), 1e-6
        )
        np.testing.assert_allclose(objective.loss(y, scores, weights), twice, rtol=1e-6)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("share", [0.5, 0.1, 1e-3, 1e-5])
def test_the_best_start_says_the_share_of_the_positives(gamma, share):
    objective = Objective("sigmoid", gamma)
    labels, weights = np.array([1, 0, 0]), np.array([share, 0.25 * (1 - share), 0.75 * (1 - share)])
    start = objective.start(labels, weights)
    assert isinstance(start, float)
    assert objective.probabilities(np.array(start)) == pytest.approx(share, rel=1e-5)


@pytest.mark.parametrize("term", [Focal(0.0), Focal(2.0), Poly(2.0, 1.0)], ids=str)
def test_the_best_start_says_the_shares_of_the_classes(term):
    labels = np.repeat([0, 1, 2, 3], [900, 80, 19, 1])
    objective = Objective("softmax", term=term, alpha=[0.5, 1.0, 2.0, 4.0])
    start = np.array([objective.start(labels)])
    np.testing.assert_allclose(objective.probabilities(start), [[0.9, 0.08, 0.019, 0.001]], rtol=1e-5)
    nearby = np.repeat(start, len(labels), 0)
    for move in 0.01 * np.eye(4):
        assert min(objective.loss(labels, nearby + move), objective.loss(labels, nearby - move)) > (
            objective.loss(labels, nearby)
        )


@pytest.mark.parametrize("gamma", GAMMAS)
def test_two_frequent_classes_do_not_chase_each_other(gamma):
    shares = 0.9 * 0.1 ** np.arange(9)
    objective = Objective("softmax", gamma)
    start = objective.start(np.arange(9), shares)
    np.testing.assert_allclose(
        objective.probabilities(np.array([start]))[0], shares / shares.sum(), rtol=1e-4
    )


def test_the_best_start_of_each_label():
    labels = np.zeros((1000, 3))
    for column, positives in enumerate((500, 100, 20)):
        labels[:positives, column] = 1
    objective = Objective("sigmoid", gamma=[0.0, 1.0, 2.0], alpha=[0.5, 0.25, 0.75])
    start = np.array(objective.start(labels))
    np.testing.assert_allclose(objective.probabilities(start), [0.5, 0.1, 0.02], rtol=1e-5)
    asymmetric = Objective("sigmoid", term=Asymmetric())
    assert asymmetric.probabilities(np.array(asymmetric.start(labels)[1])) == pytest.approx(0.1, rel=1e-5)


def test_there_is_no_best_start_without_all_answers():
    for kind, labels in (("sigmoid", [1, 1]), ("sigmoid", [[0, 1], [0, 0]]), ("softmax", [0, 2, 2])):
        with pytest.raises(ValueError, match="`labels` must have each class"):
            Objective(kind).start(labels)


@pytest.mark.parametrize("alpha", [None, 0.25])
def test_probabilities_are_those_of_the_calibration(alpha):
    scores = np.linspace(-30, 12, 43, dtype=np.float32)
    two = np.stack([np.zeros_like(scores), scores], 1)
    weights = None if alpha is None else [1 - alpha, alpha]
    posterior = jax.jit(lambda term: log_posterior(two, term=term, alpha=weights))
    for term in (Focal(0.0), Focal(0.5), Focal(2.0), Poly(1.0, 0.5)):
        want = np.exp(posterior(term))[:, 1]
        got = Objective("sigmoid", term=term, alpha=alpha).probabilities(scores)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-37)


def test_other_options_are_no_other_program():
    traced = []

    class Counted(Squared):
        def value(self, odds):
            traced.append(1)
            return super().value(odds)

    labels, scores = RNG.integers(0, 2, 7), RNG.normal(size=(3, 7))
    Objective("sigmoid", term=Counted(1.0))(labels, scores[0])
    first = len(traced)
    assert first
    for scale, z in ((1.0, scores[1]), (2.0, scores[2])):
        Objective("sigmoid", term=Counted(scale))(labels, z)
    assert len(traced) == first


def test_it_is_copied_and_stored():
    objective = Objective("softmax", term=Poly(2.0, 1.0), alpha=np.array([1.0, 2.0]))
    given = np.array([0, 1]), np.array([[0.5, 0.0], [1.0, -1.0]])
    for other in (copy.deepcopy(objective), pickle.loads(pickle.dumps(objective))):
        assert (other(*given)[0] == objective(*given)[0]).all()
    model: Any = clone(lightgbm.LGBMClassifier(objective=objective))
    assert model.objective.term == objective.term


def test_neither_library_is_imported():
    program = "import focaljax.boosting, sys; print({'lightgbm', 'xgboost', 'sklearn'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Objective("relu"), ValueError, r"`activation` must be one of \('sigmoid', 'softmax'\)"),
        (lambda: Objective("softmax", curvature="half"), ValueError, "`curvature` must be one of"),
        (lambda: Objective("sigmoid", gamma=-1), ValueError, "`gamma` must be at least 0"),
        (lambda: Objective("sigmoid", alpha=2), ValueError, r"`alpha` must be in \[0, 1\]"),
        (
            lambda: Objective("softmax", term=Asymmetric()),
            ValueError,
            "`term` Asymmetric is for sigmoid losses",
        ),
        (lambda: Objective("softmax")([0, 1], [[1.0], [2.0]]), ValueError, "`scores` must be .* 2 classes"),
        (lambda: Objective("softmax")([0, 2], [[1.0, 2.0]] * 2), ValueError, r"`labels` must be in \[0, 2\)"),
        (lambda: Objective("softmax")([0.5, 1], [[1.0, 2.0]] * 2), ValueError, "`labels` must be whole"),
        (lambda: Objective("sigmoid")([0, 2], [1.0, 2.0]), ValueError, r"`labels` must be in \[0, 1\]"),
        (lambda: Objective("sigmoid")([0, 1], [1, 2]), TypeError, "`scores` must be floating"),
        (lambda: Objective("sigmoid")([0, 1], [1.0, 2.0], [1, -1]), ValueError, "`sample_weight` must be at"),
        (lambda: Objective("sigmoid")([0, 1], [1.0, 2.0], [1.0]), ValueError, "`sample_weight` must be a sc"),
    ],
)
def test_errors_name_the_argument(make, error, message):
    with pytest.raises(error, match=message):
        make()


# Both libraries.

X = RNG.normal(size=(200, 4)).astype(np.float32)
MARGIN = X @ np.array([1.0, -1.0, 0.5, 0.0]) + RNG.normal(size=200)
YES = (MARGIN > 1).astype(int)
THREE = np.digitize(MARGIN, [-1, 1])
MANY = np.stack([MARGIN > 1, X[:, 1] > 0.5, MARGIN < 0], 1).astype(int)
WEIGHTS = RNG.uniform(0.5, 2, 200)
FEW = 5  # rounds in which no answer gets far enough to be wrong with certainty
X_OPTIONS = {"eta": 0.1, "nthread": 1, "max_depth": 3}
L_OPTIONS = {"learning_rate": 0.1, "num_threads": 1, "num_leaves": 7, "verbose": -1, "deterministic": True}


def of_xgboost(y, objective, rounds=FEW, **options):
    """Raw scores of the training rows, from `xgboost.train`."""
    data = xgboost.DMatrix(X, y, weight=WEIGHTS)
    how = {"objective": objective} if isinstance(objective, str) else {}
    obj = None if how else objective
    booster = xgboost.train({**X_OPTIONS, "base_score": 0.5, **how, **options}, data, rounds, obj=obj)
    return booster.predict(data, output_margin=True)


def of_lightgbm(y, objective, rounds=FEW, **options):
    """The same from `lightgbm.train`."""
    data = lightgbm.Dataset(X, y, weight=WEIGHTS)
    how = {"objective": objective, "boost_from_average": False}
    booster = lightgbm.train({**L_OPTIONS, **how, **options}, data, rounds)
    return booster.predict(X, raw_score=True)


def test_without_gamma_it_is_the_objective_of_the_library():
    """With weights, and each library's shapes; XGBoost's softmax has our curvature with two classes."""
    sigmoid, softmax = Objective("sigmoid", gamma=0.0), Objective("softmax", gamma=0.0)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)  # sums of float32 in another order
    close(of_xgboost(YES, sigmoid, base_score=0.0), of_xgboost(YES, "binary:logistic"))
    close(of_xgboost(YES, softmax, num_class=2), of_xgboost(YES, "multi:softprob", num_class=2))
    close(of_xgboost(MANY, sigmoid, base_score=0.0), of_xgboost(MANY, "binary:logistic"))
    close(of_lightgbm(YES, sigmoid), of_lightgbm(YES, "binary"))
    close(of_lightgbm(THREE, softmax, num_class=3), of_lightgbm(THREE, "multiclass", num_class=3))


@pytest.mark.parametrize(("kind", "y"), [("sigmoid", YES), ("softmax", THREE), ("sigmoid", MANY)])
def test_all_interfaces_of_xgboost_are_one(kind, y):
    objective = Objective(kind, gamma=2.0)
    data, seen = xgboost.DMatrix(X, y, weight=WEIGHTS), {}
    options = X_OPTIONS | ({"num_class": 3} if kind == "softmax" else {})
    how = {"obj": objective, "custom_metric": objective.metric, "evals": [(data, "x")], "evals_result": seen}
    booster = xgboost.train(options | {"base_score": 0.0}, data, 20, verbose_eval=False, **how)
    scores = booster.predict(data, output_margin=True)
    assert seen["x"]["focal"][-1] == pytest.approx(objective.loss(y, scores, WEIGHTS), rel=1e-5)
    model = xgboost.XGBClassifier(
        n_estimators=20,
        learning_rate=0.1,
        max_depth=3,
        n_jobs=1,
        objective=objective,
        eval_metric=objective.loss,
    )
    model.set_params(**({"base_score": [0.0] * 3} if kind == "softmax" else {}))
    model.fit(X, y, sample_weight=WEIGHTS, eval_set=[(X, y)], sample_weight_eval_set=[WEIGHTS], verbose=False)
    np.testing.assert_allclose(model.predict(X, output_margin=True), scores, rtol=1e-5, atol=1e-6)
    assert model.evals_result()["validation_0"]["loss"] == pytest.approx(seen["x"]["focal"], rel=1e-5)


@pytest.mark.parametrize(("kind", "y"), [("sigmoid", YES), ("softmax", THREE)])
def test_all_interfaces_of_lightgbm_are_one(kind, y):
    objective = Objective(kind, gamma=2.0)
    data, seen = lightgbm.Dataset(X, y, weight=WEIGHTS), {}
    options = L_OPTIONS | ({"num_class": 3} if kind == "softmax" else {}) | {"objective": objective}
    record = [lightgbm.record_evaluation(seen)]
    how = {"feval": objective.metric, "valid_sets": [data], "valid_names": ["x"], "callbacks": record}
    scores = lightgbm.train(options, data, 20, **how).predict(X, raw_score=True)
    assert seen["x"]["focal"][-1] == pytest.approx(objective.loss(y, scores, WEIGHTS), rel=1e-5)
    model = lightgbm.LGBMClassifier(
        n_estimators=20, num_leaves=7, n_jobs=1, verbose=-1, deterministic=True, objective=objective
    )
    model.fit(
        X,
        y,
        sample_weight=WEIGHTS,
        eval_X=X,
        eval_y=y,
        eval_sample_weight=[WEIGHTS],
        eval_metric=objective.metric,
    )
    np.testing.assert_allclose(model.predict(X, raw_score=True), scores, rtol=1e-6)
    (seen_by_model,) = model.evals_result_.values()
    assert seen_by_model["focal"] == pytest.approx(seen["x"]["focal"], rel=1e-5)


def test_many_labels_with_lightgbm_are_a_booster_for_each():
    objective = Objective("sigmoid", gamma=2.0)
    model = lightgbm.LGBMClassifier(n_estimators=20, objective=objective, n_jobs=1, verbose=-1)
    each: Any = MultiOutputClassifier(model).fit(X, MANY).estimators_
    scores = np.stack([one.predict(X, raw_score=True) for one in each], 1)
    assert objective.loss(MANY, scores) < 0.5 * objective.loss(MANY, 0 * scores)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_training_goes_on_from_the_best_start(kind):
    """A single leaf has nothing to add to it, in either library, by the way that `start` documents."""
    objective, y = Objective(kind, gamma=2.0), YES if kind == "sigmoid" else THREE
    start = objective.start(y, WEIGHTS)
    options = {"num_class": 3} if kind == "softmax" else {}
    want = np.broadcast_to(np.asarray(start, np.float32), (200, 3) if options else 200)
    close = partial(np.testing.assert_allclose, desired=want, rtol=1e-5, atol=1e-5)
    close(of_xgboost(y, objective, base_score=start, gamma=1e6, **options))
    probability = start if options else 1 / (1 + np.exp(-start))
    model = xgboost.XGBClassifier(
        n_estimators=3, gamma=1e6, n_jobs=1, objective=objective, base_score=probability
    )
    close(model.fit(X, y, sample_weight=WEIGHTS).predict(X, output_margin=True))
    data = lightgbm.Dataset(X, y, weight=WEIGHTS, init_score=want)
    leaf = L_OPTIONS | options | {"objective": objective, "min_gain_to_split": 1e6}
    close(want + lightgbm.train(leaf, data, 3).predict(X, raw_score=True))


# Real tables.


class Table(NamedTuple):
    """Rows to train on and rows to look at, in halves."""

    x: tuple[np.ndarray, np.ndarray]
    y: tuple[np.ndarray, np.ndarray]


def table(bunch, rows=None) -> Table:
    """A table of scikit-learn's, or some rows of it, in an order of its own."""
    rows = np.random.default_rng(0).permutation(np.arange(len(bunch.data)) if rows is None else rows)
    near, far = rows[::2], rows[1::2]
    return Table((bunch.data[near], bunch.data[far]), (bunch.target[near], bunch.target[far]))


def rare_digits() -> Table:
    """Of each digit three quarters of the one before: 178 zeros, 13 nines."""
    digits: Any = load_digits()
    rows = [np.flatnonzero(digits.target == k)[: int(178 * 0.75**k)] for k in range(10)]
    return table(digits, np.concatenate(rows))


def path(library, objective, x, y, other, rounds, **options):
    """Raw scores of the rows trained on, and of others, after each fifth round."""
    at = range(5, rounds + 1, 5)
    if library == "xgboost":
        data, far = xgboost.DMatrix(x, y), xgboost.DMatrix(other)
        named = (
            {"objective": objective, "base_score": 0.5} if isinstance(objective, str) else {"base_score": 0.0}
        )
        options = {"eta": 0.1, "nthread": 1, "min_child_weight": 0.01} | named | options
        booster = xgboost.train(options, data, rounds, obj=None if isinstance(objective, str) else objective)
        predict = partial(booster.predict, output_margin=True)
        return [[predict(rows, iteration_range=(0, n)) for n in at] for rows in (data, far)]
    options = {"num_threads": 1, "verbose": -1, "objective": objective} | options
    booster = lightgbm.train(options, lightgbm.Dataset(x, y), rounds)
    predict = partial(booster.predict, raw_score=True)
    return [[predict(rows, num_iteration=n) for n in at] for rows in (x, other)]


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_yes_or_no_trains_as_well_as_with_cross_entropy(library, gamma):
    (x, other), (y, truth) = table(load_breast_cancer())
    objective, plain = Objective("sigmoid", gamma), {"xgboost": "binary:logistic", "lightgbm": "binary"}
    near, far = path(library, objective, x, y, other, 60)
    _, yardstick = path(library, plain[library], x, y, other, 60)
    # What imbalance-xgboost and imlightgbm train by: the second derivative as it is.
    _, theirs = path(library, Objective("sigmoid", gamma, curvature="exact"), x, y, other, 60)
    losses = [objective.loss(y, scores) for scores in near]
    assert (np.diff(losses) < 0).all() and losses[-1] < 0.05 * objective.loss(y, 0 * near[0])
    # From fold to fold the difference varies by 0.002 (one standard deviation).
    best = max(roc_auc_score(truth, scores[-1]) for scores in (yardstick, theirs))
    assert roc_auc_score(truth, far[-1]) > best - 0.01


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_several_classes_train_as_well_as_with_cross_entropy(library):
    (x, other), (y, truth) = rare_digits()
    objective, plain = Objective("softmax"), {"xgboost": "multi:softprob", "lightgbm": "multiclass"}
    near, far = path(library, objective, x, y, other, 30, num_class=10)
    _, yardstick = path(library, plain[library], x, y, other, 30, num_class=10)
    losses = [objective.loss(y, scores) for scores in near]
    assert (np.diff(losses) < 0).all() and losses[-1] < 0.05 * objective.loss(y, 0 * near[0])
    right, usual = (np.mean(np.argmax(scores[-1], 1) == truth) for scores in (far, yardstick))
    assert right > usual - 0.03  # ten rows


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_training_goes_on_from_what_is_wrong_with_certainty(library, gamma):
    """Scores of a model that did not know that one label of ten is wrong: the true curvature is lost."""
    (x, _), (y, _) = table(load_breast_cancer())
    scores = 8.0 * (2 * y - 1)
    noisy = np.where(np.random.default_rng(0).random(len(y)) < 0.1, 1 - y, y)
    losses = {}
    for curvature in ("positive", "exact"):
        objective = Objective("sigmoid", gamma, curvature=curvature)
        if library == "xgboost":
            data = xgboost.DMatrix(x, noisy, base_margin=scores)
            options = {"eta": 0.1, "nthread": 1, "min_child_weight": 0.01}
            after = xgboost.train(options, data, 60, obj=objective).predict(data, output_margin=True)
        else:
            data = lightgbm.Dataset(x, noisy, init_score=scores)
            options = {"num_threads": 1, "verbose": -1, "objective": objective}
            after = scores + lightgbm.train(options, data, 60).predict(x, raw_score=True)
        losses[curvature] = objective.loss(noisy, after)
    before = objective.loss(noisy, scores)
    assert losses["positive"] < 0.05 * before
    # XGBoost's lambda of 1 saves cross-entropy, whose curvature is small there but not negative.
    assert (losses["exact"] >= before) == (gamma > 0 or library == "lightgbm")
