"""Linear + focal loss on a mesh: the same numbers, and each device does its own share only."""

import json
import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from pairs import every_pair
from test_linear import OPTIONS, STRATEGIES, assert_same, batch, everything, of_logits
from test_linear_sigmoid import batch as batch_of_lists
from test_linear_sigmoid import of_logits as of_logits_of_lists

from focaljax import linear_sigmoid_focal_loss, linear_softmax_focal_loss
from focaljax._linear import layer

pytest.importorskip("rich")

from bench import __main__ as command
from bench import hlo, results, tables
from bench import linear as bench

SPECS = {
    "inputs": P("data"),
    "kernel": P(None, "model"),
    "bias": P("model"),
    "sample_weight": P("data"),
    "alpha": P("model"),
    "gamma": P(),
}
FLOPS = {"rows": 3, "classes": 4}  # matmuls of all logits, for value and gradient


@pytest.fixture(params=FLOPS)
def strategy(request) -> str:
    return request.param


KINDS = [kind.name for kind in (AxisType.Auto, AxisType.Explicit)]
LOSSES = {
    "softmax": (linear_softmax_focal_loss, batch),
    "sigmoid": (linear_sigmoid_focal_loss, batch_of_lists),
}


def mesh(kind="Auto", shape=(2, 4)):
    return jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType[kind],) * 2)


def placed(where, arrays, specs):
    """The arrays as they lie on the mesh."""
    return {name: jax.device_put(x, NamedSharding(where, specs[name])) for name, x in arrays.items()}


SHARDED = {"plain": (None, P(None, "model")), "all": ("mean", P("data", "model"))}  # also over the width


@every_pair(strategy=STRATEGIES, kind=KINDS, options=SHARDED)
def test_a_sharded_loss_is_the_unsharded_one(strategy, kind, options):
    floats, labels = batch(rows=16, width=6, classes=64)
    reduction, kernel = SHARDED[options]
    chosen = OPTIONS[options] | {"reduction": reduction}
    where = mesh(kind)
    sharded = placed(where, floats, SPECS | {"kernel": kernel})
    with jax.set_mesh(where):
        ours = partial(linear_softmax_focal_loss, strategy=strategy, chunk=4)
        found = everything(ours, sharded, jax.device_put(labels, NamedSharding(where, P("data"))), **chosen)
    for name, x in sharded.items() if kind == "Explicit" else ():
        assert found[name].sharding.is_equivalent_to(x.sharding, x.ndim), name
    assert_same(found, of_logits(floats, labels, **chosen))


@every_pair(strategy=STRATEGIES, place=["inside", "outside"], options=["plain", "all"])
def test_classes_of_a_mesh_axis_in_shard_map(strategy, options, place):
    """Differentiated inside, on each device, or outside; sums over the examples are the caller's."""
    floats, labels = batch(rows=16, classes=64)
    chosen, reduction = OPTIONS[options], {"plain": "sum", "all": None}[options]
    wanted = of_logits(floats, labels, reduction="sum", **chosen)

    def total(floats, labels):
        given = dict(floats)
        losses = linear_softmax_focal_loss(
            given.pop("inputs"),
            given.pop("kernel"),
            labels,
            **given,
            **chosen,
            strategy=strategy,
            chunk=3,
            reduction=reduction,
            axis_name="model",
        )
        return jax.lax.psum(jnp.sum(losses), "data")

    sharded = partial(jax.shard_map, mesh=mesh(), in_specs=(SPECS, P("data")))
    if place == "inside":
        loss, found = jax.jit(sharded(jax.value_and_grad(total), out_specs=(P(), SPECS)))(floats, labels)
    else:
        loss, found = jax.jit(jax.value_and_grad(sharded(total, out_specs=P())))(floats, labels)
    assert_same(found | {"loss": loss}, wanted)


@every_pair(strategy=STRATEGIES, kind=KINDS, options=["plain", "all"])
def test_a_sharded_sigmoid_loss_is_the_unsharded_one(strategy, options, kind):
    """Lists of labels, with the examples and the classes on different axes."""
    floats, labels = batch_of_lists(rows=16, width=6, classes=64, gamma=(16, 1))
    chosen = {
        "plain": {"reduction": None},
        "all": {"label_smoothing": 0.1, "logit_soft_cap": 2.0, "reduction": "mean"},
    }[options]
    where = mesh(kind)
    sharded = placed(where, floats, SPECS)
    with jax.set_mesh(where):
        ours = partial(linear_sigmoid_focal_loss, strategy=strategy, chunk=4)
        found = everything(ours, sharded, jax.device_put(labels, NamedSharding(where, P("data"))), **chosen)
    assert_same(found, of_logits_of_lists(floats, labels, **chosen))


COUNTS = np.arange(16)[:, None] % 3 > 0


@cache
def mean_of_one_device(loss, reduction):
    call, make = LOSSES[loss]
    return everything(call, *make(rows=16, classes=64), where=COUNTS, reduction=reduction)


@every_pair(
    loss=LOSSES,
    reduction=["mean", "mean_with_sample_weight"],
    place=["inside", "outside"],
    strategy=STRATEGIES,
)
def test_the_mean_of_a_mesh(strategy, loss, reduction, place, monkeypatch):
    """Classes over one axis, examples over another: one call has the mean over all that count.

    A device has rows of its own here, and memory for the gradient of all their logits.
    """
    monkeypatch.setattr(layer, "PART", 1)  # of the kernel's gradient, written part by part
    call, make = LOSSES[loss]
    floats, labels = make(rows=16, classes=64)

    def total(floats, labels, counts):
        given = dict(floats)
        operands = (given.pop("inputs"), given.pop("kernel"), labels)
        names = {"axis_name": "model", "batch_axis_name": "data"}
        options = {"where": counts, "reduction": reduction, "strategy": strategy, "chunk": 3, "memory": 2**20}
        return call(*operands, **given, **options, **names)

    sharded = partial(jax.shard_map, mesh=mesh(), in_specs=(SPECS, P("data"), P("data")))
    operands = (floats, labels, COUNTS)
    if place == "inside":
        mean, found = jax.jit(sharded(jax.value_and_grad(total), out_specs=(P(), SPECS)))(*operands)
    else:
        mean, found = jax.jit(jax.value_and_grad(sharded(total, out_specs=P())))(*operands)
    assert_same(found | {"loss": mean}, mean_of_one_device(loss, reduction))


def batch_of_soft(soft):
    """Of 60 of 64 classes; a label may have its classes on several devices."""
    floats, labels = batch(rows=16, classes=64)
    fixed = {"labels": labels % 60, "where": np.arange(64) < 60}
    if soft:
        rng = np.random.default_rng(1)
        fixed["labels"] = np.int32(rng.integers(0, 60, (16, 3)))
        fixed["label_weights"] = np.float32(rng.dirichlet(np.ones(3), 16))
    return floats, fixed


def losses_and_logs(floats, fixed, **options):
    given = floats | fixed
    layer = [given.pop(name) for name in ("inputs", "kernel", "labels")]
    return linear_softmax_focal_loss(*layer, **given, **options, chunk=4, has_aux=True)


def logged(of, floats, fixed):
    """The loss, its gradients and the logsumexp; whether the highest logit is the label's."""

    def total(floats):
        loss, aux = of(floats, fixed)
        return jnp.sum(loss), (loss, aux)

    found, (loss, aux) = jax.jit(jax.grad(total, has_aux=True))(floats)
    return found | {"loss": loss, "logsumexp": aux.logsumexp}, aux.correct


@cache
def logged_on_one_device(soft, **options):
    return logged(partial(losses_and_logs, **options), *batch_of_soft(soft))


@every_pair(place=[*KINDS, "shard_map"], strategy=STRATEGIES, soft=[True, False])
def test_soft_labels_and_what_is_logged_on_a_mesh(strategy, place, soft):
    """Of classes that take part, on any device."""
    floats, fixed = batch_of_soft(soft)
    reduction = "mean" if soft else None
    places = {"labels": P("data"), "label_weights": P("data"), "where": P("model")}
    places = {name: places[name] for name in fixed}
    losses = partial(losses_and_logs, reduction=reduction, strategy=strategy)
    if place == "shard_map":
        names = {"axis_name": "model"} | ({"batch_axis_name": "data"} if reduction else {})
        of, out = partial(losses, **names), (P() if reduction else P("data"), P("data"))
        sharded = jax.shard_map(of, mesh=mesh(), in_specs=(SPECS, places), out_specs=out)
        found, right = logged(sharded, floats, fixed)
    else:
        where = mesh(place)
        floats, fixed = placed(where, floats, SPECS), placed(where, fixed, places)
        with jax.set_mesh(where):
            found, right = logged(losses, floats, fixed)
    wanted, correct = logged_on_one_device(soft, reduction=reduction)
    assert_same(found, wanted)
    np.testing.assert_array_equal(right, correct)


@pytest.mark.parametrize("loss", LOSSES)
def test_numbers_that_the_mesh_does_not_divide(strategy, loss):
    """Rows are filled up with ignored ones and classes with masked ones, whatever the filling holds."""
    rows, classes, more_rows, more_classes = 13, 50, 16, 52
    call, make = LOSSES[loss]
    floats, labels = make(rows=rows, classes=classes)
    wanted = {"softmax": of_logits, "sigmoid": of_logits_of_lists}[loss](floats, labels)
    if loss == "softmax":
        assert int(labels.max()) < classes

    def filled(x, last, value):
        widths = [(0, 0)] * x.ndim
        widths[-1 if last else 0] = (0, more_classes - classes if last else more_rows - rows)
        return np.pad(x, widths, constant_values=value)

    full = floats | {
        "inputs": filled(floats["inputs"], False, np.nan),
        "kernel": filled(floats["kernel"], True, np.nan),
        "bias": filled(floats["bias"], True, np.nan),
        "alpha": filled(floats["alpha"], True, 0.5),
        "sample_weight": filled(floats["sample_weight"], False, 1.0),
    }
    where = mesh()
    sharded = placed(where, full, SPECS)
    lists = jax.device_put(filled(labels, False, -100), NamedSharding(where, P("data")))
    kept = np.arange(more_classes) < classes
    ours = partial(call, where=kept, ignore_index=-100, strategy=strategy, chunk=4)
    found = everything(ours, sharded, lists)
    for name in ("inputs", "sample_weight"):
        found[name] = found[name][:rows]
    for name in ("kernel", "bias", "alpha"):
        found[name] = found[name][..., :classes]
    assert_same(found, wanted)


def test_the_mean_over_examples_of_all_devices():
    """Those that count are not as many on each device."""
    floats, labels = batch(rows=16, classes=64)
    labels[:7] = 3
    wanted = of_logits(floats, labels, ignore_index=3)

    def mean(floats, labels):
        given = dict(floats)
        layer = (given.pop("inputs"), given.pop("kernel"), labels)
        options = {"axis_name": "model", "reduction": "sum", "ignore_index": 3}
        loss = linear_softmax_focal_loss(*layer, **given, **options)
        count = jnp.sum(labels != 3, dtype=jnp.float32)
        return jax.lax.psum(loss, "data") / jax.lax.psum(count, "data")

    sharded = jax.shard_map(mean, mesh=mesh(), in_specs=(SPECS, P("data")), out_specs=P())
    loss, found = jax.jit(jax.value_and_grad(sharded))(floats, labels)
    assert_same(found | {"loss": loss}, wanted)


LAYOUTS = {  # where inputs and kernel lie
    "examples": (P("data"), P()),
    "classes": (P(), P(None, "data")),
    "examples and the layer's width": (P("data"), P("data")),
    "examples and classes, over the same devices": (P("data"), P(None, "data")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_device_does_its_own_share(strategy, layout):
    """Under plain jit a chunk spans all devices, which do not exchange anything of the size of its logits.

    What lies over the layer's width is gathered and its gradient summed once, not once per chunk. Only the
    gradient by the inputs is summed for each chunk of sharded classes.
    """
    shape, where = (4096, 64, 512), mesh(shape=(8, 1))
    x, kernel = (NamedSharding(where, spec) for spec in LAYOUTS[layout])
    places = (x, kernel, NamedSharding(where, P(*LAYOUTS[layout][0])))
    given = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
        for x, place in zip(bench.operands(shape, "float32"), places, strict=True)
    ]
    chunk = {"rows": 1024, "classes": 128}[strategy]
    loss = bench.both(partial(linear_softmax_focal_loss, strategy=strategy, chunk=chunk))
    text = jax.jit(loss, out_shardings=(None, (x, kernel))).lower(*given).compile().as_text()
    assert text is not None
    np.testing.assert_allclose(8 * bench.matmuls(text, shape), FLOPS[strategy])
    inputs, kernel = 4 * 4096 * 64, 4 * 64 * 512
    exchanged = sum(bytes for _, bytes in hlo.collectives(hlo.parse(text)))
    sums = 4 if (strategy, layout) == ("classes", "classes") else 3  # of inputs: 4 chunks
    assert (
        exchanged <= {"rows": 2, "classes": 3}[strategy] * kernel + sums * inputs
    )  # all logits: 8 times that


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", [(8, 1), (2, 4)], ids=["examples", "examples and classes"])
def test_few_rows_of_a_million_classes_stay_where_they_are(shape, loss):
    """Devices sum the gradients and a few floats per row; logits, rows and labels are collected nowhere.

    The mesh is not set: the compiler alone knows it.
    """
    rows, width, classes = 16, 8, 2**20
    where = mesh(shape=shape)
    given = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(where, spec))
        for shape, dtype, spec in (
            ((rows, width), "float32", P("data")),
            ((width, classes), "float32", P(None, "model")),
            ((rows, 20) if loss == "sigmoid" else (rows,), "int32", P("data")),
        )
    ]
    both = bench.both(LOSSES[loss][0])
    done = jax.jit(both, out_shardings=(None, tuple(x.sharding for x in given[:2]))).lower(*given).compile()
    text, memory = done.as_text(), done.memory_analysis()
    assert text is not None and memory is not None
    found = hlo.collectives(hlo.parse(text), unknown=bench.TURNS)
    kernel = 4 * width * classes // shape[1]
    assert {kind for kind, _ in found} == {"all-reduce"}
    assert sum(moved for _, moved in found) <= kernel + 4 * rows * (width + 5) + 64
    logits = 4 * rows * classes // 8
    assert memory.temp_size_in_bytes <= kernel + 8 * logits


# The bench.


@pytest.mark.parametrize("turns", [1, 5])
def test_flops_and_bytes_of_every_turn_of_a_loop(turns):
    def products(x, kernels):
        return jax.lax.scan(lambda x, kernel: (jnp.dot(x, kernel), None), x, kernels)[0]

    x, kernels = jnp.ones((64, 256)), jnp.ones((turns, 256, 256))
    text = jax.jit(products).lower(x, kernels).compile().as_text()
    assert text is not None
    module = hlo.parse(text)
    found = sum(times * hlo.flops(module, op) for op, times in hlo.kernels(module))
    assert math.isclose(found, turns * 2 * 64 * 256 * 256)
    least = turns * 4 * (2 * 64 * 256 + 256 * 256)
    assert least <= hlo.traffic(module) <= 3 * least  # a loop copies what it carries, and its slices
    outside = text.replace("{1,0}", "{1,0:T(8,128)S(1)}")  # matrices of a TPU that lie in its VMEM
    assert hlo.traffic(hlo.parse(outside)) < hlo.traffic(module) - turns * 4 * 64 * 256


def test_the_bench_measures_everybody(tmp_path, monkeypatch, capsys):
    pytest.importorskip("optax")
    alone = {"shape": list(bench.SMALL), **printed(capsys, bench.process, bench.SMALL)}
    assert math.isfinite(alone["value"]) and alone["peak"] > 1e8
    monkeypatch.setattr(bench, "alone", lambda shape: alone)
    monkeypatch.setattr(command, "prepare", lambda device: None)
    arguments = ["linear", "--quick", "--out", str(tmp_path), "--case", "vocab-32k", "million"]
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        assert command.main(arguments) == 0
    ((_, result),) = results.read(tmp_path, "linear")
    found = {row["contender"]: row for row in result["rows"]}
    assert set(bench.FORMS) < set(found)
    assert all(row["seconds"] > 0 and row["apart"] < 1e-3 for row in found.values())
    assert result["million"] == [alone]
    assert all(len(table.frame) for table in tables.linear(result))


def printed(capsys, f, *arguments):
    f(*arguments)
    return json.loads(capsys.readouterr().out)
