"""The compiled programs: what TPUs and an H200 would read, write and store, without having one.

The compilers come with the dependency group `compilers`. Where one is missing, or does not fit this JAX, its
tests skip, unless COMPILERS=required says that they are wanted, as CI does.
The bounds are in passes (bytes moved by the size of the logits) and hold for logits that fill a device.
"""

import functools
import importlib.metadata
import json
import math
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from compilers import available, refuse, require
from pairs import every_pair

import focaljax
from bench import compiled, hlo, linear, schedule

ROWS, PIXELS = compiled.SHAPES["rows"], compiled.SHAPES["pixels"]
SMALL = 0.05  # of the logits: the statistics of the rows and XLA's own scratch
RESULTS = ("value", "gradient")
AMONG = pytest.mark.usefixtures("as_among")
EACH = {"target": compiled.TARGETS, "dtype": ["float32", "bfloat16"], "result": RESULTS}


def integer(logits, labels, gamma, axis):
    return focaljax.softmax_focal_loss_with_integer_labels(logits, labels, gamma=gamma, axis=axis)


def smoothed(logits, labels, gamma, axis):
    return focaljax.softmax_focal_loss_with_integer_labels(
        logits, labels, gamma=gamma, label_smoothing=0.1, axis=axis
    )


def dense(logits, labels, gamma, axis):
    return focaljax.softmax_focal_loss(logits, labels, gamma=gamma, axis=axis)


def poly(logits, labels, gamma, axis):
    term = focaljax.terms.Poly(gamma, 0.5)
    return focaljax.softmax_focal_loss_with_integer_labels(logits, labels, term=term, axis=axis)


def positives(logits, labels, gamma, axis):
    return focaljax.sigmoid_focal_loss_with_integer_labels(
        logits, labels, gamma=gamma, alpha=0.25, axis=axis, ignore_index=-1
    )


def sigmoid(logits, labels, gamma, axis):
    del axis
    return focaljax.sigmoid_focal_loss(logits, labels, gamma=gamma)


@pytest.fixture(params=compiled.TARGETS)
def target(request):
    """Every machine whose compiler is installed."""
    require(request.param)
    return request.param


@pytest.fixture
def as_among(request, devices):
    """With several devices and no mesh to be seen the compiler may share the rows and classes of an array."""
    if devices == "one":
        request.getfixturevalue("alone")


compile_loss = available(compiled.compile_loss)


@functools.cache
def program(loss, where, dtype, target, *, gradient, **options):
    shape, axis = where
    options = {"indices": loss in (integer, smoothed, poly), "gradient": gradient, **options}
    return compile_loss(loss, shape, axis, dtype, target, **options)


def assert_within(program, passes, temp=SMALL, stored=0):
    """At most so many passes, nothing stored, and no operation that moves logits about."""
    assert not program.forbidden
    assert program.loops == 0  # or the passes of a TPU are not all of them
    assert program.stored <= stored
    assert program.passes <= passes
    assert program.temp <= temp


@every_pair(**EACH, traced=[True, False])
def test_integer_labels_read_the_logits_once_and_overwrite_them_once(target, dtype, result, traced):
    """With gamma as an operand or known; where it is known, another term costs the same."""
    passes = {"value": 1.1, "gradient": 3.1}[result]
    compile = partial(program, where=ROWS, dtype=dtype, target=target, gradient=result == "gradient")
    focal = compile(integer, traced_gamma=traced)
    assert_within(focal, passes)
    if not traced:
        found = compile(poly)
        assert_within(found, passes)
        assert (found.kernels, found.passes) == (focal.kernels, pytest.approx(focal.passes, rel=0.01))


@every_pair(**EACH, indices=[True, 20])  # one, or a list
def test_indices_of_positives_are_not_expanded(target, dtype, indices, result):
    found = program(positives, ROWS, dtype, target, gradient=result == "gradient", indices=indices)
    assert_within(found, {"value": 1.05, "gradient": 3.05}[result], temp=0.01)


@AMONG
@every_pair(**EACH, devices=["one", "several"])
def test_dense_labels_cost_one_pass_of_statistics_and_two_of_values(target, dtype, result):
    found = program(dense, ROWS, dtype, target, gradient=result == "gradient")
    assert_within(found, {"value": 3.1, "gradient": 6.1}[result])


@every_pair(**EACH)
def test_sigmoid_is_one_kernel(target, dtype, result):
    found = program(sigmoid, ROWS, dtype, target, gradient=result == "gradient")
    assert_within(found, {"value": 2.1, "gradient": 3.1}[result])
    assert found.kernels == 1


@AMONG
@every_pair(**EACH, devices=["one", "several"])
def test_smoothed_integer_labels_make_no_dense_ones(target, dtype, result):
    passes = {"value": 2.1, "gradient": 4.1}[result]
    found = program(smoothed, ROWS, dtype, target, gradient=result == "gradient")
    # XLA:GPU keeps which class is the label, a byte for each, and reads it twice.
    mask = 1 / jnp.dtype(dtype).itemsize if (target, result) == ("h200", "gradient") else 0
    assert_within(found, passes + 3 * mask, SMALL + mask, stored=mask > 0)


@pytest.mark.parametrize(("scale", "passes"), [(1, 2), (3, 4)])
@pytest.mark.parametrize("case", ["rows", "head"])
def test_a_row_that_is_kept_is_read_once_and_written_once(case, scale, passes):
    """A scaled mean reads and writes its gradient again. 1000 classes are not copied into another layout.

    XLA's cost analysis knows nothing of kernels of Pallas: operands and results are counted.
    """
    require("v5e")

    def loss(z, y, gamma, axis):
        return scale * schedule.KEPT.loss(z, y, gamma, axis)

    options = {"indices": True, "gradient": True}
    f, operands = compiled.program_of(loss, *compiled.SHAPES[case], "bfloat16", **options)
    text = compiled.text_of(available(compiled.compile)(f, operands, "v5e"), "v5e")
    assert hlo.traffic(hlo.parse(text)) == pytest.approx(passes * 2 * operands[0].size, rel=SMALL)


def few_class_bounds(shape, axis, dtype, target, result):
    """Passes and memory with few classes, where one float32 per row is no longer small beside the logits.

    The logits are read, and for the gradient read again and written. The rest is statistics of rows, which
    go from kernel to kernel. How often is no promise but a pin of what the compilers do today, measured
    (v5p most: 41 times), so that a change which makes it worse is seen.
    """
    row = 4 / (shape[axis] * jnp.dtype(dtype).itemsize)
    mask = 0.5 if target == "h200" else 0  # XLA:GPU may keep which class is the label, a byte for each
    return ({"value": 1 + 14 * row, "gradient": 3 + 42 * row + mask}[result], 8 * row + mask / 2)


@every_pair(**EACH)
def test_classes_that_are_not_the_last_axis_stay_where_they_are(target, dtype, result):
    found = program(integer, PIXELS, dtype, target, gradient=result == "gradient")
    assert_within(found, *few_class_bounds(*PIXELS, dtype, target, result), stored=target == "h200")


FEW = {
    "v5e": ["21 classes"],
    "v5p": ["2 classes"],
    "v6e": ["21 classes"],
    "h200": ["2 classes", "21 classes"],
}


@pytest.mark.parametrize(("target", "classes"), [(target, n) for target, some in FEW.items() for n in some])
def test_few_classes_are_neither_padded_nor_moved(target, classes):
    """A TPU puts the rows into the lanes: 2 classes padded to 128 would be 64 passes for each of these."""
    where = compiled.SHAPES[classes]
    found = program(integer, where, "float32", target, gradient=True)
    assert_within(found, *few_class_bounds(*where, "float32", target, "gradient"), stored=target == "h200")


MATMULS = {"rows": 3, "classes": 4}  # of all logits, for value and gradient
# GB beside operands and results. On one device rows store the gradient of all logits in bfloat16, 2.15, else
# a float32 sum of the kernel's gradient, 2.15 too; the float32 logits of a chunk are 0.13 and 0.54, those of
# all rows 4.3. How much more is stored depends on the compiler. Measured on a v5p, of rows with the sum:
#   jax 0.10.2 and its libtpu, 0.0.42.1: rows 2.215, classes 0.185; with libtpu 0.0.52: 2.770 and 0.227
#   jax 0.12.0.1 and its libtpu, 0.0.50.1: 3.357 and 0.253
TEMP = {"rows": {"0.0.42": 2.3}, "classes": {"0.0.42": 0.2}}
TEMP_ELSEWHERE = {"rows": 3.5, "classes": 0.3}


@AMONG
@pytest.mark.parametrize(
    ("strategy", "devices"), [("rows", "one"), ("rows", "several"), ("classes", "several")]
)
def test_a_large_vocabulary_on_v5p(strategy):
    require("v5p")
    form, given = linear.FORMS[f"in chunks of {strategy}"], linear.operands(linear.LARGE, "bfloat16")
    found = linear.costs(available(compiled.compile)(linear.both(form), given, "v5p"), linear.LARGE, "v5p")
    series = ".".join(importlib.metadata.version("libtpu").split(".")[:3])
    assert found["temp"] <= 1e9 * TEMP[strategy].get(series, TEMP_ELSEWHERE[strategy])
    assert math.isclose(found["matmuls"], MATMULS[strategy], rel_tol=1e-6)


@pytest.mark.parametrize(("target", "passes"), [("v5e", 0.1), ("h200", 8)])
def test_a_million_independent_labels(target, passes):
    """Three matmuls, at most 0.3 GB beside operands and results; lists of 20 are never an array of logits.

    Passes are those over float32 logits, which stay in a v5e's VMEM. A GPU writes them once, reads them twice
    and has a mask and the gradient beside them; what loss and gradient share is not stored.
    """
    require(target)
    n, d, c = linear.MILLION
    given = linear.operands(linear.MILLION, "bfloat16", (linear.LABELS,))
    done = available(compiled.compile)(linear.both(focaljax.linear_sigmoid_focal_loss), given, target)
    memory = done.memory_analysis()
    assert memory is not None and memory.temp_size_in_bytes <= 0.3e9
    text = compiled.text_of(done, target)
    module = hlo.parse(text)
    assert f"[{n},{c}]" not in text
    # The loop over the labels of a chunk ends when they do, and holds no matmul.
    assert math.isclose(linear.matmuls(text, linear.MILLION), 3, rel_tol=1e-6)
    assert hlo.traffic(module, linear.TURNS) <= passes * 4 * n * c


# The measure itself.


def test_a_kernel_counts_what_it_reads_and_writes():
    text = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused (p: f32[100,10], q: f32[1000,10], i: s32[]) -> (f32[100,10], f32[100]) {
  %p = f32[100,10]{1,0} parameter(0)
  %q = f32[1000,10]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = f32[] constant(0)
  %slice = f32[100,10]{1,0} dynamic-slice(%q, %i, %i), dynamic_slice_sizes={100,10}
  %product = f32[100,10]{1,0} multiply(%p, %slice)
  %reduced = f32[100]{0} reduce(%product, %zero), dimensions={1}, to_apply=%add
  ROOT %both = (f32[100,10]{1,0}, f32[100]{0}) tuple(%product, %reduced)
}

%update (p: bf16[1000,10], v: bf16[1,10], i: s32[]) -> bf16[1000,10] {
  %p = bf16[1000,10]{1,0} parameter(0)
  %v = bf16[1,10]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %written = bf16[1000,10]{1,0} dynamic-update-slice(%p, %v, %i, %i)
}

%body (state: (s32[], bf16[1000,10])) -> (s32[], bf16[1000,10]) {
  %state = (s32[], bf16[1000,10]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%state), index=0
  %all = bf16[1000,10]{1,0} get-tuple-element(%state), index=1
  %one = bf16[1,10]{1,0} constant({...})
  %next = bf16[1000,10]{1,0} fusion(%all, %one, %n), kind=kLoop, calls=%update
  ROOT %out = (s32[], bf16[1000,10]{1,0}) tuple(%n, %next)
}

ENTRY %main (x: f32[100,10], y: f32[1000,10], i: s32[]) -> f32[100,10] {
  %x = f32[100,10]{1,0} parameter(0)
  %y = f32[1000,10]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %b = bf16[1000,10]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %start = (s32[], bf16[1000,10]{1,0}) tuple(%i, %b)
  %w = (s32[], bf16[1000,10]{1,0}) while(%start), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"7"}}
  %f = (f32[100,10]{1,0}, /*index=1*/f32[100]{0}) fusion(%x, %y, %i), kind=kInput, calls=%fused
  ROOT %square = f32[100,10]{1,0} get-tuple-element(%f), index=0
}
"""  # noqa: E501
    module = hlo.parse(text)
    fusion = 4000 + 4000 + 4 + 4000 + 400  # x, a slice of y, the index; both results
    step = 20 + 4 + 20  # one row and the index; the row where it goes, not the array around it
    assert hlo.traffic(module) == fusion + 7 * step  # nothing is written when memory is allocated
    assert sum(times for _, times in hlo.kernels(module)) == 9


def test_the_measure_sees_what_a_gather_and_a_cast_store(target):
    """A loss with every fault: the bounds above would not hold of it."""

    def careless(logits, labels, gamma, axis):
        del gamma
        p = jax.nn.softmax(logits, axis)
        return -jnp.log(jnp.take_along_axis(p, jnp.expand_dims(labels, axis), axis))

    shape, axis = ROWS
    found = compile_loss(careless, shape, axis, "float32", target, indices=True, gradient=True)
    assert "gather" in found.forbidden
    assert found.passes > 3.5


def test_a_program_that_jax_cannot_read_names_the_versions(target):
    """With jax 0.10.2 that is so of libtpu 0.0.52, which it does not ask for, and of some programs only."""

    class Unreadable:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure\n*** Begin stack trace ***")

    wheel = compiled.WHEELS[target]
    with pytest.raises(compiled.Unavailable) as error:
        compiled.text_of(Unreadable(), target)
    words = (target, jax.__version__, wheel, importlib.metadata.version(wheel), "RET_CHECK failure")
    assert all(word in str(error.value) for word in words)
    assert "stack trace" not in str(error.value)
    assert compiled.wanted(wheel).startswith(wheel)


EXPONENTIALS = 16  # per entry: more than the memory of any chip leaves time for
ESTIMATES = """
import functools, itertools, json, sys, tempfile
from pathlib import Path
import jax, jax.numpy as jnp
from bench import compiled, schedule
(shape, axis), (target, times) = compiled.SHAPES["rows"], sys.argv[1:]
chain = lambda z, axis: functools.reduce(lambda x, _: jnp.exp(-x), range(int(times)), z.astype("float32"))
programs = schedule.TESTS | {"chain": lambda z, axis: jnp.sum(chain(z, axis), axis)}
with tempfile.TemporaryDirectory() as folder:
    schedule.dumping(Path(folder))
    for name, dtype in itertools.product(programs, ["float32", "bfloat16"]):
        one, logits = functools.partial(programs[name], axis=axis), (jax.ShapeDtypeStruct(shape, dtype),)
        row = schedule.cell({"case": "rows", "chip": target, "dtype": dtype}, one, logits, Path(folder))
        print(json.dumps(row | {"contender": name}))
"""


@pytest.fixture(params=compiled.TARGETS)
def estimates(request):
    """Of one machine, by dtype and program; in a process of its own, as libtpu reads its flags once.

    Compiled as users do, without the flags of the tests, with which XLA:GPU's code is slower.
    """
    command = [sys.executable, "-c", ESTIMATES, request.param, str(EXPONENTIALS)]
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if failed := {row["failed"] for row in rows if "failed" in row}:
        refuse(str(failed))
    found = {dtype: {} for dtype in EACH["dtype"]}
    for row in rows:
        found[row["dtype"]][row["contender"]] = row
    return request.param, found


def test_an_estimate_is_the_time_of_the_bytes_or_of_the_instructions(estimates):
    """What only reads or writes takes the time of its bytes, what computes that of its instructions.

    The bytes within a tenth, which is what the estimate claims; most of it are the statistics that a GPU
    stores. But for bfloat16's exponentials on an H200: eight instructions for two of them, where memory
    leaves seven. A TPU takes the exponentials of 1024 entries in a clock of a core, an SM of Hopper 16.
    """
    target, by_dtype = estimates
    chip, (shape, _) = schedule.CHIPS[target], ROWS
    a_clock = {"v5p": 2 * 1024, "h200": 132 * 16}.get(target, 1024)
    least = 1e3 * EXPONENTIALS * math.prod(shape) / a_clock / chip.clock
    for dtype, found in by_dtype.items():
        chain, plain = found.pop("chain"), found["sum of exponentials"]
        slow = 1.2 if (target, dtype) == ("h200", "bfloat16") else 1.1
        wanted = {"copy": (2, 2.2), "sum": (1, 1.1), "sum of exponentials": (1, slow)}
        assert found.keys() == wanted.keys()
        for name, (fewest, most) in wanted.items():
            assert 0.99 * fewest <= found[name]["ms"] / found[name]["unit"] <= most, (name, dtype, found)
        assert least <= chain["issue"] <= 2 * least
        assert chain["ms"] > 1.1 * chain["unissued"]
        assert chain["bytes"] == pytest.approx(plain["bytes"], rel=0.01)
        assert plain["issue"] < chain["issue"] / 4
