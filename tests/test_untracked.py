"""Sharded classes where JAX does not track which arrays differ: `check_vma=False`, `vmap` and `pmap`.

The derivatives are those of the same losses written with `lax.psum`, whose transpose there is `lax.psum`: a
gradient that is taken inside counts the loss of every device. Of an operand that all devices have, each has a
part of the gradient.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tolerances
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from focaljax import (
    linear_sigmoid_focal_loss,
    linear_softmax_focal_loss,
    sigmoid_focal_loss_with_integer_labels,
    softmax_focal_loss,
    softmax_focal_loss_with_integer_labels,
)

SHARDS, ROWS, WIDTH, CLASSES = 4, 6, 5, 8
NAME = "model"
SMOOTHING, ZETA = 0.1, 0.01


def operands():
    rng = np.random.default_rng(0)
    arrays = {
        "inputs": rng.normal(size=(ROWS, WIDTH)),
        "kernel": rng.normal(size=(WIDTH, CLASSES)),
        "alpha": rng.uniform(0.2, 0.9, CLASSES),
        "gamma": 1.7,
        "weight": rng.uniform(0.5, 2.0, ROWS),
    }
    labels = jnp.asarray(rng.integers(0, CLASSES, ROWS), jnp.int32)
    return {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}, labels


# The losses, written plainly: of this device's logits, each the same on all devices.


def mine(labels, z):
    classes = jnp.arange(z.shape[1]) + lax.axis_index(NAME) * z.shape[1]
    return jnp.where(labels[:, None] == classes[None, :], jnp.ones_like(z), 0)


def part(option, classes):
    return lax.dynamic_slice_in_dim(option, lax.axis_index(NAME) * classes, classes)[None, :]


def logsumexp(z):
    top = lax.stop_gradient(lax.pmax(lax.stop_gradient(jnp.max(z, -1)), NAME))
    return top + jnp.log(lax.psum(jnp.sum(jnp.exp(z - top[:, None]), -1), NAME))


def focal(log_p, gamma):
    return (1 - jnp.exp(log_p)) ** gamma * -log_p


def of_shares(shares, z, labels, alpha, gamma):
    del labels
    terms = part(alpha, z.shape[1]) * shares * focal(z - logsumexp(z)[:, None], gamma)
    return lax.psum(jnp.sum(terms, -1), NAME)


def integer(z, labels, alpha, gamma):
    return of_shares(mine(labels, z), z, labels, alpha, gamma)


def smoothed(z, labels, alpha, gamma):
    shares = mine(labels, z) * (1 - SMOOTHING) + SMOOTHING / CLASSES
    return of_shares(shares, z, labels, alpha, gamma)


def sigmoid(z, labels, alpha, gamma):
    yes, a = mine(labels, z) > 0, part(alpha, z.shape[1])
    log_p = jax.nn.log_sigmoid(jnp.where(yes, z, -z))
    return lax.psum(jnp.sum(jnp.where(yes, a, 1 - a) * focal(log_p, gamma), -1), NAME)


def weighed(plain, penalty, of, labels):
    z = of["inputs"] @ of["kernel"]
    losses = plain(z, labels, of["alpha"], of["gamma"])
    return of["weight"] * (losses + penalty * logsumexp(z) ** 2)


def of_logits(loss, of, labels):
    losses = loss(of["inputs"] @ of["kernel"], labels, alpha=of["alpha"], gamma=of["gamma"], axis_name=NAME)
    return of["weight"] * losses


def dense(z, labels, **options):
    return softmax_focal_loss(z, mine(labels, z), label_smoothing=SMOOTHING, **options)


def of_classes(z, labels, **options):
    return lax.psum(jnp.sum(sigmoid_focal_loss_with_integer_labels(z, labels, **options), -1), NAME)


def of_layer(loss, of, labels, **options):
    given = {"alpha": of["alpha"], "gamma": of["gamma"], "sample_weight": of["weight"], "axis_name": NAME}
    return loss(of["inputs"], of["kernel"], labels, chunk=3, **given, **options)


PLAIN = {
    name: partial(weighed, loss, penalty)
    for name, loss, penalty in (
        ("integer", integer, 0),
        ("smoothed", smoothed, 0),
        ("sigmoid", sigmoid, 0),
        ("penalised", integer, ZETA),
    )
}
LOGITS = {
    "integer": (partial(of_logits, softmax_focal_loss_with_integer_labels), "integer"),
    "dense": (partial(of_logits, dense), "smoothed"),
    "sigmoid": (partial(of_logits, of_classes), "sigmoid"),
}
LAYERS = {
    f"linear {plain}, {strategy}, {reduction}": (
        partial(of_layer, loss, strategy=strategy, reduction=reduction, **options),
        plain,
    )
    for loss, plain, options in (
        (linear_softmax_focal_loss, "penalised", {"z_loss": ZETA}),
        (linear_softmax_focal_loss, "smoothed", {"label_smoothing": SMOOTHING}),
        (linear_sigmoid_focal_loss, "sigmoid", {}),
    )
    for strategy, reduction in (("rows", "sum"), ("rows", None), ("classes", None))
}
LOSSES = LOGITS | LAYERS


# Where a function of (operands, labels) runs; the classes of its kernel are shared out.


def by_shards(function, out=None):
    mesh = jax.make_mesh((SHARDS,), (NAME,), axis_types=(AxisType.Auto,), devices=jax.devices()[:SHARDS])
    of = {name: P(None, NAME) if name == "kernel" else P() for name in operands()[0]}
    return jax.shard_map(function, mesh=mesh, in_specs=(of, P()), out_specs=out or P(), check_vma=False)


def in_shards(function):
    return by_shards(lambda *given: jax.tree.map(lambda x: x[None], function(*given)), P(NAME))


def mapped(of_jax, function):
    of = {name: 0 if name == "kernel" else None for name in operands()[0]}
    call = of_jax(function, in_axes=(of, None), axis_name=NAME)

    def split(given, labels):
        kernel = jnp.moveaxis(given["kernel"].reshape(WIDTH, SHARDS, -1), 1, 0)
        return call(given | {"kernel": kernel}, labels)

    return split


INSIDE = {"shard_map": in_shards, "vmap": partial(mapped, jax.vmap), "pmap": partial(mapped, jax.pmap)}
OUTSIDE = {"shard_map": by_shards, "pmap": partial(mapped, jax.pmap)}


def gradient(loss):
    def of(given, labels):
        return jax.grad(lambda given: jnp.sum(loss(given, labels)))(given)

    return of


def second(loss):
    """The gradient of the gradient in one direction."""

    def of(given, labels):
        push = jax.tree.map(jnp.cos, given)

        def rise(given):
            slopes = gradient(loss)(given, labels)
            return sum(jnp.vdot(slopes[name], push[name]) for name in given)

        return jax.grad(rise)(given)

    return of


def assert_same(found, wanted, quantity):
    for name, truth in wanted.items():
        here = found[name]
        if name != "kernel" and truth.shape[:1] == (SHARDS,):  # what all devices have the same
            here, truth = jnp.sum(here, 0), jnp.sum(truth, 0)
        scale = float(jnp.max(jnp.abs(truth)))
        tolerances.assert_close(
            here, np.asarray(truth, float), rtol=tolerances.rtol(quantity, 5.0), scale=scale, label=name
        )


@cache
def truth(plain, derivative, outside=False):
    run = gradient(by_shards(PLAIN[plain])) if outside else in_shards(derivative(PLAIN[plain]))
    return jax.jit(run)(*operands())


@pytest.mark.parametrize("where", INSIDE)
@pytest.mark.parametrize("loss", LOGITS)
def test_gradients_taken_inside(loss, where):
    ours, plain = LOSSES[loss]
    assert_same(jax.jit(INSIDE[where](gradient(ours)))(*operands()), truth(plain, gradient), "same")


@pytest.mark.parametrize("loss", LAYERS)
def test_gradients_of_a_layer_taken_inside(loss):
    ours, plain = LOSSES[loss]
    assert_same(jax.jit(in_shards(gradient(ours)))(*operands()), truth(plain, gradient), "same")


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if "sum" not in loss])
def test_second_derivatives(loss):
    ours, plain = LOSSES[loss]
    assert_same(jax.jit(in_shards(second(ours)))(*operands()), truth(plain, second), "hessian")


@pytest.mark.parametrize(
    ("loss", "where"), [(loss, "shard_map") for loss in LOSSES] + [(loss, "pmap") for loss in LOGITS]
)
def test_gradients_taken_outside(loss, where):
    """Around `pmap` the losses of all devices are added up."""
    ours, plain = LOSSES[loss]
    wanted = truth(plain, gradient, outside=True)
    if where == "pmap":
        wanted = jax.tree.map(lambda x: SHARDS * x, wanted)
    assert_same(jax.jit(gradient(OUTSIDE[where](ours)))(*operands()), wanted, "same")


@pytest.mark.parametrize("loss", ["integer", "dense", "linear smoothed, rows, sum"])
def test_a_gradient_around_vmap_is_an_error(loss):
    """JAX batches the rule of a derivative without the axis; for any loss that has one."""
    with pytest.raises(ValueError, match=r"must be taken inside `jax.vmap`"):
        gradient(mapped(jax.vmap, LOSSES[loss][0]))(*operands())


@pytest.mark.parametrize("loss", ["integer", "linear smoothed, rows, sum"])
def test_a_single_class_of_a_device_is_an_error(loss):
    given, labels = operands()
    with pytest.raises(
        ValueError, match="`axis_name` needs at least 2 classes of `(logits|kernel)` per device"
    ):
        by_shards(LOSSES[loss][0])(given | {"kernel": given["kernel"][:, :SHARDS]}, labels)
