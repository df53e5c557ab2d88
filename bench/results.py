"""Results as JSON: what they say of the machine, and the loop that fills, keeps and shows them."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import re
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

CONSOLE = Console()
FOLDER = Path(__file__).parent / "results"
VERSIONS = ("focaljax", "jax", "jaxlib", "optax", "keras", "torch", "torchvision", "kornia")
COMPILERS = ("focaljax", "jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "optax")
DISASSEMBLERS = ("nvidia-cuda-nvcc", "nvidia-cuda-nvdisasm")  # what reads the schedules of GPUs


def machine(device: str) -> dict[str, Any]:
    """The processor, its cores and memory, and the kind of accelerator where that is measured."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.M)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    if device == "gpu":
        import jax

        device = jax.devices("gpu")[0].device_kind
    cpu = model[1] if model else platform.processor() or platform.machine()
    return {"cpu": cpu, "cores": cores, "memory_gib": round(memory, 1), "device": device}


def header(bench: str, device: str = "cpu", packages: tuple[str, ...] = VERSIONS) -> dict[str, Any]:
    """How every result begins; the version of what is not installed is None."""
    versions: dict[str, str | None] = {"python": platform.python_version(), **dict.fromkeys(packages)}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    when = {"bench": bench, "date": datetime.date.today().isoformat()}
    return when | {"machine": machine(device), "versions": versions, "complete": False}


def stem(result: dict[str, Any]) -> str:
    """The file's name: the bench and the device."""
    device = re.sub(r"[^a-z0-9]+", "-", result["machine"]["device"].lower()).strip("-")
    return f"{result['bench']}-{device}"


@contextlib.contextmanager
def writer(folder: Path, result: dict[str, Any], say: Callable = print) -> Iterator[Callable[[], None]]:
    """Yields what writes the result so far, which replaces the last complete one only when it ends.

    Left early, it says where the results so far are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, partial = (folder / f"{stem(result)}{suffix}.json" for suffix in ("", ".partial"))

    def write() -> None:
        fresh = partial.with_suffix(".new")
        fresh.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
        os.replace(fresh, partial)

    try:
        yield write
    except BaseException:
        if partial.exists():
            say(f"stopped; the results so far: {os.path.relpath(partial)}")
        raise
    result["complete"] = True
    write()
    os.replace(partial, file)
    say(f"written: {os.path.relpath(file)}")


def previous(folder: Path, result: dict[str, Any], partial: bool = False) -> dict[str, Any]:
    """The result that is there already, complete or not; empty if of another machine or other versions."""
    file = folder / f"{stem(result)}{'.partial' * partial}.json"
    old = json.loads(file.read_text()) if file.exists() else {}
    return old if all(old.get(key) == result[key] for key in ("machine", "versions")) else {}


def read(folder: Path, bench: str) -> list[tuple[str, dict[str, Any]]]:
    """All complete results of a bench with the names of their files (no suffix), CPU first."""
    files = [f for f in sorted(folder.glob(f"{bench}-*.json")) if not f.name.endswith(".partial.json")]
    found = [(file.stem, json.loads(file.read_text())) for file in files]
    return sorted(found, key=lambda item: item[1]["machine"]["device"] != "cpu")


def say(line: str) -> None:
    """Prints a plain line, above the progress bar if there is one."""
    CONSOLE.print(line, markup=False, highlight=False, soft_wrap=True)


def collect(args: Namespace, result: dict[str, Any], jobs: Iterable[tuple[str, Any]], do: Callable) -> None:
    """Does the jobs under a bar that names them, writes `result` after each one, and shows its tables."""
    from bench.tables import TABLES  # pandas: the process that linear.py measures must not load it

    columns = TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn()
    bar = Progress(*columns, TimeRemainingColumn(elapsed_when_finished=True), console=CONSOLE)
    with writer(args.out, result, say) as write, bar:
        jobs, task = list(jobs), bar.add_task("")
        for done, (words, job) in enumerate(jobs):
            bar.update(task, description=words, completed=done, total=len(jobs))
            do(job)
            write()
        bar.update(task, completed=len(jobs))
    for table in TABLES[result["bench"]](result):
        grid = table.frame.rename_axis(index=None, columns=None).to_string()
        say("\n".join(["", table.title, grid, table.note]).rstrip())
