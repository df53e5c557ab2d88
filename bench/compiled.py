"""What the compiled programs move: bytes, temporary memory and kernels, without the hardware.

The `libtpu` and `jax-cuda13-plugin` wheels hold the real compilers, which need no device. A program is
compiled for one device of a target and read back: on TPUs XLA's own cost analysis knows the bytes (with
the padding of tiles); for GPUs it has none, so the operands and results of the kernels are added up from
the optimised HLO. One pass is one read or write of an array of the size of the logits.
"""

import functools
import importlib.metadata
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

HERE = Path(__file__).parent
TARGETS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "h200": "1x1x1"}
WHEELS = {"v5e": "libtpu", "v5p": "libtpu", "v6e": "libtpu", "h200": "jax-cuda13-plugin"}

# Nothing of the size of the logits may pass through one of these.
FORBIDDEN = ("gather", "scatter", "sort", "all-gather", "transpose", "copy", "copy-start")


class Unavailable(Exception):
    """The compiler of a target cannot be used here; the message says why."""


class Program(NamedTuple):
    """What one call of a compiled program costs; `passes` and `temp` in units of the logits."""

    passes: float
    temp: float
    kernels: int  # that read or write an array of logits size
    stored: int  # arrays of logits size that are written and are no result
    loops: int  # on TPUs the body of a loop is counted once: `passes` is then a lower bound
    forbidden: tuple[str, ...]  # operations of FORBIDDEN on arrays of logits size, inside kernels too
    hlo: str


def measure(f: Callable, logits: jax.ShapeDtypeStruct, *others: jax.ShapeDtypeStruct, target: str) -> Program:
    """Compiles ``f(logits, *others)`` for one device of `target` and reads the program back.

    Raises:
      Unavailable: The wheel with the compiler of `target` is missing or does not fit this JAX.
    """
    sharding = place(target)
    operands = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in (logits, *others)]
    compiled = jax.jit(f).lower(*operands).compile()
    hlo, costs, memory = compiled.as_text(), compiled.cost_analysis(), compiled.memory_analysis()
    assert hlo is not None and memory is not None
    module = parse(hlo)
    size = logits.size * logits.dtype.itemsize
    moved = traffic(module) if target == "h200" or costs is None else costs["bytes accessed"]
    return Program(
        passes=moved / size,
        temp=memory.temp_size_in_bytes / size,
        kernels=sum(_touches(module, op, logits.size) for op, _ in kernels(module)),
        stored=_stored(module, logits.size),
        loops=sum(op.code == "while" for ops in module.values() for op in ops.values()),
        forbidden=_forbidden(module, logits.size),
        hlo=hlo,
    )


@functools.cache
def place(target: str) -> SingleDeviceSharding:
    """On one device of `target`, to compile for it."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to ask
    if os.environ.get("JAX_PLATFORMS") == "cpu":  # no TPU to fight for: parallel tests may all compile
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    wheel = WHEELS[target]
    options = {"topology_name": TARGETS[target], "platform": "tpu"}
    if target == "h200":
        config = (HERE / "targets" / "h200.txtpb").read_text()
        options = {"topology_name": target, "topology": TARGETS[target], "platform": "cuda"}
        options["target_config"] = config
    try:
        importlib.metadata.version(wheel)
        return SingleDeviceSharding(topologies.get_topology_desc(**options).devices[0])
    except importlib.metadata.PackageNotFoundError:
        raise Unavailable(f"{target}: the wheel {wheel} is not installed") from None
    except Exception as error:  # a plugin of another version fails in many ways
        raise Unavailable(f"{target}: {wheel} does not work with jax {jax.__version__}: {error}") from error


# The optimised HLO, as far as it is needed here.


class Op(NamedTuple):
    """One instruction."""

    name: str
    result: tuple["Array", ...]  # more than one for a tuple
    code: str
    operands: tuple[str, ...]
    attributes: str
    root: bool


class Array(NamedTuple):
    """Elements and bytes of one array."""

    size: int
    bytes: float


Module = dict[str, dict[str, Op]]  # computations by name, their instructions by name; the entry is ""

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_ARRAY = re.compile(r"\b([a-z]+(\d*)[a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|branch_computations|true_computation|false_computation)=(\{.*?\}|\S+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')

_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id"}
_CONTROL = {"while", "call", "conditional", "async-start"}
_SLICES = {"slice", "dynamic-slice", "gather"}
_IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}  # the operand that says how much is written


def parse(hlo: str) -> Module:
    """The computations of the text of a module."""
    module, current = {}, {}
    for line in hlo.splitlines():
        if start := _COMPUTATION.match(line):
            current = module["" if start[1] else start[2]] = {}
        elif " = " in line and line.startswith("  "):
            op = _op(line)
            current[op.name] = op
    return module


def _op(line: str) -> Op:
    name, _, rest = line.strip().partition(" = ")
    result, rest = _until_closed(rest) if rest.startswith("(") else rest.split(" ", 1)
    code, _, rest = rest.strip().partition("(")
    operands, attributes = _until_closed("(" + rest)
    return Op(
        name.removeprefix("ROOT ").removeprefix("%"),
        tuple(_array(*found) for found in _ARRAY.findall(result)),
        code,
        tuple(re.findall(r"%([\w.\-]+)", operands)),
        attributes,
        name.startswith("ROOT "),
    )


def _until_closed(text: str) -> tuple[str, str]:
    """Splits after the parenthesis that closes the first character."""
    depth = 0
    for i, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0:
            return text[: i + 1], text[i + 1 :]
    raise ValueError(f"no end: {text}")


def _array(dtype: str, bits: str, dims: str) -> Array:
    size = math.prod(int(n) for n in dims.split(",") if n)
    return Array(size, size * int(bits or (8 if dtype == "pred" else 0)) / 8)


def kernels(module: Module, computation: str = "") -> Iterator[tuple[Op, int]]:
    """What the device runs, and how often; of a conditional all branches."""
    for op in module[computation].values():
        if op.code in _CONTROL:
            trips = _TRIPS.search(op.attributes)
            if op.code == "while" and trips is None:
                raise ValueError(f"a loop of unknown length: {op.name}")
            for called in _called(op):
                for inner, times in kernels(module, called):
                    yield inner, times * int(trips[1] if trips else 1)
        elif op.code not in _FREE and not op.code.endswith("-done"):
            yield op, 1


def _called(op: Op) -> list[str]:
    return [name for found in _CALLED.findall(op.attributes) for name in re.findall(r"[\w.\-]+", found)]


def traffic(module: Module) -> float:
    """Bytes that the kernels of a module read and write; an operand that is named twice is read once."""
    owners = {id(op): ops for ops in module.values() for op in ops.values()}
    return sum(times * _moved(module, owners[id(op)], op) for op, times in kernels(module))


def _moved(module: Module, owner: dict[str, Op], op: Op) -> float:
    body = module[_called(op)[0]] if op.code == "fusion" else {}
    if not body:  # as if the instruction were a fusion of itself
        parameters = {name: owner[name]._replace(code="parameter") for name in op.operands}
        body = {**parameters, op.name: op._replace(root=True)}
        names = list(dict.fromkeys(op.operands))
    else:
        parameters = [inner for inner in body.values() if inner.code == "parameter"]
        names = [p.name for p in parameters]
    return sum(_read(body, name) for name in names) + sum(_written(body, root) for root in _roots(body))


def _read(body: dict[str, Op], name: str) -> float:
    """Bytes of one operand that a kernel reads: all, or the slices it takes."""
    whole, some = _bytes(body[name]), 0.0
    for user in (op for op in body.values() if name in op.operands):
        if user.code == "bitcast":
            some += _read(body, user.name)
        elif user.code in _SLICES and user.operands[0] == name:
            some += _bytes(user)
        elif not (user.code in _IN_PLACE and user.operands[0] == name):
            return whole
    return min(whole, some)


def _written(body: dict[str, Op], root: Op) -> float:
    """Bytes of one result that a kernel writes: all, or what it changes of an operand."""
    if root.code == "bitcast":
        return _written(body, body[root.operands[0]])
    if root.code in _IN_PLACE:
        return _bytes(body[root.operands[_IN_PLACE[root.code]]])
    return _bytes(root)


def _roots(body: dict[str, Op]) -> list[Op]:
    root = next(op for op in body.values() if op.root)
    return [body[name] for name in root.operands] if root.code == "tuple" else [root]


def _bytes(op: Op) -> float:
    return sum(array.bytes for array in op.result)


# Arrays of the size of the logits: more than half as many elements, so that [N] is none beside [N, 2].


def _large(op: Op, size: int) -> int:
    return sum(2 * array.size > size for array in op.result)


def _touches(module: Module, op: Op, size: int) -> bool:
    owner = next(ops for ops in module.values() if ops.get(op.name) is op)
    return any(_large(x, size) for x in (op, *(owner[name] for name in op.operands if name in owner)))


def _stored(module: Module, size: int) -> int:
    returned = sum(_large(root, size) for root in _roots(module[""]))
    return sum(_large(op, size) for op, _ in kernels(module)) - returned


def _forbidden(module: Module, size: int) -> tuple[str, ...]:
    suspects = (op for ops in module.values() for op in ops.values() if op.code in FORBIDDEN)
    return tuple(sorted(op.code for op in suspects if _touches(module, op, size)))


# The contenders, and the table.


class Contender(NamedTuple):
    """A loss as the bench calls it: ``f(logits, labels, gamma, axis)``, one loss per row or entry."""

    name: str
    loss: Callable
    indices: bool  # labels are class indices, not one per class
    focal: bool = True


SHAPES = {  # large enough that no TPU fetches an array into its VMEM first, which would count twice
    "rows": ((8192, 32768), -1),
    "pixels": ((32, 19, 512, 512), 1),
    "2 classes": ((2**27, 2), -1),
    "8 classes": ((2**25, 8), -1),
    "21 classes": ((2**24, 21), -1),
}


def textbook(logits: jax.Array, labels: jax.Array, gamma: float | jax.Array, axis: int) -> jax.Array:
    """Focal loss as it is usually written, differentiated by JAX."""
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits, axis), jnp.expand_dims(labels, axis), axis)
    return jnp.squeeze(-((1 - jnp.exp(log_p)) ** gamma) * log_p, axis)


def contenders() -> list[Contender]:
    """Ours first; the others are what people use today."""
    import optax

    import focaljax

    def integer(z, y, gamma, axis):
        return focaljax.softmax_focal_loss_with_integer_labels(z, y, gamma=gamma, alpha=0.25, axis=axis)

    def dense(z, y, gamma, axis):
        return focaljax.softmax_focal_loss(z, y, gamma=gamma, alpha=0.25, axis=axis)

    def smoothed(z, y, gamma, axis):
        return focaljax.softmax_focal_loss_with_integer_labels(
            z, y, gamma=gamma, label_smoothing=0.1, axis=axis
        )

    def optax_integer(z, y, gamma, axis):
        return optax.softmax_cross_entropy_with_integer_labels(z, y, axis)

    return [
        Contender("focaljax, integer labels", integer, indices=True),
        Contender("focaljax, integer labels smoothed", smoothed, indices=True),
        Contender("Optax cross-entropy, integer labels", optax_integer, indices=True, focal=False),
        Contender("textbook focal, integer labels", textbook, indices=True),
        Contender("focaljax, dense labels", dense, indices=False),
        Contender(
            "Optax cross-entropy, dense labels",
            lambda z, y, gamma, axis: optax.softmax_cross_entropy(z, y, axis),
            indices=False,
            focal=False,
        ),
        Contender(
            "focaljax sigmoid",
            lambda z, y, gamma, axis: focaljax.sigmoid_focal_loss(z, y, gamma=gamma, alpha=0.25),
            indices=False,
        ),
        Contender(
            "Optax sigmoid focal",
            lambda z, y, gamma, axis: optax.sigmoid_focal_loss(z, y, alpha=0.25, gamma=gamma),
            indices=False,
        ),
    ]


def compile_loss(
    loss: Callable,
    shape: Sequence[int],
    axis: int,
    dtype: str,
    target: str,
    *,
    indices: bool,
    gradient: bool,
    traced_gamma: bool = False,
) -> Program:
    """The mean of a loss at gamma 2, or its value and gradient with respect to the logits."""
    rows = [n for i, n in enumerate(shape) if i != axis % len(shape)]
    logits = jax.ShapeDtypeStruct(tuple(shape), dtype)
    labels = jax.ShapeDtypeStruct(tuple(rows), "int32") if indices else logits
    gamma = (jax.ShapeDtypeStruct((), "float32"),) if traced_gamma else ()

    def mean(z, y, gamma=2.0):
        return jnp.mean(loss(z, y, gamma, axis))

    return measure(jax.value_and_grad(mean) if gradient else mean, logits, labels, *gamma, target=target)


def jobs() -> list[dict]:
    """Every program of the table; all targets, and gamma also traced, for the first shape."""
    return [
        {"loss": c, "target": t, "dtype": d, "shape": s, "gradient": g, "traced gamma": traced}
        for s in SHAPES
        for t in (TARGETS if s == "rows" else ("v5e", "h200"))
        for d in ("float32", "bfloat16")
        for c in contenders()
        for g in (False, True)
        for traced in ((False, True) if c.focal and g and s == "rows" else (False,))
    ]


def run(job: dict) -> dict:
    """One row of the results."""
    contender, (shape, axis) = job["loss"], SHAPES[job["shape"]]
    row = {**job, "loss": contender.name, "logits": list(shape), "axis": axis}
    options = {"indices": contender.indices, "gradient": job["gradient"], "traced_gamma": job["traced gamma"]}
    try:
        program = compile_loss(contender.loss, shape, axis, job["dtype"], job["target"], **options)
    except Unavailable as error:
        return {**row, "failed": str(error)}
    except jax.errors.JaxRuntimeError as error:  # mostly: more memory than the device has
        return {**row, "failed": str(error).splitlines()[0]}
    numbers = program._asdict()
    del numbers["hlo"]
    return {**row, **numbers, "passes": round(program.passes, 3), "temp": round(program.temp, 3)}


def main() -> None:
    """Compiles all programs, prints the table and writes results/compiled.json."""
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    console = Console()
    rows = [run(job) for job in track(jobs(), "compiling", console=console)]
    table = Table(
        "loss", "logits", "target", "dtype", "program", "passes", "temp", "kernels", "stored", "touches"
    )
    for row in rows:
        program = "value and gradient" if row["gradient"] else "value"
        program += ", gamma traced" * row["traced gamma"]
        numbers = [str(row.get(name, "-")) for name in ("passes", "temp", "kernels", "stored")]
        touches = row.get("failed") or ", ".join(sorted(set(row["forbidden"])))
        table.add_row(row["loss"], row["shape"], row["target"], row["dtype"], program, *numbers, touches)
    console.print(table)
    file = HERE / "results" / "compiled.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"versions": versions(), "rows": rows}, indent=1) + "\n")
    console.print(f"written: {file}")


def versions() -> dict[str, str | None]:
    """The versions that decide the numbers."""
    found = {}
    for name in ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "optax"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found
