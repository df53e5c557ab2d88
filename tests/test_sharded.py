"""A pod without one: what each device of a TPU mesh reads, stores and exchanges, from the real compiler.

Skips where libtpu is missing or does not fit this JAX, unless COMPILERS=required. Passes and memory are in
units of the logits of ONE device; N is the number of examples of all of them.
"""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from compilers import available, require
from jax.experimental import topologies
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from pairs import every_pair

import focaljax
from bench import __main__ as command
from bench import compiled, hlo, results, sharded, tables
from examples import pod

LARGE = "v5e 16x16"
NEEDS = pytest.mark.usefixtures("as_users_have_it")
compile_loss, compile_step = available(sharded.compile_loss), available(sharded.compile_step)
STATISTICS = 16  # bytes per example that devices may tell each other: three floats, and room for one more


@pytest.fixture(scope="module")
def compiler():
    require("v5e")


@pytest.fixture
def as_users_have_it(compiler):
    """JAX' own promotion, which Optax relies on."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@functools.cache
def loss(target, layout, classes, form, kind=AxisType.Auto, dtype="float32"):
    return compile_loss(sharded.mesh_of(target, layout, kind), classes, form, dtype)


@functools.cache
def step(layout, form):
    return compile_step(sharded.mesh_of(LARGE, layout), sharded.CLASSES[0], form)


@NEEDS
@every_pair(form=sharded.FORMS, kind=["Auto", "Explicit"], classes=[131_072, 1_048_576])
def test_sharded_classes_cost_a_number_or_three_per_example(form, kind, classes):
    dtype = "float32" if classes == 131_072 else "bfloat16"
    found = loss(LARGE, "data x classes", classes, form, AxisType[kind], dtype)
    assert found.passes <= 3.1
    assert found.temp <= 0.02
    mine = found.rows // 16 if form == "shard_map" else found.rows  # psum; or all shards' gathered by each
    assert found.exchanged <= STATISTICS * mine + 16
    assert found.largest <= 0.01 * found.logits


OTHERS = {  # the loss, whether its labels are soft, passes
    "smoothed": (partial(focaljax.softmax_focal_loss_with_integer_labels, label_smoothing=0.1), False, 4.1),
    "dense": (focaljax.softmax_focal_loss, True, 6.1),
    "sigmoid": (focaljax.sigmoid_focal_loss, True, 3.1),
}


@NEEDS
@pytest.mark.parametrize(
    ("name", "form", "kind"),
    [
        ("smoothed", "compiler", "Auto"),
        ("smoothed", "shard_map", "Explicit"),
        ("dense", "compiler", "Explicit"),
        ("dense", "shard_map", "Auto"),
        ("sigmoid", "compiler", "Auto"),
        ("sigmoid", "compiler", "Explicit"),
    ],
)
def test_no_loss_exchanges_logits(name, form, kind):
    function, soft, passes = OTHERS[name]
    mesh = sharded.mesh_of(LARGE, "data x classes", AxisType[kind])
    found = compile_loss(mesh, sharded.CLASSES[0], form, loss=function, soft=soft)
    assert found.passes <= passes
    assert found.temp <= 0.02
    assert found.exchanged <= 20 * found.rows + 16  # five floats


@NEEDS
def test_a_metric_takes_sharded_classes():
    """Under plain `jit`: one pass over the logits, and what the rows of the other shards are."""
    mesh, classes = sharded.mesh_of(LARGE, "data x classes"), sharded.CLASSES[0]
    rows = sharded.rows_of(mesh, classes)
    start = jax.tree.map(
        lambda x: sharded.struct(mesh, x.shape, x.dtype, P()), jax.eval_shape(pod.METRIC.init)
    )
    labels = sharded.struct(mesh, (rows,), "int32", P("data"))
    logits = sharded.struct(mesh, (rows, classes), "float32", sharded.LOGITS)
    with jax.set_mesh(mesh):
        lowered = jax.jit(pod.METRIC.update).lower(start, labels, logits)
    found = available(sharded.measure)(lowered, mesh, classes, "float32")
    assert found.passes <= 1.1
    assert found.temp <= 0.02
    assert found.exchanged <= STATISTICS * found.rows + 4096  # the sums of 16 devices, as pairs


@NEEDS
@pytest.mark.parametrize(("target", "form"), [("v5e 4x4", sharded.FORMS[0]), ("v5p 4x4x4", sharded.FORMS[1])])
def test_other_pods_are_alike(target, form):
    found = loss(target, "data x classes", sharded.CLASSES[1], form)
    assert found.passes <= 3.1
    assert found.temp <= 0.02
    assert found.exchanged <= STATISTICS * found.rows


@NEEDS
@pytest.mark.parametrize("form", sharded.FORMS)
def test_sharded_examples_exchange_one_number(form):
    found = loss(LARGE, "data", sharded.CLASSES[0], form)
    assert found.passes <= 3.1
    assert found.temp <= 0.02
    assert found.exchanged <= 8


@NEEDS
@pytest.mark.parametrize(
    ("layout", "passes", "form"),
    [("data", 7.3, "compiler"), ("data x classes", 5.4, "compiler"), ("data x classes", 5.4, "shard_map")],
)
def test_a_training_step_exchanges_gradients_of_parameters_and_statistics(layout, passes, form):
    """The logits are written once; a head of which each device holds a part moves and stores less."""
    found = step(layout, form)
    model = 16 if layout == "data x classes" else 1
    gradients = 4 * sharded.HIDDEN * (sharded.HIDDEN + sharded.CLASSES[0] // model)
    hidden = 4 * sharded.HIDDEN * found.rows * model // 256 if model > 1 else 0  # summed over the classes
    assert found.exchanged <= gradients + hidden + STATISTICS * found.rows
    assert found.passes <= passes
    assert found.temp <= 1.3


@pytest.mark.parametrize("spec", [P("data"), P(None, "model"), P("data", "model")])
@pytest.mark.parametrize("dense", [False, True])
def test_gpus_exchange_statistics(spec, dense):
    """Where the compiler splits classes a reduction of one packed operand would abort XLA:GPU."""
    require("h200")
    config = (compiled.CONFIGS / "h200.txtpb").read_text()
    four = {"topology_name": "four h200", "topology": "1x1x4", "platform": "cuda", "target_config": config}
    mesh = topologies.make_mesh(topologies.get_topology_desc(**four), (2, 2), ("data", "model"))
    soft, indices = focaljax.softmax_focal_loss, focaljax.softmax_focal_loss_with_integer_labels

    def mean(logits, labels):
        return jnp.mean((soft if dense else indices)(logits, labels))

    logits = jax.ShapeDtypeStruct((8192, 32768), "bfloat16", sharding=NamedSharding(mesh, spec))
    integers = jax.ShapeDtypeStruct((8192,), "int32", sharding=NamedSharding(mesh, P(spec[0])))
    labels = logits if dense else integers
    for f in (mean, jax.value_and_grad(mean)):
        memory = jax.jit(f).lower(logits, labels).compile().memory_analysis()
        assert memory is not None
        assert memory.temp_size_in_bytes < 0.05 * 2 * logits.size / 4  # of the logits of a device


@NEEDS
def test_the_bench_makes_its_table(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "prepare", lambda device: None)
    monkeypatch.setattr(sharded, "FORMS", sharded.FORMS[:1])
    # Its programs are made by the tests above.
    monkeypatch.setattr(sharded, "compile_loss", lambda *x: loss(LARGE, "data x classes", *x[1:]))
    monkeypatch.setattr(sharded, "compile_step", lambda mesh, classes, form: step("data x classes", form))
    assert command.main(["sharded", "--quick", "--out", str(tmp_path)]) == 0
    ((_, result),) = results.read(tmp_path, "sharded")
    assert not [row for row in result["rows"] if "failed" in row]
    assert {table.title for table in tables.sharded(result)} == {
        "Value and gradient, data x classes",
        "Training step, data x classes",
    }


def test_collectives_are_counted_by_their_larger_side():
    text = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inside (p: f32[64]) -> f32[16] {
  %p = f32[64]{0} parameter(0)
  ROOT %scattered = f32[16]{0} reduce-scatter(%p), dimensions={0}, to_apply=%add
}

ENTRY %main (x: f32[64], y: bf16[8]) -> f32[16] {
  %x = f32[64]{0} parameter(0)
  %y = bf16[8]{0} parameter(1)
  %start = (bf16[8]{0}, bf16[32]{0}) all-gather-start(%y), dimensions={0}
  %done = bf16[32]{0} all-gather-done(%start)
  %both = (f32[64]{0}, bf16[8]{0}) all-reduce(%x, %y), to_apply=%add
  ROOT %f = f32[16]{0} fusion(%x), kind=kCustom, calls=%inside
}
"""
    assert hlo.collectives(hlo.parse(text)) == [
        ("all-gather", 64.0),
        ("all-reduce", 4 * 64.0 + 2 * 8),
        ("reduce-scatter", 4 * 64.0),
    ]
