"""The benches: they run and write what their tables are made of, and README shows what was measured.

No time is asserted here. PyTorch is no dependency of the tests: `python -m bench speed` compares every
contender with the oracle, those in PyTorch too, before it times anything.
"""

import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close, rtol

pytest.importorskip("optax")
pytest.importorskip("keras")
pytest.importorskip("matplotlib")
pytest.importorskip("pandas")
pytest.importorskip("rich")

from bench import __main__ as command
from bench import (
    accuracy,
    agreement,
    bundles,
    cases,
    hlo,
    kept_row,
    plots,
    report,
    results,
    sass,
    speed,
    tables,
    timing,
)
from bench.contenders import BASELINE, IN_PLACE, INTEGER, OURS, Contender, contenders, textbook

LIBRARIES = ("optax", "keras")
FOUND, _ = contenders(libraries=LIBRARIES)


@pytest.fixture(autouse=True)
def as_users_have_it(monkeypatch):
    """JAX' own promotion, which Keras and Optax rely on, and no library that CI does not install."""
    for module in ("bench.speed", "bench.accuracy"):
        monkeypatch.setattr(f"{module}.contenders", lambda device: contenders(device, LIBRARIES))
    monkeypatch.setattr(command, "prepare", lambda device: None)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def run(folder, *arguments):
    """The result that a tiny run writes, drawn as well."""
    assert command.main([*arguments, "--quick", "--out", str(folder)]) == 0
    ((stem, result),) = results.read(folder, arguments[0])
    assert result["complete"] and not list(folder.glob("*.partial*"))
    assert result["machine"]["cores"] >= 1 and result["versions"]["jax"] == jax.__version__
    assert all(len(table.frame) for table in tables.TABLES[arguments[0]](result))
    plots.draw(arguments[0], result, folder / f"{stem}.png")
    assert (folder / f"{stem}.png").stat().st_size > 5_000
    return result


def test_readme_shows_the_results():
    text = report.README.read_text(encoding="utf-8")
    assert text == report.filled(text, results.FOLDER), "run `python -m bench report`"
    for bench in tables.TABLES:
        assert f"python -m bench {bench}" in text


def test_results_name_their_machine_and_no_other():
    for file in results.FOLDER.glob("*-*.json"):
        result = json.loads(file.read_text(encoding="utf-8"))
        assert file.stem == results.stem(result)
        assert result["complete"]
        assert "/" not in json.dumps(result["machine"])


def test_speed(tmp_path):
    result = run(tmp_path, "speed", "--case", "detection")
    racing = {c.name for c in FOUND if c.family == "sigmoid"}
    assert {row["contender"] for row in result["rows"]} == racing | {tables.COPY}
    assert {row["program"] for row in result["rows"]} == {"value", "value and gradient", "step"}
    assert all(row["ratio"] == 1 for row in result["rows"] if row["contender"] == BASELINE)
    assert all(math.isfinite(row["seconds"]) and row["seconds"] > 0 for row in result["rows"])
    traces = {row["contender"]: row["traces"] for row in result["compile"]}
    assert traces[OURS] == 1
    assert not result["far"]
    result["machine"]["device"] = "NVIDIA H200"  # there the distance to the copy is shown as well
    assert results.stem(result) == "speed-nvidia-h200"
    (shares,) = (t for t in tables.speed(result) if "copy's speed" in t.title)
    assert set(shares.frame.index) == racing and shares.frame["detection"].str.endswith("%").all()


def test_a_run_of_some_cases_keeps_the_others():
    old = {"rows": [{"case": "pixels", "dtype": "float32"}, {"case": "imagenet", "dtype": "float32"}]}
    old |= {"compile": [{"family": "softmax"}, {"family": "sigmoid"}]}
    result = {}
    speed.merge(result, old, cases.named(["pixels"]), ["float32"])
    assert [row["case"] for row in result["rows"]] == ["imagenet"]
    assert [row["family"] for row in result["compile"]] == ["sigmoid"]
    assert result["failed"] == result["far"] == result["agreement"] == []


def test_accuracy(tmp_path):
    result = run(tmp_path, "accuracy")
    ours = [row for row in result["rows"] if row["contender"] == OURS]
    assert {row["family"] for row in ours} == {"softmax", "sigmoid"}
    for row in ours:
        assert row["bad_value"] == row["bad_gradient"] == row["dead"] == row["off"] == 0
        assert max(row["worst_value"], row["worst_gradient"]) < 1e-5
    others = [row for row in result["rows"] if row["contender"] == "textbook focal"]
    assert sum(row["dead"] + row["bad_gradient"] for row in others) > 0


def test_pictures(tmp_path):
    result = run(tmp_path, "pictures")
    assert {row["program"] for row in result["rows"]} == {"value", "value and gradient"}
    for row in result["rows"]:
        ours, *theirs = (row["seconds"][name] for name in (OURS, BASELINE, IN_PLACE))
        assert row["ratio"] == ours / min(theirs) > 0


def test_growth(tmp_path):
    result = run(tmp_path, "growth")
    assert {(s["along"], s["contender"]) for s in result["slopes"]} == {
        (along, name) for along in ("rows", "classes") for name in (OURS, BASELINE, "textbook focal")
    }


@pytest.mark.parametrize("contender", FOUND, ids=lambda c: f"{c.family}: {c.name}")
def test_a_contender_computes_the_loss_that_it_claims(contender):
    assert agreement.check(contender) <= agreement.TOLERANCE


def test_another_loss_is_noticed():
    def doubled(z, y, gamma, axis, alpha=None):
        return 2 * textbook(z, y, gamma, axis, alpha)

    with pytest.raises(agreement.Disagreement, match="doubled"):
        agreement.check(Contender("doubled", doubled))
    probes = {OURS: (1.0, 2.0), "doubled": (2.0, 4.0), "the same": (1.0, 2.0)}
    named = [Contender(name, doubled) for name in probes]
    assert set(agreement.within_case(probes, named, "float32")) == {"doubled"}


@pytest.mark.parametrize(
    ("kernel", "classes", "dtype"),
    [
        pytest.param(kept_row.on_tpu, 4352, "bfloat16", id="TPU, classes in lanes"),
        pytest.param(kept_row.on_tpu, 1100, "float32", id="TPU, classes in sublanes"),
        pytest.param(kept_row.on_gpu, 1100, "float32", id="GPU, float32"),
        pytest.param(kept_row.on_gpu, 1100, "bfloat16", id="GPU, bfloat16"),
    ],
)
def test_a_kernel_that_keeps_the_row_is_the_mean_of_our_loss(kernel, classes, dtype):
    """Interpreted: the compiled one needs its device. With rows of one class, and labels that are no class.

    Ours are of the same logits in float32, so that a gradient in bfloat16 is rounded once.
    """
    rng, rows, gamma = np.random.default_rng(0), 128, 2.0
    logits, labels = 5 * rng.standard_normal((rows, classes), np.float32), cases.even(rng, (rows,), classes)
    logits[0], logits[1, labels[1]], logits[2, 3:] = -np.inf, 1e4, -np.inf
    labels[2], logits[0, labels[0]] = 1, 0
    logits = jnp.asarray(logits, dtype)
    run = partial(kernel, interpret=True)
    found = jax.jit(jax.value_and_grad(lambda z, y: kept_row.mean(z, y, gamma, run)))
    ours = jax.jit(jax.value_and_grad(lambda z, y: jnp.mean(INTEGER(z, y, gamma=gamma))))
    value, gradient = found(logits, labels)
    want, slopes = (np.asarray(x) for x in ours(logits.astype("float32"), labels))
    assert gradient.dtype == dtype
    assert_close(value, want, rtol=rtol("same", gamma))
    assert_close(gradient, slopes, rtol=rtol("gradient", gamma, returned=dtype))
    np.testing.assert_array_equal(kept_row.mean(logits, labels, gamma, run), value)

    labels[[3, 4]] = -1, classes
    value, without = (np.asarray(x, np.float32) for x in found(logits, labels))
    assert np.isnan(value) and np.isnan(without[[3, 4]]).all()
    others = np.delete(np.arange(rows), [3, 4])
    np.testing.assert_array_equal(without[others], np.asarray(gradient, np.float32)[others])


def test_errors_are_seen_for_what_they_are():
    want, grad = np.array([1.0, 1.0, 1.0]), np.full((3, 2), 0.5)
    got = np.array([1.0, np.nan, 1.1], np.float32)
    gradient = np.array([[0.5, 0.5], [np.nan, 0.5], [0.0, 0.5]], np.float32)
    found = accuracy.judged(got, gradient, want, grad, np.zeros(3, int))
    counts = {key: found[key] for key in ("rows", "bad_value", "bad_gradient", "dead", "off")}
    assert counts == {"rows": 3, "bad_value": 1, "bad_gradient": 1, "dead": 1, "off": 2}
    assert found["worst_value"] == pytest.approx(0.1, rel=1e-5)
    assert found["worst_gradient"] == pytest.approx(1.0)


@pytest.mark.parametrize("case", [case.small() for case in cases.CASES], ids=lambda case: case.name)
def test_a_case_is_the_same_every_time(case):
    data, again = case.data(), case.data()
    assert data.logits.shape == case.shape
    assert data.labels.shape == (case.shape if case.family == "sigmoid" else case.rows)
    assert np.einsum(case.head, data.features, data.kernel).shape == case.shape
    for one, other in zip(data, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_every_round_times_every_call_and_ratios_are_within_rounds():
    counted = {"a": 0, "b": 0}

    def call(name):
        def count(times):
            counted[name] += times

        return count

    effort = timing.Effort(seconds=0.0, least=4, most=9, aim=0.0)
    found = timing.interleaved({name: call(name) for name in counted}, effort, "a")
    assert counted == {"a": 5, "b": 5}  # one to see how long it takes
    assert found["a"].ratio == 1.0 and found["b"].rounds == 4


def test_a_run_that_is_stopped_leaves_the_last_result(tmp_path):
    lines = []
    for attempt in (False, True):
        result = results.header("growth") | {"rows": [], "stopped": attempt}
        try:
            with results.writer(tmp_path, result, lines.append) as write:
                write()
                if attempt:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
    ((_, kept),) = results.read(tmp_path, "growth")
    assert kept["complete"] and not kept["stopped"]
    assert len(list(tmp_path.glob("*.partial.json"))) == 1
    assert [line.split(":")[0] for line in lines] == ["written", "stopped; the results so far"]


def test_an_unknown_case_is_named(capsys):
    assert command.main(["speed", "--case", "nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err


@pytest.mark.parametrize(("order", "expected"), [("3,0,1,2", ("copy",)), ("3,1,0,2", ())])
def test_a_copy_that_breaks_tiles_is_seen_inside_a_kernel(order, expected):
    """One that only orders them is how the kernel reads; as a kernel of its own it counts in any case."""
    tiled = "f32[4,8,2,128]{%s:T(8,128)}"
    source, result = tiled % "3,1,2,0", tiled % order
    fused = f"""
%inner (p: f32[4,8,2,128]) -> f32[] {{
  %p = {source} parameter(0)
  %copy.1 = {result} copy(%p)
  ROOT %sum = f32[]{{:T(128)}} reduce(%copy.1)
}}

ENTRY %main (x: f32[4,8,2,128]) -> f32[] {{
  %x = {source} parameter(0)
  ROOT %fusion = f32[]{{:T(128)}} fusion(%x), kind=kLoop, calls=%inner
}}
"""
    size = 4 * 8 * 2 * 128
    assert hlo.forbidden(hlo.parse(fused), size) == expected
    alone = fused.replace("fusion(%x), kind=kLoop, calls=%inner", "copy(%x)")
    assert "copy" in hlo.forbidden(
        hlo.parse(alone.replace("ROOT %fusion = f32[]{:T(128)}", f"ROOT %c = {result}")), size
    )


@pytest.mark.parametrize("batch", [(), (3,)])
def test_flops_of_a_matmul_are_two_per_product(batch):
    """Of several matrices too, as where a compiler cuts a long sum into parts."""
    shapes = [jax.ShapeDtypeStruct((*batch, *shape), "float32") for shape in ((4, 5), (5, 6))]
    module = hlo.parse(jax.jit(jax.numpy.matmul).lower(*shapes).compile().as_text())
    found = sum(times * hlo.flops(module, op) for op, times in hlo.kernels(module))
    assert found == pytest.approx(2 * math.prod(batch) * 4 * 5 * 6)


@pytest.mark.parametrize(
    ("line", "weights", "read"),
    [
        ("", "%view", 2 * 900 * 8),
        ("%few = bf16[100,8] dynamic-slice(%view, %i, %i)", "%few", 2 * 100 * 8 + 4),
    ],
    ids=["all", "some"],
)
def test_what_a_kernel_reads_through_a_view_is_counted(line, weights, read):
    """A TPU's matmul reads its weights so: a fusion inside its own gives them another name, and no more."""
    module = hlo.parse(f"""
%rename (p: bf16[900,8]) -> bf16[900,8] {{
  %p = bf16[900,8] parameter(0)
  ROOT %named = bf16[900,8] bitcast(%p)
}}

%matmul (x: bf16[4,100], y: bf16[900,8], i: s32[]) -> f32[4,8] {{
  %x = bf16[4,100] parameter(0)
  %y = bf16[900,8] parameter(1)
  %i = s32[] parameter(2)
  %view = bf16[900,8] fusion(%y), kind=kLoop, calls=%rename
  {line}
  ROOT %product = f32[4,8] dot(%x, {weights})
}}

ENTRY %main (x: bf16[4,100], y: bf16[900,8], i: s32[]) -> f32[4,8] {{
  %x = bf16[4,100] parameter(0)
  %y = bf16[900,8] parameter(1)
  %i = s32[] parameter(2)
  ROOT %kernel = f32[4,8] fusion(%x, %y, %i), kind=kOutput, calls=%matmul
}}
""")
    assert hlo.traffic(module) == 2 * 4 * 100 + read + 4 * 4 * 8


# The schedules of a TPU and a GPU.


def test_a_schedule_that_was_stopped_goes_on_and_keeps_what_is_not_asked_for(tmp_path, monkeypatch):
    made = []

    def estimate(f, operands, chip, folder):
        made.append(chip)
        if len(made) == 4:
            raise KeyboardInterrupt
        return {"ms": 3.3, "bytes": 1.0, "matmul": 0.0, "issue": 3.3, "unissued": 1.0, "kernels": []}

    monkeypatch.setenv("LIBTPU_INIT_ARGS", "")  # main adds to it
    monkeypatch.setattr("bench.schedule.estimate", estimate)
    assert command.main(["schedule", "--chip", "v5e", "--quick", "--out", str(tmp_path)]) == 130
    rows = run(tmp_path, "schedule", "--chip", "v5e")["rows"]
    names = [(row["contender"], row["program"], row["dtype"]) for row in rows]
    assert len(made) == len(rows) + 1 and len(set(names)) == len(rows) == 2 * (3 + 2)
    assert run(tmp_path, "schedule", "--case", "head")["rows"] == rows  # of which --quick has none
    result = run(tmp_path, "schedule", "--chip", "h200", "--dtype", "bfloat16")
    assert [row["chip"] for row in result["rows"]] == 10 * ["v5e"] + 5 * ["h200"]
    chips, value, _ = tables.schedule(result)
    assert list(chips.frame.index) == ["v5e", "v5p", "v6e", "h100", "h200"]
    assert list(value.frame.columns) == ["v5e f32", "v5e bf16", "h200 bf16"]
    assert value.frame[:-1].map(lambda cell: cell.endswith("*")).all(axis=None)


KERNEL = """
     0   :  { %s1 = inlined_call_operand.hbm [shape: f32[8,128], index: 0] }
   0x1 LB: > { %s2 = sadd.s32 1, %s3 }
   0x2   :  {}
   0x3   : > { %v4 = vadd.f32 %v5, %v6  ;;  %p7 = scmp.ge.s32.totalorder %s2, 24 /* loop exit test */ }
   0x4 LB: >> { %v8 = vmul.f32 %v4, %v4 }
   0x5   : >> { %p9 = scmp.ge.s32.totalorder %s10, 5 /* loop exit test */ }
   0x6   :  {}
   0x7 LB: >> { %v11 = vld [vmem:[%s12] sm:$0xff] }
   0x8 PF: > { %37 = sbr.rel (!%p7) target = $region2 }
   0x9   :  { %38 = vsyncpa [#allocation1], 1 }
"""


@pytest.mark.parametrize(
    ("windows", "turns"),
    [([11, 2], 22), ([43, 1], 22), ([5, 9], 24), ([], 24)],
    ids=["all", "one core's half", "neither", "no windows"],
)
def test_bundles_count_as_often_as_their_loops_turn(windows, turns):
    """The exit of a kernel's own loop comes later than its windows end, by the stages of the pipeline.

    In it: four bundles, one of them empty; three, one empty, five times; one once.
    """
    assert bundles.cycles(KERNEL, windows) == 2 + turns * (4 + 5 * 3 + 1)


def test_a_loop_is_asked_for_its_end_inside_the_loop_that_it_holds():
    """As in kernels of Pallas. The inner loop goes on after a bundle in which later work has begun."""
    listing = """
   0x0 LB: > { %s1 = sadd.s32 1, %s2 }
   0x1 LB: >> { %p3 = scmp.ge.s32.totalorder %s4, 5 /* loop exit test */ }
   0x2   : > { %v6 = vadd.f32 (%p3), %v7, %v8 }
   0x3   : >> { %p9 = scmp.ge.s32.totalorder (%p3), %s1, 7 /* loop exit test */ }
   0x4   : > { %10 = sbr.rel (!%p9) target = $region1 }
"""
    assert bundles.cycles(listing, []) == 7 * (3 + 5 * 2)


def test_the_fullest_unit_of_a_kernel_is_named():
    text = "== CAPACITY:\nVALU, EUP\n    4     1\n== UTILIZATION:\n4 0\n2 1\n0 1\n"
    assert bundles.fullest(text) == "EUP 67%"


SASS = """
.text.kernel:
        /*0000*/                   S2R R1, SR_TID.X ;
        /*0010*/                   LDG.E R2, desc[UR4][R1.64] ;
.L_x_0:
        /*0020*/                   LDG.E.128.CONSTANT R4, desc[UR4][R1.64] ;
        /*0030*/                   LDG.E.U16 R3, desc[UR4][R2.64] ;
        /*0040*/                   FADD R8, R4, R5 ;
        /*0050*/              @!P0 MUFU.EX2 R9, R8 ;
        /*0060*/               @P0 BRA `(.L_x_0) ;
        /*0070*/                   STG.E.64 desc[UR4][R1.64], R8 ;
        /*0080*/                   EXIT ;
.L_x_1:
        /*0090*/                   BRA `(.L_x_1);
        /*00a0*/                   NOP;
"""


@pytest.mark.parametrize("turns", [1, 7])
def test_instructions_count_as_often_as_it_takes_to_move_the_bytes(turns):
    """Each thread moves 12 bytes outside of the loop and 18 in each of its turns; never less than one."""
    found = sass.counts(SASS, 12 + 18 * turns)
    assert found == {
        "issue": 4 + 1 + 5 * turns,
        "XU": 8 * turns,
        "LSU": 4 * (2 + 2 * turns),
        "FMA": turns,
        "IMAD": 0,
        "ALU": 0,
    }
    assert sass.counts(SASS, 0) == sass.counts(SASS, 30)
