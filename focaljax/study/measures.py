"""What a run is worth on rows: recalls, rankings, likelihood and calibration, from its logits.

NLL and ECE are measured three times, for every setting alike: of the softmax as it is; of the posteriors that
`calibration.log_posterior` finds behind the loss, with alpha and priors taken out again; and of those after a
temperature, fitted on the validation rows by `_temperature`. AUROC and average precision see no threshold:
they are of each class against the rest, of two classes of the rarer one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from focaljax.calibration import (
    CalibrationState,
    ExpectedCalibrationError,
    Reliability,
    fit_temperature,
    log_posterior,
)
from focaljax.study.data import rarest
from focaljax.study.network import Progress, Study
from focaljax.study.settings import ADJUSTED, POST_HOC, log_priors

ECE = ExpectedCalibrationError(bins=15, from_logits=True)
VARIANTS = ("", "_posterior", "_calibrated")


@dataclass(frozen=True)
class Results:
    """What runs are worth at one time, "stopped early" or "at the end of training".

    Attributes:
      when: the time.
      test: each measure [S, K, A] on the test rows.
      validation: the same on the validation rows.
      recall: [S, K, A, C] on the test rows.
      reliability: the diagram of each setting, as it is, all test rows of all seeds together.
    """

    when: str
    test: dict[str, np.ndarray]
    validation: dict[str, np.ndarray]
    recall: np.ndarray
    reliability: list[Reliability]


class Judged(NamedTuple):
    """Of one run: per variant and role NLL and ECE [3, 2], per role recall [2, C] and accuracy [2].

    `score` [2, rows, C] are log-odds of each class; `bins` are of the test rows, as they are.
    """

    nll: jax.Array
    ece: jax.Array
    recall: jax.Array
    accuracy: jax.Array
    score: jax.Array
    bins: CalibrationState


class Model(Protocol):
    """What the study knows of trained runs."""

    def logits(self, stopped: bool, s: int, k: int, a: int) -> jax.Array:
        """Return the logits [2, rows, C] of a run's `Folds.measuring` rows."""
        ...


def results(study: Study, model: Model, stopped: bool, when: str, progress: Progress) -> Results:
    """Return what a model is worth on all its held-out rows."""
    folds, shape = study.folds, (*study.shape[:2], len(study.settings))
    picks, rare = folds.measuring(), rarest(study.problem.class_counts)
    classes, priors = len(study.problem.class_names), log_priors(folds.class_counts)
    alpha = np.stack([of.class_weights(folds.class_counts) for of in study.settings], axis=2)
    ranked, recall = rare if classes == 2 else range(classes), np.empty((*shape, classes))
    measures: tuple[dict[str, np.ndarray], ...] = ({}, {})
    bins: list[list[CalibrationState]] = [[] for _ in study.settings]
    for done, (s, k, a) in enumerate(np.ndindex(shape), 1):
        rows, counts = (x[:, s, k].reshape(2, -1) for x in picks)
        labels, setting = study.problem.labels[rows], study.settings[a]
        logits = model.logits(stopped, s, k, 0 if setting.alpha == POST_HOC else a)
        shifts = (-priors[s, k] * (setting.alpha == POST_HOC), priors[s, k] * (setting.alpha == ADJUSTED))
        loss = np.float32(setting.gamma), alpha[s, k, a]
        judged = jax.device_get(judge(logits, labels, counts, *loss, *shifts))
        bins[a].append(judged.bins)
        recall[s, k, a] = judged.recall[1]
        for role, real in enumerate(counts > 0):
            auroc, precision = rankings(judged.score[role][real], labels[role][real], ranked)
            found = {"auroc": auroc, "average_precision": precision}
            found |= {"balanced_accuracy": judged.recall[role].mean(), "accuracy": judged.accuracy[role]}
            found["rare_recall"] = judged.recall[role][rare].mean()
            for i, variant in enumerate(VARIANTS):
                found[f"nll{variant}"], found[f"ece{variant}"] = judged.nll[i, role], judged.ece[i, role]
            for name, value in found.items():
                measures[role].setdefault(name, np.empty(shape))[s, k, a] = value
        progress(f"measuring held-out rows, {when}", done, int(np.prod(shape)))
    diagrams = [ECE.reliability(ECE.merge(*states)) for states in bins]
    return Results(when, measures[1], measures[0], recall, diagrams)


@jax.jit
def judge(
    logits: jax.Array,
    labels: jax.Array,
    counts: jax.Array,
    gamma: jax.Array,
    alpha: jax.Array,
    move: jax.Array,
    back: jax.Array,
) -> Judged:
    """Return what logits [2, rows, C] of validation and test rows are worth.

    What is judged are the logits plus `move` [C]; the posteriors come from the logits plus `back` [C].
    """
    posterior = log_posterior(logits + back[None, None, :], gamma=gamma, alpha=alpha)
    temperature = _temperature(posterior[0], labels[0], counts[0])
    logits, rows = logits + move[None, None, :], jnp.sum(counts, axis=1)
    variants = jnp.stack([jax.nn.log_softmax(logits), posterior, jax.nn.log_softmax(posterior / temperature)])
    bins = [
        ECE.update(ECE.init(), labels[role], log_p[role], counts[role])
        for log_p in variants
        for role in (0, 1)
    ]
    own = jax.nn.one_hot(labels, logits.shape[-1]) * counts[:, :, None]
    right = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)[:, :, None]
    return Judged(
        nll=-jnp.sum(variants * own[None], axis=(2, 3)) / rows[None, :],
        ece=jnp.stack([ECE.result(state) for state in bins]).reshape(len(VARIANTS), 2),
        recall=jnp.sum(own * right, axis=1) / jnp.sum(own, axis=1),
        accuracy=jnp.sum(own * right, axis=(1, 2)) / rows,
        score=_log_odds(logits),
        bins=bins[1],
    )


def _temperature(log_p: jax.Array, labels: jax.Array, counts: jax.Array) -> jax.Array:
    """Return the temperature of validation rows and one row more, spread over them, that is wrong.

    Where all are right no temperature is low enough, and the next wrong row would have an NLL without bound.
    Platt 1999 has such a prior, for a sigmoid.
    """
    own = jax.nn.one_hot(labels, log_p.shape[-1], dtype=bool)
    wrong = jnp.argmax(jnp.where(own, -jnp.inf, log_p), axis=-1)
    weights = jnp.concatenate([counts, counts / jnp.sum(counts)])
    return fit_temperature(jnp.tile(log_p, (2, 1)), jnp.append(labels, wrong), sample_weight=weights)


def rankings(scores: np.ndarray, labels: np.ndarray, classes: Iterable[int]) -> tuple[float, float]:
    """Return AUROC and average precision of scores [rows, C], a class against the rest; means over classes.

    They are scikit-learn's, ties included, from ranks: its own functions take 50 times as long for this.
    """
    found, ordered = [], np.sort(scores.T)
    for k in classes:
        ours = np.sort(scores[labels == k, k])
        # How many rows, and rows of the class, have at least the score of each of its rows; and more.
        at_least, more = (len(labels) - np.searchsorted(ordered[k], ours, side) for side in ("left", "right"))
        ours_at_least, ours_more = (len(ours) - np.searchsorted(ours, ours, s) for s in ("left", "right"))
        above = (at_least - ours_at_least + more - ours_more) / 2  # of the rest; ties count by half
        found.append((1 - above.mean() / (len(labels) - len(ours)), np.mean(ours_at_least / at_least)))
    auroc, precision = np.mean(found, axis=0)
    return float(auroc), float(precision)


def _log_odds(logits: jax.Array) -> jax.Array:
    """Return log p - log q of every class, with different values where p rounds to 1."""
    top = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=bool)
    log_p = jax.nn.log_softmax(logits)
    rest = jax.nn.logsumexp(jnp.where(top, -jnp.inf, log_p), axis=-1, keepdims=True)
    return log_p - jnp.where(top, rest, jnp.log1p(-jnp.exp(jnp.where(top, -jnp.inf, log_p))))
