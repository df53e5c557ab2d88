"""Results as JSON: where they are, what they say of the machine, and an unfinished run kept apart."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"
VERSIONS = ("focaljax", "jax", "jaxlib", "optax", "keras", "torch", "torchvision", "kornia")
COMPILERS = ("focaljax", "jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "optax")


def versions(packages: tuple[str, ...] = VERSIONS) -> dict[str, str | None]:
    """The versions that decide the numbers; None for what is not installed."""
    found = dict.fromkeys(("python", *packages), None) | {"python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def machine(device: str) -> dict[str, Any]:
    """The processor, its cores and memory, and the kind of accelerator where that is measured."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.M)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = {
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "cores": cores,
        "memory_gib": round(memory, 1),
        "device": "cpu",
    }
    if device == "gpu":
        import jax

        found["device"] = jax.devices("gpu")[0].device_kind
    return found


def header(bench: str, device: str = "cpu", packages: tuple[str, ...] = VERSIONS) -> dict[str, Any]:
    """How every result begins."""
    return {
        "bench": bench,
        "date": datetime.date.today().isoformat(),
        "machine": machine(device),
        "versions": versions(packages),
        "complete": False,
    }


def stem(result: dict[str, Any]) -> str:
    """The file's name: the bench and the device."""
    device = re.sub(r"[^a-z0-9]+", "-", result["machine"]["device"].lower()).strip("-")
    return f"{result['bench']}-{device}"


class Writer:
    """Writes a result again and again while it grows; what is not complete never replaces what is.

    As a context it says, when it is left early, where the results so far are.
    """

    def __init__(self, folder: Path, result: dict[str, Any], say: Any = print):
        """`say` prints a line."""
        folder.mkdir(parents=True, exist_ok=True)
        self.result, self.say = result, say
        self.file = folder / f"{stem(result)}.json"
        self.partial = folder / f"{stem(result)}.partial.json"

    def write(self) -> None:
        """The results so far, in one move."""
        fresh = self.partial.with_suffix(".new")
        fresh.write_text(json.dumps(self.result, indent=1, allow_nan=False) + "\n")
        os.replace(fresh, self.partial)

    def __enter__(self) -> "Writer":
        """Nothing is written yet."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Complete: the result takes its place."""
        if kind is None:
            self.result["complete"] = True
            self.write()
            os.replace(self.partial, self.file)
            self.say(f"written: {_short(self.file)}")
        elif self.partial.exists():
            self.say(f"stopped; the results so far: {_short(self.partial)}")


def previous(folder: Path, result: dict[str, Any], partial: bool = False) -> dict[str, Any] | None:
    """The result that is there already, complete or not, if it is of the same machine and versions."""
    file = folder / f"{stem(result)}{'.partial' * partial}.json"
    old = json.loads(file.read_text()) if file.exists() else {}
    same = all(old.get(key) == result[key] for key in ("machine", "versions"))
    return old if same else None


def _short(file: Path) -> str:
    with contextlib.suppress(ValueError):
        return str(file.resolve().relative_to(Path.cwd()))
    return str(file)


def read(folder: Path, bench: str) -> list[tuple[str, dict[str, Any]]]:
    """All complete results of a bench with the names of their files (no suffix), CPU first."""
    files = [f for f in sorted(folder.glob(f"{bench}-*.json")) if not f.name.endswith(".partial.json")]
    found = [(file.stem, json.loads(file.read_text())) for file in files]
    return sorted(found, key=lambda item: item[1]["machine"]["device"] != "cpu")
