"""The user's own data: what is written to a file comes back as a problem, or is refused with a reason."""

import bz2
import datetime
import decimal
import gzip
import itertools
import json
import lzma
import tracemalloc
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

pd = pytest.importorskip("pandas")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from focaljax.study import table  # noqa: E402
from focaljax.study.data import Problem  # noqa: E402
from focaljax.study.errors import StudyError  # noqa: E402
from focaljax.study.tables import encode, moments, plan, survey  # noqa: E402

# A standardised number of R rows is at most sqrt(R) in size: two units of float32 there.
CLOSE = 2.0**-20  # R <= 24 and, in long tables, no outliers
WORDS = ("red", "green", "a, b", 'say "so"', "日本", "two\nlines", "01", "1.0", "None of it")


def standardised(values: list[float]) -> np.ndarray:
    """What a column of numbers becomes, in exact arithmetic but for one square root; None is missing."""
    there = [Fraction(value) for value in values if value is not None]
    mean = sum(there) / len(there)
    variance = sum((value - mean) ** 2 for value in there) / len(there)
    if variance == 0:
        return np.array([np.nan if value is None else 0.0 for value in values])
    # The square root is taken of a ratio near 1: the variance itself may be no float64.
    largest = max(abs(value - mean) for value in there)
    deviation = Fraction(float(variance / largest**2) ** 0.5) * largest
    return np.array(
        [np.nan if value is None else float((Fraction(value) - mean) / deviation) for value in values]
    )


def words(problem: Problem, name: str) -> list[str | None]:
    """The cells of a category, None where missing or rare."""
    j = problem.category_names.index(name)
    return [problem.levels[j][code] if code else None for code in problem.categories[:, j]]


def numbers(problem: Problem, name: str) -> np.ndarray:
    return np.asarray(problem.numbers[:, problem.number_names.index(name)])


def classes(problem: Problem) -> list[str]:
    return [problem.class_names[code] for code in problem.labels]


def same(one: Problem, other: Problem, close: float = 0.0) -> None:
    """Expect the same problem, numbers to within `close`."""
    for field in ("number_names", "category_names", "levels", "class_names", "notes"):
        assert getattr(one, field) == getattr(other, field)
    np.testing.assert_array_equal(one.categories, other.categories)
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_allclose(one.numbers, other.numbers, rtol=0, atol=close)


# A table as people have them.

MIXED_NOTES = (
    "left out as asked: note",
    "left out, rows without a label: 3 (the first is data row 8)",
    "left out, constant: unit",
    "left out, it counts the rows: id",
    "left out, an identifier or free text, most rows differ: who",
    "left out, every cell is missing: empty",
    "dates, read as seconds since 1970 in UTC: seen",
    "column 'street' has 130 different values: the 100 most frequent are its levels, "
    "the others (30 rows) count as missing",
    "missing cells, of 397: size 40, colour 57, wet 10, seen 2",
)


def mixed(rows: int = 400):
    """Numbers, text, truth values, dates, an identifier, a counter, and cells missing of each."""
    rng = np.random.default_rng(1)
    kind = rng.choice(["ham", "spam", "eggs"], rows, p=[0.6, 0.3, 0.1]).astype(object)
    street = np.array([f"street {i:03d}" for i in np.r_[np.arange(130), np.arange(rows - 130) % 89]], object)
    frame = pd.DataFrame(
        {
            "id": np.arange(1000, 1000 + rows),
            "size": 1e6 + rng.normal(size=rows),
            "count": rng.integers(0, 9, rows),
            "colour": rng.choice(["red", "green", "blue, pale"], rows).astype(object),
            "wet": rng.choice([True, False], rows).astype(object),
            "seen": pd.Timestamp("2021-03-28 01:30:00")
            + pd.to_timedelta(rng.integers(0, 10**7, rows), unit="s"),
            "unit": "cm",
            "who": [f"person {i}" for i in range(rows)],
            "street": street,
            "empty": np.full(rows, np.nan),
            "note": "x",
            "kind": kind,
        }
    )
    for name, every in (("size", 10), ("colour", 7), ("wet", 40), ("seen", 200)):
        frame.loc[np.arange(rows) % every == 1, name] = None
    frame.loc[[7, 70, 377], "kind"] = None
    return frame


def test_a_mixed_table_becomes_numbers_categories_and_notes(tmp_path: Path):
    frame = mixed()
    frame.to_csv(tmp_path / "mine.csv", index=False)
    problem = table.read_csv(tmp_path / "mine.csv", "kind", ["note"], tmp_path / "scratch")
    kept = frame[frame["kind"].notna()]
    assert problem.number_names == ("size", "count", "seen")
    assert problem.category_names == ("colour", "wet", "street")
    assert problem.class_names == ("eggs", "ham", "spam")
    assert classes(problem) == kept["kind"].tolist()
    assert (
        words(problem, "colour") == kept["colour"].astype(object).where(kept["colour"].notna(), None).tolist()
    )
    assert problem.levels[1] == (plan.NO_LEVEL, "False", "True")
    assert len(problem.levels[2]) == 1 + plan.MOST_LEVELS
    for name in ("size", "count"):
        cells = [None if np.isnan(x) else float(x) for x in kept[name]]
        np.testing.assert_allclose(numbers(problem, name), standardised(cells), atol=CLOSE, rtol=0)
    seen = [None if x is pd.NaT else x.timestamp() for x in kept["seen"]]
    np.testing.assert_allclose(numbers(problem, "seen"), standardised(seen), atol=CLOSE, rtol=0)
    assert problem.description == (
        "mine.csv: 397 rows, 3 columns of numbers and 3 of categories, 3 classes of 'kind' with "
        f"{kept['kind'].value_counts().min()} to {kept['kind'].value_counts().max()} rows each"
    )


def test_everything_left_out_is_noted(tmp_path: Path):
    mixed().to_csv(tmp_path / "mine.csv", index=False)
    problem = table.read_csv(tmp_path / "mine.csv", "kind", ["note"], tmp_path / "scratch")
    assert sorted(problem.notes) == sorted(MIXED_NOTES)


@pytest.mark.parametrize("rows", [7, 64, 399, 400])
def test_chunks_and_formats_give_the_same_problem(rows: int, tmp_path: Path):
    frame = mixed()
    frame.to_csv(tmp_path / "mine.csv", index=False)
    frame.to_parquet(tmp_path / "mine.parquet", index=False)
    whole = table.read_csv(tmp_path / "mine.csv", "kind", ["note"], tmp_path / "whole")
    chunked = table.read_csv(tmp_path / "mine.csv", "kind", ["note"], tmp_path / "chunks", rows=rows)
    same(whole, chunked, CLOSE)
    parquet = table.read_parquet(tmp_path / "mine.parquet", "kind", ["note"], tmp_path / "chunks", rows=rows)
    same(whole, parquet, CLOSE)


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zip", None)],
)
def test_compressed_files(suffix: str, compress: Callable | None, tmp_path: Path):
    text = mixed().to_csv(index=False).encode()
    (tmp_path / "mine.csv").write_bytes(text)
    file = tmp_path / f"mine.csv.{suffix}"
    if compress is None:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("mine.csv", text)
    else:
        file.write_bytes(compress(text))
    plain = table.read_csv(tmp_path / "mine.csv", "kind", [], tmp_path / "a")
    same(plain, table.read_csv(file, "kind", [], tmp_path / "b"))
    file.write_bytes(file.read_bytes()[: len(file.read_bytes()) // 2])
    with pytest.raises(StudyError, match=r"mine.csv.\w+ cannot be read as comma-separated values: \w"):
        table.read_csv(file, "kind", [], tmp_path / "b")


# Any table.

FINITE = st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=True)
NUMBERS = {
    "any": FINITE,
    "close": st.integers(0, 9).map(lambda i: 1e15 + i / 8),
    "whole": st.integers(-(2**53), 2**53).map(float),
    "few": st.sampled_from([0.0, 1.0]),
}


@st.composite
def frames(draw):
    """Columns of numbers, words, truth values and dates, any cell missing, and a label without gaps."""
    rows = draw(st.integers(10, 24))
    columns: dict[str, list] = {}
    for j, kind in enumerate(
        draw(st.lists(st.sampled_from([*NUMBERS, "words", "truth", "date"]), max_size=4))
    ):
        if kind == "words":
            cell = st.sampled_from(WORDS[: draw(st.integers(2, len(WORDS)))])
        elif kind == "truth":
            cell = st.booleans()
        elif kind == "date":
            low, high = datetime.datetime(1700, 1, 1), datetime.datetime(2200, 1, 1)
            cell = st.datetimes(low, high)
        else:
            cell = NUMBERS[kind]
        cells = st.lists(
            st.one_of(st.none(), cell) if draw(st.booleans()) else cell, min_size=rows, max_size=rows
        )
        columns[f"{kind} {j}"] = draw(cells)
    columns["varied"] = [float(i * i) for i in range(rows)]
    columns["label"] = [("u", "v")[i % 2] for i in draw(st.permutations(range(rows)))]
    return columns


def expected(columns: dict[str, list]) -> tuple[dict[str, np.ndarray], dict[str, list]]:
    """The numbers and the categories that a table should become, by the rules in words."""
    of_numbers, of_words = {}, {}
    for name, cells in columns.items():
        there = [cell for cell in cells if cell is not None]
        if not there or name == "label" or (len(set(there)) == 1 and len(there) == len(cells)):
            continue  # no cell, or constant
        if isinstance(there[0], datetime.datetime):
            epoch = datetime.datetime(1970, 1, 1)
            cells = [
                None if cell is None else (cell - epoch) / datetime.timedelta(seconds=1) for cell in cells
            ]
        if isinstance(there[0], bool | str):
            is_number = name.startswith("words") and set(there) <= {"01", "1.0"}
            if not is_number:
                of_words[name] = [None if cell is None else str(cell) for cell in cells]
                continue
            cells = [None if cell is None else 1.0 for cell in cells]
            if None not in cells:
                continue
        of_numbers[name] = standardised(cells)
    return of_numbers, of_words


@hypothesis.given(frames(), st.integers(1, 30))
@hypothesis.settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, columns: dict, rows: int):
    folder = tmp_path_factory.mktemp("any")
    frame = pd.DataFrame({name: pd.Series(cells, dtype=object) for name, cells in columns.items()})
    frame.to_csv(folder / "any.csv", index=False)
    of_numbers, of_words = expected(columns)
    problem = table.read_csv(folder / "any.csv", "label", [], folder / "scratch", rows=rows)
    assert set(problem.number_names) == set(of_numbers)
    assert set(problem.category_names) == set(of_words)
    assert classes(problem) == columns["label"]
    for name, cells in of_words.items():
        assert words(problem, name) == cells
    for name, cells in of_numbers.items():
        np.testing.assert_allclose(numbers(problem, name), cells, atol=CLOSE, rtol=0, err_msg=name)


@hypothesis.given(frames(), st.integers(1, 30), st.integers(1, 3))
@hypothesis.settings(max_examples=30, deadline=None)
def test_parquet_is_read_as_csv(
    tmp_path_factory: pytest.TempPathFactory, columns: dict, rows: int, parts: int
):
    folder = tmp_path_factory.mktemp("any")
    columns = {name: cells for name, cells in columns.items() if not name.startswith("words")}
    frame = pd.DataFrame({name: pd.Series(cells, dtype=object) for name, cells in columns.items()})
    frame.to_csv(folder / "any.csv", index=False)
    (folder / "parts").mkdir()
    arrow = pa.table({name: pa.array(cells) for name, cells in columns.items()})
    for i, first in enumerate(range(0, len(frame), -(-len(frame) // parts))):
        part = arrow.slice(first, -(-len(frame) // parts))
        pq.write_table(part, folder / "parts" / f"{i}.parquet", row_group_size=5)
    csv = table.read_csv(folder / "any.csv", "label", [], folder / "scratch")
    same(csv, table.read_parquet(folder / "parts", "label", [], folder / "scratch", rows=rows), CLOSE)


@hypothesis.given(st.lists(st.lists(FINITE, min_size=1, max_size=5), min_size=1, max_size=6))
@hypothesis.settings(deadline=None)
def test_moments_of_any_chunks_are_those_of_all_rows(chunks: list[list[float]]):
    found, row = moments.Moments(1), 1
    for chunk in chunks:
        found.add(np.array([0]), np.array([chunk]), np.arange(row, row + len(chunk)))
        row += len(chunk)
    values = list(itertools.chain(*chunks))
    assert (found.low[0], found.high[0], found.count[0]) == (min(values), max(values), len(values))
    got = found.standardise(np.array([0]), np.array([values]))[0]
    np.testing.assert_allclose(got, standardised(values), atol=CLOSE, rtol=0)


# What a column is does not depend on where a chunk ends.


def read(tmp_path: Path, text: str, label: str = "y", rows: int | None = None, **options) -> Problem:
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    return table.read_csv(tmp_path / "t.csv", label, [], tmp_path / f"scratch{rows}", rows=rows, **options)


CHANGING = {
    "text after numbers": ([*"12121212", "x", "x"], True),
    "numbers after text": (["x", "x", *"12121212"], True),
    "zeros in front": (["01", "1", "1.0", "01", "x", "1", "1.0", "1", "x", "x"], True),
    "truth and numbers": (["True", "TRUE", *"12121212"], True),
    "truth and text": (["True", "False", "maybe", *"TFTFTFT"], True),
    "dates and text": (["2020-01-01"] * 5 + ["soon", "2020-01-02", "soon", "", ""], True),
    "no such date": (["2021-02-28"] * 5 + ["2021-02-30", "2021-03-01", "2021-02-30", "", ""], True),
    "wide integers": ([str(2**63), "-1", str(2**64), *"1212121"], False),
    "infinite text": (["inf", "x", *"12121212"], True),
    "missing first": (["", "", "NA", "null", *"121212"], False),
    "dates": (
        ["2020-01-01", "2020-01-02T03:04", "2020-01-02 03:04:05.25", "2020-06-01T00:00:00Z"] * 2 + [""] * 2,
        False,
    ),
}


@pytest.mark.parametrize("name", CHANGING)
def test_a_column_has_one_kind_over_all_chunks(name: str, tmp_path: Path):
    cells, is_category = CHANGING[name]
    text = "a,b,y\n" + "".join(f"{i % 7},{cell},{'uv'[i % 2]}\n" for i, cell in enumerate(cells))
    whole = read(tmp_path, text)
    assert ("b" in whole.category_names) == is_category
    assert ("b" in whole.number_names) != is_category
    if is_category:
        assert words(whole, "b") == [cell or None for cell in cells]
    for rows in (1, 2, 3, 5, 9):
        same(whole, read(tmp_path, text, rows=rows), CLOSE)


def test_a_category_that_has_numbers_says_so(tmp_path: Path):
    text = "a,b,y\n" + "".join(f"{i * i},{i if i < 8 else 'x'},{'uv'[i % 2]}\n" for i in range(12))
    for rows in (None, 4):
        assert read(tmp_path, text, rows=rows).notes == ("not read as numbers, text among them: b ('x')",)


@pytest.mark.parametrize("late", [False, True])
def test_marks_among_numbers_are_missing(late: bool, tmp_path: Path):
    cells = [None, 3, 1, None, 4, 1, 5, None, 9, 2]
    written = [
        "?" if cell is None and i < 5 else "--" if cell is None else cell for i, cell in enumerate(cells)
    ]
    if late:
        cells, written = [*range(1, 31), *cells], [*range(1, 31), *written]
    text = "a,b,y\n" + "".join(f"{'+-'[i % 2]},{cell},{'uv'[i // 2 % 2]}\n" for i, cell in enumerate(written))
    whole = read(tmp_path, text, least_rows=4)
    np.testing.assert_allclose(numbers(whole, "b"), standardised(cells), atol=CLOSE, rtol=0)
    assert words(whole, "a") == ["+", "-"] * (len(cells) // 2)  # no number among them
    assert whole.notes == (
        "missing, marks among numbers: b ('--', '?')",
        f"missing cells, of {len(cells)}: b 3",
    )
    for rows in (1, 3, 7, 30):
        same(whole, read(tmp_path, text, rows=rows, least_rows=4), CLOSE)


def test_labels_of_every_kind(tmp_path: Path):
    def labels(cells: list[str], rows: int | None = None) -> tuple[tuple[str, ...], list[str]]:
        text = "a,y\n" + "".join(f"{i % 9},{cell}\n" for i, cell in enumerate(cells * 6))
        problem = read(tmp_path, text, rows=rows)
        return problem.class_names, classes(problem)[: len(cells)]

    for rows in (None, 1, 5):
        assert labels(["b", "a", "ü"], rows) == (("a", "b", "ü"), ["b", "a", "ü"])
        assert labels(["10", "9", "-1"], rows) == (("-1", "9", "10"), ["10", "9", "-1"])
        assert labels(["1.0", "0.5", "1"], rows) == (("0.5", "1"), ["1", "0.5", "1"])
        assert labels(["true", "False"], rows) == (("False", "True"), ["True", "False"])
        assert labels(["1", "x", "1.0"], rows) == (("1", "1.0", "x"), ["1", "x", "1.0"])


def test_a_level_may_have_the_name_of_the_missing_one(tmp_path: Path):
    cells = [plan.NO_LEVEL, "x", "", "x", plan.NO_LEVEL] * 2
    problem = read(tmp_path, "a,b,y\n" + "".join(f"{i % 3},{c},{'uv'[i % 2]}\n" for i, c in enumerate(cells)))
    assert words(problem, "b") == [cell or None for cell in cells]


def test_excel_and_saved_indices(tmp_path: Path):
    rows = "".join(f"{i},{i},{i % 3},{'uv'[i % 2]}\r\n" for i in range(12))
    problem = read(tmp_path, "\ufeff,Unnamed: 0,a,y\r\n" + rows)
    assert problem.number_names == ("a",)
    assert problem.notes == ("left out, a saved row index or without a name: Unnamed: 0.1, Unnamed: 0",)
    frame = pd.DataFrame({"a": np.arange(12) % 3, "y": ["u", "v"] * 6}, index=np.arange(12)[::-1])
    frame.to_parquet(tmp_path / "t.parquet")
    problem = table.read_parquet(tmp_path / "t.parquet", "y", [], tmp_path)
    assert (problem.number_names, problem.notes) == (
        ("a",),
        ("left out, a saved row index or without a name: __index_level_0__",),
    )


def test_blank_lines_are_no_rows(tmp_path: Path):
    rows = "".join(f"{i % 5},{'uv'[i % 2]},{i % 3 or ''}\n\n  \n" for i in range(12))
    problem = read(tmp_path, "\n \na,y,b\n" + rows)
    assert classes(problem) == ["u", "v"] * 6
    assert problem.notes == ("missing cells, of 12: b 4",)


def test_long_cells(tmp_path: Path):
    rows = "".join(
        f"{i * i},{'t' * 200_000 if i % 2 else ''},{'uv'[i % 2]},{i % 3 or ''}\n" for i in range(12)
    )
    problem = read(
        tmp_path, "a,text,y,b\n" + rows
    )  # the last column has missing cells, so lengths are checked
    assert words(problem, "text") == [None, "t" * 200_000] * 6


def test_many_levels_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(survey, "MOST_COUNTED", 30)
    monkeypatch.setattr(plan, "MOST_COUNTED", 30)
    text = "a,b,y\n" + "".join(f"{i % 3},name {i % 31},{'uv'[i % 2]}\n" for i in range(200))
    for rows in (None, 7):
        (note,) = read(tmp_path, text, rows=rows).notes
        assert note == "left out, an identifier or free text, more than 30 different values: b"


# What is refused.

GOOD = "a,b,y\n" + "".join(f"{i * i},{i % 5},{'uv'[i % 2]}\n" for i in range(12))
REFUSED = {
    "empty": ("", "t.csv is empty"),
    "blank": ("\n\n\n", "t.csv is empty"),
    "header only": ("a,b,y\n", "has columns but no rows"),
    "no such label": (GOOD.replace("y", "z", 1), "has no column 'y'; it has: a, b, z"),
    "nearly the label": (GOOD.replace("y", " Y", 1), "no column 'y' (did you mean ' Y'?)"),
    "semicolons": (GOOD.replace(",", ";"), "no column 'y' (expected commas between the cells, got ';')"),
    "two of a name": (GOOD.replace("b", "a", 1), "more than one column 'a'"),
    "one class": ("a,y\n" + "1,u\n2,u\n3,u\n" * 4, "label column 'y' has one class only, 'u'"),
    "many small classes": (
        "a,y\n" + "".join(f"{i},k{i % 8}\n" for i in range(20)),
        "'k4' has 2, 'k5' has 2, 'k6' has 2, 'k7' has 2, 'k0' has 3 and 3 more;",
    ),
    "few rows of a class": (GOOD + "1,1,w\n2,2,w\n", "at least 5 rows, one for every fold; class 'w' has 2;"),
    "identifier": ("a,y\n" + "".join(f"{i},n{i}\n" for i in range(40)), "has 40 different values in 40 rows"),
    "quantity": ("a,y\n" + "".join(f"{i},{i % 101 / 8}\n" for i in range(909)), "has 101 different values"),
    "large numbers": ("a,y\n" + f"1,{2**53}\n2,{2**53 + 1}\n" * 9, "which float64 does not tell apart"),
    "no label at all": ("a,y\n" + "1,\n2,\n" * 9, "label column 'y' has no value in any row"),
    "infinite label": (GOOD.replace("u", "1").replace("v", "2") + "3,3,-inf\n", "is infinite in data row 13"),
    "infinite": (
        GOOD.replace("16,4,u", "16,-inf,u"),
        "column 'b' is infinite in data row 5; expected finite",
    ),
    "beyond float64": (GOOD.replace("16,4,u", "16,1e999,u"), "column 'b' is infinite in data row 5"),
    "longer row": (GOOD + "1,2,u,9\n", "Expected 3 fields in line 14, saw 4"),
    "longer rows": ("a,y\n" + "1,2,u\n" * 12, "rows with more cells than the header, which has 2"),
    "shorter row": (GOOD + "1,2\n", "data row 13 has 2 cells; expected 3, as the header has"),
    "open quote": (GOOD + '1,2,"u\n', "EOF inside string"),
    "no features": ("y\n" + "u\nv\n" * 6, "no feature columns to learn from: it has the label column only"),
    "constant features": (
        "a,y\n" + "1,u\n1,v\n" * 6,
        "no feature columns to learn from: left out, constant: a",
    ),
    "Latin-1": (GOOD.replace("u", "\udcfc"), "is not UTF-8 text: invalid start byte, byte 0xfc"),
    "Latin-1 header": (GOOD.replace("b", "\udcfc"), "is not UTF-8 text"),
}


@pytest.mark.parametrize("rows", [None, 4])
@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_file_is_refused(name: str, rows: int | None, tmp_path: Path):
    text, said = REFUSED[name]
    (tmp_path / "t.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(StudyError) as caught:
        table.read_csv(tmp_path / "t.csv", "y", [], tmp_path / "scratch", rows=rows)
    assert said in str(caught.value)
    assert "t.csv" in str(caught.value)
    assert not list((tmp_path / "scratch").glob("*"))


MIXED_TEXT = mixed().iloc[:16].to_csv(index=False)
CUTS = st.lists(
    st.tuples(st.integers(0, 1200), st.integers(0, 9), st.text(',"\n\r y1.x\0é', max_size=4)), max_size=4
)


@hypothesis.given(CUTS, st.integers(1, 9), st.booleans())
@hypothesis.settings(max_examples=60, deadline=None)
def test_a_damaged_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, cuts: list, rows: int, latin: bool
):
    """A problem or a `StudyError`, the same in any chunks, whatever is cut out of the file or put into it."""
    folder = tmp_path_factory.mktemp("damaged")
    text = MIXED_TEXT
    for at, length, more in cuts:
        text = text[:at] + more + text[at + length :]
    (folder / "t.csv").write_bytes(text.encode("latin-1" if latin else "utf-8"))
    found = []
    for size in (None, rows):
        try:
            scratch = folder / str(size)
            problem = table.read_csv(folder / "t.csv", "kind", [], scratch, rows=size, least_rows=1)
        except StudyError as error:
            assert "t.csv" in str(error)
        else:
            assert len(problem.labels) == len(problem.numbers) == len(problem.categories) > 0
            found.append(problem)
    assert len(found) in (0, 2)
    if found:
        same(*found, CLOSE)


def test_bad_options_are_refused(tmp_path: Path):
    (tmp_path / "t.csv").write_text(GOOD)
    pd.read_csv(tmp_path / "t.csv").to_parquet(tmp_path / "t.parquet")
    for reader, file in ((table.read_csv, tmp_path / "t.csv"), (table.read_parquet, tmp_path / "t.parquet")):
        for label, drop, said in (
            (None, [], "no label column is named; .* has the columns: a, b, y"),
            ("y", ["c"], "has no column 'c'"),
            ("y", ["y"], "cannot be both the label and dropped"),
        ):
            with pytest.raises(StudyError, match=said):
                reader(file, label, drop, tmp_path)
        with pytest.raises(StudyError, match="there is no file"):
            reader(tmp_path / "none", "y", [], tmp_path)
    with pytest.raises(StudyError, match="expected a file, got the folder"):
        table.read_csv(tmp_path, "y", [], tmp_path)
    with pytest.raises(StudyError, match="at least 7 rows, one for every fold; class 'u' has 6, 'v' has 6;"):
        table.read_csv(tmp_path / "t.csv", "y", [], tmp_path, least_rows=7)


def test_a_wide_table_names_some_columns(tmp_path: Path):
    names = [f"c{j}" for j in range(200)]
    (tmp_path / "t.csv").write_text(",".join(names) + "\n")
    with pytest.raises(StudyError, match="c29 and 170 more$"):
        table.read_csv(tmp_path / "t.csv", "quantity", [], tmp_path)


# Parquet's own.


def test_parquet_types(tmp_path: Path):
    rows = 12
    base = [None, *range(1, rows)]
    day = datetime.date(2024, 2, 28)
    columns = {
        "half": pa.array([None, *map(np.float16, range(1, rows))], pa.float16()),
        "wide": pa.array([None, *(2**63 + 2**20 * i for i in base[1:])], pa.uint64()),
        "price": pa.array([None, *(decimal.Decimal(i) / 8 for i in base[1:])], pa.decimal128(12, 3)),
        "day": pa.array([None, *(day + datetime.timedelta(days=i) for i in base[1:])]),
        "nano": pa.array(
            [None, *(10**18 + i * 86_400 * 10**9 for i in base[1:])], pa.timestamp("ns", tz="Asia/Tokyo")
        ),
        "lasts": pa.array([None, *(datetime.timedelta(seconds=i) for i in base[1:])]),
        "clock": pa.array([None, *(datetime.time(0, i) for i in base[1:])], pa.time32("s")),
        "level": pa.array([None, *"xyxyxyxyxyx"]).dictionary_encode(),
        "text": pa.array(["", "x"] * 6, pa.large_string()),
        "nothing": pa.nulls(rows),
        "y": pa.array([True, False] * 6),
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    for size in (None, 5):
        problem = table.read_parquet(tmp_path / "t.parquet", "y", [], tmp_path / str(size), rows=size)
        assert problem.number_names == ("half", "wide", "price", "day", "nano", "lasts", "clock")
        for name in problem.number_names:
            np.testing.assert_allclose(
                numbers(problem, name), standardised(base), atol=CLOSE, rtol=0, err_msg=name
            )
        assert words(problem, "level") == [None, *"xyxyxyxyxyx"]
        assert words(problem, "text") == ["", "x"] * 6
        assert problem.class_names == ("False", "True")
        assert "dates, read as seconds since 1970 in UTC: day, nano" in problem.notes
        assert "durations and times of day, in seconds: lasts, clock" in problem.notes
        assert "left out, every cell is missing: nothing" in problem.notes


def test_bad_parquet_is_refused(tmp_path: Path):
    def refused(said: str, file: Path, drop: tuple[str, ...] = (), label: str = "y") -> None:
        with pytest.raises(StudyError, match=said):
            table.read_parquet(file, label, drop, tmp_path / "scratch")

    good = pa.table({"a": [1.0, 2.0, 4.0] * 4, "y": ["u", "v"] * 6})
    (tmp_path / "t.parquet").write_text(GOOD)
    refused("t.parquet cannot be read as Parquet: ", tmp_path / "t.parquet")
    nested = good.append_column("v", pa.array([[1.0]] * 12)).append_column("raw", pa.array([b"x"] * 12))
    pq.write_table(nested, tmp_path / "n.parquet")
    refused("expected numbers, text, .*, got v .list.*, raw .binary.; leave these", tmp_path / "n.parquet")
    assert table.read_parquet(tmp_path / "n.parquet", "y", ["v", "raw"], tmp_path / "s").number_names == (
        "a",
    )
    pq.write_table(pa.Table.from_arrays([*good.columns, good["a"]], ["a", "y", "a"]), tmp_path / "2.parquet")
    refused("more than one column 'a'", tmp_path / "2.parquet")
    dates = good.append_column("when", pa.array([datetime.date(2020, 1, 1 + i % 2) for i in range(12)]))
    pq.write_table(dates, tmp_path / "d.parquet")
    refused("has dates; that is", tmp_path / "d.parquet", label="when")
    latin = pa.array([b"\xff", b"x"] * 6).view(pa.string())
    pq.write_table(good.append_column("text", latin), tmp_path / "l.parquet")
    refused(
        "l.parquet cannot be read as Parquet: 'utf-8' codec can't decode byte 0xff", tmp_path / "l.parquet"
    )
    pq.write_table(good.slice(0, 0), tmp_path / "0.parquet")
    refused("has columns but no rows", tmp_path / "0.parquet")

    parts = tmp_path / "parts"
    parts.mkdir()
    refused("has no file [*].parquet", parts)
    pq.write_table(good, parts / "0.parquet")
    for other, said in (
        (good.rename_columns(["b", "y"]), "column 'a' is in some of the files of .* but not in all"),
        (good.set_column(0, "a", pa.array(["x"] * 12)), "1.parquet: column 'a' holds text, but number in"),
    ):
        pq.write_table(other, parts / "1.parquet")
        refused(said, parts)
    (parts / "1.parquet").unlink()
    (parts / "year=2020").mkdir()
    pq.write_table(good, parts / "year=2020" / "0.parquet")
    refused("in the folder itself, got year=2020", parts)


# NumPy's archives.


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("rows", [None, 1, 7])
def test_arrays_are_read_back(save: Callable, order: str, rows: int | None, tmp_path: Path):
    rng = np.random.default_rng(2)
    x = np.asarray(rng.normal(loc=(0.0, 1e5, -9.0), size=(40, 3)), np.float32, order=order)
    x[3, 1] = np.nan
    y = rng.permutation(np.arange(40) % 3).astype(np.uint8)
    save(tmp_path / "t.npz", x=x, y=y, extra=y)
    problem = table.read_npz(tmp_path / "t.npz", None, None, tmp_path / "scratch", rows=rows)
    assert problem.number_names == ("x[0]", "x[1]", "x[2]")
    np.testing.assert_array_equal(problem.labels, y)
    for j in range(3):
        cells = [None if np.isnan(value) else float(value) for value in x[:, j]]
        np.testing.assert_allclose(problem.numbers[:, j], standardised(cells), atol=CLOSE, rtol=0)
    assert problem.notes == (
        "the features are the array 'x', the labels 'y'",
        "left out, other arrays of the file: extra",
        "missing cells, of 40: x[1] 1",
    )


def test_labels_of_arrays(tmp_path: Path):
    x = np.arange(24.0).reshape(12, 2) ** 2
    for cells, names in (
        (["b", "a"], ("a", "b")),
        ([b"b", b"a"], ("a", "b")),
        ([True, False], ("False", "True")),
        ([2.0, np.inf], None),
        ([7, -7], ("-7", "7")),
    ):
        np.savez(tmp_path / "t.npz", inputs=x, target=np.array(cells * 6))
        if names is None:
            with pytest.raises(StudyError, match="label column 'target' is infinite in data row 2"):
                table.read_npz(tmp_path / "t.npz", "inputs", "target", tmp_path / "scratch")
            continue
        problem = table.read_npz(tmp_path / "t.npz", "inputs", "target", tmp_path / "scratch", rows=5)
        assert problem.class_names == names
        assert classes(problem)[:2] == [c.decode() if isinstance(c, bytes) else str(c) for c in cells]
        assert problem.notes == ()


def test_bad_archives_are_refused(tmp_path: Path):
    x, y = np.arange(24.0).reshape(12, 2), np.arange(12) % 2
    for arrays, names, said in (
        (
            {"x": x, "z": y},
            (None, None),
            "none of the usual pairs of arrays .x and y, .*it has: x, z; name them",
        ),
        ({"x": x, "z": y}, ("x", "w"), "has no array 'w'; it has: x, z"),
        ({"x": x, "y": y}, ("x", "x"), "array 'x' cannot be both"),
        ({"x": x, "y": y[1:]}, (None, None), "got 11 in 'y' and 12 in 'x'"),
        (
            {"x": x.reshape(12, 2, 1), "y": y},
            (None, None),
            r"'x' of shape \[rows, features\], got \[12, 2, 1\]",
        ),
        ({"x": x, "y": y[:, None]}, (None, None), r"'y' of shape \[rows\], got \[12, 1\]"),
        ({"x": x.astype(object), "y": y}, (None, None), "'x' holds pickled Python objects"),
        (
            {"x": x, "y": np.array([*"uv", None] * 4, object)},
            (None, None),
            "'y' holds pickled Python objects",
        ),
        ({"x": x.astype(str), "y": y}, (None, None), "features 'x' must be numbers, got <U"),
        ({"x": x, "y": y.astype(complex)}, (None, None), "labels 'y' must be integers, .*, got complex128"),
        ({"x": x[:0], "y": y[:0]}, (None, None), "has columns but no rows"),
        ({"x": x[:, :0], "y": y}, (None, None), "no feature columns"),
        (
            {"x": np.where(x == 6, np.inf, x), "y": y},
            (None, None),
            r"column 'x\[0\]' is infinite in data row 4",
        ),
    ):
        np.savez(tmp_path / "t.npz", **arrays)
        with pytest.raises(StudyError, match=said):
            table.read_npz(tmp_path / "t.npz", *names, tmp_path / "scratch")
    (tmp_path / "t.npz").write_text(GOOD)
    with pytest.raises(StudyError, match="cannot be read as an .npz file"):
        table.read_npz(tmp_path / "t.npz", None, None, tmp_path / "scratch")


def test_a_damaged_archive_is_refused(tmp_path: Path):
    np.savez(tmp_path / "good.npz", x=np.ones((12, 2)), y=np.arange(12) % 2)
    with zipfile.ZipFile(tmp_path / "good.npz") as good, zipfile.ZipFile(tmp_path / "t.npz", "w") as cut:
        cut.writestr("x.npy", good.read("x.npy")[:-8])
        cut.writestr("y.npy", good.read("y.npy"))
    content = bytearray((tmp_path / "good.npz").read_bytes())
    content[content.index(b"PK\x01\x02") + 10] = 99  # how it is compressed
    (tmp_path / "u.npz").write_bytes(content)
    for name in ("t.npz", "u.npz"):
        with pytest.raises(StudyError, match=f"{name} cannot be read as an .npz file"):
            table.read_npz(tmp_path / name, None, None, tmp_path / "scratch")


# What lies in the folder.


def test_encoded_rows_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = read(tmp_path, GOOD)
    (folder,) = (tmp_path / "scratchNone").iterdir()
    assert {file.name for file in folder.iterdir()} == {
        *(f"{name}.npy" for name in encode.ARRAYS),
        encode.NAMES,
    }
    file = tmp_path / "t.csv"
    with monkeypatch.context() as patch:
        patch.setattr(plan, "make", None)  # a second reading would fail
        same(first, table.read_csv(file, "y", [], tmp_path / "scratchNone"))
    made = []
    make = plan.make
    monkeypatch.setattr(plan, "make", lambda *arguments: made.append(arguments) or make(*arguments))
    table.read_csv(file, "y", ["b"], tmp_path / "scratchNone")
    table.read_csv(file, "y", [], tmp_path / "scratchNone", least_rows=6)
    file.write_text(GOOD + "5,5,u\n")
    assert len(table.read_csv(file, "y", [], tmp_path / "scratchNone").labels) == 13
    assert len(made) == 3


@pytest.mark.parametrize("damage", ["cut", "no names", "other names", "partial"])
def test_half_an_encoding_is_not_taken_for_whole(damage: str, tmp_path: Path):
    first = read(tmp_path, GOOD)
    (folder,) = (tmp_path / "scratchNone").iterdir()
    expected = Problem(
        **{name: np.array(v) if isinstance(v, np.ndarray) else v for name, v in vars(first).items()}
    )
    if damage == "cut":
        content = (folder / "numbers.npy").read_bytes()
        (folder / "numbers.npy").write_bytes(content[:-4])
    elif damage == "no names":
        (folder / encode.NAMES).unlink()
    elif damage == "other names":
        (folder / encode.NAMES).write_text(json.dumps({"key": "another"}))
    else:
        folder.rename(folder.with_name(f"{folder.name}.partial"))
    same(expected, table.read_csv(tmp_path / "t.csv", "y", [], tmp_path / "scratchNone"))
    assert [entry.name for entry in (tmp_path / "scratchNone").iterdir()] == [folder.name]


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make = plan.make

    def then_change(*arguments):
        made = make(*arguments)
        with (tmp_path / "t.csv").open("a") as file:
            file.write("5,5,u\n")
        return made

    monkeypatch.setattr(plan, "make", then_change)
    with pytest.raises(StudyError, match=r"t.csv changed while it was read"):
        read(tmp_path, GOOD)
    assert list((tmp_path / "scratchNone").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path):
    (tmp_path / "t.csv").write_text(GOOD)
    with pytest.raises(StudyError, match=r"t.csv cannot hold the encoded rows"):
        table.read_csv(tmp_path / "t.csv", "y", [], tmp_path / "t.csv")


def write_csv(file: Path, frame) -> None:
    frame.to_csv(file, index=False)


def write_parquet(file: Path, frame) -> None:
    frame.to_parquet(file, row_group_size=1000)


def write_npz(file: Path, frame) -> None:
    np.savez(file, x=frame[["a", "b"]].to_numpy(), y=frame["y"].to_numpy(str))


@pytest.mark.parametrize(
    ("suffix", "write", "reader"),
    [
        ("csv", write_csv, table.read_csv),
        ("parquet", write_parquet, table.read_parquet),
        ("npz", write_npz, table.read_npz),
    ],
)
def test_memory_does_not_grow_with_the_rows(
    suffix: str, write: Callable, reader: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The peak of what NumPy, pandas and Python allocate; what pyarrow does is its own affair."""
    monkeypatch.setattr(survey, "MOST_COUNTED", 500)

    def peak(rows: int) -> int:
        rng = np.random.default_rng(3)
        columns = {"a": rng.normal(size=rows), "b": rng.normal(size=rows)}
        who = {"who": [f"name {i}" for i in range(rows)], "y": rng.choice(["u", "v"], rows)}
        file = tmp_path / f"{rows}.{suffix}"
        write(file, pd.DataFrame(columns | who))
        options = (None, None) if suffix == "npz" else ("y", [])
        tracemalloc.start()
        problem = reader(file, *options, tmp_path / "scratch", rows=1000)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert problem.numbers.shape == (rows, 2)
        return found

    peak(2000)  # what is imported and cached at the first call
    few, many = peak(20_000), peak(60_000)
    assert many < few + 40_000 * 4  # not one of the three four-byte cells that a row is encoded in
