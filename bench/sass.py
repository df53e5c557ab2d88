"""The instructions of a GPU's kernels: what ptxas makes of the PTX that XLA dumps, as nvdisasm prints it."""

import functools
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.hlo import Op

OPTIONS = {"xla_dump_hlo_as_text": True}  # with xla_dump_to; the order of the kernels is text then
# Clocks that an instruction of a warp keeps a unit of a scheduler busy; the first that matches. CUDA C++
# Programming Guide, throughput of arithmetic instructions, compute capability 9.0: 128, 64, 32 or 16 results
# per clock and SM are 1, 2, 4 or 8 clocks.
UNITS = {
    "XU": (8, r"MUFU|F2I|I2F\b|F2F\b|POPC|FLO"),
    "LSU": (4, r"LD|ST|SHFL|ATOM|RED"),
    "FMA": (1, r"FFMA|FADD|FMUL|HFMA2|HADD2|HMUL2"),
    "IMAD": (2, r"IMAD"),
    "ALU": (2, r"[FIV]+MNMX|F?SEL|[FI]SETP?|HSETP|LOP3|SHF|PRMT|IADD|LEA|PLOP3|MOV|IABS|F2FP|I2FP|P2R|R2P"),
}
_LINE = re.compile(r"^\s*(?:(\.L_\w+):|/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);)", re.M)
_SIZES = r"\[(\d+), (\d+), (\d+)\]"
_LAUNCH = re.compile(rf"^\s*(\d+): .*?(\S+) grid: {_SIZES} threads: {_SIZES}", re.M)
_THUNK = re.compile(r'profile_annotation: "([^"]+)"\s+thunk_id: (\d+)')
_WIDTH = re.compile(r"^(?:LDG|STG|LDGSTS)\.E(?:\.\w+)*?\.(128|64|[US]16|[US]8)\b")


def tool(name: str) -> str:
    """Where it is: in NVIDIA's wheels, or on the path."""
    folders = [f"{folder}/nvidia/cu13/bin" for folder in sys.path]
    if file := shutil.which(name, path=os.pathsep.join([*folders, os.environ.get("PATH", "")])):
        return file
    raise FileNotFoundError(f"no {name}: it comes with nvidia-cuda-nvcc and nvidia-cuda-nvdisasm")


@functools.lru_cache(maxsize=512)
def disassembled(ptx: str) -> str:
    """What the GPU runs of one module of PTX."""
    with tempfile.TemporaryDirectory() as folder:
        file, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        file.write_text(ptx)
        run = functools.partial(subprocess.run, capture_output=True, text=True, check=True)
        run([tool("ptxas"), "-arch=sm_90a", "-o", cubin, file])
        return run([tool("nvdisasm"), "-c", cubin]).stdout


def counts(text: str, moved: float) -> dict[str, float]:
    """Clocks of each unit, for one warp of a kernel whose threads read and write `moved` bytes each.

    SASS does not say how often a loop turns: until so much is moved. One that moves nothing counts once, and
    so does what a branch may skip.
    """
    code, labels, looped = [], {}, set()
    for label, name, operands in _LINE.findall(text):
        if label:
            labels[label] = len(code)
            continue
        target = re.search(r"\.L_\w+", operands) if name.startswith("BRA") else None
        if target and target[0] in labels and labels[target[0]] < len(code):
            looped |= set(range(labels[target[0]], len(code) + 1))
        code.append(name)
    inside = sum(_width(name) for i, name in enumerate(code) if i in looped)
    outside = sum(map(_width, code)) - inside
    turns = max(1.0, (moved - outside) / inside) if inside else 1.0
    units = dict.fromkeys(("issue", *UNITS), 0.0)
    for i, name in enumerate(code):
        times = turns if i in looped else 1.0
        units["issue"] += times * (name != "NOP")
        unit = next((unit for unit, (_, names) in UNITS.items() if re.match(names, name)), None)
        if unit:
            units[unit] += times * UNITS[unit][0]
    return units


def _width(name: str) -> int:
    """Bytes that a thread reads or writes in memory."""
    if not re.match(r"LDG|STG", name):
        return 0
    found = _WIDTH.match(name)
    return int(found[1].strip("US")) // 8 if found else 4


class Schedule:
    """The kernels in a folder, which XLA wrote of one program."""

    def __init__(self, folder: Path):
        """Reads which kernel each instruction launches, and how many threads."""
        files = (next(folder.glob(f"*thunk_{name}.txt")) for name in ("metadata", "sequence"))
        metadata, sequence = (file.read_text() for file in files)
        named = {int(i): name for name, i in _THUNK.findall(metadata)}
        self.ptx, self.launched = {}, {}
        for number, kernel, *sizes in _LAUNCH.findall(sequence):
            *blocks, x, y, z = map(int, sizes)
            self.launched[named[int(number)]] = (kernel, math.prod(blocks) * -(-x * y * z // 32))
        for file in folder.glob("*.ptx"):
            text = file.read_text()
            self.ptx |= dict.fromkeys(re.findall(r"\.entry (\w+)", text), text)

    def skips(self, op: Op) -> bool:
        """All kernels, if they are small: nvdisasm is slow."""
        del op
        return True

    def of(self, op: Op, moved: float) -> tuple[float, str]:
        """Clocks of one run on one scheduler, and which unit fills them; none of cuBLAS and copies.

        A fusion without a kernel is a copy of a part, which the driver makes.
        """
        if op.name not in self.launched:
            return 0.0, ""
        kernel, warps = self.launched[op.name]
        text = self.ptx[kernel].replace(kernel, "kernel")  # so that values and gradients share it
        units = counts(disassembled(text), moved / (32 * warps))
        unit, clocks = max(units.items(), key=lambda item: item[1])
        return clocks * warps, unit
