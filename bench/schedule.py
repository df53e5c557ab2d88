"""`python -m bench schedule`: how long compiled programs should take, from their schedules, without hardware.

A kernel takes the longest of three times: its bytes at the bandwidth of the chip, its flops of matmuls at its
peak, and the clocks that its instructions need to be issued. A program takes the sum over its kernels. What
that leaves out stands in README.md. A copy, a sum and a sum of exponentials test the estimate.
"""

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

import focaljax
from bench import bundles, compiled, hlo, linear, sass, tables
from bench.console import progress, say, show
from bench.contenders import Contender, contenders, smoothed
from bench.results import COMPILERS, Writer, header, previous

PACKAGES = (*COMPILERS, "tokamax", "nvidia-cuda-nvcc", "nvidia-cuda-nvdisasm")


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
SHAPES = {name: compiled.SHAPES[name] for name in ("rows", "head", "vocabulary", "pixels", "detection")}
SHAPES["linear"] = (linear.LARGE, -1)  # rows, features, classes
NAMES = tuple(SHAPES)
DTYPES = ("float32", "bfloat16")
SMALL = 0.02  # of a program's bytes: a kernel of a GPU that moves less costs what it moves; nvdisasm is slow
KEY = ("case", "chip", "dtype", "contender", "program")
TESTS: dict[str, Callable] = {  # of the estimate, along the class axis: 2 passes, 1 and 1
    "copy": lambda z, axis: -z,
    "sum": lambda z, axis: jnp.sum(z, axis, dtype="float32"),
    "sum of exponentials": lambda z, axis: jnp.sum(jnp.exp(z.astype("float32")), axis),
}


def positives(z: Any, y: Any, gamma: Any, axis: int, alpha: Any = None) -> jax.Array:
    """Ours, of independent labels, one of them positive."""
    return focaljax.sigmoid_focal_loss_with_integer_labels(z, y, gamma=gamma, alpha=alpha, axis=axis)


def racing(case: str) -> list[Contender]:
    """The losses of a case; of the vocabulary those of class indices only, as the others are as in rows."""
    found, _ = contenders(libraries=("optax",))
    if case == "detection":
        found.insert(3, Contender("focaljax, integer labels", positives, family="sigmoid"))
        return [c for c in found if c.family == "sigmoid"]
    found = [c for c in found if c.family == "softmax"]
    found.insert(1, Contender("focaljax, smoothed", smoothed))
    return [c for c in found if c.name in compiled.ENOUGH] if case == "vocabulary" else found


def jobs() -> Iterator[tuple[dict[str, str], Callable, tuple[jax.ShapeDtypeStruct, ...]]]:
    """Every cell of the tables: what it is called, the program and its operands."""
    layers, _ = linear.contenders()
    layers.pop(linear.MOSAIC, None)  # what a kernel of Pallas moves the compiler does not know
    for chip in CHIPS:
        for dtype in DTYPES:
            for case, (shape, axis) in list(SHAPES.items())[:-1]:
                where = {"case": case, "chip": chip, "dtype": dtype}
                for name, test in TESTS.items():
                    logits = jax.ShapeDtypeStruct(shape, dtype)
                    yield where | {"contender": name, "program": "value"}, partial(test, axis=axis), (logits,)
                for c in racing(case):
                    for program in tables.PASSES:
                        options = {"indices": c.indices, "gradient": program != "value"}
                        made = compiled.program_of(c.loss, shape, axis, dtype, **options)
                        yield where | {"contender": c.name, "program": program}, *made
        where = {"case": "linear", "chip": chip, "dtype": "bfloat16", "program": "value and gradient"}
        for name, loss in layers.items():
            yield where | {"contender": name}, linear.both(loss), linear.operands(linear.LARGE, "bfloat16")


def estimate(
    f: Callable, operands: tuple[jax.ShapeDtypeStruct, ...], chip: str, folder: Path
) -> dict[str, Any]:
    """Milliseconds of a program, of each of its three times alone, and of the kernels that matter.

    The environment must be as `dumping` makes it.

    Raises:
      KeyError: A compiler did not write the schedule of a kernel.
      Unavailable: As `bench.compiled.measure`.
      FileNotFoundError: NVIDIA's tools are not installed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    options = {} if chip[0] == "v" else sass.OPTIONS | {"xla_dump_to": str(folder)}
    module = hlo.parse(compiled.text_of(compiled.compile(f, operands, chip, **options), chip))
    runs = list(hlo.traffic_of_kernels(module))
    small = SMALL * sum(times * bytes for _, times, bytes in runs)
    schedule = sass.Schedule(folder) if options else bundles.Schedule(folder)
    peak, kernels = CHIPS[chip], []
    for op, times, bytes in runs:
        clocks, unit = (0, "") if options and times * bytes < small else schedule.of(op, bytes)
        parts = {"bytes": bytes / peak.bandwidth, "matmul": hlo.flops(module, op) / peak.flops}
        issued = peak.issue if options else 1  # a TPU's core has all its bundles
        parts["issue"] = clocks / peak.clock / issued
        kernels.append((f"{times} x {op.name}", {part: 1e3 * times * s for part, s in parts.items()}, unit))
    total = {part: sum(parts[part] for _, parts, _ in kernels) for part in ("bytes", "matmul", "issue")}
    total["ms"] = sum(max(parts.values()) for _, parts, _ in kernels)
    total["unissued"] = sum(max(parts["bytes"], parts["matmul"]) for _, parts, _ in kernels)
    words = [
        f"{name}: {', '.join(f'{part} {ms:.4f}' for part, ms in parts.items() if ms)} {unit}".strip()
        for name, parts, unit in kernels
        if max(parts.values()) > 0.05 * total["ms"]
    ]
    return {part: round(ms, 5) for part, ms in total.items()} | {"kernels": words}


def dumping(folder: Path) -> None:
    """Has libtpu, which must not be loaded yet, write its schedules into a folder."""
    flags = os.environ.get("LIBTPU_INIT_ARGS", "")
    os.environ["LIBTPU_INIT_ARGS"] = f"{flags} {bundles.FLAGS.format(folder)}"


def unit(case: str, chip: str, dtype: str) -> float:
    """Milliseconds of one pass over the logits; in the linear case of three matmuls."""
    count, peak = math.prod(SHAPES[case][0]), CHIPS[chip]
    return 1e3 * (
        6 * count / peak.flops if case == "linear" else count * jnp.dtype(dtype).itemsize / peak.bandwidth
    )


def cell(key: dict[str, str], f: Callable, operands: tuple, folder: Path) -> dict[str, Any]:
    """One row of the results."""
    row = key | {"shape": list(SHAPES[key["case"]][0]), "unit": unit(key["case"], key["chip"], key["dtype"])}
    try:
        return row | estimate(f, operands, key["chip"], folder)
    except (compiled.Unavailable, FileNotFoundError) as error:
        return row | {"failed": str(error)}
    except KeyError as error:
        return row | {"failed": f"{key['chip']}: its compiler wrote no schedule of {error}"}
    except jax.errors.JaxRuntimeError as error:  # mostly: more memory than the device has
        return row | {"failed": f"{key['chip']}: {str(error).splitlines()[0]}"}


def chosen(key: dict[str, str], args: Namespace) -> bool:
    """Whether the command line asks for this cell."""
    asked = all(key[name] in (getattr(args, name) or [key[name]]) for name in ("case", "chip", "dtype"))
    quick = key["case"] == "rows" and key["contender"] in (*TESTS, "focaljax")
    return asked and (quick or not args.quick)


def main(args: Namespace) -> int:
    """Compiles what is asked for and writes the results; a run that was stopped goes on where it was."""
    chips = {name: chip._asdict() for name, chip in CHIPS.items()}
    result = header("schedule", packages=PACKAGES) | {"chips": chips, "rows": []}
    every = list(jobs())
    old, stopped = previous(args.out, result), previous(args.out, result, partial=True)
    found = {_id(row): row for row in (old or {"rows": []})["rows"] if not chosen(row, args)}
    found |= {_id(row): row for row in (stopped or {"rows": []})["rows"]}
    todo = [job for job in every if chosen(job[0], args) and _id(job[0]) not in found]

    def in_order():
        return [found[_id(key)] for key, *_ in every if _id(key) in found]

    result["rows"] = in_order()
    with tempfile.TemporaryDirectory() as folder, Writer(args.out, result, say) as writer, progress() as bar:
        dumping(Path(folder))
        task = bar.add_task("", total=len(todo))
        for key, f, operands in todo:
            bar.update(task, description=" ".join(_id(key)))
            found[_id(key)] = cell(key, f, operands, Path(folder))
            result["rows"] = in_order()
            bar.advance(task)
            writer.write()
    show(tables.schedule(result))
    return 0


def _id(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(row[name] for name in KEY)
