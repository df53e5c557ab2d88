"""The model `--model trees`: a LightGBM booster per run, with the loss as its objective.

Every setting has the same folds, size of trees and learning rate. A round, one tree per class, is what an
epoch is to the network. Scores start at 0 for all settings. Logit adjustment starts at the log priors of the
classes, which predictions leave out.
"""

from typing import Any

import jax
import jax.numpy as jnp
import lightgbm
import numpy as np
from scipy.special import log_softmax

from focaljax.boosting import Objective
from focaljax.study.folds import LARGE
from focaljax.study.network import Progress, Study, check_finite, silent

OPTIONS = {"learning_rate": 0.1, "num_leaves": 15, "min_sum_hessian_in_leaf": 1e-4, "verbose": -1, "seed": 0}
DESCRIPTION = f"LightGBM, {OPTIONS['num_leaves']} leaves, learning rate {OPTIONS['learning_rate']}"


class Trees:
    """All runs, trained.

    Attributes:
      nll: [rounds, 2, S, K, A'] of validation and test rows after each round.
    """

    def __init__(self, study: Study, features: np.ndarray, boosters: np.ndarray, nll: np.ndarray) -> None:
        """Take the boosters [S, K, A']."""
        self.nll, self._features, self._boosters = nll, features, boosters
        self._rows, self._classes = study.folds.measuring().rows, len(study.problem.class_names)

    def logits(self, stopped: bool, s: int, k: int, a: int) -> jax.Array:
        """Return the logits [2, rows, C] of a run's `Folds.measuring` rows, stopped early or at the end."""
        rounds = int(self.nll[:, 0, s, k, a].argmin()) + 1 if stopped else len(self.nll)
        rows = self._rows[:, s, k].reshape(-1)
        scores = self._boosters[s, k, a].predict(self._features[rows], raw_score=True, num_iteration=rounds)
        return jnp.asarray(scores, jnp.float32).reshape(2, -1, self._classes)


def fit(study: Study, progress: Progress = silent) -> Trees:
    """Train all runs, `study.epochs` rounds each; tell `progress` after each run.

    Raises:
      StudyError: a run has no finite NLL any more.
    """
    problem = study.problem
    features = np.concatenate([problem.numbers, problem.categories], axis=1)
    categories = [*range(problem.numbers.shape[1], features.shape[1])]
    boosters, nll = np.empty(study.shape, object), np.empty((study.epochs, 2, *study.shape))
    what = f"training {boosters.size} boosters"
    for done, (s, k) in enumerate(np.ndindex(study.shape[:2])):
        roles = study.folds.roles(s, k)
        tables = [(features[rows], problem.labels[rows]) for rows in roles]
        train = lightgbm.Dataset(*tables[0], categorical_feature=categories)
        held_out = [lightgbm.Dataset(*table, reference=train) for table in tables[1:]]
        for a, setting in enumerate(study.trained):
            progress(what, done * len(study.trained) + a, boosters.size)
            counts = study.folds.class_counts[s, k]
            objective = Objective("softmax", gamma=setting.gamma, alpha=setting.class_weights(counts))
            start = np.broadcast_to(setting.logit_shift(counts), (len(roles[0]), len(counts)))
            train.set_init_score(start)
            boosters[s, k, a], nll[:, :, s, k, a] = _run(study, objective, train, held_out)
    progress(what, boosters.size, boosters.size)
    check_finite(study, np.moveaxis(nll.sum(axis=0), 0, -1))
    return Trees(study, features, boosters, nll)


def _run(study: Study, objective: Objective, train: Any, held_out: list[Any]) -> tuple[Any, np.ndarray]:
    """Return a booster and the NLL [rounds, 2] of its held-out rows."""
    options = OPTIONS | {"objective": objective, "num_class": len(study.problem.class_names)}
    options["num_threads"] = 1 if len(study.problem.labels) < LARGE else 0  # all would wait for each other
    curves, names = {}, ["validation", "test"]
    measured = {"valid_sets": held_out, "valid_names": names, "feval": _plain_nll}
    recorded = [lightgbm.record_evaluation(curves)]
    booster = lightgbm.train(options, train, study.epochs, **measured, callbacks=recorded)
    return booster, np.stack([curves[name]["nll"] for name in names], axis=1)


def _plain_nll(scores: np.ndarray, data: Any) -> tuple[str, float, bool]:
    """Return the NLL of the softmax as it is: no loss's own, so that all are stopped alike."""
    labels = data.get_label().astype(int)
    return "nll", -float(np.mean(log_softmax(scores, axis=1)[np.arange(len(labels)), labels])), False
