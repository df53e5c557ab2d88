"""`python -m bench linear`: the last layer and its loss, with and without logits.

Value and gradient by inputs and kernel: measured on this machine, with a million classes in a process of its
own; and compiled for TPUs and an H200, which need not be there.
"""

import importlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench import compiled, hlo
from bench.agreement import DISAGREES, Disagreement
from bench.contenders import LINEAR, OURS, Absent, gathered, reason, textbook
from bench.results import COMPILERS, DISASSEMBLERS, collect, header, previous, say
from bench.timing import EFFORT, Effort, interleaved
from focaljax import (
    linear_sigmoid_focal_loss,
    linear_softmax_focal_loss,
    sigmoid_focal_loss_with_integer_labels,
    softmax_focal_loss_with_integer_labels,
)

Shape = tuple[int, int, int]  # N, D, C
Loss = Callable[..., jax.Array]  # of inputs, kernel and labels: their mean
LARGE: Shape = (8192, 4096, 131_072)
MILLION: Shape = (8192, 256, 1_048_576)
SHAPES: dict[str, dict[str, Shape]] = {  # what is measured
    "cpu": {"vocab-32k": (4096, 512, 32_768), "vocab-128k": (4096, 512, 131_072)},
    "gpu": {"vocab-32k": (8192, 4096, 32_768), "vocab-128k": LARGE},
}
SMALL: Shape = (64, 16, 512)
LABELS = 20  # of each row of a sigmoid loss, in a padded list
TURNS = 4  # labels of a row in one chunk of classes, at most: the turns of the loop that finds them
NAMES = [*SHAPES["cpu"], "million", "compiled", "items"]
PACKAGES = (*COMPILERS, *DISASSEMBLERS, "tokamax", "torch", "liger-kernel", "cut-cross-entropy")
FORMS: dict[str, Loss] = {
    "in chunks of rows": partial(linear_softmax_focal_loss, strategy="rows"),
    "in chunks of classes": partial(linear_softmax_focal_loss, strategy="classes"),
}
SIGMOID: dict[str, Loss] = {
    "sigmoid in chunks of rows": partial(linear_sigmoid_focal_loss, strategy="rows"),
    "sigmoid in chunks of classes": partial(linear_sigmoid_focal_loss, strategy="classes"),
}
MOSAIC = "tokamax cross-entropy, Pallas"


def contenders() -> tuple[dict[str, Loss], list[Absent]]:
    """Mean losses at gamma 2, and who cannot be had; Optax and tokamax have the cross-entropy only."""
    import optax

    absent: list[Absent] = []
    found = FORMS | {
        f"matmul and {OURS}": partial(of_logits, softmax_focal_loss_with_integer_labels),
        "matmul and textbook focal": partial(of_logits, lambda z, y: textbook(z, y, 2.0, -1)),
        LINEAR: partial(of_logits, optax.softmax_cross_entropy_with_integer_labels),
    }
    return found | dict(gathered({"tokamax": _tokamax}, absent)), absent


def of_logits(loss: Callable, inputs: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean over the examples of a loss of whole logits."""
    logits = jnp.matmul(inputs, kernel, preferred_element_type=jnp.float32)
    return jnp.sum(loss(logits, labels)) / labels.shape[0]


def of_sigmoid() -> dict[str, Loss]:
    """The sigmoid losses of lists of positive classes; none but ours takes lists."""
    return SIGMOID | {f"matmul and {OURS}": partial(of_logits, sigmoid_focal_loss_with_integer_labels)}


def _tokamax() -> list[tuple[str, Loss]]:
    tokamax: Any = importlib.import_module("tokamax")
    importlib.import_module("absl.flags").FLAGS.mark_as_parsed()  # it would read our command line

    def loss(inputs, kernel, labels, kind):
        options = {"reduction": "mean", "implementation": kind}
        return tokamax.linear_softmax_cross_entropy_loss(inputs, labels, kernel, **options)

    kinds = {"tokamax cross-entropy, XLA": "xla", MOSAIC: "mosaic_tpu"}
    return [(name, partial(loss, kind=kind)) for name, kind in kinds.items()]


def both(loss: Callable) -> Callable:
    """Value and gradient by inputs and kernel."""
    return jax.value_and_grad(loss, (0, 1))


def operands(shape: Shape, dtype: str, labels: tuple[int, ...] = ()) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Inputs, kernel and labels, of which an example has so many."""
    n, d, c = shape
    kinds = ((n, d), dtype), ((d, c), dtype), ((n, *labels), "int32")
    return tuple(jax.ShapeDtypeStruct(*kind) for kind in kinds)


def matmuls(text: str, shape: Shape) -> float:
    """The flops of all matmuls of an optimised program, times their loops' turns, in 2 N D C."""
    module = hlo.parse(text)
    flops = (times * hlo.flops(module, op) for op, times in hlo.kernels(module, unknown=TURNS))
    return sum(flops) / (2 * math.prod(shape))


def program(
    loss: Loss, shape: Shape, dtype: str, target: str, folder: Path, labels: tuple[int, ...] = ()
) -> dict[str, Any]:
    """Temporary bytes, matmuls, moved bytes and the time that value and gradient should take on `target`.

    What happens inside a kernel of Pallas the compiler does not know. The environment must be as
    `schedule.dumping` makes it.
    """
    from bench import schedule  # pandas: the process that is measured must not load it

    done = schedule.dumped(both(loss), operands(shape, dtype, labels), target, folder)
    found = costs(done, shape, target)
    known = found["moved"] is not None
    return found | {"ms": schedule.of_program(done, target, folder, TURNS)["ms"] if known else None}


def costs(done: jax.stages.Compiled, shape: Shape, target: str) -> dict[str, Any]:
    """Temporary bytes, matmuls and moved bytes of a program."""
    text, memory = compiled.text_of(done, target), done.memory_analysis()
    opaque = 'custom_call_target="tpu_custom_call"' in text
    return {
        "temp": memory and memory.temp_size_in_bytes,
        "matmuls": None if opaque else matmuls(text, shape),
        "moved": None if opaque else hlo.traffic(hlo.parse(text), TURNS),
    }


def on_torch() -> tuple[dict[str, Callable[..., "Ready"]], list[Absent]]:
    """What makes the contenders in PyTorch ready, and who cannot be had."""
    from bench import linear_on_torch

    absent: list[Absent] = []
    found = gathered(linear_on_torch.LIBRARIES, absent)
    return {name: partial(linear_on_torch.ready, loss) for name, loss in found}, absent


class Ready(NamedTuple):
    """A compiled contender with its operands."""

    call: Callable[[int], None]
    temp: int | None
    value: Callable[[], float]  # of the last call


def ready(loss: Loss, arrays: tuple[jax.Array, ...]) -> Ready:
    """Compiled."""
    done = jax.jit(both(loss)).lower(*arrays).compile()
    memory, value = done.memory_analysis(), [math.nan]

    def call(times: int) -> None:
        for _ in range(times):
            value[0] = float(jax.block_until_ready(done(*arrays))[0])

    return Ready(call, memory and memory.temp_size_in_bytes, lambda: value[0])


def drawn(shape: Shape, dtype: str) -> tuple[jax.Array, ...]:
    """Inputs, kernel and labels of an untrained layer."""
    keys, (n, d, c) = jax.random.split(jax.random.key(0), 3), shape
    inputs, kernel = jax.random.normal(keys[0], (n, d)), jax.random.normal(keys[1], (d, c)) / math.sqrt(d)
    return inputs.astype(dtype), kernel.astype(dtype), jax.random.randint(keys[2], (n,), 0, c)


def agree(found: dict[str, Loss]) -> None:
    """All that is focal computes one loss and its gradients, all that is not another.

    Raises:
      Disagreement: A contender computes something else.
    """
    arrays = drawn(SMALL, "float32")
    results = {name: jax.tree.leaves(jax.jit(both(loss))(*arrays)) for name, loss in found.items()}
    for name, result in results.items():
        for got, want in zip(result, results[_standard(name)], strict=True):
            if not np.allclose(got, want, rtol=1e-4, atol=1e-4 * float(jnp.max(jnp.abs(want)))):
                raise Disagreement(f"{name} is not {_standard(name)}")


def _standard(name: str) -> str:
    return LINEAR if "cross-entropy" in name else f"matmul and {OURS}"


def measured(case: str, shape: Shape, dtype: str, device: str, effort: Effort) -> list[dict[str, Any]]:
    """The rows of one shape on this machine; who fails has the reason."""
    arrays, able, failed = drawn(shape, dtype), {}, {}
    makers = {name: partial(ready, loss, arrays) for name, loss in contenders()[0].items() if name != MOSAIC}
    if device == "gpu":
        makers |= {name: partial(make, arrays, dtype) for name, make in on_torch()[0].items()}
    for name, make in makers.items():
        try:
            able[name] = make()
            if device == "gpu":  # where memory may not suffice, and a call costs nothing
                able[name].call(1)
        except Exception as error:  # out of memory, or not for this GPU
            able.pop(name, None)
            failed[name] = reason(error)
    where = {"case": case, "shape": list(shape), "dtype": dtype}
    timings = interleaved({name: one.call for name, one in able.items()}, effort, LINEAR)
    rows = [where | {"contender": name, "failed": reason} for name, reason in failed.items()]
    for name, timing in timings.items():
        apart = abs(able[name].value() / able[_standard(name)].value() - 1)
        rows.append(where | {"contender": name, "temp": able[name].temp, "apart": apart} | timing._asdict())
    return rows


def alone(shape: Shape) -> dict[str, Any]:
    """Time and the largest memory of a fresh process that makes operands, value and gradient."""
    command = [sys.executable, "-c", f"from bench import linear; linear.process({shape})"]
    where, env = Path(__file__).parents[1], os.environ | {"JAX_PLATFORMS": "cpu"}
    printed = subprocess.check_output(command, cwd=where, env=env, text=True)
    return {"shape": list(shape), **json.loads(printed.splitlines()[-1])}


def process(shape: Shape) -> None:
    """What that process does; prints a line of JSON."""
    (n, d, c), loss = shape, jax.jit(both(linear_softmax_focal_loss))

    @partial(jax.jit, static_argnums=0)
    def waves(shape):  # no random numbers: making them would take more memory than they do
        return jnp.sin(sum(jax.lax.broadcasted_iota("float32", shape, i) for i in (0, 1))) / math.sqrt(d)

    arrays = jax.block_until_ready((waves((n, d)), waves((d, c)), jnp.arange(n) % c))
    done = loss.lower(*arrays).compile()
    start = time.perf_counter()
    value, _ = jax.block_until_ready(done(*arrays))
    seconds = time.perf_counter() - start
    peak = 1024 * int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[0])
    print(json.dumps({"seconds": seconds, "peak": peak, "value": float(value)}))


def jobs(
    args: Namespace, chosen: list[str], folder: Path
) -> Iterator[tuple[str, tuple[str, Callable[[], Any]]]]:
    """What is done, a part of the result, and what makes a row or a list of rows to add to it."""
    effort = EFFORT[args.device]._replace(seconds=60.0, least=3, aim=0.0)
    effort = EFFORT["quick"] if args.quick else effort
    for case, shape in list(SHAPES[args.device].items())[: 1 if args.quick else None]:
        for dtype in ("float32",) if args.device == "cpu" else ("float32", "bfloat16"):
            if case in chosen:
                options = SMALL if args.quick else shape, dtype, args.device, effort
                yield f"{case} {dtype}", ("rows", partial(measured, case, *options))
    if args.device == "cpu" and "million" in chosen:
        yield "million", ("million", lambda: alone(SMALL if args.quick else MILLION))
    if args.device == "cpu" and "compiled" in chosen:
        for target, (name, loss) in itertools.product(compiled.TARGETS, contenders()[0].items()):
            if (name, target) != (MOSAIC, "h200") and (target == "v5e" or not args.quick):
                row = {"target": target, "contender": name, "shape": list(LARGE), "dtype": "bfloat16"}
                make = partial(program, loss, LARGE, "bfloat16", target, folder)
                yield f"{target} {name}", ("compiled", partial(compiled.attempt, row, target, make))
    if args.device == "cpu" and "items" in chosen:
        shape = SMALL if args.quick else MILLION
        for target, (name, loss) in itertools.product(compiled.TARGETS, of_sigmoid().items()):
            if target == "v5e" or not args.quick:
                row = {"target": target, "contender": name, "shape": list(shape), "dtype": "bfloat16"}
                make = partial(program, loss, shape, "bfloat16", target, folder, (LABELS,))
                yield f"{target} {name}", ("items", partial(compiled.attempt, row, target, make))


def main(args: Namespace) -> int:
    """Measures what is asked for and writes the results; 1 if some contender computes something else."""
    from bench import schedule

    found, absent = contenders()
    if args.device == "gpu":
        absent += on_torch()[1]
    result = header("linear", args.device, PACKAGES) | {"absent": [a._asdict() for a in absent]}
    chosen, old = args.case or NAMES, previous(args.out, result)
    result["rows"] = [row for row in old.get("rows", []) if row["case"] not in chosen]
    result |= {key: [] if key in chosen else old.get(key, []) for key in ("million", "compiled", "items")}
    agree({name: loss for name, loss in found.items() if name != MOSAIC})

    def do(job: tuple[str, Callable[[], Any]]) -> None:
        part, make = job
        made = make()
        result[part] += made if part == "rows" else [made]
        result["rows"].sort(key=lambda row: NAMES.index(row["case"]))

    with tempfile.TemporaryDirectory() as folder:
        schedule.dumping(Path(folder))
        collect(args, result, jobs(args, chosen, Path(folder)), do)
    far = [row for row in result["rows"] if row.get("apart", 0) > 1e-2]
    for row in far:
        say(DISAGREES.format(**row, difference=row["apart"]))
    return int(bool(far))
