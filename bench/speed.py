"""`python -m bench speed`: time, memory, compile time and traces, as ratios to the baseline.

Three programs: the value (the mean loss), value and gradient of the logits, and a step: the matmul of the
head, the loss, the gradients of features and kernel, and gradient descent on the donated kernel. Softmax
cases run at gamma 2 without alpha, detection at gamma 2 and alpha 0.25.
"""

import statistics
from argparse import Namespace
from typing import Any

from rich.progress import Progress

from bench import agreement, cases, tables
from bench.cases import Case, Data
from bench.console import progress, say, show
from bench.contenders import BASELINE, Absent, Contender, contenders
from bench.on_jax import PROGRAMS
from bench.results import Writer, header, previous
from bench.timing import EFFORT, interleaved

GAMMA = 2.0
ALPHA = {"softmax": None, "sigmoid": 0.25}
OPTIONS = [(2.0, 0.25), (0.5, 0.75), (5.0, 0.1), (1.0, 1.0)]  # gammas and alphas that should be one trace
FRESH_COMPILES = 5
Rows = list[dict[str, Any]]


def main(args: Namespace) -> int:
    """Measures all cases and writes the results; 1 if some contender computes something else."""
    chosen = [case.small() if args.quick else case.on(args.device) for case in cases.named(args.case)]
    both = args.device == "gpu" and not args.quick
    dtypes = args.dtype or (["float32", "bfloat16"] if both else ["float32"])
    found, absent = contenders(args.device)
    found = [c for c in found if c.family in {case.family for case in chosen}]
    result = header("speed", args.device) | {"absent": [], "agreement": [], "failed": [], "far": []}
    result |= {"rows": [], "compile": []}
    merge(result, previous(args.out, result), chosen, dtypes)
    with Writer(args.out, result, say) as writer, progress() as bar:
        task = bar.add_task("agreement", total=len(chosen) * len(dtypes) + 2)
        found = agree(found, absent, result)
        bar.advance(task)
        for case in chosen:
            data = case.data()
            for dtype in dtypes:
                bar.update(task, description=f"{case.name} {dtype}")
                race(case, data, dtype, args, found, bar, result)
                result["rows"].sort(key=lambda row: cases.NAMES.index(row["case"]))
                bar.advance(task)
                writer.write()
        bar.update(task, description="compile time")
        for family in dict.fromkeys(case.family for case in chosen):
            result["compile"] += compiling(family, args, found)
        result["compile"].sort(key=lambda row: row["family"] != "softmax")
        bar.advance(task)
    show(tables.speed(result))
    for line in complaints(result):
        say(line)
    return int(bool(result["far"]))


def merge(result: dict[str, Any], old: dict[str, Any] | None, chosen: list[Case], dtypes: list[str]) -> None:
    """Takes over what was measured before of other cases, on this machine with these versions."""
    mine = {(case.name, dtype) for case in chosen for dtype in dtypes}
    families = {case.family for case in chosen}
    for key in ("rows", "failed", "far"):
        result[key] = [row for row in (old or {}).get(key, []) if (row["case"], row["dtype"]) not in mine]
    for key in ("compile", "agreement"):
        result[key] = [row for row in (old or {}).get(key, []) if row["family"] not in families]


def agree(found: list[Contender], absent: list[Absent], result: dict[str, Any]) -> list[Contender]:
    """Those that compute what they claim; what `torch.compile` makes is compared in every case instead.

    Raises:
      Disagreement: A contender computes another loss.
    """
    able = []
    for contender in found:
        try:
            if contender.framework == "jax" or not contender.compiled:
                row = {"contender": contender.name, "family": contender.family}
                result["agreement"].append(row | {"difference": agreement.check(contender)})
            able.append(contender)
        except agreement.Disagreement:
            raise
        except Exception as error:  # a kernel that this device or these versions do not run
            absent.append(Absent(f"{contender.name} ({contender.family})", reason(error)))
    result["absent"] = [a._asdict() for a in absent]
    return able


def race(
    case: Case,
    data: Data,
    dtype: str,
    args: Namespace,
    found: list[Contender],
    bar: Progress,
    result: dict[str, Any],
) -> None:
    """Times all programs of all contenders of one case, and the copy, and compares what they compute."""
    effort = EFFORT["quick" if args.quick else args.device]
    racing = [c for c in found if c.family == case.family]
    modules = {c.framework: agreement.on(c) for c in racing}
    arrays = {name: module.Arrays(case, data, dtype, args.device) for name, module in modules.items()}
    size = arrays["jax"].logits.nbytes
    inner = bar.add_task("", total=len(PROGRAMS) * (len(racing) + 1))
    for program in PROGRAMS:
        ready = {}
        for c in racing:
            bar.update(inner, description=f"  {program}: {c.name}")
            try:
                batch, options = arrays[c.framework], (GAMMA, ALPHA[case.family])
                ready[c.name] = modules[c.framework].ready(c, case, batch, program, *options)
            except Exception as error:  # out of memory, or a shape that its kernel does not take
                where = {"case": case.name, "dtype": dtype, "program": program}
                result["failed"].append(where | {"contender": c.name, "reason": reason(error)})
            bar.advance(inner)
        if program == "value and gradient":
            probes = {name: r.probe for name, r in ready.items()}
            able = [c for c in racing if c.name in ready]
            for name, difference in agreement.within_case(probes, able, dtype).items():
                far = {"case": case.name, "dtype": dtype, "contender": name, "difference": difference}
                result["far"].append(far)
        bar.update(inner, description=f"  {program}: timing")
        calls = {name: r.call for name, r in ready.items()}
        if program != "step":
            calls[tables.COPY] = modules["jax"].copy(arrays["jax"])
        for name, timing in interleaved(calls, effort, BASELINE).items():
            row = {"case": case.name, "family": case.family, "shape": list(case.shape), "dtype": dtype}
            row |= {"program": program, "contender": name, **timing._asdict(), "bytes": size}
            temp = ready[name].temp if name in ready else None
            row |= {"temp": None if temp is None else temp / size}
            result["rows"].append(row | {"compiling": ready[name].compiling if name in ready else None})
        bar.advance(inner)
    bar.remove_task(inner)


def compiling(family: str, args: Namespace, found: list[Contender]) -> Rows:
    """Seconds to compile value and gradient of the first case, fresh each time, and the number of traces."""
    case = next(c for c in cases.CASES if c.family == family)
    case, repeats = (case.small(), 1) if args.quick else (case, FRESH_COMPILES)
    racing = [c for c in found if c.family == family]
    jaxes, options = [c for c in racing if c.framework == "jax"], (GAMMA, ALPHA[family])
    data, modules = case.data(), {c.framework: agreement.on(c) for c in racing}
    arrays = {name: module.Arrays(case, data, "float32", args.device) for name, module in modules.items()}
    seconds: dict[str, list[float]] = {c.name: [] for c in jaxes}
    for _ in range(repeats):
        for c in jaxes:
            seconds[c.name].append(modules["jax"].compile_seconds(c, case, arrays["jax"], *options))
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    base, rows = medians.get(BASELINE), []
    for c in racing:
        median, able = medians.get(c.name), c.focal and not c.cuda
        traces = modules[c.framework].traces(c, case, arrays[c.framework], OPTIONS) if able else None
        row = {"family": family, "contender": c.name, "seconds": median, "traces": traces}
        rows.append(row | {"ratio": median / base if median and base else None, "options": len(OPTIONS)})
    return rows


def reason(error: Exception) -> str:
    """The first line of an error."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]


def complaints(result: dict[str, Any]) -> list[str]:
    """Whoever was not measured, and whoever computes something else."""
    lines = [f"absent: {a['name']} ({a['reason']})" for a in result["absent"]]
    for row in result["failed"]:
        lines.append(
            f"failed: {row['contender']}, {row['program']} of {row['case']} {row['dtype']} ({row['reason']})"
        )
    for row in result["far"]:
        lines.append(
            f"DISAGREES: {row['contender']} in {row['case']} {row['dtype']} by {row['difference']:.1e}"
        )
    return lines
