"""What every process of several computes together: the worker of test_pod.py.

`python tests/hosts.py HOST:PORT PROCESSES PROCESS FILE` writes the results of one process.
"""

import sys
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from examples import pod

SIZES = pod.Sizes(features=4, hidden=8, classes=16)
EXAMPLES, SIZE = 40, 16  # the last batch is half empty
MODELS = (1, 4, 8)  # devices that share the classes: of no host, of one, of all


def everything(model: int) -> dict[str, np.ndarray]:
    """Loss, gradients, what two steps of descent make of the parameters, and the metric; in both forms."""
    mesh = pod.mesh_of(model)
    found: dict[str, Any] = {}
    with jax.set_mesh(mesh):
        *full, last = pod.batches(mesh, EXAMPLES, SIZE, SIZES)
        for form, objective in (("compiler", pod.objective), ("manual", pod.by_hand(mesh))):
            params = start(mesh)
            found[form] = jax.jit(jax.value_and_grad(objective))(params, last)
            optimizer = optax.sgd(0.1)
            step, state = pod.make_step(optimizer, objective), optimizer.init(params)
            for batch in full:
                params, state, _ = step(params, state, batch)
            found[f"{form} trained"] = params
        params = start(mesh)
        seen = pod.METRIC.init()
        for batch in (*full, last):
            seen = pod.evaluate(seen, params, batch)
        found["metric"] = {"total": seen.total, "weight": seen.weight, "mean": pod.METRIC.result(seen)}
        found["metric of shards"] = metric_of_shards(mesh, params, last)
        whole = multihost_utils.process_allgather(params, tiled=True)
    found["metric of processes"] = metric_of_processes(whole)
    return flat(found)


def start(mesh: jax.sharding.Mesh) -> pod.Params:
    """The same parameters on every mesh."""
    places = {name: NamedSharding(mesh, spec) for name, spec in pod.PARAMS.items()}
    return jax.jit(pod.initial, static_argnums=1, out_shardings=places)(jax.random.key(0), SIZES)


def metric_of_shards(mesh: jax.sharding.Mesh, params: pod.Params, batch: pod.Batch) -> Any:
    """A state for each shard of the batch, merged over the mesh axis."""

    def merged(params, batch):
        logits = pod.logits_of(params, batch.inputs)
        state = pod.METRIC.update(pod.METRIC.init(), batch.labels, logits, batch.weights)
        return pod.METRIC.result(pod.METRIC.merge(state, axis_name="data"))

    in_specs = ({name: P() for name in pod.PARAMS}, pod.BATCH)
    params = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, P())), params)
    return jax.jit(jax.shard_map(merged, mesh=mesh, in_specs=in_specs, out_specs=P()))(params, batch)


def metric_of_processes(params: pod.Params) -> Any:
    """A state for each process, of examples that no other has seen and without a mesh, merged at the end."""
    own = pod.read(np.arange(jax.process_index(), EXAMPLES, jax.process_count()), SIZES)
    logits = jax.jit(pod.logits_of)(params, own.inputs)
    state = jax.jit(pod.METRIC.update)(pod.METRIC.init(), own.labels, logits)
    gathered = multihost_utils.process_allgather(state)
    states = [jax.tree.map(lambda x, i=i: x[i], gathered) for i in range(jax.process_count())]
    return pod.METRIC.result(pod.METRIC.merge(*states))


def flat(tree: Any) -> dict[str, np.ndarray]:
    """Whole arrays by the path that leads to them."""
    whole = jax.tree.map(
        lambda x: x if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True), tree
    )
    leaves, _ = jax.tree.flatten_with_path(whole)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


if __name__ == "__main__":
    coordinator, processes, process, file = sys.argv[1:]
    jax.distributed.initialize(coordinator, int(processes), int(process))
    np.savez(file, **{f"{model}{name}": x for model in MODELS for name, x in everything(model).items()})
