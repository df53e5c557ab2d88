"""`python -m bench pictures`: pictures whose channels come first, over the numbers of classes and of pixels.

The ratios are to the faster of two spellings of Optax' cross-entropy: with the class axis moved, and not.
"""

from argparse import Namespace
from itertools import product
from typing import Any

from bench import on_jax
from bench.cases import Case, regions
from bench.contenders import BASELINE, IN_PLACE, OURS, contenders, spelled
from bench.on_jax import PROGRAMS
from bench.results import collect, header
from bench.timing import EFFORT, interleaved

CLASSES = (2, 4, 8, 16, 32, 64)
SIDES = (64, 128, 256, 512, 1024)  # of one picture


def main(args: Namespace) -> int:
    """Measures every cell and writes the results."""
    effort = EFFORT["quick"] if args.quick else EFFORT[args.device]._replace(seconds=2.0)
    result = header("pictures", args.device) | {"rows": []}
    sizes = list(product(SIDES, CLASSES))[: 2 if args.quick else None]
    jobs = [
        (f"{classes} classes, {side} x {side}, {p}", (classes, side, p))
        for side, classes in sizes
        for p in PROGRAMS[:2]
    ]

    def do(job: tuple[int, int, str]) -> None:
        classes, side, program = job
        case = Case("picture", "", (1, classes, side, side), regions, axis=1, width=1)
        arrays = on_jax.Arrays(case, case.data(), "float32", args.device)
        found = [c for c in contenders(args.device, ("optax",))[0] if c.family == "softmax"]
        found = spelled(c for c in found if c.name in (OURS, BASELINE))
        calls = {c.name: on_jax.ready(c, case, arrays, program, 2.0, None).call for c in found}
        seconds = {name: timing.seconds for name, timing in interleaved(calls, effort, BASELINE).items()}
        ratio = seconds[OURS] / min(seconds[BASELINE], seconds[IN_PLACE])
        where: dict[str, Any] = {"classes": classes, "side": side, "program": program}
        result["rows"].append(where | {"ratio": ratio, "seconds": seconds})

    collect(args, result, jobs, do)
    return 0
