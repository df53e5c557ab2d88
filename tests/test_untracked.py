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
from pairs import every_pair

from focaljax import (
    linear_sigmoid_focal_loss,
    linear_softmax_focal_loss,
    sigmoid_focal_loss_with_integer_labels,
    softmax_focal_loss,
    softmax_focal_loss_with_integer_labels,
)

pytestmark = pytest.mark.versions

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
    labels = rng.integers(0, CLASSES, ROWS).astype("int32")
    return {name: np.asarray(x, "float32") for name, x in arrays.items()}, labels


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
    f"{plain}, {strategy}, {reduction}": (
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


def derivatives(loss):
    """The gradient, and the gradient of the gradient in one direction."""

    def of(given, labels):
        push = jax.tree.map(jnp.cos, given)

        def rise(given):
            slopes = gradient(loss)(given, labels)
            return sum(jnp.vdot(slopes[name], push[name]) for name in given), slopes

        second, first = jax.grad(rise, has_aux=True)(given)
        return first, second

    return of


def assert_same(found, wanted, quantity):
    for name, truth in wanted.items():
        here = found[name]
        if name != "kernel" and truth.shape[:1] == (SHARDS,):  # what all devices have the same
            here, truth = np.sum(here, 0), np.sum(truth, 0)
        scale = np.max(np.abs(truth))
        tolerances.assert_close(
            here, np.asarray(truth, float), rtol=tolerances.rtol(quantity, 5.0), scale=scale, label=name
        )


def of_all(function):
    return jax.jit(function)(*operands())


@cache
def truth_inside(plain):
    return of_all(in_shards(derivatives(PLAIN[plain])))


@cache
def truth_outside(plain):
    return of_all(gradient(by_shards(PLAIN[plain])))


def assert_derivatives_taken_inside(loss, plain):
    found, wanted = of_all(in_shards(derivatives(loss))), truth_inside(plain)
    for here, there, quantity in zip(found, wanted, ("same", "hessian"), strict=True):
        assert_same(here, there, quantity)


@pytest.mark.parametrize("loss", LOGITS)
def test_first_and_second_derivatives_taken_inside(loss):
    assert_derivatives_taken_inside(*LOGITS[loss])


@pytest.mark.parametrize("where", [where for where in INSIDE if where != "shard_map"])
@pytest.mark.parametrize("loss", LOGITS)
def test_gradients_taken_inside(loss, where):
    ours, plain = LOGITS[loss]
    assert_same(of_all(INSIDE[where](gradient(ours))), truth_inside(plain)[0], "same")


@pytest.mark.parametrize("where", OUTSIDE)
@pytest.mark.parametrize("loss", LOGITS)
def test_gradients_taken_outside(loss, where):
    """Around `pmap` the losses of all devices are added up."""
    ours, plain = LOGITS[loss]
    wanted = jax.tree.map(lambda x: x * (SHARDS if where == "pmap" else 1), truth_outside(plain))
    assert_same(of_all(gradient(OUTSIDE[where](ours))), wanted, "same")


@every_pair(
    loss=["penalised", "smoothed", "sigmoid"],
    way=["rows, sum", "rows, None", "classes, None"],
    taken=["inside", "outside"],
)
def test_derivatives_of_a_layer(loss, way, taken):
    ours, plain = LAYERS[f"{loss}, {way}"]
    if taken == "inside":
        assert_derivatives_taken_inside(ours, plain)
    else:
        assert_same(of_all(gradient(by_shards(ours))), truth_outside(plain), "same")


@pytest.mark.parametrize(
    "loss",
    [LOGITS["integer"], LOGITS["dense"], LAYERS["smoothed, rows, sum"]],
    ids=["integer", "dense", "linear"],
)
def test_a_gradient_around_vmap_is_an_error(loss):
    """JAX batches the rule of a derivative without the axis; for any loss that has one."""
    with pytest.raises(ValueError, match=r"must be taken inside `jax.vmap`"):
        jax.eval_shape(gradient(mapped(jax.vmap, loss[0])), *operands())


@pytest.mark.parametrize(
    "loss", [LOGITS["integer"], LAYERS["smoothed, rows, sum"]], ids=["integer", "linear"]
)
def test_a_single_class_of_a_device_is_an_error(loss):
    given, labels = operands()
    with pytest.raises(
        ValueError, match="`axis_name` needs at least 2 classes of `(logits|kernel)` per device"
    ):
        jax.eval_shape(by_shards(loss[0]), given | {"kernel": given["kernel"][:, :SHARDS]}, labels)
