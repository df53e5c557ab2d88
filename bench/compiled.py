"""`python -m bench compiled`: what the compiled programs move, store and run, without the hardware.

The wheels of TPUs and GPUs hold the real compilers. On TPUs XLA's own cost analysis knows the bytes (with the
padding of tiles); for GPUs it has none, so the operands and results of the kernels are added up from the
optimised HLO. One pass is one read or write of an array of the size of the logits.
"""

import functools
import importlib.metadata
import itertools
import os
import re
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from bench import hlo
from bench.cases import Shape
from bench.contenders import SMOOTHED, Contender, contenders
from bench.results import COMPILERS, collect, header

CONFIGS = Path(__file__).parent / "targets"
TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "h100": "1x1x1", "h200": "1x1x1"}
TARGETS = ("v5e", "v5p", "v6e", "h200")  # to XLA an H100 is an H200 with less and slower memory
WHEELS = {name: "jax-cuda13-plugin" if name[0] == "h" else "libtpu" for name in TOPOLOGIES}


class Unavailable(Exception):
    """The compiler of a target cannot be used here; the message says why."""


class Program(NamedTuple):
    """What one call of a compiled program costs; `passes` and `temp` in units of the logits."""

    passes: float
    temp: float
    kernels: int  # that read or write an array of logits size
    stored: int  # arrays of logits size that are written and are no result
    loops: int  # on TPUs the body of a loop is counted once: `passes` is then a lower bound
    forbidden: tuple[str, ...]  # operations of hlo.FORBIDDEN on arrays of logits size, inside kernels too
    text: str  # the optimised HLO


def compile(f: Callable, operands: Sequence[jax.ShapeDtypeStruct], target: str, **options: Any) -> Any:
    """`f` compiled for one device of `target`, with options of its compiler.

    Raises:
      Unavailable: The wheel with the compiler of `target` is missing or does not fit this JAX.
    """
    sharding = place(target)
    given = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in operands]
    here = next(iter(sharding.device_set)) if WHEELS[target] == "libtpu" else None
    with jax.default_device(here):  # a kernel of Pallas asks which TPU it is for
        return jax.jit(f).lower(*given).compile(compiler_options=options or None)


def text_of(program: jax.stages.Compiled, target: str) -> str:
    """The optimised HLO of a compiled program.

    Raises:
      Unavailable: This jaxlib cannot read the program, as one of a much newer compiler.
    """
    try:
        text = program.as_text()
    except jax.errors.JaxRuntimeError as error:
        wheel, why = WHEELS[target], str(error).splitlines()[0]
        have, want = importlib.metadata.version(wheel), wanted(wheel)
        words = f"wants {want} and cannot read a program of {wheel} {have}: {why}"
        raise Unavailable(f"{target}: jax {jax.__version__} {words}") from error
    assert text is not None
    return text


def wanted(wheel: str) -> str:
    """The version of a wheel that this JAX asks for in its extras, such as "libtpu==0.0.42.*"."""
    asked = (line.partition(";")[0].strip() for line in importlib.metadata.requires("jax") or ())
    return next((line for line in asked if re.split(r"[^\w.-]", line)[0] == wheel), f"no {wheel}")


@functools.cache
def place(target: str) -> SingleDeviceSharding:
    """On one device of `target`, to compile for it."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to ask
    if os.environ.get("JAX_PLATFORMS") == "cpu":  # no TPU to fight for: parallel tests may all compile
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    wheel, options = WHEELS[target], {"topology_name": TOPOLOGIES[target], "platform": "tpu"}
    if wheel != "libtpu":
        options = {"topology_name": target, "topology": TOPOLOGIES[target], "platform": "cuda"}
        options["target_config"] = (CONFIGS / f"{target}.txtpb").read_text()
    try:
        importlib.metadata.version(wheel)
        return SingleDeviceSharding(topologies.get_topology_desc(**options).devices[0])
    except importlib.metadata.PackageNotFoundError:
        raise Unavailable(f"{target}: the wheel {wheel} is not installed") from None
    except Exception as error:  # a plugin of another version fails in many ways
        raise Unavailable(f"{target}: {wheel} does not work with jax {jax.__version__}: {error}") from error


SHAPES = {  # large enough that no TPU fetches an array into its VMEM first, which would count twice
    "rows": ((8192, 32768), -1),
    "pixels": ((32, 19, 512, 512), 1),
    "2 classes": ((2**27, 2), -1),
    "21 classes": ((2**24, 21), -1),
    "head": ((65536, 1000), -1),
    "vocabulary": ((8192, 131072), -1),
    "detection": ((1_600_000, 80), -1),
}
ENOUGH = {"focaljax", "Optax cross-entropy", "textbook focal"}  # where only class indices are of interest


def compile_loss(loss: Callable, shape: Shape, axis: int, dtype: str, target: str, **options: Any) -> Program:
    """What the mean of a loss or its gradient costs on one device of `target`; options as of `program_of`."""
    f, operands = program_of(loss, shape, axis, dtype, **options)
    compiled = compile(f, operands, target)
    text, costs, size = text_of(compiled, target), compiled.cost_analysis(), operands[0].size
    module, unit = hlo.parse(text), size * operands[0].dtype.itemsize
    moved = hlo.traffic(module) if target == "h200" or costs is None else costs["bytes accessed"]
    return Program(
        passes=moved / unit,
        temp=compiled.memory_analysis().temp_size_in_bytes / unit,
        kernels=sum(hlo.touches(module, op, size) for op, _ in hlo.kernels(module)),
        stored=hlo.stored(module, size),
        loops=sum(op.code == "while" for ops in module.values() for op in ops.values()),
        forbidden=hlo.forbidden(module, size),
        text=text,
    )


def program_of(
    loss: Callable,
    shape: Shape,
    axis: int,
    dtype: str,
    *,
    indices: int,
    gradient: bool,
    traced_gamma: bool = False,
) -> tuple[Callable, tuple[jax.ShapeDtypeStruct, ...]]:
    """The mean of a loss at gamma 2, or its value and gradient by the logits; and the operands.

    Labels are `indices`, one per row or so many, or have the shape of the logits.
    """
    rows = [n for i, n in enumerate(shape) if i != axis % len(shape)]
    rows += [indices] if indices is not True else []
    logits = jax.ShapeDtypeStruct(tuple(shape), dtype)
    labels = jax.ShapeDtypeStruct(tuple(rows), "int32") if indices else logits
    gamma = (jax.ShapeDtypeStruct((), "float32"),) if traced_gamma else ()

    def mean(z, y, gamma=2.0):
        return jnp.mean(loss(z, y, gamma, axis))

    return jax.value_and_grad(mean) if gradient else mean, (logits, labels, *gamma)


def jobs(quick: bool) -> Iterator[tuple[str, tuple[dict[str, Any], str, Callable[[], dict[str, Any]]]]]:
    """Every program of the table, our losses first; the names of the losses of entries say so.

    Values in float32 only, as both dtypes are read alike; few classes and images on one TPU and the H200.
    """
    found, _ = contenders(libraries=("optax",))
    found.insert(1, SMOOTHED)
    sigmoid = [c._replace(name=f"{c.name}, sigmoid") for c in found if c.family == "sigmoid"]
    every = [c for c in found if c.family == "softmax"] + sigmoid
    both, some, plain = ("float32", "bfloat16"), ("v5e", "h200"), [c for c in every if c.name in ENOUGH]
    groups: list[tuple[str, bool, tuple, tuple, list[Contender]]]
    groups = [("rows", False, TARGETS, both[:1], every), ("rows", True, TARGETS, both, every)]
    if quick:
        groups = [(where, gradient, TARGETS[:1], dtypes, plain) for where, gradient, _, dtypes, _ in groups]
    else:
        groups += [("pixels", True, some, both, plain)]
        groups += [(where, True, some, both[:1], plain) for where in ("2 classes", "21 classes")]
    for where, gradient, targets, dtypes, losses in groups:
        for target, dtype, c in itertools.product(targets, dtypes, losses):
            (shape, axis), row = SHAPES[where], {"loss": c.name, "target": target, "dtype": dtype}
            row |= {"shape": where, "gradient": gradient, "logits": list(shape), "axis": axis}
            options = {"indices": c.indices, "gradient": gradient}
            make = partial(costs, c.loss, shape, axis, dtype, target, **options)
            yield f"{target} {dtype} {c.name}", (row, target, make)


def costs(*arguments: Any, **options: Any) -> dict[str, Any]:
    """The numbers of `compile_loss`."""
    program = compile_loss(*arguments, **options)
    found = program._asdict() | {"passes": round(program.passes, 3), "temp": round(program.temp, 3)}
    return {key: number for key, number in found.items() if key != "text"}


def attempt(row: dict[str, Any], target: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """One row of a result with what `make` finds of a program, or with why it could not be compiled."""
    try:
        return row | make()
    except (Unavailable, FileNotFoundError) as error:
        return row | {"failed": str(error)}
    except KeyError as error:
        return row | {"failed": f"{target}: its compiler wrote no schedule of {error}"}
    except jax.errors.JaxRuntimeError as error:  # mostly: more memory than the device has
        return row | {"failed": f"{target}: {str(error).splitlines()[0]}"}


def main(args: Namespace) -> int:
    """Compiles all programs and writes the results."""
    result = header("compiled", packages=COMPILERS) | {"rows": []}
    collect(args, result, jobs(args.quick), lambda job: result["rows"].append(attempt(*job)))
    return 0
