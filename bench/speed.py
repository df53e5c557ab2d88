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
from bench.cases import Case
from bench.console import progress, say, show
from bench.contenders import BASELINE, Contender, contenders
from bench.on_jax import PROGRAMS
from bench.results import Writer, header
from bench.timing import EFFORT, Effort, interleaved

GAMMA = 2.0
ALPHA = {"softmax": None, "sigmoid": 0.25}
COPY = "copy of the logits"
OPTIONS = [(2.0, 0.25), (0.5, 0.75), (5.0, 0.1), (1.0, 1.0)]  # gammas and alphas that should be one trace
FRESH_COMPILES = 5


def main(args: Namespace) -> int:
    """Measures all cases and writes the results; 1 if some contender computes something else."""
    chosen = [case.small() if args.quick else case.on(args.device) for case in cases.named(args.case)]
    effort = EFFORT["quick" if args.quick else args.device]
    dtypes = args.dtype or (
        ["float32", "bfloat16"] if args.device == "gpu" and not args.quick else ["float32"]
    )
    found, absent = contenders(args.device)
    found = [c for c in found if c.family in {case.family for case in chosen}]
    result = header("speed", args.device) | {"absent": [a._asdict() for a in absent]}
    result |= {"agreement": [], "rows": [], "compile": [], "far": []}
    for contender in absent:
        say(f"absent: {contender.name} ({contender.reason})")
    with Writer(args.out, result, say) as writer, progress() as bar:
        task = bar.add_task("agreement", total=len(chosen) * len(dtypes) + 2)
        result["agreement"] = agree(found)
        bar.advance(task)
        for case in chosen:
            for dtype in dtypes:
                bar.update(task, description=f"{case.name} {dtype}")
                result["rows"] += measure(case, dtype, args.device, found, effort, bar, result["far"])
                bar.advance(task)
                writer.write()
        bar.update(task, description="compile time")
        for family in sorted({case.family for case in chosen}, reverse=True):
            result["compile"] += compiling(family, args.device, found, args.quick)
        bar.advance(task)
    show(tables.speed(result))
    for far in result["far"]:
        say(f"DISAGREES: {far['contender']} in {far['case']} {far['dtype']}: {far['difference']:.1e}")
    return int(bool(result["far"]))


def agree(found: list[Contender]) -> list[dict[str, Any]]:
    """The difference of each to the oracle; what `torch.compile` makes is compared in every case instead."""
    checked = [c for c in found if c.framework == "jax" or not c.compiled]
    return [{"contender": c.name, "family": c.family, "difference": agreement.check(c)} for c in checked]


def measure(
    case: Case,
    dtype: str,
    device: str,
    found: list[Contender],
    effort: Effort,
    bar: Progress,
    far: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """The rows of one case: all programs of all contenders, and the copy."""
    racing = [c for c in found if c.family == case.family]
    data = case.data()
    frameworks = {c.framework: agreement.on(c) for c in racing}
    arrays = {name: module.Arrays(case, data, dtype, device) for name, module in frameworks.items()}
    size = arrays["jax"].logits.nbytes
    rows, probes = [], {}
    inner = bar.add_task("", total=len(PROGRAMS) * (len(racing) + 1))
    for program in PROGRAMS:
        calls, known = {}, {}
        for contender in racing:
            bar.update(inner, description=f"  {program}: {contender.name}")
            module, batch = frameworks[contender.framework], arrays[contender.framework]
            ready = module.ready(contender, case, batch, program, GAMMA, ALPHA[case.family])
            calls[contender.name], known[contender.name] = ready.call, ready
            if ready.probe is not None:
                probes[contender.name] = ready.probe
            bar.advance(inner)
        if program == "value and gradient":
            differing = agreement.within_case(probes, racing, dtype)
            far += [
                {"case": case.name, "dtype": dtype, "contender": name, "difference": difference}
                for name, difference in differing.items()
            ]
        if program != "step":
            calls[COPY] = frameworks["jax"].copy(arrays["jax"])
        bar.update(inner, description=f"  {program}: timing")
        timings = interleaved(calls, effort, BASELINE)
        bar.advance(inner)
        for name, timing in timings.items():
            temp = known[name].temp if name in known else None
            rows.append(
                {
                    "case": case.name,
                    "family": case.family,
                    "shape": list(case.shape),
                    "dtype": dtype,
                    "program": program,
                    "contender": name,
                    **timing._asdict(),
                    "temp": None if temp is None else temp / size,
                    "bytes": size,
                    "compiling": known[name].compiling if name in known else None,
                }
            )
    bar.remove_task(inner)
    return rows


def compiling(family: str, device: str, found: list[Contender], quick: bool) -> list[dict[str, Any]]:
    """Seconds to compile value and gradient of the first case, fresh each time, and the number of traces."""
    case = next(c for c in cases.CASES if c.family == family)
    case, repeats = (case.small(), 1) if quick else (case, FRESH_COMPILES)
    data, rows = case.data(), []
    racing = [c for c in found if c.family == family]
    arrays = {
        name: agreement.on(c).Arrays(case, data, "float32", device) for c in racing for name in (c.framework,)
    }
    jaxes = [c for c in racing if c.framework == "jax"]
    seconds: dict[str, list[float]] = {c.name: [] for c in jaxes}
    for _ in range(repeats):
        for c in jaxes:
            options = (GAMMA, ALPHA[family])
            seconds[c.name].append(agreement.on(c).compile_seconds(c, case, arrays["jax"], *options))
    base = statistics.median(seconds[BASELINE]) if BASELINE in seconds else None
    for c in racing:
        median = statistics.median(seconds[c.name]) if c.name in seconds else None
        counted = agreement.on(c).traces(c, case, arrays[c.framework], OPTIONS) if c.focal else None
        rows.append(
            {
                "family": family,
                "contender": c.name,
                "seconds": median,
                "ratio": median / base if median and base else None,
                "traces": counted,
                "options": len(OPTIONS),
            }
        )
    return rows
