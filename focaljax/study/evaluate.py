"""The measures: what the held-out logits of one run are worth, in numpy and float64."""

from dataclasses import dataclass

import numpy as np

BINS = 15


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


@dataclass(frozen=True)
class Reliability:
    """Per bin of confidence: share of rows, mean confidence and accuracy (NaN if empty)."""

    share: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


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
        ece=calibration_error(reliability(logits, labels)),
        recall=recall,
    )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the log-probabilities over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def per_class_recall(right: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Return [C], the share of each class's rows that are right; each class has held-out rows."""
    return np.bincount(labels, right, n_classes) / np.bincount(labels, minlength=n_classes)


def reliability(logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Reliability:
    """Sort rows by the probability of their top class into equal bins (0, 1/bins], ..., (.., 1]."""
    log_p = log_softmax(logits)
    confidence = np.exp(log_p.max(axis=1))
    right = log_p.argmax(axis=1) == labels
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    rows = np.bincount(bin_of, minlength=bins)
    some = np.where(rows > 0, rows, np.nan)
    return Reliability(
        share=rows / len(labels),
        confidence=np.bincount(bin_of, confidence, bins) / some,
        accuracy=np.bincount(bin_of, right, bins) / some,
    )


def calibration_error(diagram: Reliability) -> float:
    """Return ECE = sum over bins of share * |accuracy - confidence|."""
    return float(np.nansum(diagram.share * np.abs(diagram.accuracy - diagram.confidence)))
