"""Focal loss, and any term, as the objective of boosted trees: XGBoost and LightGBM.

An :class:`Objective` is one in all four interfaces. Neither library is imported here::

    objective = Objective("sigmoid", gamma=2.0)
    xgboost.train(params, data, obj=objective, custom_metric=objective.metric)
    xgboost.XGBClassifier(objective=objective, eval_metric=objective.loss)
    lightgbm.train({"objective": objective}, data, feval=objective.metric)
    lightgbm.LGBMClassifier(objective=objective).fit(x, y, eval_metric=objective.metric)

**Curvature.** A leaf moves by ``-sum(g) / (sum(h) + lambda)``, so the curvature h may not vanish where the
gradient g does not. The second derivative of focal loss does: with gamma = 2 it is negative where the right
class has p < 0.058. With `right` the probability that a score gives to the right answer, h is ::

    max(second derivative, |g| * max(right, 1/4))

- ``|g| * right`` is the curvature of cross-entropy with the pull of this moment as a weight: the second
  derivative without the change of the pull. The larger of the two is taken. With gamma = 0 they are one, the
  ``p * (1 - p)`` of both libraries.
- ``|g| / 4`` bounds the step of a leaf by 4, before the learning rate. Without it, with cross-entropy too, a
  leaf of examples that are wrong with certainty moves by ``1 / p``; LightGBM, which has no lambda by default,
  then diverges. A quarter is the largest curvature of cross-entropy.

For a softmax of C classes h is multiplied by ``C / (C - 1)``, as C trees follow one gradient (Friedman 2001):
with cross-entropy and a learning rate below 1 they do not overshoot together. LightGBM does the same; XGBoost
takes 2, which halves the steps of many classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from focaljax import _arguments
from focaljax._odds import Odds
from focaljax._softmax import diagonal
from focaljax.calibration import log_posterior
from focaljax.losses import sigmoid_focal_loss, softmax_focal_loss_with_integer_labels
from focaljax.reductions import reduce_loss
from focaljax.terms import Term

__all__ = ["Objective"]


@dataclass(frozen=True)
class Objective:
    """The objective of a booster, its metric, its first score, and the probabilities of its scores.

    With a sigmoid, scores are ``[N]`` or ``[N, C]`` and labels 0 or 1 of the same shape: yes or no, or many
    labels at once. (LightGBM takes one label: train a booster for each.) With a softmax, scores are
    ``[N, C]``, labels classes ``[N]``, and `num_class` of the booster is C. Options are scalars or ``[C]``.

    Attributes:
      activation: "sigmoid" or "softmax".
      gamma: Focusing exponent, at least 0.
      term: Another member of the family in the place of focal loss, from :mod:`focaljax.terms`; `gamma` is
        then left out.
      alpha: Class weights, at least 0; with a sigmoid the weight of yes, in [0, 1], and no weighs
        ``1 - alpha``. None weighs all with 1.
      curvature: "positive" as above, or "exact", the second derivative as it is.

    Raises:
      TypeError: An option is no real number, or `term` no term.
      ValueError: An option is out of range, or the term is for a sigmoid and the activation is not.

    Example:
      >>> objective = Objective("sigmoid", gamma=2.0)
      >>> labels, scores = np.array([1.0, 1.0, 0.0]), np.array([0.0, -5.0, -5.0])
      >>> gradient, curvature = objective(labels, scores)
      >>> print(gradient.round(3), curvature.round(3))
      [-0.298 -1.046  0.   ] [0.399 0.262 0.   ]
      >>> print(Objective("sigmoid", curvature="exact")(labels, scores)[1].round(3))
      [ 0.399 -0.032  0.   ]
      >>> print(f"{objective.loss(labels, scores):.3f}", objective.metric(labels, scores)[::2])
      1.704 ('focal', False)
      >>> softmax = Objective("softmax")
      >>> start = softmax.start(np.repeat([0, 1, 2], [60, 30, 10]))
      >>> print(softmax.probabilities(np.array([start])).round(4))
      [[0.6 0.3 0.1]]

    References:
      Lin et al., "Focal Loss for Dense Object Detection", 2018 (https://arxiv.org/abs/1708.02002),
      equation 5. Friedman, "Greedy Function Approximation: A Gradient Boosting Machine", 2001, section 4.6.
    """

    activation: Literal["sigmoid", "softmax"]
    gamma: Any = 2.0
    term: Term | None = None
    alpha: Any = None
    curvature: Literal["positive", "exact"] = "positive"

    def __post_init__(self) -> None:
        """Checks the options."""
        for name, words in (("activation", tuple(KINDS)), ("curvature", ("positive", "exact"))):
            if (got := getattr(self, name)) not in words:
                raise ValueError(f"`{name}` must be one of {words}, got {got!r}.")
        self._options()

    def __call__(self, first: Any, second: Any, sample_weight: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """The gradient and the curvature at each score.

        Args:
          first: Scores, where `second` is a data set; else labels.
          second: A `DMatrix` or a `Dataset`, with labels and weights; else scores.
          sample_weight: One weight per example, at least 0, beside labels and scores.

        Returns:
          Two float32 arrays of the shape of the scores.

        Raises:
          TypeError: Scores, labels or weights have the wrong dtype.
          ValueError: Their shapes do not fit, or a value is out of range.
        """
        given = self._given(*_arrays(first, second, sample_weight))
        found = self._kind.derivatives(*given, *self._options(), exact=self.curvature == "exact")
        return np.asarray(found[0]), np.asarray(found[1])

    def loss(self, labels: Any, scores: Any, sample_weight: Any = None) -> float:
        """The mean loss, called like a metric of scikit-learn: `eval_metric` of `XGBClassifier`.

        Args:
          labels: Those of a call.
          scores: Those of a call.
          sample_weight: Those of a call, the weights of the mean.

        Returns:
          One number.
        """
        return float(_mean(self._kind.losses, *self._given(scores, labels, sample_weight), *self._options()))

    def metric(self, first: Any, second: Any, sample_weight: Any = None) -> tuple[Any, ...]:
        """The same for `xgboost.train` and LightGBM, under the name of the term.

        Args:
          first: That of a call.
          second: That of a call.
          sample_weight: Those of a call.

        Returns:
          The name and the loss; for LightGBM also False, as higher is not better.
        """
        scores, labels, weights = _arrays(first, second, sample_weight)
        found = type(self._options()[0]).__name__.lower(), self.loss(labels, scores, weights)
        return found if type(second).__module__.startswith("xgboost") else (*found, False)

    def start(self, labels: Any, sample_weight: Any = None) -> Any:
        """The constant score of the lowest loss, by the steps of a tree with one leaf.

        Without it boosting starts at 0, `xgboost.train` at 0.5. XGBoost takes it as `base_score`, but
        `XGBClassifier` takes its sigmoid, unless it has more than two classes. LightGBM takes it once per
        example as `init_score`, and does not add it to predictions.

        Args:
          labels: Those of a call.
          sample_weight: Those of a call.

        Returns:
          A float, or a list with one per column or class.

        Raises:
          ValueError: A class, or one of the answers yes and no, does not occur: there is no lowest loss.
        """
        labels = np.asarray(labels)
        labels, counts, score = self._kind.table(labels, np.asarray(_weights(sample_weight, len(labels))))
        for _ in range(200):
            scores = np.broadcast_to(score, (len(labels), *score.shape))
            given = (jnp.asarray(x, jnp.float32) for x in (scores, labels, counts))
            found = self._kind.derivatives(*given, *self._options(), exact=False)
            slope, curvature = (np.sum(np.asarray(x), 0, np.float64) for x in found)
            step = slope / np.maximum(2 * curvature, 1e-30)  # half of it, as all scores move at once
            score = score - step
            if np.max(np.abs(step)) < 3e-7 * (1 + np.max(np.abs(score))):
                return score.tolist()
        raise ValueError("`labels` must have each class, or both answers to each question, got only some.")

    def probabilities(self, scores: Any) -> np.ndarray:
        """What the scores of a booster say that was trained with this objective.

        With a softmax they are those of :func:`focaljax.calibration.log_posterior`, and so are those of focal
        loss with a sigmoid: where the expected loss is lowest, the slopes of the two answers, each times its
        probability, cancel.

        Args:
          scores: Those of a call.

        Returns:
          The probability of each label or class, of the shape of the scores, float32.
        """
        scores = _arguments.floating("scores", scores).astype(jnp.float32)
        return np.asarray(self._kind.probabilities(scores, *self._options()))

    @property
    def _kind(self) -> "Kind":
        return KINDS[self.activation]

    def _options(self) -> tuple[Term, jax.Array | None]:
        """The term and alpha as arrays, so that other values make no other program."""
        binary = self.activation == "sigmoid"
        term = _arguments.term(self.term, self.gamma, _option, binary)
        return term, None if self.alpha is None else _option("alpha", self.alpha, 0, 1 if binary else np.inf)

    def _given(self, scores: Any, labels: Any, weights: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Checked, in float32."""
        scores = _arguments.floating("scores", scores).astype(jnp.float32)
        return scores, self._kind.labels(labels, scores), _weights(weights, len(scores))


class Kind(NamedTuple):
    """What an activation has of its own."""

    labels: Callable[..., jax.Array]
    table: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]  # labels, their weights, a first score
    losses: Callable[..., jax.Array]
    derivatives: Callable[..., Any]
    probabilities: Callable[..., jax.Array]


def _answers(labels, scores):
    labels = _arguments.dense_labels("labels", labels, scores, "scores", scores.ndim, None, highest=1)
    return labels.astype(jnp.float32)


def _classes(labels, scores):
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(f"`scores` must be [N, C] with at least 2 classes, got shape {scores.shape}.")
    labels, other = _arguments.whole_numbers("labels", labels, None), 'Objective("sigmoid")'
    return _arguments.integer_labels("labels", labels, scores, "scores", 1, None, other, scores.shape[1])[0]


def _table_of_answers(labels, weights):
    values, index = np.unique(labels, return_inverse=True)
    columns = index.reshape(len(labels), -1).T
    counts = np.stack([np.bincount(column, weights, len(values)) for column in columns], -1)
    counts = counts.reshape(len(values), *labels.shape[1:])
    values = values.reshape(-1, *(1,) * (counts.ndim - 1))
    return np.broadcast_to(values, counts.shape), counts, np.zeros(counts.shape[1:])


def _table_of_classes(labels, weights):
    counts = np.bincount(_arguments.whole_numbers("labels", labels, None), weights)
    return np.arange(len(counts)), counts, np.zeros(len(counts))


def _slopes(scores, labels, term, alpha):
    return jax.grad(lambda z: jnp.sum(sigmoid_focal_loss(z, labels, term=term, alpha=alpha)))(scores)


@partial(jax.jit, static_argnames="exact")
def _of_answers(scores, labels, weights, term, alpha, *, exact):
    """The Hessian is diagonal: its product with ones has all of it."""
    slopes = partial(_slopes, labels=labels, term=term, alpha=alpha)
    gradient, second = jax.jvp(slopes, (scores,), (jnp.ones_like(scores),))
    odds = Odds.at(scores)
    right = labels * odds.p + (1 - labels) * odds.q
    return _finished(weights, gradient, second, right, exact)


@partial(jax.jit, static_argnames="exact")
def _of_classes(scores, labels, weights, term, alpha, *, exact):
    found = diagonal.derivatives(scores, labels, term, alpha)
    return _finished(weights, *found, exact, scores.shape[1] / (scores.shape[1] - 1))


@jax.jit
def _posterior_of_answers(scores, term, alpha):
    no, yes = (_slopes(scores, jnp.full_like(scores, answer), term, alpha) for answer in (0, 1))
    return no / (no - yes)


def _posterior_of_classes(scores, term, alpha):
    return jnp.exp(log_posterior(scores, term=term, alpha=alpha))


_OF_CLASSES = softmax_focal_loss_with_integer_labels
KINDS = {
    "sigmoid": Kind(_answers, _table_of_answers, sigmoid_focal_loss, _of_answers, _posterior_of_answers),
    "softmax": Kind(_classes, _table_of_classes, _OF_CLASSES, _of_classes, _posterior_of_classes),
}


def _arrays(first, second, sample_weight):
    """Scores, labels and weights, from either order."""
    if hasattr(second, "get_label"):
        return first, second.get_label(), second.get_weight()
    return second, first, sample_weight


def _weights(x, rows):
    """One per example in float32; XGBoost says () for none."""
    x = np.ones(()) if x is None or not np.size(x) else np.asarray(x)
    _arguments.in_range("sample_weight", x, 0, np.inf)
    return _arguments.weights("sample_weight", x, (rows,)).astype(jnp.float32)


def _option(name, x, lowest=0, highest=np.inf):
    """A real option in float32."""
    _arguments.in_range(name, _arguments.known(x), lowest, highest)
    return _arguments.real(name, x).astype(jnp.float32)


@partial(jax.jit, static_argnums=0)
def _mean(losses, scores, labels, weights, term, alpha):
    found = losses(scores, labels, term=term, alpha=alpha)
    return reduce_loss(found, _of_rows(weights, found), "mean_with_sample_weight")


def _finished(weights, gradient, second, right, exact, trees=1.0):
    """The gradient and the curvature of this file, weighed."""
    if not exact:
        second = trees * jnp.maximum(second, jnp.abs(gradient) * jnp.maximum(right, 0.25))
    return tuple(_of_rows(weights, x) * x for x in (gradient, second))


def _of_rows(weights, like):
    return weights.reshape(*weights.shape, *(1,) * (like.ndim - weights.ndim))
