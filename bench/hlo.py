"""The optimised HLO of a compiled program, read back: its kernels, what they move, what they must not do.

XLA prints a module as computations of one instruction per line.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

# Nothing of the size of the logits may pass through one of these.
FORBIDDEN = ("gather", "scatter", "sort", "all-gather", "transpose", "copy", "copy-start")
# What devices exchange; a loss may exchange its rows, never its logits.
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute")
COLLECTIVES += ("ragged-all-to-all", "reduce-scatter")


class Array(NamedTuple):
    """Elements, bytes and shape of one array."""

    size: int
    bytes: float
    inside: bool = False  # a TPU's VMEM: no kernel reads it from memory
    shape: tuple[int, ...] = ()


class Op(NamedTuple):
    """One instruction."""

    name: str
    result: tuple[Array, ...]  # more than one for a tuple
    code: str
    operands: tuple[str, ...]
    attributes: str
    root: bool
    layout: str = ""  # the text of the result, with its dimensions from the fastest on and its tiles


Module = dict[str, dict[str, Op]]  # computations by name, their instructions by name; the entry is ""

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_ARRAY = re.compile(r"\b([a-z]+(\d*)[a-z0-9]*)\[([\d,]*)\](\{[^{}]*S\(1\)[^{}]*\})?")
_CALLED = re.compile(r"(?:calls|to_apply|body|(?:branch|true|false)_computations?)=(\{.*?\}|\S+)")
_BATCH = re.compile(r"lhs_batch_dims=\{([\d,]+)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_TILED = re.compile(r"\{(\d+),(\d+)[\d,]*:(T\(8,128\)\S*?)[}S]")
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id"}
_ALLOCATED = 'custom_call_target="AllocateBuffer"'  # memory, which nothing is written to yet
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
    if code == "constant":
        attributes = operands + attributes
    arrays = tuple(_array(*found) for found in _ARRAY.findall(result))
    named, short = tuple(re.findall(r"%([\w.\-]+)", operands)), name.removeprefix("ROOT ").removeprefix("%")
    return Op(short, arrays, code, named, attributes, name.startswith("ROOT "), result)


def _until_closed(text: str) -> tuple[str, str]:
    """Splits after the parenthesis that closes the first character."""
    depth = 0
    for i, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0:
            return text[: i + 1], text[i + 1 :]
    raise ValueError(f"no end: {text}")


def _array(dtype: str, bits: str, dims: str, inside: str) -> Array:
    shape = tuple(int(n) for n in dims.split(",") if n)
    size = math.prod(shape)
    return Array(size, size * int(bits or (8 if dtype == "pred" else 0)) / 8, bool(inside), shape)


def kernels(module: Module, computation: str = "", unknown: int | None = None) -> Iterator[tuple[Op, int]]:
    """What the device runs, and how often; of a conditional all branches.

    A loop of unknown length counts as `unknown` turns, or is an error.
    """
    for op in module[computation].values():
        if op.code in _CONTROL:
            trips = _trips(module, op, unknown) if op.code == "while" else 1
            for called in _called(op):
                for inner, times in kernels(module, called, unknown):
                    yield inner, times * trips
        elif op.code not in _FREE and not op.code.endswith("-done"):
            yield op, 1


def _trips(module: Module, loop: Op, unknown: int | None) -> int:
    """As XLA says, or the bound that the condition compares with."""
    known, condition = _TRIPS.search(loop.attributes), _CONDITION.search(loop.attributes)
    if known is None and condition is not None:
        ops = module.get(condition[1], {}).values()
        bounds = (re.match(r"\((\d+)\)", op.attributes) for op in ops if op.code == "constant")
        known = next(filter(None, bounds), None)
    if known is None and unknown is None:
        raise ValueError(f"a loop of unknown length: {loop.name}")
    return int(known[1]) if known is not None else unknown or 0


def _called(op: Op) -> list[str]:
    return [name for found in _CALLED.findall(op.attributes) for name in re.findall(r"[\w.\-]+", found)]


def traffic(module: Module, unknown: int | None = None) -> float:
    """Bytes that the kernels of a module read and write; an operand that is named twice is read once."""
    return sum(times * moved for _, times, moved in traffic_of_kernels(module, unknown))


def traffic_of_kernels(module: Module, unknown: int | None = None) -> Iterator[tuple[Op, int, float]]:
    """Every kernel, how often it runs and the bytes that it then reads and writes."""
    opened = _opened(module)
    owners = {id(op): opened[name] for name, ops in module.items() for op in ops.values()}
    for op, times in kernels(module, unknown=unknown):
        if _ALLOCATED in op.attributes:
            continue
        # The result of a start names both sides.
        yield op, times, _bytes(op) if op.code.endswith("-start") else _moved(opened, owners[id(op)], op)


def _opened(module: Module) -> Module:
    """Fusions inside fusions replaced by what they read of each operand, which may be a slice of it."""
    every = (op for ops in module.values() for op in ops.values())
    fused = {name for op in every if op.code == "fusion" for name in _called(op)}

    def read(body: dict[str, Op], operand: Op) -> float:
        alike = [x.name for x in body.values() if x.code == "parameter" and x.result == operand.result]
        return max((_read(body, name) for name in alike), default=_bytes(operand))

    def of(computation: str) -> dict[str, Op]:
        ops, found = module[computation], {}
        for op in ops.values():
            if op.code == "fusion":
                inner = of(_called(op)[0])
                if all(x.code in ("parameter", "bitcast") for x in inner.values()):
                    op = op._replace(code="bitcast")
                else:
                    for name in op.operands:
                        part = (Array(0, read(inner, ops[name])),)
                        found[f"{op.name} of {name}"] = Op("", part, "slice", (name,), "", False)
                    op = op._replace(code="opened", operands=())
            found[op.name] = op
        return found

    return {name: of(name) if name in fused else ops for name, ops in module.items()}


def flops(module: Module, kernel: Op) -> float:
    """Of its dots, of the convolutions that TPUs make of them, or of the call of cuBLAS that it is."""
    found = 0.0
    for op, ops in _inside(module, kernel):
        if op.code in ("dot", "convolution") or "__cublas" in op.attributes:
            left, right = (ops[name].result[0] for name in op.operands[:2])
            axes = _BATCH.search(op.attributes)  # a long sum, in parts
            batch = math.prod(left.shape[int(i)] for i in axes[1].split(",")) if axes else 1
            found += 2 * math.sqrt(left.size * right.size * op.result[0].size / batch)  # MK, KN, MN
    return found


def _moved(module: Module, owner: dict[str, Op], op: Op) -> float:
    if op.code == "fusion":
        body = module[_called(op)[0]]
    else:  # as if the instruction were a fusion of itself
        body = {name: owner[name]._replace(code="parameter") for name in op.operands}
        body[op.name] = op._replace(root=True)
    names = [name for name, inner in body.items() if inner.code == "parameter"]
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
    """Of its result in memory."""
    return sum(array.bytes for array in op.result if not array.inside)


def _large(op: Op, size: int) -> int:
    """Results of the logits' size: more than half as many elements, so that [N] is none beside [N, 2]."""
    return sum(2 * array.size > size for array in op.result)


def touches(module: Module, op: Op, size: int) -> bool:
    """Whether an instruction reads or writes an array of that size."""
    owner = _owner(module, op)
    return any(_large(x, size) for x in (op, *(owner[name] for name in op.operands if name in owner)))


def _owner(module: Module, op: Op) -> dict[str, Op]:
    return next(ops for ops in module.values() if ops.get(op.name) is op)


def stored(module: Module, size: int) -> int:
    """How many arrays of that size are written and are no result."""
    returned = sum(_large(root, size) for root in _roots(module[""]))
    return sum(_large(op, size) for op, _ in kernels(module)) - returned


def forbidden(module: Module, size: int) -> tuple[str, ...]:
    """The operations of FORBIDDEN on arrays of that size, inside kernels too.

    Not a copy inside a kernel which keeps the tiles of a TPU whole: it is the order in which they are read.
    """
    alone = {op for op, _ in kernels(module)}
    suspects = ((ops, op) for ops in module.values() for op in ops.values() if op.code in FORBIDDEN)
    found = (op for ops, op in suspects if op in alone or not _keeps_tiles(ops, op))
    return tuple(sorted(op.code for op in found if touches(module, op, size)))


def _keeps_tiles(ops: dict[str, Op], op: Op) -> bool:
    """Whether a copy only orders the tiles: the two dimensions and the tile within them stay as they are."""
    source = ops.get(op.operands[0]) if op.code == "copy" else None
    sides = [_TILED.search(one.layout) for one in (op, source) if one is not None]
    return len(sides) == 2 and all(sides) and len({side.groups() for side in sides if side}) == 1


def collectives(module: Module, unknown: int | None = None) -> list[tuple[str, float]]:
    """Every exchange with other devices, once for each turn of its loop, and the bytes of its larger side.

    That is what one device takes of an all-gather and gives to a reduce-scatter. A loop of unknown length is
    as in :func:`kernels`.
    """
    found = []
    for op, times in kernels(module, unknown=unknown):
        for inner, owner in _inside(module, op):
            code = inner.code.removesuffix("-start")
            if code in COLLECTIVES:
                sides = inner, *(owner[name] for name in inner.operands if name in owner)
                taken, *parts = (sum(array.bytes for array in side.result) for side in sides)
                given = sum(parts)
                if code != inner.code and code != "all-reduce":  # the start of a pair holds both sides
                    taken -= given
                found += [(code, max(given, taken))] * times
    return found


def _inside(module: Module, op: Op) -> Iterator[tuple[Op, dict[str, Op]]]:
    """An instruction and, in a fusion, those that it is made of, each with its computation."""
    yield op, _owner(module, op)
    if op.code == "fusion":
        for name in _called(op):
            for inner in module[name].values():
                yield from _inside(module, inner)
