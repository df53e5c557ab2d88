"""The measures: what the held-out logits of one run are worth."""

from dataclasses import dataclass

import jax
import numpy as np

from focaljax.calibration import CalibrationState, ExpectedCalibrationError, Reliability

BINS = 15
ECE = ExpectedCalibrationError(BINS, from_logits=True)


@dataclass(frozen=True)
class Measures:
    """One run on its held-out rows.

    Attributes:
      accuracy: share of rows that are right.
      balanced_accuracy: mean of the recalls of all classes (macro recall).
      rare_recall: mean recall of the rarest third of the classes.
      nll: mean negative log-likelihood, in nats.
      ece: expected calibration error of the top class, `BINS` equal bins of confidence.
      recall: [C] recall per class.
    """

    accuracy: float
    balanced_accuracy: float
    rare_recall: float
    nll: float
    ece: float
    recall: np.ndarray


def measure(logits: np.ndarray, labels: np.ndarray, rare: np.ndarray) -> Measures:
    """Measure one run: logits [n, C], labels [n], indices of the rare classes."""
    log_p = log_softmax(logits)
    right = log_p.argmax(axis=1) == labels
    recall = per_class_recall(right, labels, logits.shape[1])
    return Measures(
        accuracy=float(right.mean()),
        balanced_accuracy=float(recall.mean()),
        rare_recall=float(recall[rare].mean()),
        nll=float(-log_p[np.arange(len(labels)), labels].mean()),
        ece=float(ECE.result(binned(logits, labels))),
        recall=recall,
    )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the log-probabilities over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def per_class_recall(right: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Return [C], the share of each class's rows that are right; each class has held-out rows."""
    return np.bincount(labels, right, n_classes) / np.bincount(labels, minlength=n_classes)


def binned(logits: np.ndarray, labels: np.ndarray) -> CalibrationState:
    """Sort rows by the probability of their top class into equal bins (0, 1/BINS], ..., (.., 1]."""
    return _update(ECE.init(), labels, logits)


def reliability(logits: np.ndarray, labels: np.ndarray) -> Reliability:
    """Return the diagram of these rows, in numpy."""
    diagram = ECE.reliability(binned(logits, labels))
    return Reliability(*jax.device_get(tuple(diagram)))


_update = jax.jit(ECE.update)
