"""`python -m bench sharded`: the programs of one device of a TPU pod, compiled without having one.

The loss and the training step of `examples.pod`, sharded by the compiler and by hand. One pass is one read or
write of an array of the size of the logits that lie on ONE device; exchanges are counted per device, too.
"""

import functools
import itertools
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bench import compiled, hlo
from bench.contenders import INTEGER
from bench.results import COMPILERS, collect, header
from examples import pod
from focaljax import reduce_loss

PODS = {"v5e 4x4": "v5e:4x4", "v5e 16x16": "v5e:16x16", "v5p 4x4x4": "v5p:4x4x4"}
MODEL = {"v5e 4x4": 4, "v5e 16x16": 16, "v5p 4x4x4": 4}  # devices that share the classes
LAYOUTS = ("data", "data x classes")
CLASSES = (131_072, 1_048_576)
FORMS = ("compiler", "shard_map")
# Logits on each device, 1 GiB: no TPU fetches them into its VMEM first, which would count twice.
LOCAL = 2**28
HIDDEN = 512
LOGITS = P("data", "model")


class Program(NamedTuple):
    """What one device does; `passes` and `temp` in units of its own logits."""

    passes: float
    temp: float
    exchanged: float  # bytes
    collectives: dict[str, int]  # how many of each kind
    largest: float  # bytes of the largest one
    logits: int  # bytes on one device
    rows: int  # of all devices


@functools.cache
def mesh_of(target: str, layout: str, kind: AxisType = AxisType.Auto) -> Mesh:
    """All devices of a pod that need not be there."""
    compiled.place("v5e")
    topology = topologies.get_topology_desc(PODS[target], platform="tpu")
    model = MODEL[target] if layout == "data x classes" else 1
    sizes, names = (len(topology.devices) // model, model), ("data", "model")
    return Mesh(topologies.make_mesh(topology, sizes, names).devices, names, axis_types=(kind,) * 2)


def rows_of(mesh: Mesh, classes: int) -> int:
    """Examples of all devices so that each has LOCAL logits."""
    return LOCAL * mesh.size // classes


def struct(mesh: Mesh, shape: tuple[int, ...], dtype: Any, spec: P) -> jax.ShapeDtypeStruct:
    """An array that need not be there."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


def compile_loss(
    mesh: Mesh,
    classes: int,
    form: str,
    dtype: str = "float32",
    *,
    loss: Callable = INTEGER,
    soft: bool = False,
) -> Program:
    """The mean of a loss of class indices or `soft` labels, and its gradient with respect to the logits."""
    rows = rows_of(mesh, classes)
    logits = struct(mesh, (rows, classes), dtype, LOGITS)
    labels = logits if soft else struct(mesh, (rows,), "int32", P("data"))

    def mean(logits, labels):
        return reduce_loss(loss(logits, labels))

    def of_shard(logits, labels):
        return reduce_loss(loss(logits, labels, axis_name="model"), axis_name="data")

    if form == "shard_map":
        in_specs = (LOGITS, LOGITS if soft else P("data"))
        mean = jax.shard_map(of_shard, mesh=mesh, in_specs=in_specs, out_specs=P())
    with jax.set_mesh(mesh):
        return measure(jax.jit(jax.value_and_grad(mean)).lower(logits, labels), mesh, classes, dtype)


def compile_step(mesh: Mesh, classes: int, form: str) -> Program:
    """The step of `examples.pod`: a body of one layer, the head, the loss, Adam on donated arrays."""
    rows, sizes = rows_of(mesh, classes), pod.Sizes(HIDDEN, HIDDEN, classes)
    shapes = jax.eval_shape(functools.partial(pod.initial, sizes=sizes), jax.random.key(0))
    optimizer = optax.adam(1e-3)
    with jax.set_mesh(mesh):
        params = {name: struct(mesh, x.shape, x.dtype, pod.PARAMS[name]) for name, x in shapes.items()}
        state = jax.eval_shape(optimizer.init, params)
        inputs = struct(mesh, (rows, HIDDEN), "float32", pod.BATCH.inputs)
        labels = struct(mesh, (rows,), "int32", pod.BATCH.labels)
        batch = pod.Batch(inputs, labels, struct(mesh, (rows,), "float32", pod.BATCH.weights))
        step = pod.make_step(optimizer, pod.by_hand(mesh) if form == "shard_map" else pod.objective)
        return measure(step.lower(params, state, batch), mesh, classes, "float32")


def measure(lowered: Any, mesh: Mesh, classes: int, dtype: str) -> Program:
    """Compiles, and reads back what the program of one device does."""
    program = lowered.compile()
    size = LOCAL * jnp.dtype(dtype).itemsize
    found = hlo.collectives(hlo.parse(compiled.text_of(program, "v5e")))
    return Program(
        passes=program.cost_analysis()["bytes accessed"] / size,
        temp=program.memory_analysis().temp_size_in_bytes / size,
        exchanged=sum(moved for _, moved in found),
        collectives=dict(Counter(code for code, _ in found)),
        largest=max((moved for _, moved in found), default=0),
        logits=size,
        rows=rows_of(mesh, classes),
    )


def costs(job: dict[str, Any]) -> dict[str, Any]:
    """The numbers of one program."""
    build = compile_loss if job["program"] == "loss" else compile_step
    program = build(mesh_of(job["target"], job["layout"]), job["classes"], job["form"])
    return program._asdict() | {"passes": round(program.passes, 3), "temp": round(program.temp, 4)}


def main(args: Namespace) -> int:
    """Compiles all programs and writes the results."""
    result = header("sharded", packages=COMPILERS) | {"rows": []}

    def do(job: dict[str, Any]) -> None:
        result["rows"].append(compiled.attempt(job, job["target"], functools.partial(costs, job)))

    pods, layouts, classes = (
        (PODS, LAYOUTS, CLASSES) if not args.quick else (["v5e 4x4"], LAYOUTS[1:], CLASSES[:1])
    )
    every = itertools.product(("loss", "step"), pods, layouts, classes, FORMS)
    jobs = [dict(zip(("program", "target", "layout", "classes", "form"), key, strict=True)) for key in every]
    collect(args, result, [(f"{job['target']} {job['program']}, {job['layout']}", job) for job in jobs], do)
    return 0
