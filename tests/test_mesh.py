"""Anywhere: a loss on a mesh is the loss on one device, however examples and classes are sharded.

Eight CPU devices as 2 x 4: "data" shards the examples, "model" the classes.
"""

import re
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tolerances
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from pairs import every_pair

import focaljax
from focaljax._softmax import cpu, cpu_rivals

C = 8
SHARDINGS = {
    "examples": P(("data", "model"), None),
    "classes": P(None, "model"),
    "both": P("data", "model"),
    "classes over all": P(None, ("data", "model")),
}
INDEXED, DENSE = focaljax.softmax_focal_loss_with_integer_labels, focaljax.softmax_focal_loss
LOSSES = {
    "integer": INDEXED,
    "smoothed": partial(INDEXED, label_smoothing=0.1),
    "dense": DENSE,
    "sigmoid": focaljax.sigmoid_focal_loss,
    "sigmoid, integer": focaljax.sigmoid_focal_loss_with_integer_labels,
}


@pytest.fixture
def auto() -> jax.sharding.Mesh:
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def batch(loss: str, examples: int = 8, classes: int = C) -> dict[str, jax.Array]:
    """Logits with an easy, a hard and a tied example among them, labels, a weight per class, gamma."""
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(examples, classes))
    labels = np.arange(examples) * 3 % classes
    logits[0, labels[0]] += 30
    logits[1, labels[1]] -= 30
    logits[2, :] = 1
    if loss in ("dense", "sigmoid"):
        labels = rng.dirichlet(np.ones(classes), examples)
    arrays = {
        "logits": logits,
        "labels": labels,
        "alpha": rng.uniform(0.2, 0.9, classes),
        "gamma": 2.0,
        "weights": rng.uniform(0.5, 2.0, examples),
    }
    return {
        name: jnp.asarray(x, jnp.int32 if np.asarray(x).dtype == int else jnp.float32)
        for name, x in arrays.items()
    }


def everything(loss: str, arrays: dict[str, jax.Array], **options: Any) -> dict[str, jax.Array]:
    """The weighted losses, and the gradients of their sum by all that floats."""
    floats = {name: x for name, x in arrays.items() if x.dtype == jnp.float32}

    def total(floats):
        given = arrays | floats
        weights = given.pop("weights")
        losses = LOSSES[loss](given.pop("logits"), given.pop("labels"), **given, **options)
        losses = losses * (weights[:, None] if losses.ndim == 2 else weights)
        return jnp.sum(losses), losses

    found, losses = jax.grad(total, has_aux=True)(floats)
    return found | {"losses": losses}


@partial(jax.jit, static_argnums=0)
def unsharded(loss: str, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """`everything` on one device; the program of a loss is the same for all shardings."""
    return everything(loss, arrays)


def specs(arrays: dict[str, jax.Array], spec: P) -> dict[str, P]:
    """Where each operand lies if the logits lie as `spec` says."""
    rows = P(spec[0])
    return {
        "logits": spec,
        "labels": spec if arrays["labels"].ndim == 2 else rows,
        "alpha": P(spec[1]),
        "gamma": P(),
        "weights": rows,
        "where": spec,
    }


def place(mesh, arrays, spec):
    where = specs(arrays, spec)
    return {name: jax.device_put(x, NamedSharding(mesh, where[name])) for name, x in arrays.items()}


def assert_same(found: dict[str, jax.Array], wanted: dict[str, jax.Array]) -> None:
    """One formula, the sums in another order; terms of both signs are judged by the largest."""
    chex.assert_trees_all_equal_shapes_and_dtypes(found, wanted)
    for name, truth in wanted.items():
        scale = float(jnp.max(jnp.abs(truth), initial=0, where=jnp.isfinite(truth)))
        np.testing.assert_allclose(
            found[name],
            truth,
            rtol=tolerances.rtol("same"),
            atol=tolerances.rtol("same") * scale,
            err_msg=name,
        )


# Without shard_map: the compiler shards the program.

COLLECTIVE = re.compile(
    r"= (.*?) (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|collective-broadcast)"
    r"(?:-start)?\("
)


def largest_collective(program: str) -> int:
    """Entries of the largest array that one collective moves, on one device."""
    moved = re.findall(r"\w+\[([\d,]*)\]", " ".join(COLLECTIVE.findall(program)))
    return max((int(np.prod([int(n) for n in dims.split(",") if n])) for dims in moved), default=0)


@every_pair(loss=LOSSES, sharding=SHARDINGS, kind=["Auto", "Explicit"])
@pytest.mark.versions
def test_a_sharded_loss_is_the_unsharded_one(monkeypatch, loss, sharding, kind):
    """Logits never move. On CPU a row is reduced block by block, a block on all devices at a time."""
    monkeypatch.setattr(cpu, "BLOCK", 2**11)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType[kind],) * 2)
    rows, classes = 64, 128
    arrays = batch(loss, rows, classes)
    sharded = place(mesh, arrays, SHARDINGS[sharding])
    with jax.set_mesh(mesh):
        program = jax.jit(lambda arrays: everything(loss, arrays)).lower(sharded).compile()
    found = program(sharded)
    assert found["logits"].sharding.is_equivalent_to(sharded["logits"].sharding, 2)
    assert_same(found, unsharded(loss, arrays))
    assert largest_collective(program.as_text()) <= 2 * rows


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(64, 4096), (64, 2**18), (8, 2**18), (16, 2**20)], ids=str)
@pytest.mark.versions
def test_few_rows_of_many_classes_stay_where_they_are(shape, smoothing):
    """Each device has some rows, fewer than a block on one device holds: nothing at all is collected.

    The mesh is not set: the compiler alone knows it.
    """
    place = NamedSharding(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)), P("data"))
    logits = jax.ShapeDtypeStruct(shape, "float32", sharding=place)
    labels = jax.ShapeDtypeStruct(shape[:1], "int32", sharding=place)

    def mean(logits, labels):
        loss = focaljax.softmax_focal_loss_with_integer_labels
        return jnp.mean(loss(logits, labels, label_smoothing=smoothing))

    both = jax.jit(jax.value_and_grad(mean), out_shardings=(None, place))
    assert largest_collective(both.lower(logits, labels).compile().as_text()) <= 1  # the mean


# Inside shard_map: `axis_name`.

OPTIONS = {
    "plain": {},
    "mask": {"where": True},
    "options per class of all": {"whole": True},
    "alpha per example": {"alpha": (8, 1)},
    "gamma per class": {"gamma": (C,)},
}


@every_pair(
    options=OPTIONS,
    loss=["integer", "smoothed", "dense", "sigmoid, integer"],
    sharding=["both", "classes over all"],
)
@pytest.mark.versions
def test_a_mesh_axis_of_classes_merges_their_statistics(auto, loss, options, sharding):
    arrays, spec = batch(loss), SHARDINGS[sharding]
    chosen = OPTIONS[options]
    where = specs(arrays, spec)
    if "where" in chosen:
        arrays["where"] = jnp.asarray(np.random.default_rng(1).random((8, C)) < 0.8)
    for name in ("alpha", "gamma"):
        if name in chosen:
            high = 0.9 if name == "alpha" and loss.startswith("sigmoid") else 2  # 1 - alpha weighs an answer
            drawn = np.random.default_rng(2).uniform(0.2, high, chosen[name])
            arrays[name] = jnp.asarray(drawn, jnp.float32)
            where[name] = P(spec[1]) if chosen[name] == (C,) else P(spec[0])
    if "whole" in chosen:
        where["alpha"] = P()
    wanted = unsharded(loss, arrays)

    shards = {name: where[name] for name in arrays}
    losses = spec if wanted["losses"].ndim == 2 else P(spec[0])
    results = {name: where[name] for name in wanted if name != "losses"} | {"losses": losses}
    local = partial(everything, loss, axis_name=spec[1])
    found = jax.jit(jax.shard_map(local, mesh=auto, in_specs=(shards,), out_specs=results))(arrays)
    assert_same(found, wanted)


@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("name", [None, "model"])
def test_pictures_inside_shard_map(auto, monkeypatch, name, tracked):
    """On CPU the classes of a device that lie apart are taken one by one, also those of a shard."""
    monkeypatch.setattr(cpu_rivals, "APART", 12)
    taken = []
    by_class = cpu_rivals._by_class
    monkeypatch.setattr(cpu_rivals, "_by_class", lambda *given: taken.append(given) or by_class(*given))
    rng = np.random.default_rng(0)
    logits = jnp.asarray(3 * rng.normal(size=(4, C, 3, 4)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, C, (4, 3, 4)), jnp.int32)
    weights = jnp.asarray(rng.uniform(0.5, 2.0, labels.shape), jnp.float32)

    def losses_and_slopes(logits, labels, weights, name=None):
        losses, pull_back = jax.vjp(lambda z: INDEXED(z, labels, axis=1, axis_name=name), logits)
        share = 1 if tracked or name is None else 1 / jax.lax.axis_size(name)  # each device has a copy
        return losses, pull_back(share * weights)[0]

    wanted = losses_and_slopes(logits, labels, weights)
    assert not taken  # of eight devices and no mesh to be seen
    found = jax.shard_map(
        partial(losses_and_slopes, name=name),
        mesh=auto,
        in_specs=(P("data", name), P("data"), P("data")),
        out_specs=(P("data"), P("data", name)),
        check_vma=tracked,
    )(logits, labels, weights)
    assert taken
    assert_same(dict(enumerate(found)), dict(enumerate(wanted)))


@pytest.mark.parametrize("loss", ["integer", "dense"])
def test_gradients_through_shard_map_of_classes(auto, loss):
    """Differentiated outside; also a Hessian-vector product, whose sums cross the mesh too."""
    arrays, spec = batch(loss), SHARDINGS["both"]
    where = specs(arrays, spec)

    def total(losses, arrays):
        return jnp.sum(losses(arrays["logits"], arrays["labels"], arrays["alpha"]) * arrays["weights"])

    def plain(logits, labels, alpha, **options):
        return LOSSES[loss](logits, labels, alpha=alpha, **options)

    sharded = jax.shard_map(
        partial(plain, axis_name="model"),
        mesh=auto,
        in_specs=tuple(where[name] for name in ("logits", "labels", "alpha")),
        out_specs=P("data"),
    )

    def both(losses):
        def gradient(logits):
            return jax.grad(lambda z: total(losses, arrays | {"logits": z}))(logits)

        push = jnp.cos(arrays["logits"])
        first, second = jax.jvp(gradient, (arrays["logits"],), (push,))
        reverse = jax.grad(lambda z: jnp.vdot(gradient(z), push))(arrays["logits"])
        return {"gradient": first, "product": second, "reverse": reverse}

    assert_same(jax.jit(lambda: both(sharded))(), jax.jit(lambda: both(plain))())


@pytest.mark.parametrize("loss", ["integer", "dense"])
def test_limits_hold_across_shards(auto, loss):
    """Classes at -inf on whole shards, a target there, a NaN, an ignored row: as on one device."""
    arrays = batch(loss)
    logits = arrays["logits"].at[0, 2:].set(-jnp.inf).at[1, :6].set(-jnp.inf).at[2].set(-jnp.inf)
    logits = logits.at[3, 5].set(jnp.nan).at[4, 7].set(jnp.inf).at[5, 1].set(jnp.nan)
    arrays["logits"], arrays["weights"] = logits, arrays["weights"].at[5].set(0)
    if loss == "integer":
        arrays["labels"] = jnp.array([0, 0, 3, 1, 7, 2, 99, -1])
    options = {"ignore_index": -1} if loss == "integer" else {}

    def losses(logits, labels, axis_name=None):
        return LOSSES[loss](logits, labels, axis_name=axis_name, **options)

    where = specs(arrays, SHARDINGS["both"])
    sharded = jax.shard_map(
        partial(losses, axis_name="model"),
        mesh=auto,
        in_specs=(where["logits"], where["labels"]),
        out_specs=P("data"),
    )

    def both(losses):
        def total(logits):
            found = losses(logits, arrays["labels"])
            return jnp.sum(jnp.where(arrays["weights"] > 0, found, 0)), found

        gradient, found = jax.grad(total, has_aux=True)(logits)
        return {"losses": found, "gradient": gradient}

    assert_same(jax.jit(lambda: both(sharded))(), jax.jit(lambda: both(losses))())


def test_labels_of_few_bits_name_classes_of_all_shards(auto):
    logits = jnp.sin(jnp.arange(2 * 512.0)).reshape(2, 512)
    labels = jnp.array([3, 255], jnp.uint8)
    sharded = jax.shard_map(
        partial(INDEXED, axis_name="model"),
        mesh=auto,
        in_specs=(P("data", "model"), P("data")),
        out_specs=P("data"),
    )
    tolerances.assert_close(
        sharded(logits, labels), np.asarray(INDEXED(logits, labels), float), rtol=tolerances.rtol("same")
    )


@pytest.mark.parametrize("function", [INDEXED, DENSE])
def test_an_axis_that_does_not_shard_the_logits_is_an_error(auto, function):
    logits = jnp.zeros((8, C))
    labels = jnp.zeros(8, jnp.int32) if function is INDEXED else logits
    call = partial(function, axis_name="model")
    with pytest.raises(ValueError, match="`axis_name` must name an axis of `jax.shard_map`"):
        call(logits, labels)
    mapped = jax.shard_map(call, mesh=auto, in_specs=P("data"), out_specs=P("data"))
    with pytest.raises(ValueError, match="`axis_name` must name axes that shard `logits`"):
        mapped(logits, labels)
    with pytest.raises(TypeError, match="`axis_name` must be the name of a mesh axis"):
        function(logits, labels, axis_name=1)


def test_an_option_of_another_number_of_classes_is_an_error(auto):
    call = partial(INDEXED, axis_name="model", alpha=jnp.ones(3))
    mapped = jax.shard_map(call, mesh=auto, in_specs=(P("data", "model"), P("data")), out_specs=P("data"))
    with pytest.raises(ValueError, match=r"one entry per class, 8 \(2 of a shard\), or 1; got shape \(3,\)"):
        mapped(jnp.zeros((8, C)), jnp.zeros(8, jnp.int32))
