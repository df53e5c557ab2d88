"""The tables of each bench, made from its results: the terminal and README.md show the same ones."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from bench.contenders import BASELINE

Result = dict[str, Any]
COPY = "copy of the logits"
LINEAR = f"matmul and {BASELINE}"
PASSES = {"value": 1, "value and gradient": 3}  # the fewest as separate programs: read; read, read, write


class Table(NamedTuple):
    """Strings in a grid."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""

    def markdown(self) -> str:
        """The grid as GitHub draws it, numbers to the right."""
        rule = ["---", *["---:"] * (len(self.header) - 1)]
        lines = [f"| {' | '.join(row)} |" for row in (self.header, rule, *self.rows)]
        parts = [f"**{self.title}**", "\n".join(lines), self.note]
        return "\n\n".join(part for part in parts if part)


def _pivot(
    title: str, rows: list[Result], column: str, cell: Callable[[Result], str], note: str = ""
) -> Table:
    """Contenders down, the values of `column` across, in the order they were measured."""
    names, columns = _distinct(rows, "contender"), _distinct(rows, column)
    cells = {(row["contender"], row[column]): cell(row) for row in rows}
    header = ["", *(name.replace("-", " ") for name in columns)]
    grid = [[name, *(cells.get((name, c), "-") for c in columns)] for name in names]
    return Table(title, header, grid, note)


def _distinct(rows: Iterable[Result], key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows))


def _number(x: float | None, form: str = ".2f") -> str:
    return "n/a" if x is None else f"{x:{form}}"


def speed(result: Result) -> list[Table]:
    """Ratios per program, memory, distance to the copy on a GPU, compile times."""
    found = []
    for dtype in _distinct(result["rows"], "dtype"):
        rows = [row for row in result["rows"] if row["dtype"] == dtype]
        found += _ratios([r for r in rows if r["family"] == "softmax"], dtype, "case")
        found += _ratios([r for r in rows if r["family"] == "sigmoid"], f"sigmoid, {dtype}", "program")
        if result["machine"]["device"] != "cpu":
            found.append(_bandwidth(rows, dtype))
    return found + [_compile(result, family) for family in _distinct(result["compile"], "family")]


def _ratios(rows: list[Result], words: str, column: str) -> list[Table]:
    rows = [row for row in rows if row["contender"] != COPY]
    if not rows:
        return []

    def cell(row: Result) -> str:
        return _number(row["ratio"])

    gradient = [row for row in rows if row["program"] == "value and gradient"]
    temp = _pivot(
        f"Temporary memory of value and gradient, in logits, {words}",
        [row for row in gradient if row["temp"] is not None],
        "case",
        lambda row: _number(row["temp"]),
    )
    base = {(row["program"], row["case"]): row["seconds"] for row in rows if row["contender"] == BASELINE}
    if column == "program":
        milliseconds = ", ".join(f"{program} {1e3 * t:.3g} ms" for (program, _), t in base.items())
        title = f"Time as a ratio to {BASELINE}, {words} ({', '.join(_distinct(rows, 'case'))})"
        return [_pivot(title, rows, "program", cell, f"{BASELINE}: {milliseconds}."), temp]
    tables = []
    for program in _distinct(rows, "program"):
        table = _pivot(
            f"{program.capitalize()}: time as a ratio to {BASELINE}, {words}",
            [row for row in rows if row["program"] == program],
            "case",
            cell,
        )
        times = [f"{1e3 * base[program, case]:.3g}" for case in _distinct(rows, "case")]
        tables.append(table._replace(rows=[*table.rows, [f"{BASELINE}, ms", *times]]))
    return [*tables, temp]


def _bandwidth(rows: list[Result], dtype: str) -> Table:
    copies = {(row["case"], row["program"]): row["seconds"] for row in rows if row["contender"] == COPY}

    def cell(row: Result) -> str:
        floor = PASSES["value and gradient"] * copies[row["case"], row["program"]] / 2
        return f"{floor / row['seconds']:.0%}"

    gradient = [row for row in rows if row["program"] == "value and gradient" and row["contender"] != COPY]
    speeds = {
        row["case"]: 2 * row["bytes"] / row["seconds"] / 1e12
        for row in rows
        if row["contender"] == COPY and row["program"] == "value and gradient"
    }
    note = "The copy moves " + ", ".join(f"{s:.2f} TB/s ({case})" for case, s in speeds.items()) + "."
    title = (
        f"Value and gradient: 3 passes over the logits at the copy's speed, as a share of the time, {dtype}"
    )
    return _pivot(title, gradient, "case", cell, note)


def _compile(result: Result, family: str) -> Table:
    rows = [row for row in result["compile"] if row["family"] == family]
    grid = [
        [
            row["contender"],
            _number(row["seconds"] and 1e3 * row["seconds"], ".0f"),
            _number(row["ratio"]),
            "n/a" if row["traces"] is None else f"{row['traces']} for {row['options']}",
        ]
        for row in rows
        if row["seconds"] is not None or row["traces"] is not None
    ]
    header = ["", "compile, ms", "ratio", "traces"]
    note = "Traces: programs made for several values of gamma and alpha."
    return Table(f"Compile time of value and gradient, fresh, {family}", header, grid, note)


def accuracy(result: Result) -> list[Table]:
    """One table per family, all gammas together."""
    return [_errors(result, family) for family in _distinct(result["rows"], "family")]


def _errors(result: Result, family: str) -> Table:
    rows = [row for row in result["rows"] if row["family"] == family]
    grid, limits = [], []
    for name in _distinct(rows, "contender"):
        own = [row for row in rows if row["contender"] == name]
        total = {key: sum(row[key] for row in own) for key in ("rows", "off", *_COUNTS)}
        worst = [_error(max(row[key] for row in own)) for key in ("worst_value", "worst_gradient")]
        counts = [str(total[key]) for key in _COUNTS]
        grid.append([name, str(total["rows"]), *worst, *counts, f"{total['off'] / total['rows']:.1%}"])
        limits += [f"{name}: {own[0]['note']}"] if own[0]["note"] else []
    gammas = ", ".join(f"{g:g}" for g in _distinct(rows, "gamma"))
    note = f"Gammas {gammas}. The worst relative errors are of what is finite. {'; '.join(limits)}."
    return Table(f"Hard rows against the oracle, {family}, float32", _ERRORS, grid, note)


_COUNTS = ("bad_value", "bad_gradient", "dead")
_ERRORS = [
    "",
    "rows",
    "worst value",
    "worst gradient",
    "inf/NaN value",
    "inf/NaN gradient",
    "dead",
    "off 1 %",
]


def _error(x: float) -> str:
    return ">= 1" if x >= 1 else f"{x:.1e}"


def growth(result: Result) -> list[Table]:
    """The exponents, and the ends of the curves."""
    found = []
    for along in _distinct(result["rows"], "along"):
        rows = [row for row in result["rows"] if row["along"] == along]
        grid = []
        for name in _distinct(rows, "contender"):
            own = [row for row in rows if row["contender"] == name]
            slopes = next(s for s in result["slopes"] if (s["along"], s["contender"]) == (along, name))
            last = own[-1]
            cells = [_number(slopes["time"]), _number(slopes["memory"])]
            grid.append([name, *cells, f"{last['seconds']:.3g}", f"{last['memory'] / 2**30:.2f}"])
        fixed, sizes = rows[0]["fixed"], _distinct(rows, "size")
        header = ["", "time ~ size^", "memory ~ size^", f"s at {sizes[-1]:.0e}", f"GiB at {sizes[-1]:.0e}"]
        title = f"Value and gradient against the number of {along}, {sizes[0]:g} to {sizes[-1]:g}, {fixed}"
        found.append(Table(title, header, grid, "Exponents are fitted over the upper two decades."))
    return found


def compiled(result: Result) -> list[Table]:
    """For each shape, program and dtype: passes over the logits, and temporary memory, per target."""
    found = []
    keys = dict.fromkeys((row["shape"], row["gradient"], row["dtype"]) for row in result["rows"])
    for key in keys:
        rows = [row for row in result["rows"] if (row["shape"], row["gradient"], row["dtype"]) == key]
        shape, gradient, dtype = key
        title = f"{'Value and gradient' if gradient else 'Value'}, {shape} {rows[0]['logits']}, {dtype}"
        table = _pivot(title, [row | {"contender": row["loss"]} for row in rows], "target", _moved)
        failed = sorted({row["failed"] for row in rows if "failed" in row})
        found.append(table._replace(note=" ".join(f"-: {words}" for words in failed)))
    return found


def _moved(row: Result) -> str:
    """Passes + memory; the memory only where it is a twentieth of the logits or more."""
    if "failed" in row:
        return "-"
    least = ">" if row["loops"] and row["target"] != "h200" else ""
    memory = f" + {row['temp']:.2f}" if row["temp"] >= 0.05 else ""
    return f"{least}{row['passes']:.1f}{memory}"


def schedule(result: Result) -> list[Table]:
    """The chips, then for each case and program the time per contender, on each chip in each dtype."""
    units = {"bandwidth": ("GB/s", 1e-9), "flops": ("teraflops", 1e-12), "clock": ("GHz", 1e-9)}
    units |= {"issue": ("issued a clock", 1)}
    grid = [
        [name, *(f"{c[key] * by:.4g}" for key, (_, by) in units.items())]
        for name, c in result["chips"].items()
    ]
    found = [Table("The chips", ["", *(words for words, _ in units.values())], grid)]
    for case, program in dict.fromkeys((row["case"], row["program"]) for row in result["rows"]):
        rows = [row for row in result["rows"] if (row["case"], row["program"]) == (case, program)]
        rows = [row | {"column": f"{row['chip']} {_SHORT[row['dtype']]}"} for row in rows]
        base = {row["column"]: row["unit"] for row in rows}
        words = "three matmuls at their peak" if case == "linear" else "one pass"
        title = f"{program.capitalize()}, {case} {rows[0]['shape']}: time in units of {words}"
        table = _pivot(title, rows, "column", _scheduled)
        failed = sorted({row["failed"] for row in rows if "failed" in row})
        last = [f"{words}, ms", *(f"{ms:.3f}" for ms in base.values())]
        note = " ".join(f"-: {reason}" for reason in failed)
        found.append(table._replace(rows=[*table.rows, last], note=note))
    return found


_SHORT = {"float32": "f32", "bfloat16": "bf16"}


def _scheduled(row: Result) -> str:
    """With a star where instructions take a tenth longer than the bytes and the matmuls."""
    if "failed" in row:
        return "-"
    star = "*" if row["ms"] > 1.1 * row["unissued"] else ""
    return f"{row['ms'] / row['unit']:.2f}{star}"


def sharded(result: Result) -> list[Table]:
    """For each program and layout what one device of each pod moves, stores and exchanges."""
    found = []
    for key in dict.fromkeys((row["program"], row["layout"]) for row in result["rows"]):
        rows = [row for row in result["rows"] if (row["program"], row["layout"]) == key]
        failed = sorted({row["failed"] for row in rows if "failed" in row})
        note = " ".join(f"-: {words}" for words in failed)
        title = {"loss": "Value and gradient", "step": "Training step"}[key[0]]
        found.append(Table(f"{title}, {key[1]}", _EXCHANGED, [_exchanged(row) for row in rows], note))
    return found


_EXCHANGED = ["", "passes", "memory", "exchanged", "by"]


def _exchanged(row: Result) -> list[str]:
    words = f"{row['target']}, {row['classes']}, {row['form']}"
    if "failed" in row:
        return [words, *["-"] * (len(_EXCHANGED) - 1)]
    kinds = ", ".join(f"{count} {kind}" for kind, count in row["collectives"].items())
    return [words, _number(row["passes"]), _number(row["temp"]), _bytes(row["exchanged"]), kinds]


def _bytes(x: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if x >= size:
            return f"{x / size:.3g} {unit}"
    return f"{x:.0f} B"


def linear(result: Result) -> list[Table]:
    """Measured times and memory per shape, the process with a million classes, and the compiled programs."""
    found = []
    for dtype in _distinct(result["rows"], "dtype"):
        rows = [row for row in result["rows"] if row["dtype"] == dtype and "failed" not in row]
        base = [f"{row['seconds']:.3g}" for row in rows if row["contender"] == LINEAR]
        title = f"Value and gradient: time as a ratio to {LINEAR}, {dtype}"
        rows = [row | {"words": _shape(row)} for row in rows]
        times = _pivot(title, rows, "words", lambda row: _number(row["ratio"]))
        found.append(times._replace(rows=[*times.rows, [f"{LINEAR}, s", *base]]))
        title = f"Memory of value and gradient beside operands and results, GB, {dtype}"
        found.append(_pivot(title, rows, "words", lambda row: _gigabytes(row["temp"])))
    for row in result["million"]:
        cells = [_shape(row), f"{row['seconds']:.1f}", _gigabytes(row["peak"])]
        header = ["", "s", "all memory of the process, GB"]
        found.append(
            Table("A million classes: one value and gradient in a process of its own", header, [cells])
        )
    return found + ([_linear_compiled(result["compiled"])] if result["compiled"] else [])


def _linear_compiled(rows: list[Result]) -> Table:
    def cell(row: Result) -> str:
        if "failed" in row:
            return "-"
        matmuls = "?" if row["matmuls"] is None else f"{2 * row['matmuls']:.2f}".rstrip("0").rstrip(".")
        moved = "?" if row["moved"] is None else f"{row['moved'] / 1e9:.0f}"
        return f"{matmuls} NDC, {_gigabytes(row['temp'])} + {moved}"

    failed = sorted({row["failed"] for row in rows if "failed" in row})
    words = f"{_shape(rows[0])}, {rows[0]['dtype']}"
    title = f"Value and gradient, compiled, {words}: flops of matmuls, GB of temporary memory + GB moved"
    return _pivot(title, rows, "target", cell, " ".join(f"-: {reason}" for reason in failed))


def _shape(row: Result) -> str:
    return "N {}, D {}, C {}".format(*row["shape"])


def _gigabytes(x: float | None) -> str:
    return "n/a" if x is None else f"{x / 1e9:.2f}"


TABLES: dict[str, Callable[[Result], list[Table]]] = {
    "speed": speed,
    "accuracy": accuracy,
    "growth": growth,
    "compiled": compiled,
    "schedule": schedule,
    "sharded": sharded,
    "linear": linear,
}
