"""The measures as sums: what rows add up to, and what comes out once all of them have been seen."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from focaljax.calibration import Reliability
from focaljax.study.data import rarest

BINS = 15


class Tally(NamedTuple):
    """Sums over rows, [...] runs: NLL [...], confusion [..., C, C] (label, prediction), bins [..., BINS, 3].

    The bins are equal, (0, 1/BINS], ..., of the predicted class's probability; they hold the number of
    rows, the sum of that probability, and the number of rows that are right.
    """

    nll: Any
    confusion: Any
    bins: Any


def empty(classes: int) -> Tally:
    """Return the sums over no rows."""
    return Tally(
        jnp.zeros((), jnp.float32),
        jnp.zeros((classes, classes), jnp.float32),
        jnp.zeros((BINS, 3), jnp.float32),
    )


def of_rows(logits: jax.Array, labels: jax.Array, counts: jax.Array) -> Tally:
    """Return the sums over rows: logits [b, C], labels [b] and whether a row counts, [b] of 0 and 1.

    They are float32: exact where they count, since a block has fewer than 2^24 rows.
    """
    logits = jnp.where(counts[:, None] > 0, logits, 0.0)  # what only fills is silent
    with jax.numpy_rank_promotion("allow"):
        nll = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    classes, top = logits.shape[1], jnp.max(jax.nn.softmax(logits), axis=1)
    predicted = jnp.argmax(logits, axis=1)
    place = jnp.clip(jnp.ceil(top * BINS).astype(jnp.int32) - 1, 0, BINS - 1)
    member = jax.nn.one_hot(place, BINS) * counts[:, None]
    right = (predicted == labels).astype(jnp.float32)
    return Tally(
        jnp.sum(nll * counts),
        (jax.nn.one_hot(labels, classes) * counts[:, None]).T @ jax.nn.one_hot(predicted, classes),
        member.T @ jnp.stack([jnp.ones_like(top), top, right], axis=1),
    )


def add(total: Tally | None, block: Tally) -> Tally:
    """Add the sums of a block to those before it, in float64."""
    block = Tally(*(np.asarray(x, np.float64) for x in block))
    return block if total is None else Tally(*(a + b for a, b in zip(total, block, strict=True)))


def mean_nll(tally: Tally) -> np.ndarray:
    """Return the mean negative log-likelihood [...], in nats."""
    return np.asarray(tally.nll / tally.confusion.sum(axis=(-1, -2)))


def recall(tally: Tally) -> np.ndarray:
    """Return [..., C], the share of each class's rows that are right; every class has rows."""
    confusion = np.asarray(tally.confusion)
    return np.diagonal(confusion, axis1=-2, axis2=-1) / confusion.sum(axis=-1)


def measures(tally: Tally) -> dict[str, np.ndarray]:
    """Return the measures of runs, each [...].

    `nll`; `ece`, the expected calibration error of the top class; `balanced_accuracy`, the mean of the
    recalls of all classes; `rare_recall`, that of the rarest third of the classes; and `accuracy`.
    """
    confusion, bins = np.asarray(tally.confusion), np.asarray(tally.bins)
    rows, recalls = confusion.sum(axis=(-1, -2)), recall(tally)
    rare = rarest(confusion.sum(axis=-1).reshape(-1, confusion.shape[-1]).sum(axis=0))
    return {
        "nll": mean_nll(tally),
        "ece": np.abs(bins[..., 2] - bins[..., 1]).sum(axis=-1) / rows,
        "balanced_accuracy": recalls.mean(axis=-1),
        "rare_recall": recalls[..., rare].mean(axis=-1),
        "accuracy": np.trace(confusion, axis1=-2, axis2=-1) / rows,
    }


def reliability(bins: np.ndarray) -> Reliability:
    """Return the diagram of the sums of bins [BINS, 3]; NaN where a bin is empty."""
    rows, confidence, right = bins.T
    filled = np.where(rows > 0, rows, np.nan)
    return Reliability(rows / rows.sum(), confidence / filled, right / filled)
