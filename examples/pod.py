"""`python -m examples.pod`: a training step with Optax on whatever there is, one CPU or a whole pod.

The same lines train on one device, on several, and on several hosts, data-parallel or with the classes of
the head sharded too; only the mesh differs::

    python -m examples.pod                                # all devices share the batch
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m examples.pod --model 4
    python -m examples.pod --model 16 --distributed       # on every host of a TPU pod or a Slurm job
    python -m examples.pod --coordinator host:1234 --processes 2 --process 0  # and 1, on hosts of your own

The mesh has two axes: "data" shards the examples, "model" the classes. Under plain `jit` the compiler shards
the program by where its operands lie; with `--manual` it is written for one device in `jax.shard_map`. Both
take the same steps. The last batch is too short: rows of weight 0 fill it.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from focaljax import metrics, reduce_loss, softmax_focal_loss_with_integer_labels

Params = dict[str, Any]  # arrays, or what says where they lie


class Batch(NamedTuple):
    """Rows of one batch; a weight of 0 is a row that is not there."""

    inputs: Any
    labels: Any
    weights: Any


class Sizes(NamedTuple):
    """Of the network."""

    features: int = 16
    hidden: int = 32
    classes: int = 64


PARAMS = {"body": P(), "head": P(None, "model")}  # the classes lie along "model"
BATCH = Batch(P("data"), P("data"), P("data"))
METRIC = metrics.SparseCategoricalFocalCrossentropy(alpha=1.0, gamma=2.0, from_logits=True)


def mesh_of(model: int, kind: AxisType = AxisType.Auto) -> Mesh:
    """All devices of all hosts, `model` of them to share the classes; Explicit axes do as well."""
    return jax.make_mesh((jax.device_count() // model, model), ("data", "model"), axis_types=(kind,) * 2)


def initial(key: jax.Array, sizes: Sizes) -> Params:
    """A body that all devices hold, and a head with a column for each class."""
    first, second = jax.random.split(key)
    body = jax.random.normal(first, (sizes.features, sizes.hidden)) / sizes.features**0.5
    head = jax.random.normal(second, (sizes.hidden, sizes.classes)) / sizes.hidden**0.5
    return {"body": body, "head": head}


def logits_of(params: Params, inputs: jax.Array) -> jax.Array:
    """One hidden layer."""
    return jax.nn.relu(inputs @ params["body"]) @ params["head"]


def objective(params: Params, batch: Batch, data: str | None = None, model: str | None = None) -> jax.Array:
    """The mean over the examples that are there; inside `shard_map` `data` and `model` name its axes."""
    losses = softmax_focal_loss_with_integer_labels(
        logits_of(params, batch.inputs), batch.labels, gamma=2.0, axis_name=model
    )
    return reduce_loss(losses, batch.weights, "mean_with_sample_weight", axis_name=data)


def by_hand(mesh: Mesh) -> Callable[[Params, Batch], jax.Array]:
    """The same objective from one device's point of view."""
    of_shard = partial(objective, data="data", model="model")
    return jax.shard_map(of_shard, mesh=mesh, in_specs=(PARAMS, BATCH), out_specs=P())


def make_step(optimizer: optax.GradientTransformation, objective: Callable = objective) -> Any:
    """One training step; parameters and optimiser state are overwritten."""

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, batch):
        loss, gradient = jax.value_and_grad(objective)(params, batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    return step


@partial(jax.jit, donate_argnums=0)
def evaluate(state: metrics.MeanState, params: Params, batch: Batch) -> metrics.MeanState:
    """A batch of all hosts for the metric, whose state is then the same on all of them."""
    return METRIC.update(state, batch.labels, logits_of(params, batch.inputs), batch.weights)


def rows_here(sharding: NamedSharding, count: int) -> np.ndarray:
    """Which rows of a batch this process must bring: those of its own devices."""
    parts = sharding.addressable_devices_indices_map((count,)).values()
    ends = {index[0].indices(count)[:2] for index in parts if index is not None}
    return np.concatenate([np.arange(*each) for each in sorted(ends)])


def batches(mesh: Mesh, examples: int, size: int, sizes: Sizes) -> Iterator[Batch]:
    """Every example once; a process reads its own rows, and together they are global arrays."""
    where = [NamedSharding(mesh, spec) for spec in BATCH]
    for start in range(0, examples, size):
        rows = start + rows_here(where[0], size)
        local = read(np.minimum(rows, examples - 1), sizes)._replace(weights=np.float32(rows < examples))
        arrays = [
            jax.make_array_from_process_local_data(sharding, part, (size, *part.shape[1:]))
            for sharding, part in zip(where, local, strict=True)
        ]
        yield Batch(*arrays)


def read(rows: np.ndarray, sizes: Sizes) -> Batch:
    """Stands in for your files: a few frequent classes, many rare ones, and noise."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(sizes.classes, sizes.features))
    labels = (sizes.classes * (rows * 0.6180339887 % 1) ** 3).astype(np.int32)
    noise = np.sin((rows[:, None] + 1) * (1 + np.arange(sizes.features)))
    inputs = (centres[labels] + noise).astype(np.float32)
    return Batch(inputs, labels, np.ones(len(rows), np.float32))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m examples.pod", description=words)
    parser.add_argument("--model", type=int, default=1, help="devices that share the classes; default: 1")
    parser.add_argument("--manual", action="store_true", help="in jax.shard_map, by hand")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=256, help="rows of all hosts together; default: 256")
    parser.add_argument("--classes", type=int, default=64)
    parser.add_argument("--distributed", action="store_true", help="one process of a cluster that JAX knows")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, where JAX knows no cluster")
    parser.add_argument("--processes", type=int, help="how many there are")
    parser.add_argument("--process", type=int, help="which of them this is")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Trains, and prints what all hosts agree on."""
    args = parser().parse_args(argv)
    if args.distributed or args.coordinator:  # before anything asks for a device
        jax.distributed.initialize(args.coordinator, args.processes, args.process)
    mesh, sizes, optimizer = mesh_of(args.model), Sizes(classes=args.classes), optax.adam(1e-2)
    step = make_step(optimizer, by_hand(mesh) if args.manual else objective)
    say = print if jax.process_index() == 0 else lambda *_: None
    say(f"{dict(mesh.shape)} of {mesh.devices.flat[0].device_kind}, processes: {jax.process_count()}")
    with jax.set_mesh(mesh):
        places = {name: NamedSharding(mesh, spec) for name, spec in PARAMS.items()}
        params = jax.jit(initial, static_argnums=1, out_shardings=places)(jax.random.key(0), sizes)
        state = optimizer.init(params)
        for epoch in range(args.epochs):
            for batch in batches(mesh, args.examples, args.batch, sizes):
                params, state, _ = step(params, state, batch)
            seen = METRIC.init()
            for batch in batches(mesh, args.examples, args.batch, sizes):
                seen = evaluate(seen, params, batch)
            say(f"epoch {epoch + 1}: mean {METRIC.result(seen):.4f} over {seen.weight:.0f} examples")
    return 0


if __name__ == "__main__":
    sys.exit(main())
