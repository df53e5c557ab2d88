"""The tables of each bench, made of its results: the terminal and README.md show the same ones."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd

from bench.contenders import BASELINE, COPY, LINEAR

Result = dict[str, Any]
PASSES = {"value": 1, "value and gradient": 3}  # the fewest as separate programs: read; read, read, write
GRADIENT = "value and gradient"
FAILED = "Failed: {contender}, {program} of {case}, {dtype} ({reason})."


class Table(NamedTuple):
    """Cells of text; the index of `frame` names its rows."""

    title: str
    frame: pd.DataFrame
    note: str = ""

    def markdown(self) -> str:
        """As GitHub draws it, numbers to the right."""
        rule = ["---", *["---:"] * self.frame.shape[1]]
        grid = (["", *self.frame.columns], rule, *self.frame.itertuples(name=None))
        parts = [f"**{self.title}**", "\n".join(f"| {' | '.join(row)} |" for row in grid), self.note]
        return "\n\n".join(part for part in parts if part)


def _rows(rows: list[Result]) -> Any:
    """The rows of a result with why they failed, if any did."""
    return pd.DataFrame({"failed": None} | row for row in rows)


def _cells(rows: Any, cell: Callable[[Any], str]) -> Any:
    """The rows with their cells: a dash for what failed."""
    return rows.assign(cell=["-" if isinstance(r.failed, str) else cell(r) for r in rows.itertuples()])


def _pivot(title: str, rows: Any, column: str, note: str = "") -> Table:
    """Contenders down, the values of `column` across, in the order they were measured."""
    grid = rows.pivot(index="contender", columns=column, values="cell").fillna("-")
    grid = grid.loc[rows.contender.unique(), rows[column].unique()]
    return Table(title, grid.rename(columns=lambda name: name.replace("-", " ")), note or _failed(rows))


def _failed(rows: Any) -> str:
    return " ".join(f"-: {reason}" for reason in sorted(rows.failed.dropna().unique()))


def _number(x: float, form: str = ".2f") -> str:
    return "n/a" if pd.isna(x) else f"{x:{form}}"


def _times(title: str, rows: Any, column: str, base: str, unit: str = "ms", scale: float = 1e3) -> Table:
    """Ratios to the times of `base`, which are the last row."""
    times = rows[rows.contender == base].assign(contender=f"{base}, {unit}")
    times = _cells(times, lambda row: f"{scale * row.seconds:.3g}")
    return _pivot(title, pd.concat([_cells(rows, lambda row: _number(row.ratio)), times]), column)


def speed(result: Result) -> list[Table]:
    """Ratios per program, memory, distance to the copy on a GPU, compile times."""
    found = []
    for dtype, rows in _rows(result["rows"]).groupby("dtype", sort=False):
        for family, own in rows[rows.contender != COPY].groupby("family", sort=False):
            found += _ratios(own, dtype if family == "softmax" else f"{family}, {dtype}", family)
        if result["machine"]["device"] != "cpu":
            found.append(_bandwidth(rows[rows.program == GRADIENT], dtype))
    compiling = _rows(result["compile"]).groupby("family", sort=False)
    return found + [_compile(rows, family) for family, rows in compiling]


def _ratios(rows: Any, words: str, family: str) -> list[Table]:
    """A table per program, or one of all programs where the family has one case; and the memory."""
    title = f"ime as a ratio to {BASELINE}, {words}"
    if family == "sigmoid":
        tables = [_times(f"T{title} ({', '.join(rows.case.unique())})", rows, "program", BASELINE)]
    else:
        programs = rows.groupby("program", sort=False)
        tables = [_times(f"{name.capitalize()}: t{title}", own, "case", BASELINE) for name, own in programs]
    stored = _cells(rows[(rows.program == GRADIENT) & rows.temp.notna()], lambda row: _number(row.temp))
    return [*tables, _pivot(f"Temporary memory of {GRADIENT}, in logits, {words}", stored, "case")]


def _bandwidth(rows: Any, dtype: str) -> Table:
    copies = rows[rows.contender == COPY].set_index("case")
    speeds = (2 * copies.bytes / copies.seconds / 1e12).items()
    floors = PASSES[GRADIENT] * copies.seconds / 2
    shares = _cells(rows[rows.contender != COPY], lambda row: f"{floors[row.case] / row.seconds:.0%}")
    title = "Value and gradient: 3 passes over the logits at the copy's speed, as a share of the time"
    note = f"The copy moves {', '.join(f'{speed:.2f} TB/s ({case})' for case, speed in speeds)}."
    return _pivot(f"{title}, {dtype}", shares, "case", note)


def _compile(rows: Any, family: str) -> Table:
    rows = rows[rows.seconds.notna() | rows.traces.notna()].set_index("contender")
    cells = {
        "compile, ms": (1e3 * rows.seconds).map(lambda x: _number(x, ".0f")),
        "ratio": rows.ratio.map(_number),
    }
    traces = zip(rows.traces, rows.options, strict=True)
    cells["traces"] = ["n/a" if pd.isna(made) else f"{made:.0f} for {asked}" for made, asked in traces]
    note = "Traces: programs made for several values of gamma and alpha."
    return Table(f"Compile time of {GRADIENT}, fresh, {family}", pd.DataFrame(cells, rows.index), note)


ERRORS = {"rows": "rows", "worst_value": "worst value", "worst_gradient": "worst gradient"}
ERRORS |= {"bad_value": "inf/NaN value", "bad_gradient": "inf/NaN gradient", "dead": "dead", "off": "off 1 %"}


def accuracy(result: Result) -> list[Table]:
    """One table per family, all gammas together."""
    found = []
    for family, rows in _rows(result["rows"]).groupby("family", sort=False):
        groups = rows.groupby("contender", sort=False)
        total, worst = groups.sum(numeric_only=True), groups[["worst_value", "worst_gradient"]].max()
        frame = total.assign(off=(total.off / total["rows"]).map("{:.1%}".format)).astype(str)
        frame = frame.assign(**worst.map(lambda x: ">= 1" if x >= 1 else f"{x:.1e}"))
        gammas = ", ".join(f"{gamma:g}" for gamma in rows.gamma.unique())
        limits = "; ".join(f"{name}: {note}" for name, note in groups.note.first().items() if note)
        note = f"Gammas {gammas}. The worst relative errors are of what is finite. {limits}."
        title = f"Hard rows against the oracle, {family}, float32"
        found.append(Table(title, frame[list(ERRORS)].rename(columns=ERRORS), note))
    return found


def pictures(result: Result) -> list[Table]:
    """For each program the ratios over pixels and classes, and the worst of them."""
    found = []
    for program, rows in _rows(result["rows"]).groupby("program", sort=False):
        worst = rows.loc[rows.ratio.idxmax()]
        columns = rows.classes.map("{} classes".format)
        rows = _cells(
            rows.assign(column=columns, contender=rows.side.map("{0} x {0}".format)),
            lambda row: _number(row.ratio),
        )
        note = f"Worst: {worst.ratio:.2f}, {worst.classes} classes, {worst.side} x {worst.side}."
        title = f"{program.capitalize()} of one picture: time as a ratio to the faster {BASELINE}, float32"
        found.append(_pivot(title, rows, "column", note))
    return found


def growth(result: Result) -> list[Table]:
    """The exponents, and the ends of the curves."""
    found, fits = [], pd.DataFrame(result["slopes"])
    for along, rows in _rows(result["rows"]).groupby("along", sort=False):
        last = rows.groupby("contender", sort=False).last()
        slopes, sizes = (
            fits[fits.along == along].set_index("contender").loc[last.index],
            rows["size"].unique(),
        )
        cells = {"time ~ size^": slopes.time.map(_number), "memory ~ size^": slopes.memory.map(_number)}
        cells[f"s at {sizes[-1]:.0e}"] = last.seconds.map("{:.3g}".format)
        cells[f"GiB at {sizes[-1]:.0e}"] = (last.memory / 2**30).map(_number)
        where = f"{sizes[0]:g} to {sizes[-1]:g}, {rows.fixed.iloc[0]}"
        title = f"Value and gradient against the number of {along}, {where}"
        found.append(Table(title, pd.DataFrame(cells), "Exponents are fitted over the upper two decades."))
    return found


def compiled(result: Result) -> list[Table]:
    """For each shape, program and dtype: passes over the logits, and temporary memory, per target."""
    rows = _cells(_rows(result["rows"]).rename(columns={"loss": "contender"}), _moved)
    found = []
    for (shape, gradient, dtype), own in rows.groupby(["shape", "gradient", "dtype"], sort=False):
        title = f"{'Value and gradient' if gradient else 'Value'}, {shape} {own.logits.iloc[0]}, {dtype}"
        found.append(_pivot(title, own, "target"))
    return found


def _moved(row: Any) -> str:
    """Passes + memory; the memory only where it is a twentieth of the logits or more."""
    least = ">" if row.loops and row.target != "h200" else ""
    memory = f" + {row.temp:.2f}" if row.temp >= 0.05 else ""
    return f"{least}{row.passes:.1f}{memory}"


def schedule(result: Result) -> list[Table]:
    """The chips, then for each case and program the time per contender, on each chip in each dtype."""
    units = {"GB/s": 1e-9, "teraflops": 1e-12, "GHz": 1e-9, "issued a clock": 1}
    chips = pd.DataFrame(result["chips"]).T.set_axis(list(units), axis=1).mul(units)
    found, rows = [Table("The chips", chips.map("{:.4g}".format))], _cells(_rows(result["rows"]), _scheduled)
    rows["column"] = rows.chip + " " + rows.dtype.map({"float32": "f32", "bfloat16": "bf16"})
    for (case, program), own in rows.groupby(["case", "program"], sort=False):
        title = f"{program.capitalize()}, {case} {own['shape'].iloc[0]}: time in units of one pass"
        base = own.drop_duplicates("column").assign(contender="one pass, ms", failed=None)
        found.append(_pivot(title, pd.concat([own, _cells(base, lambda row: f"{row.unit:.3f}")]), "column"))
    return found


def _scheduled(row: Any) -> str:
    """With a star where instructions take a tenth longer than the bytes and the matmuls."""
    return f"{row.ms / row.unit:.2f}{'*' if row.ms > 1.1 * row.unissued else ''}"


def sharded(result: Result) -> list[Table]:
    """For each program and layout what one device of each pod moves, stores and exchanges."""
    found = []
    for (program, layout), rows in _rows(result["rows"]).groupby(["program", "layout"], sort=False):
        title = {"loss": "Value and gradient", "step": "Training step"}[program]
        names = [f"{row.target}, {row.classes}, {row.form}" for row in rows.itertuples()]
        cells = [_exchanged(row) for row in rows.itertuples()]
        frame = pd.DataFrame(cells, names, ["passes", "memory", "exchanged", "by"])
        found.append(Table(f"{title}, {layout}", frame, _failed(rows)))
    return found


def _exchanged(row: Any) -> list[str]:
    if isinstance(row.failed, str):
        return ["-"] * 4
    sizes = {"GB": 1e9, "MB": 1e6, "kB": 1e3}
    unit = next((unit for unit, size in sizes.items() if row.exchanged >= size), "B")
    exchanged = f"{row.exchanged / sizes.get(unit, 1):.3g} {unit}"
    kinds = ", ".join(f"{count} {kind}" for kind, count in row.collectives.items())
    return [_number(row.passes), _number(row.temp), exchanged, kinds]


def linear(result: Result) -> list[Table]:
    """Measured times and memory per shape, the process with a million classes, and the compiled programs."""
    found = []
    for dtype, rows in _rows(result["rows"]).groupby("dtype", sort=False) if result["rows"] else ():
        rows = rows[rows.failed.isna()].assign(words=lambda frame: frame["shape"].map(_shape))
        title = f"Value and gradient: time as a ratio to {LINEAR}, {dtype}"
        found.append(_times(title, rows, "words", LINEAR, "s", 1))
        title = f"Memory of value and gradient beside operands and results, GB, {dtype}"
        found.append(_pivot(title, _cells(rows, lambda row: _gigabytes(row.temp)), "words"))
    for row in result["million"]:
        cells = {"s": f"{row['seconds']:.1f}", "all memory of the process, GB": _gigabytes(row["peak"])}
        title = "A million classes: one value and gradient in a process of its own"
        found.append(Table(title, pd.DataFrame(cells, [_shape(row["shape"])])))
    for part, words in (("compiled", ""), ("items", ", lists of 20 labels")):
        if result.get(part):
            rows = _rows(result[part])
            title = f"Value and gradient, compiled, {_shape(rows['shape'].iloc[0])}, {rows.dtype.iloc[0]}"
            title += f"{words}: flops of matmuls, GB of temporary memory + GB moved, ms by the schedule"
            found.append(_pivot(title, _cells(rows, _layer), "target"))
    return found


def _layer(row: Any) -> str:
    matmuls = "?" if pd.isna(row.matmuls) else f"{2 * row.matmuls:.2f}".rstrip("0").rstrip(".")
    moved, ms = ("?" if pd.isna(x) else f"{x:.3g}" for x in (row.moved / 1e9, row.ms))
    return f"{matmuls} NDC, {_gigabytes(row.temp)} + {moved}, {ms}"


def _shape(shape: list[int]) -> str:
    return "N {}, D {}, C {}".format(*shape)


def _gigabytes(x: float) -> str:
    return _number(x if pd.isna(x) else x / 1e9)


TABLES = {
    table.__name__: table
    for table in (speed, pictures, accuracy, growth, compiled, schedule, sharded, linear)
}
