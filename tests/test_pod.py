"""One training step everywhere: on one device, on eight, and on two hosts of four."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import hosts
import jax
import numpy as np
import pytest
import tolerances
from jax.sharding import AxisType

from examples import pod

ROOT = Path(__file__).parents[1]
SECONDS = 120  # alone it takes 15


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """The sums of examples and classes in another order: judged by the largest entry of each array."""
    assert found.keys() == wanted.keys()
    for name, truth in wanted.items():
        scale = np.full(truth.shape, np.abs(truth).max())
        tolerances.assert_close(found[name], truth, rtol=tolerances.rtol("same"), scale=scale, label=name)


@pytest.fixture(scope="module")
def whole() -> dict[int, dict[str, np.ndarray]]:
    """Of one process with eight devices, for each mesh."""
    assert jax.device_count() == 8
    return {model: hosts.everything(model) for model in hosts.MODELS}


@pytest.mark.parametrize("model", hosts.MODELS[1:])
def test_a_mesh_changes_no_number(whole, model):
    assert_same(whole[model], whole[1])


@pytest.mark.parametrize("model", hosts.MODELS)
def test_both_forms_take_the_same_steps(whole, model):
    for kind in ("", " trained"):
        compiler, manual = (
            {name.replace(form, ""): x for name, x in whole[model].items() if f"'{form}{kind}'" in name}
            for form in ("compiler", "manual")
        )
        assert compiler
        assert_same(manual, compiler)


def test_all_metrics_count_what_is_there(whole):
    for found in whole.values():
        assert found["['metric']['weight']"] == hosts.EXAMPLES
        assert_same({"": found["['metric of processes']"]}, {"": found["['metric']['mean']"]})
        assert_same({"": found["['metric of shards']"]}, {"": found["['compiler'][0]"]})


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def run_together(folder: Path, processes: int) -> None:
    """Ends all when one fails or the time is up; what they wrote is the message."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    address, running, logs = f"localhost:{free_port()}", [], []
    try:
        for i in range(processes):
            log = (folder / f"{i}.log").open("w+")
            arguments = [address, str(processes), str(i), str(folder / f"{i}.npz")]
            command = [sys.executable, str(ROOT / "tests" / "hosts.py"), *arguments]
            logs.append(log)
            running.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT))
        end = time.monotonic() + SECONDS
        while any(p.poll() is None for p in running) and not any(p.poll() for p in running):
            if time.monotonic() > end:
                break
            time.sleep(0.1)
        if any(p.poll() != 0 for p in running):
            codes = [p.poll() for p in running]
            words = [(folder / f"{i}.log").read_text()[-4000:] for i in range(processes)]
            pytest.fail(
                "\n".join([f"exit codes {codes}, None after {SECONDS} s or beside a failure", *words])
            )
    finally:
        for process in running:
            process.kill()
            process.wait()
        for log in logs:
            log.close()


@pytest.mark.versions
def test_two_hosts_are_one(whole, tmp_path):
    """Loss, gradients, training and metric of two processes of four devices: those of one of eight."""
    run_together(tmp_path, 2)
    wanted = {f"{model}{name}": x for model, found in whole.items() for name, x in found.items()}
    for process in range(2):
        with np.load(tmp_path / f"{process}.npz") as found:
            assert_same(dict(found), wanted)


@pytest.mark.parametrize("arguments", [[], ["--model", "4"], ["--model", "2", "--manual"]], ids=" ".join)
def test_the_example_runs(capsys, arguments):
    with jax.numpy_dtype_promotion("standard"):  # Adam needs JAX' default
        assert pod.main([*arguments, "--epochs", "2"]) == 0
    mesh, first, second = capsys.readouterr().out.splitlines()
    model = int(arguments[1]) if arguments else 1
    assert mesh.startswith(f"{ {'data': 8 // model, 'model': model} } of cpu")
    means = [re.fullmatch(r"epoch \d: mean (\S+) over 1000 examples", line) for line in (first, second)]
    assert means[0] and means[1] and float(means[1][1]) < float(means[0][1])


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
def test_a_process_brings_the_rows_of_its_devices(kind):
    mesh = pod.mesh_of(4, kind)
    *_, last = pod.batches(mesh, 40, 16, hosts.SIZES)
    assert last.inputs.sharding.is_equivalent_to(jax.NamedSharding(mesh, pod.BATCH.inputs), 2)
    np.testing.assert_array_equal(last.weights, [1] * 8 + [0] * 8)
    there = pod.read(np.arange(32, 40), hosts.SIZES)
    np.testing.assert_array_equal(np.asarray(last.inputs)[:8], there.inputs)
