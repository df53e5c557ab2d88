"""`python -m bench speed`: time, memory, compile time and traces, as ratios to the baseline.

Three programs: the value (the mean loss), value and gradient of the logits, and a step: the matmul of the
head, the loss, the gradients of features and kernel, and gradient descent on the donated kernel.
"""

import collections
import functools
import itertools
import statistics
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import jax

from bench import agreement, cases, on_jax
from bench.cases import Case
from bench.contenders import BASELINE, COPY, Absent, Contender, contenders, reason, spelled, textbook_dense
from bench.on_jax import PROGRAMS, Ready
from bench.results import collect, header, previous, say
from bench.tables import FAILED, GRADIENT
from bench.timing import EFFORT, interleaved

GAMMA = 2.0
ALPHA = {"softmax": None, "sigmoid": 0.25}
OPTIONS = [(2.0, 0.25), (0.5, 0.75), (5.0, 0.1), (1.0, 1.0)]  # gammas and alphas that should be one trace
FRESH_COMPILES = 5
COMPILE = "compile time"


def main(args: Namespace) -> int:
    """Measures all cases and writes the results; 1 if some contender computes something else."""
    chosen = [case.small() if args.quick else case.on(args.device) for case in cases.named(args.case)]
    both = args.device == "gpu" and not args.quick
    dtypes = args.dtype or ["float32", "bfloat16"][: 1 + both]
    found, absent = contenders(args.device)
    found.insert(3, Contender("textbook focal, dense labels", textbook_dense, indices=False))
    found = [c for c in found if c.family in {case.family for case in chosen}]
    result = header("speed", args.device) | {"absent": []}
    merge(result, previous(args.out, result), chosen, dtypes)
    found = agree(found, absent, result)

    @functools.lru_cache(maxsize=1)  # the three programs of a case come one after the other
    def batch(case: Case, dtype: str) -> Batch:
        return Batch(case, dtype, args, found)

    def do(job: tuple[Case, str, str]) -> None:
        case, dtype, program = job
        if program == COMPILE:
            compiling(batch(case, dtype), 1 if args.quick else FRESH_COMPILES, result)
        else:
            race(batch(case, dtype), program, result)
        result["rows"].sort(key=lambda row: cases.NAMES.index(row["case"]))
        result["compile"].sort(key=lambda row: row["family"] != "softmax")

    collect(args, result, jobs(chosen, dtypes, args.quick), do)
    forms = {"absent": "absent: {name} ({reason})", "failed": FAILED, "far": agreement.DISAGREES}
    for line in (form.format(**row) for key, form in forms.items() for row in result[key]):
        say(line)
    return int(bool(result["far"]))


def jobs(chosen: list[Case], dtypes: list[str], quick: bool) -> Iterator[tuple[str, tuple[Case, str, str]]]:
    """Every program of the cases, then compiling the first case of each family."""
    first = {case.family: case.small() if quick else case for case in reversed(cases.CASES)}
    families = dict.fromkeys(case.family for case in chosen)
    compiled = ((first[family], "float32", COMPILE) for family in families)
    for case, dtype, words in itertools.chain(itertools.product(chosen, dtypes, PROGRAMS), compiled):
        yield f"{case.name} {dtype}, {words}", (case, dtype, words)


def merge(result: dict[str, Any], old: dict[str, Any], chosen: list[Case], dtypes: list[str]) -> None:
    """Takes over what was measured before of other cases, on this machine with these versions."""
    mine = {(case.name, dtype) for case in chosen for dtype in dtypes}
    families = {case.family for case in chosen}
    for key in ("agreement", "compile"):
        result[key] = [row for row in old.get(key, []) if row["family"] not in families]
    for key in ("failed", "far", "rows"):
        result[key] = [row for row in old.get(key, []) if (row["case"], row["dtype"]) not in mine]


def agree(found: list[Contender], absent: list[Absent], result: dict[str, Any]) -> list[Contender]:
    """Those that compute what they claim; what `torch.compile` makes is compared in every case instead.

    Raises:
      Disagreement: A contender computes another loss.
    """
    able = []
    for c in found:
        try:
            if c.framework == "jax" or not c.compiled:
                row = {"contender": c.name, "family": c.family, "difference": agreement.check(c)}
                result["agreement"].append(row)
            able.append(c)
        except agreement.Disagreement:
            raise
        except Exception as error:  # a kernel that this device or these versions do not run
            absent.append(Absent(f"{c.name} ({c.family})", reason(error)))
    result["absent"] = [a._asdict() for a in absent]
    return able


class Batch:
    """One case in one dtype on the device, and who computes it."""

    def __init__(self, case: Case, dtype: str, args: Namespace, found: list[Contender]):
        """Makes the arrays of each framework."""
        self.case, self.dtype, data = case, dtype, case.data()
        self.effort = EFFORT["quick" if args.quick else args.device]
        found = [c for c in found if c.family == case.family]
        self.racing = found if case.axis == -1 else spelled(found)
        self.modules = {c.framework: agreement.on(c) for c in self.racing}
        self.arrays = {name: m.Arrays(case, data, dtype, args.device) for name, m in self.modules.items()}

    def ready(self, c: Contender, program: str) -> Ready:
        """One program of a contender."""
        made, arrays = self.modules[c.framework].ready, self.arrays[c.framework]
        return made(c, self.case, arrays, program, GAMMA, ALPHA[self.case.family])


def race(one: Batch, program: str, result: dict[str, Any]) -> None:
    """Times one program of all contenders of a case, and the copy, and compares what they compute."""
    ready, case = {}, one.case
    where = {"case": case.name, "dtype": one.dtype}
    for c in one.racing:
        try:
            ready[c.name] = one.ready(c, program)
        except Exception as error:  # out of memory, or a shape that its kernel does not take
            failed = {"program": program, "contender": c.name, "reason": reason(error)}
            result["failed"].append(where | failed)
    if program == GRADIENT:
        able = [c for c in one.racing if c.name in ready]
        probes = {name: r.probe for name, r in ready.items()}
        for name, difference in agreement.within_case(probes, able, one.dtype).items():
            result["far"].append(where | {"contender": name, "difference": difference})
    size = one.arrays["jax"].logits.nbytes
    if program != "step":
        ready[COPY] = on_jax.copy(one.arrays["jax"])
    timings = interleaved({name: r.call for name, r in ready.items()}, one.effort, BASELINE)
    for name, timing in timings.items():
        row = {"case": case.name, "family": case.family, "shape": list(case.shape), "dtype": one.dtype}
        row |= {"program": program, "contender": name, **timing._asdict(), "bytes": size}
        temp = ready[name].temp
        row |= {"temp": None if temp is None else temp / size, "compiling": ready[name].compiling}
        result["rows"].append(row)


def compiling(one: Batch, repeats: int, result: dict[str, Any]) -> None:
    """Seconds to compile value and gradient, fresh each time, and the number of traces."""
    seconds = collections.defaultdict(list)
    for _ in range(repeats):
        for c in (c for c in one.racing if c.framework == "jax"):
            jax.clear_caches()
            seconds[c.name].append(one.ready(c, GRADIENT).compiling)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    base = medians.get(BASELINE)
    for c in one.racing:
        median, traces = medians.get(c.name), one.modules[c.framework].traces
        able = c.focal and not c.cuda
        row = {"family": c.family, "contender": c.name, "seconds": median}
        row |= {"traces": traces(c, one.case, one.arrays[c.framework], OPTIONS) if able else None}
        row |= {"ratio": median / base if median and base else None, "options": len(OPTIONS)}
        result["compile"].append(row)
