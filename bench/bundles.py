"""The schedule of a TPU's kernels: libtpu's last LLO, one line for each bundle, which takes a clock.

libtpu writes it if `FLAGS` are in LIBTPU_INIT_ARGS of the environment before it is loaded.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from bench.hlo import Op

FLAGS = "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final_"
_FILE = re.compile(r"\d+-(.+)-\d\d-final_bundles.txt")
_BUNDLE = re.compile(r"^\s*0(?:x[0-9a-f]+)?\s+(\w\w)?\s*:\s*((?:>\s*)*)\{(.*)", re.M)
_EXIT = re.compile(r"(%p\w+) = scmp\.[\w.]+\.totalorder (?:\((%p\w+)\), )?\S+, (\d+) /\* loop exit test")
_BOUNDS = re.compile(r'"iteration_bounds":\[([^\]]+)\]')


@dataclass
class _Loop:
    """Bundles of its own, loops inside, and what its exit test compares with."""

    bundles: int = 0
    limit: int | None = None
    inner: list["_Loop"] = field(default_factory=list)

    def cycles(self, bounds: list[int]) -> int:
        """Of the loops inside only the kernel's own, the outermost, goes over its windows."""
        return self.bundles + sum(loop.cycles([]) * loop.turns(bounds) for loop in self.inner)

    def turns(self, bounds: list[int]) -> int:
        """The limit is too high by the stages of the pipeline, whose first and last turns do no work.

        It also says whether the two cores of a v5p share the windows, along one of their dimensions.
        """
        if not bounds:
            return self.limit or 1
        halves = (math.prod([*bounds[:i], -(-b // 2), *bounds[i + 1 :]]) for i, b in enumerate(bounds))
        known = [n for n in (math.prod(bounds), *halves) if self.limit is None or n <= self.limit]
        return max(known, default=self.limit or 1)


def cycles(text: str, bounds: list[int]) -> int:
    """Bundles of a kernel times the turns of the loops around them; `bounds` are those of its windows.

    Loops count by ones: one that was unrolled, as by `lax.fori_loop(unroll=2)`, would count twice.
    """
    stack, ends = [_Loop()], {}
    for label, arrows, words in _BUNDLE.findall(text):
        depth = arrows.count(">")
        if words.startswith("}"):  # an empty bundle has no arrows
            depth = len(stack) - 1
        elif label == "LB":
            del stack[depth:]
        while len(stack) <= depth:  # without a label a loop goes on, after a bundle of what follows it
            if label == "LB" or not stack[-1].inner:
                stack[-1].inner.append(_Loop())
            stack.append(stack[-1].inner[-1])
        del stack[depth + 1 :]
        stack[-1].bundles += 1
        for test, after, limit in _EXIT.findall(words):  # once a loop has ended, the one around it is asked
            ends[test] = ends[after] - 1 if after in ends else len(stack) - 1
            stack[ends[test]].limit = int(limit)
    return stack[0].cycles(bounds)


def fullest(text: str) -> str:
    """The unit that most of the bundles of a kernel keep busy, and how busy."""
    _, names, capacity, _, *uses = text.strip().splitlines()
    filled = [sum(column) for column in zip(*(map(int, line.split()) for line in uses), strict=True)]
    room = [int(slots) * len(uses) for slots in capacity.split()]
    share, name = max(zip((f / r for f, r in zip(filled, room, strict=True)), names.split(", "), strict=True))
    return f"{name} {share:.0%}"


class Schedule:
    """The kernels in a folder, which libtpu wrote of one program."""

    def __init__(self, folder: Path):
        """Reads nothing yet."""
        self.files = {found[1]: file for file in folder.iterdir() if (found := _FILE.fullmatch(file.name))}

    def skips(self, op: Op) -> bool:
        """Whether nothing is known of a kernel: of some that are alike libtpu writes one."""
        return op.name not in self.files

    def of(self, op: Op, moved: float) -> tuple[float, str]:
        """Clocks of one run of a kernel, and what fills them; none of what no core runs, such as a copy."""
        del moved
        runs = op.code == "fusion" or "tpu_custom_call" in op.attributes  # the latter of Pallas
        if op.name not in self.files and not runs:
            return 0.0, ""
        file, bounds = self.files[op.name], _BOUNDS.search(op.attributes)
        windows = [int(n.strip('" ')) for n in bounds[1].split(",")] if bounds else []
        use = next(file.parent.glob(f"*-{op.name}-*final_hlo-static-per-bundle-utilization.txt"))
        return cycles(file.read_text(), windows), fullest(use.read_text())
