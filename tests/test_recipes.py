"""The focal losses of other libraries, each as its formula and as a call of ours: same value and gradient.

The formulas are written out plainly in float64, where they are exact at these logits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focaljax import (
    linear_sigmoid_focal_loss,
    reduce_loss,
    sigmoid_focal_loss,
    sigmoid_focal_loss_with_integer_labels,
    softmax_focal_loss,
    softmax_focal_loss_with_integer_labels,
)
from focaljax.terms import Asymmetric, Detached, Focal, Poly, Term

RNG = np.random.default_rng(0)
ROWS, CLASSES = 6, 4
LOGITS = 3 * RNG.normal(size=(ROWS, CLASSES))
INDICES = np.array([0, 3, 1, 4, 2, 4])  # of detectors: 4 is the background
TARGETS = np.array([0, 3, 1, 1, 2, 0])
HARD = (RNG.random((ROWS, CLASSES)) < 0.4).astype(float)
SOFT = RNG.random((ROWS, CLASSES)) * (RNG.random((ROWS, CLASSES)) < 0.7)  # some are 0
WEIGHTS = RNG.uniform(0.5, 2, (1, CLASSES))
HEAT = np.where(RNG.random((ROWS, CLASSES)) < 0.3, 1.0, RNG.random((ROWS, CLASSES)))


class Recipe(NamedTuple):
    theirs: Callable[[Any], Any]
    ours: Callable[[Any], Any]


class Power(Term):
    """The modulating factor alone."""

    gamma: Any = 2.0

    def value(self, odds):
        return odds.power_of_q(self.gamma)


def binary_cross_entropy(z, y):
    return jnp.logaddexp(0, z) - y * z


def scenic_softmax(z):
    """The factor is that of the target; smoothed and weighted labels enter the cross-entropy alone."""
    one_hot = jax.nn.one_hot(TARGETS, CLASSES, dtype=z.dtype)
    labels = WEIGHTS * (0.9 * one_hot + 0.1 / CLASSES)
    p_t = jnp.sum(jax.nn.softmax(z) * one_hot, -1)
    return (1 - p_t) ** 2 * -jnp.sum(labels * jax.nn.log_softmax(z), -1)


def ours_scenic_softmax(z):
    factor = softmax_focal_loss_with_integer_labels(z, TARGETS, term=Power(2.0))
    return factor * softmax_focal_loss_with_integer_labels(
        z, TARGETS, gamma=0.0, alpha=WEIGHTS[0], label_smoothing=0.1
    )


SMOOTHED = 0.9 * HARD + 0.1 / CLASSES  # scenic divides by the classes for a sigmoid too


def scenic_sigmoid(z):
    bce = binary_cross_entropy(z, SMOOTHED)
    return (0.3 * SMOOTHED + 0.7 * (1 - SMOOTHED)) * (1 - jnp.exp(-bce)) ** 2 * bce * WEIGHTS


def ours_scenic_sigmoid(z):
    return WEIGHTS * sigmoid_focal_loss(z, SMOOTHED, alpha=0.3, soft_labels="cross_entropy")


def of_mixture(z, y, gamma, alpha, epsilon=0.0):
    wrong = y * jax.nn.sigmoid(-z) + (1 - y) * jax.nn.sigmoid(z)
    loss = wrong**gamma * binary_cross_entropy(z, y) + epsilon * wrong ** (gamma + 1)
    return (alpha * y + (1 - alpha) * (1 - y)) * loss


def mmcv(z):
    """A background of the index C, and the sum by the number of positives."""
    hot = (np.arange(CLASSES) == INDICES[:, None]).astype(float)
    return jnp.sum(of_mixture(z, hot, 2.0, 0.25)) / np.float64((INDICES < CLASSES).sum())


def ours_mmcv(z):
    losses = sigmoid_focal_loss_with_integer_labels(z, INDICES, alpha=0.25)
    return reduce_loss(losses, normalizer=INDICES < CLASSES)


def kornia(z):
    yes, no = SOFT * -jax.nn.log_sigmoid(z), (1 - SOFT) * -jax.nn.log_sigmoid(-z)
    p = jax.nn.sigmoid(z)
    return 0.25 * (1 - p) ** 2 * yes + 0.75 * p**2 * no


def quality(z):
    return jnp.abs(SOFT - jax.nn.sigmoid(z)) ** 2 * binary_cross_entropy(z, SOFT)


def varifocal(z):
    """A positive weighs its quality, a negative alpha p^gamma."""
    weight = jnp.where(SOFT > 0, SOFT, 0.75 * jax.nn.sigmoid(z) ** 2)
    return weight * binary_cross_entropy(z, SOFT)


def ours_varifocal(z):
    losses = sigmoid_focal_loss(z, SOFT, gamma=np.where(SOFT > 0, 0.0, 2.0))
    return np.where(SOFT > 0, SOFT, 0.75) * losses


def centernet(z):
    """Negatives near a peak weigh less; the sum is divided by the number of peaks."""
    p, peak = jax.nn.sigmoid(z), HEAT == 1
    yes, no = (1 - p) ** 2 * jnp.log(p), (1 - HEAT) ** 4 * p**2 * jnp.log1p(-p)
    return -jnp.sum(jnp.where(peak, yes, no)) / np.float64(peak.sum())


def ours_centernet(z):
    losses = sigmoid_focal_loss(z, HEAT == 1)
    return reduce_loss(losses, np.where(HEAT == 1, 1.0, (1 - HEAT) ** 4), normalizer=HEAT == 1)


def asymmetric(z, constant=False):
    p = jax.nn.sigmoid(z)
    right = jnp.where(HARD == 1, p, jnp.minimum(1 - p + 0.05, 1))
    factor = (1 - right) ** np.where(HARD == 1, 1.0, 4.0)
    return -(jax.lax.stop_gradient(factor) if constant else factor) * jnp.log(right)


def poly_of_softmax(z):
    p_t = jnp.take_along_axis(jax.nn.softmax(z), TARGETS[:, None], -1)[:, 0]
    return (1 - p_t) ** 2 * -jnp.log(p_t) + 1.5 * (1 - p_t) ** 3


def positive_weight(z):
    """PyTorch's `pos_weight`, 3 here, of a cross-entropy."""
    return -3 * HARD * jax.nn.log_sigmoid(z) - (1 - HARD) * jax.nn.log_sigmoid(-z)


def class_weighted(z):
    """PyTorch's cross-entropy with class weights: the mean divides by the sum of the labels' weights."""
    log_p = jnp.take_along_axis(jax.nn.log_softmax(z), TARGETS[:, None], -1)[:, 0]
    return jnp.sum(WEIGHTS[0][TARGETS] * -log_p) / np.sum(WEIGHTS[0][TARGETS])


def ours_class_weighted(z):
    losses = softmax_focal_loss_with_integer_labels(z, TARGETS, gamma=0.0)
    return reduce_loss(losses, WEIGHTS[0][TARGETS], "mean_with_sample_weight")


def multiclass(z):
    """segmentation_models' mode: a sigmoid for each class, row 1 is ignored."""
    kept = np.arange(ROWS) != 1
    hot = np.eye(CLASSES)[TARGETS]
    return jnp.mean(of_mixture(z, hot, 2.0, 0.25)[kept])


def ours_multiclass(z):
    labels = np.where(np.arange(ROWS) != 1, TARGETS, 255)
    losses = sigmoid_focal_loss_with_integer_labels(z, labels, alpha=0.25, ignore_index=255)
    return reduce_loss(losses, where=labels[:, None] != 255)


QUERIES = (2, ROWS // 2, CLASSES)  # two images of three queries
BOXES = np.float64((INDICES < CLASSES).sum())
MATCHED = INDICES[:, None] == np.arange(CLASSES)
IOU = RNG.random((ROWS, 1))


def detr(z):
    """Deformable DETR: a mean over queries by the number of boxes, times the number of queries."""
    losses = of_mixture(z, MATCHED.astype(float), 2.0, 0.25).reshape(QUERIES)
    return jnp.sum(jnp.mean(losses, 1)) / BOXES * np.float64(QUERIES[1])


def ours_detr(z):
    labels = INDICES.reshape(QUERIES[:2])
    losses = sigmoid_focal_loss_with_integer_labels(z.reshape(QUERIES), labels, alpha=0.25)
    return reduce_loss(losses, normalizer=BOXES)


def matched_target(z):
    return jax.lax.stop_gradient(jnp.maximum(jax.nn.sigmoid(z) ** 0.25 * IOU**0.75, 0.01))


def rf_detr(z):
    """RF-DETR and LW-DETR, IoU-aware: matched queries have a soft target, all other answers gamma 2."""
    p, t = jax.nn.sigmoid(z), matched_target(z)
    yes, no = jnp.where(MATCHED, t, 0), jnp.where(MATCHED, 1 - t, p**2)
    return -jnp.sum(yes * jnp.log(p) + no * jnp.log1p(-p)) / BOXES


def ours_rf_detr(z):
    targets = jnp.where(MATCHED, matched_target(z), 0)
    return reduce_loss(sigmoid_focal_loss(z, targets, gamma=np.where(MATCHED, 0.0, 2.0)), normalizer=BOXES)


def boosters(z):
    """CatBoost's and YDF's metric: divided by the sum of the weights."""
    weights = np.arange(1.0, 1 + ROWS)[:, None] * np.ones(CLASSES)
    return jnp.sum(weights * of_mixture(z, HARD, 2.0, 0.25)) / np.sum(weights)


def ours_boosters(z):
    losses = sigmoid_focal_loss(z, HARD, alpha=0.25)
    return reduce_loss(losses, np.arange(1.0, 1 + ROWS)[:, None], "mean_with_sample_weight")


LISTS = np.where(HARD == 1, np.arange(CLASSES), -1)  # of the positive classes, padded


def recml(z):
    """RecML: a mean over the vocabulary, then a weighted mean over positions."""
    losses = jnp.mean(of_mixture(z, HARD, 2.0, 0.25), -1)
    return jnp.sum(losses * np.arange(float(ROWS))) / np.arange(float(ROWS)).sum()


def ours_recml(z):
    inputs, weights = jnp.eye(ROWS, dtype=z.dtype), np.arange(float(ROWS))
    options = {"alpha": 0.25, "sample_weight": weights, "reduction": "mean_with_sample_weight"}
    return linear_sigmoid_focal_loss(inputs, z, LISTS, **options) / np.float64(CLASSES)


def weight_inside(z):
    """A class weight that enters the modulating factor too."""
    loss = -WEIGHTS[0][TARGETS] * jnp.take_along_axis(jax.nn.log_softmax(z), TARGETS[:, None], -1)[:, 0]
    return jnp.mean((1 - jnp.exp(-loss)) ** 2 * loss)


class WeightInside(Term):
    weight: Any

    def value(self, odds):
        loss = -self.weight * odds.log_p
        return (-jnp.expm1(-loss)) ** 2 * loss


BETWEEN = np.where(np.arange(ROWS) == 2, -2, INDICES).reshape(QUERIES[:2])  # one anchor is ignored


def retinanet(z):
    """torchvision: each image's sum by its own positives, at least 1, then the mean over images."""
    losses = of_mixture(z, MATCHED.astype(float), 2.0, 0.25).reshape(QUERIES)
    of_images = jnp.sum(jnp.where(BETWEEN[..., None] == -2, 0, losses), (1, 2))
    return jnp.mean(of_images / np.maximum(1.0, ((BETWEEN >= 0) & (BETWEEN < CLASSES)).sum(1)))


def ours_retinanet(z):
    def of_image(z, y):
        losses = sigmoid_focal_loss_with_integer_labels(z, y, alpha=0.25, ignore_index=-2)
        return reduce_loss(losses, normalizer=(y >= 0) & (y < CLASSES))

    return jnp.mean(jax.vmap(of_image)(z.reshape(QUERIES), jnp.asarray(BETWEEN)))


def fortuna(z):
    p_t = jnp.take_along_axis(jax.nn.softmax(z), TARGETS[:, None], -1)[:, 0]
    return -jnp.mean((1 - p_t) ** 2 * jnp.log(p_t))


RECIPES = {
    "scenic, softmax": Recipe(scenic_softmax, ours_scenic_softmax),
    "scenic, sigmoid": Recipe(scenic_sigmoid, ours_scenic_sigmoid),
    "kauldron": Recipe(
        lambda z: jnp.sum(of_mixture(z, HARD, 2.0, 0.5)) / 3,
        lambda z: reduce_loss(sigmoid_focal_loss(z, HARD, alpha=0.5), normalizer=3),
    ),
    "mmcv": Recipe(mmcv, ours_mmcv),
    "kornia": Recipe(kornia, lambda z: sigmoid_focal_loss(z, SOFT, alpha=0.25, soft_labels="linear")),
    "quality focal loss": Recipe(quality, lambda z: sigmoid_focal_loss(z, SOFT, soft_labels="quality")),
    "varifocal": Recipe(varifocal, ours_varifocal),
    "CenterNet": Recipe(centernet, ours_centernet),
    "timm, asymmetric": Recipe(asymmetric, lambda z: sigmoid_focal_loss(z, HARD, term=Asymmetric())),
    "timm, asymmetric, detached": Recipe(
        lambda z: asymmetric(z, constant=True),
        lambda z: sigmoid_focal_loss(z, HARD, term=Detached(Asymmetric())),
    ),
    "timm, poly of a softmax": Recipe(
        poly_of_softmax,
        lambda z: softmax_focal_loss_with_integer_labels(z, TARGETS, term=Poly(2.0, 1.5)),
    ),
    "timm, poly of a sigmoid": Recipe(
        lambda z: of_mixture(z, SOFT, 2.0, 0.5, epsilon=1.5),
        lambda z: sigmoid_focal_loss(z, SOFT, alpha=0.5, term=Poly(2.0, 1.5)),
    ),
    "segmentation_models": Recipe(
        lambda z: (1 - jnp.exp(-binary_cross_entropy(z, SOFT))) ** 2 * binary_cross_entropy(z, SOFT),
        lambda z: sigmoid_focal_loss(z, SOFT, soft_labels="cross_entropy"),
    ),
    "segmentation_models, multiclass": Recipe(multiclass, ours_multiclass),
    "DETR": Recipe(detr, ours_detr),
    "RF-DETR": Recipe(rf_detr, ours_rf_detr),
    "CatBoost and YDF": Recipe(boosters, ours_boosters),
    "RecML": Recipe(recml, ours_recml),
    "class weights": Recipe(class_weighted, ours_class_weighted),
    "pos_weight": Recipe(positive_weight, lambda z: 4 * sigmoid_focal_loss(z, HARD, gamma=0.0, alpha=3 / 4)),
    "a weight inside": Recipe(
        weight_inside,
        lambda z: jnp.mean(softmax_focal_loss_with_integer_labels(z, TARGETS, term=WeightInside(WEIGHTS[0]))),
    ),
    "RetinaNet": Recipe(retinanet, ours_retinanet),
    "Fortuna": Recipe(
        fortuna, lambda z: reduce_loss(softmax_focal_loss(z, np.eye(CLASSES)[TARGETS], term=Focal(2.0)))
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_numbers(name):
    def all_of(function, z):
        return function(z), jax.grad(lambda z: jnp.sum(jnp.sin(1 + function(z))))(z)

    with jax.enable_x64(True):
        want, found = jax.jit(lambda z: [all_of(function, z) for function in RECIPES[name]])(LOGITS)
        assert found[0].dtype == jnp.float64
        np.testing.assert_allclose(found[0], want[0], rtol=1e-12)
        np.testing.assert_allclose(found[1], want[1], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, alpha: sigmoid_focal_loss(z, z, alpha=alpha),
        lambda z, alpha: sigmoid_focal_loss_with_integer_labels(z, TARGETS, alpha=alpha),
        lambda z, alpha: linear_sigmoid_focal_loss(z, np.ones((CLASSES, 3), np.float32), LISTS, alpha=alpha),
    ],
)
def test_torchvisions_alpha_without_weights_is_named(loss):
    z = jnp.zeros((ROWS, CLASSES))
    with pytest.raises(ValueError, match=r"`alpha` must be in \[0, 1\], got -1. None is no weights.$"):
        loss(z, -1)
    with pytest.raises(ValueError, match=r"got 2.$"):
        loss(z, 2)
    assert jnp.all(jnp.isfinite(loss(z, None)))
