"""What a run is worth on rows: recalls, rankings, likelihood and calibration, from its logits.

NLL and ECE are measured three times, for every setting alike: of the softmax as it is; of the posteriors that
`calibration.log_posterior` finds behind the loss, with alpha and priors taken out again; and of those after a
temperature, which was fitted on the validation rows. AUROC and average precision, of each class against the
rest, see no threshold.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata

from focaljax.calibration import (
    CalibrationState,
    ExpectedCalibrationError,
    Reliability,
    fit_temperature,
    log_posterior,
)
from focaljax.study.data import rarest
from focaljax.study.network import Model, Progress, Study
from focaljax.study.settings import ADJUSTED, POST_HOC, log_priors

ECE = ExpectedCalibrationError(bins=15, from_logits=True)
VARIANTS = ("", "_posterior", "_calibrated")


class Judged(NamedTuple):
    """Of one run: per variant and role NLL and ECE [3, 2], per role recall [2, C] and accuracy [2], and more.

    `score` [2, rows, C] are log-odds of each class; `bins` and `calibrated_bins` are of the test rows.
    """

    nll: jax.Array
    ece: jax.Array
    recall: jax.Array
    accuracy: jax.Array
    score: jax.Array
    bins: CalibrationState
    calibrated_bins: CalibrationState


@dataclass(frozen=True)
class Results:
    """What runs are worth at one time, "stopped early" or "at the end of training".

    Attributes:
      when: the time.
      test: each measure [S, K, A] on the test rows.
      validation: the same on the validation rows.
      recall: [S, K, A, C] on the test rows.
      reliability: the diagram of each setting, all test rows of all seeds together; as it is.
      calibrated: the same after `log_posterior` and the temperature.
    """

    when: str
    test: dict[str, np.ndarray]
    validation: dict[str, np.ndarray]
    recall: np.ndarray
    reliability: list[Reliability]
    calibrated: list[Reliability]


def results(study: Study, model: Model, stopped: bool, when: str, progress: Progress) -> Results:
    """Return what a model is worth on all its held-out rows."""
    shape = (*study.shape[:2], len(study.settings))
    picks, rare = study.folds.measuring(), rarest(study.problem.class_counts)
    measures = [{} for _ in range(2)]
    alpha = np.stack([of.class_weights(study.folds.class_counts) for of in study.settings], axis=2)
    recall = np.empty((*shape, len(study.problem.class_names)))
    bins: list[list[CalibrationState]] = [[] for _ in study.settings]
    calibrated: list[list[CalibrationState]] = [[] for _ in study.settings]
    for done, (s, k, a) in enumerate(np.ndindex(shape), 1):
        rows, counts = (x[:, s, k].reshape(2, -1) for x in picks)
        labels, setting = study.problem.labels[rows], study.settings[a]
        of_train = study.folds.class_counts[s, k]
        moved = setting.alpha in (ADJUSTED, POST_HOC)
        back = log_priors(of_train) * moved
        logits = model.logits(stopped, s, k, 0 if setting.alpha == POST_HOC else a)
        move = -back if setting.alpha == POST_HOC else 0 * back
        judged = jax.device_get(
            judge(logits, labels, counts, np.float32(setting.gamma), alpha[s, k, a], move, back)
        )
        bins[a].append(judged.bins)
        calibrated[a].append(judged.calibrated_bins)
        recall[s, k, a] = judged.recall[1]
        for role in (0, 1):
            real = counts[role] > 0
            auroc, precision = rankings(judged.score[role][real], labels[role][real])
            found = {"auroc": auroc, "average_precision": precision}
            found["balanced_accuracy"] = np.mean(judged.recall[role])
            found["rare_recall"] = np.mean(judged.recall[role][rare])
            found["accuracy"] = judged.accuracy[role]
            found |= {f"nll{v}": judged.nll[i, role] for i, v in enumerate(VARIANTS)}
            found |= {f"ece{v}": judged.ece[i, role] for i, v in enumerate(VARIANTS)}
            for name, value in found.items():
                measures[role].setdefault(name, np.empty(shape))[s, k, a] = value
        progress(f"measuring held-out rows, {when}", done, int(np.prod(shape)))
    diagrams = [[ECE.reliability(ECE.merge(*states)) for states in of] for of in (bins, calibrated)]
    return Results(when, measures[1], measures[0], recall, *diagrams)


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

    They are moved by `move` [C] first; `back` [C] undoes what shifts them from the logits of the posteriors.
    """
    logits = logits + move[None, None, :]
    posterior = log_posterior(logits + back[None, None, :], gamma=gamma, alpha=alpha)
    temperature = fit_temperature(posterior[0], labels[0], sample_weight=counts[0])
    variants = jnp.stack([jax.nn.log_softmax(logits), posterior, jax.nn.log_softmax(posterior / temperature)])
    classes, rows = logits.shape[-1], jnp.sum(counts, axis=1)

    bins = [
        ECE.update(ECE.init(), labels[role], log_p[role], counts[role])
        for log_p in variants
        for role in (0, 1)
    ]
    own = jax.nn.one_hot(labels, classes) * counts[:, :, None]
    right = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)[:, :, None]
    return Judged(
        nll=-jnp.sum(variants * own[None], axis=(2, 3)) / rows[None, :],
        ece=jnp.stack([ECE.result(state) for state in bins]).reshape(len(VARIANTS), 2),
        recall=jnp.sum(own * right, axis=1) / jnp.sum(own, axis=1),
        accuracy=jnp.sum(own * right, axis=(1, 2)) / rows,
        score=_log_odds(logits),
        bins=bins[1],
        calibrated_bins=bins[-1],
    )


def rankings(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return AUROC and average precision of scores [rows, C], each class against the rest; the mean over classes.

    They are scikit-learn's, ties included, from ranks of all classes' rows: its own functions take each class
    by itself, 30 times as long.
    """
    found = []
    for k in range(scores.shape[1]):
        score, mine = -scores[:, k], labels == k
        # How many rows, and how many rows of the class, have at least the score of each row of the class; and more.
        at_least, more = (rankdata(score, method)[mine] - less for method, less in (("max", 0), ("min", 1)))
        ours_at_least, ours_more = (rankdata(score[mine], m) - less for m, less in (("max", 0), ("min", 1)))
        above = (at_least - ours_at_least + more - ours_more) / 2  # of the rest, ties by half
        found.append((1 - np.mean(above) / np.sum(~mine), np.mean(ours_at_least / at_least)))
    auroc, precision = np.mean(found, axis=0)
    return float(auroc), float(precision)


def _log_odds(logits: jax.Array) -> jax.Array:
    """Return log p - log q of every class, with different values where p rounds to 1."""
    top = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=bool)
    log_p = jax.nn.log_softmax(logits)
    rest = jax.nn.logsumexp(jnp.where(top, -jnp.inf, log_p), axis=-1, keepdims=True)
    return log_p - jnp.where(top, rest, jnp.log1p(-jnp.exp(jnp.where(top, -jnp.inf, log_p))))
