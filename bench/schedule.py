"""`python -m bench schedule`: how long compiled programs should take, from their schedules, without hardware.

A kernel takes the longest of three times: its bytes at the bandwidth of the chip, its flops of matmuls at its
peak, and the clocks to issue its instructions. A program takes the sum over its kernels.
"""

import itertools
import math
import os
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pandas as pd

import focaljax
from bench import bundles, compiled, hlo, kept_row, sass
from bench.contenders import SMOOTHED, Contender, contenders, ours
from bench.results import COMPILERS, DISASSEMBLERS, collect, header, previous
from bench.tables import GRADIENT, PASSES

PACKAGES = (*COMPILERS, *DISASSEMBLERS)


class Chip(NamedTuple):
    """What it does in a second and in a clock; the table in README.md has the sources."""

    bandwidth: float
    flops: float  # bfloat16
    clock: float
    issue: int


CHIPS = {
    "v5e": Chip(819e9, 197e12, 1.50e9, 1),
    "v5p": Chip(2765e9, 459e12, 1.75e9, 2),
    "v6e": Chip(1640e9, 918e12, 1.75e9, 1),
    "h100": Chip(3350e9, 989e12, 1.83e9, 4 * 132),
    "h200": Chip(4800e9, 989e12, 1.83e9, 4 * 132),
}
NAMES = ("rows", "head", "vocabulary", "pixels", "detection")
DTYPES = ("float32", "bfloat16")
KEPT = Contender("Pallas, keeps the row", lambda z, y, gamma, axis: kept_row.mean(z, y, gamma))
SMALL = 0.02  # of a program's bytes: a kernel that moves less costs what it moves, if its schedule skips it
KEY = ("case", "chip", "dtype", "contender", "program")
TESTS: dict[str, Callable] = {  # of the estimate, along the class axis: 2 passes, 1 and 1
    "copy": lambda z, axis: -z,
    "sum": lambda z, axis: jnp.sum(z, axis, dtype="float32"),
    "sum of exponentials": lambda z, axis: jnp.sum(jnp.exp(z.astype("float32")), axis),
}


def racing(case: str, chip: str) -> list[Contender]:
    """The losses of a case; of the vocabulary those of class indices only, as the others are as in rows.

    A GPU cannot keep a row of the vocabulary.
    """
    found, _ = contenders(libraries=("optax",))
    if case == "detection":
        positives = ours(focaljax.sigmoid_focal_loss_with_integer_labels)
        found.insert(3, Contender("focaljax, integer labels", positives, family="sigmoid"))
        return [c for c in found if c.family == "sigmoid"]
    found = [c for c in found if c.family == "softmax"]
    found.insert(1, SMOOTHED)
    if case == "vocabulary":
        found = [c for c in found if c.name in compiled.ENOUGH]
    kept = case in ("rows", "head") or (case == "vocabulary" and chip[0] == "v")
    return found + [KEPT] * kept


def jobs() -> Iterator[tuple[dict[str, str], Callable, tuple[jax.ShapeDtypeStruct, ...]]]:
    """Every cell of the tables: what it is called, the program and its operands."""
    for chip, dtype, case in itertools.product(CHIPS, DTYPES, NAMES):
        where, (shape, axis) = {"case": case, "chip": chip, "dtype": dtype}, compiled.SHAPES[case]
        logits = jax.ShapeDtypeStruct(shape, dtype)
        for name, test in TESTS.items():
            yield where | {"contender": name, "program": "value"}, partial(test, axis=axis), (logits,)
        for c, program in itertools.product(racing(case, chip), PASSES):
            options = {"indices": c.indices, "gradient": program == GRADIENT}
            made = compiled.program_of(c.loss, shape, axis, dtype, **options)
            yield where | {"contender": c.name, "program": program}, *made


def estimate(f: Callable, operands: tuple, chip: str, folder: Path) -> dict[str, Any]:
    """Milliseconds of a program, of each of its three times alone, and of the kernels that matter.

    The environment must be as `dumping` makes it.

    Raises:
      KeyError, FileNotFoundError, Unavailable: A schedule, NVIDIA's tools or a compiler are missing.
    """
    return of_program(dumped(f, operands, chip, folder), chip, folder)


def dumped(f: Callable, operands: tuple, chip: str, folder: Path) -> jax.stages.Compiled:
    """A compiled program whose schedule, and no other, is in the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    options = {} if chip[0] == "v" else sass.OPTIONS | {"xla_dump_to": str(folder)}
    return compiled.compile(f, operands, chip, **options)


def of_program(
    program: jax.stages.Compiled, chip: str, folder: Path, turns: int | None = None
) -> dict[str, Any]:
    """The `estimate` of what is in the folder; a loop of unknown length has so many turns."""
    module, gpu = hlo.parse(compiled.text_of(program, chip)), chip[0] == "h"
    runs = list(hlo.traffic_of_kernels(module, turns))
    small = SMALL * sum(times * bytes for _, times, bytes in runs)
    schedule = sass.Schedule(folder) if gpu else bundles.Schedule(folder)
    peak, names, kernels = CHIPS[chip], [], []
    for op, times, bytes in runs:
        skipped = times * bytes < small and schedule.skips(op)
        clocks, unit = (0, "") if skipped else schedule.of(op, bytes)
        issued = clocks / (peak.issue if gpu else 1)  # a TPU's core has all its bundles
        parts = bytes / peak.bandwidth, hlo.flops(module, op) / peak.flops, issued / peak.clock
        names.append((f"{times} x {op.name}", unit))
        kernels.append([1e3 * times * seconds for seconds in parts])
    table = pd.DataFrame(kernels, columns=["bytes", "matmul", "issue"])
    longest, unissued = table.max(axis=1), table[["bytes", "matmul"]].max(axis=1).sum()
    total = {**table.sum(), "ms": longest.sum(), "unissued": unissued}
    words = []
    for i in table.index[longest > 0.05 * total["ms"]]:
        parts = ", ".join(f"{part} {ms:.4f}" for part, ms in table.loc[i].items() if ms)
        words.append(f"{names[i][0]}: {parts} {names[i][1]}".strip())
    return {part: round(float(ms), 5) for part, ms in total.items()} | {"kernels": words}


def dumping(folder: Path) -> None:
    """Has libtpu, which must not be loaded yet, write its schedules into a folder."""
    flags = os.environ.get("LIBTPU_INIT_ARGS", "")
    os.environ["LIBTPU_INIT_ARGS"] = f"{flags} {bundles.FLAGS.format(folder)}"


def cell(key: dict[str, str], f: Callable, operands: tuple, folder: Path) -> dict[str, Any]:
    """One row of the results; the unit is one pass over the logits."""
    shape, _ = compiled.SHAPES[key["case"]]
    seconds = math.prod(shape) * jnp.dtype(key["dtype"]).itemsize / CHIPS[key["chip"]].bandwidth
    row = key | {"shape": list(shape), "unit": 1e3 * seconds}
    return compiled.attempt(row, key["chip"], lambda: estimate(f, operands, key["chip"], folder))


def chosen(key: dict[str, str], args: Namespace) -> bool:
    """Whether the command line asks for this cell."""
    asked = all(key[name] in (getattr(args, name) or [key[name]]) for name in ("case", "chip", "dtype"))
    quick = key["case"] == "rows" and key["contender"] in (*TESTS, "focaljax")
    return asked and (quick or not args.quick)


def main(args: Namespace) -> int:
    """Compiles what is asked for and writes the results; a run that was stopped goes on where it was."""
    chips = {name: chip._asdict() for name, chip in CHIPS.items()}
    result = header("schedule", packages=PACKAGES) | {"chips": chips, "rows": []}
    old, stopped = (previous(args.out, result, partial).get("rows", []) for partial in (False, True))
    found = {_id(row): row for row in [*(row for row in old if not chosen(row, args)), *stopped]}
    every = {_id(key): (key, *made) for key, *made in jobs()}
    todo = [(" ".join(i), job) for i, job in every.items() if chosen(job[0], args) and i not in found]
    result["rows"] = [found[i] for i in every if i in found]
    with tempfile.TemporaryDirectory() as folder:

        def do(job: tuple[dict[str, str], Callable, tuple]) -> None:
            found[_id(job[0])] = cell(*job, Path(folder))
            result["rows"] = [found[i] for i in every if i in found]

        dumping(Path(folder))
        collect(args, result, todo, do)
    return 0


def _id(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(row[name] for name in KEY)
