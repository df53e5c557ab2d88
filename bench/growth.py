"""`python -m bench growth`: time and memory of value and gradient against rows and against classes.

Both must grow linearly: an exponent of 1 over the two upper decades, where the fixed cost of a call is small.
"""

from argparse import Namespace
from typing import Any, cast

import numpy as np
import pandas as pd

from bench import on_jax
from bench.cases import Case, even
from bench.contenders import BASELINE, OURS, contenders
from bench.results import collect, header
from bench.timing import EFFORT, Effort, interleaved

NAMES = (OURS, BASELINE, "textbook focal")
CLASSES, ROWS = 10, 64  # while the other one grows
LADDERS = {
    "rows": [1_000, 3_162, 10_000, 31_623, 100_000, 316_228, 1_000_000, 3_162_278, 10_000_000],
    "classes": [2, 10, 32, 100, 316, 1_000, 3_162, 10_000, 31_623, 100_000, 316_228, 1_000_000],
}


def main(args: Namespace) -> int:
    """Climbs both ladders and writes the results."""
    effort = EFFORT["quick"] if args.quick else EFFORT[args.device]._replace(seconds=5.0)
    jobs = [(along, size) for along, sizes in LADDERS.items() for size in sizes[: 2 if args.quick else None]]
    result = header("growth", args.device) | {"rows": [], "slopes": []}

    def do(job: tuple[str, int]) -> None:
        result["rows"] += rung(*job, args.device, effort)
        result["slopes"] = slopes(result["rows"])

    collect(args, result, [(f"{size} {along}", (along, size)) for along, size in jobs], do)
    return 0


def rung(along: str, size: int, device: str, effort: Effort) -> list[dict[str, Any]]:
    """The rows of one size."""
    case = Case(along, "", (size, CLASSES) if along == "rows" else (ROWS, size), even, width=1)
    arrays = on_jax.Arrays(case, case.data(), "float32", device)
    found = [c for c in contenders(device, ("optax",))[0] if c.name in NAMES and c.family == "softmax"]
    ready = {c.name: on_jax.ready(c, case, arrays, "value and gradient", 2.0, None) for c in found}
    timings = interleaved({name: r.call for name, r in ready.items()}, effort, BASELINE)
    held = 2 * arrays.logits.nbytes + arrays.labels(found[0]).nbytes  # operands and gradient
    where = {
        "along": along,
        "size": size,
        "fixed": f"{CLASSES} classes" if along == "rows" else f"{ROWS} rows",
    }
    return [
        where
        | {"contender": name, **timing._asdict()}
        | {"temp": ready[name].temp, "memory": held + (ready[name].temp or 0)}
        for name, timing in timings.items()
    ]


def slopes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The exponents: least squares in log-log over the upper two decades of each ladder with two rungs."""
    found, table = [], cast(Any, pd.DataFrame(rows))
    for (along, name), own in table.groupby(["along", "contender"], sort=False):
        upper = own[100 * own["size"] >= own["size"].max()]
        if len(upper) > 1:
            logs = np.log(upper[["size", "seconds", "memory"]].to_numpy())
            time, memory = np.polyfit(logs[:, 0], logs[:, 1:], 1)[0].tolist()
            found.append({"along": along, "contender": name, "time": time, "memory": memory})
    return found
