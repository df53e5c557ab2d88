"""The user's own data: what is in a file or an array comes back as a problem, or is refused with a reason."""

import bz2
import datetime
import decimal
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

pytest.importorskip("optax")
pytest.importorskip("jinja2")
pd = pytest.importorskip("pandas")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from focaljax.study import data, tables  # noqa: E402
from focaljax.study.data import Problem  # noqa: E402
from focaljax.study.errors import StudyError  # noqa: E402

CLOSE = 2.0**-20  # two units of float32 of the standardised numbers here, at most sqrt(400) in size
TEXTS = ("red", "green", "a, b", 'say "so"', "日本", "two\nlines", "None of it", "x1")


def read(path: Path, label: str | None = "kind", drop=(), **options) -> Problem:
    kinds: dict[str, Callable] = {".parquet": tables.read_parquet, ".npz": tables.read_npz}
    reader = kinds.get(path.suffix, tables.read_parquet if path.is_dir() else tables.read_csv)
    table = reader(path, label, *([] if path.suffix == ".npz" else [drop]), **options)
    return data.make(table.features, table.labels, table.name, table.notes)


def text(folder: Path, content: str, name: str = "mine.csv") -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def classes(problem: Problem) -> list[str]:
    return [problem.class_names[code] for code in problem.labels]


def words(problem: Problem, name: str) -> list[str | None]:
    """The cells of a category, None where missing or rare."""
    codes = problem.categories[:, list(problem.levels).index(name)]
    return [problem.levels[name][code - 1] if code else None for code in codes]


def standardised(values) -> np.ndarray:
    values = np.array([np.nan if v is None else v for v in values], np.float64)
    deviation = np.nanstd(values)
    return (values - np.nanmean(values)) / (deviation if deviation > 0 else 1.0)


def numbers(problem: Problem, name: str) -> np.ndarray:
    return problem.numbers[:, problem.number_names.index(name)]


def same(one: Problem, other: Problem) -> None:
    for field in ("number_names", "levels", "class_names", "notes"):
        assert getattr(one, field) == getattr(other, field)
    np.testing.assert_array_equal(one.categories, other.categories)
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_allclose(one.numbers, other.numbers, rtol=0, atol=CLOSE)


# A table as people have them.

NOTES = {
    "left out as asked: note",
    "left out, rows without a label: 3 (the first is data row 8)",
    "left out, constant: unit",
    "left out, it counts the rows: id",
    "left out, an identifier or free text, most rows differ: who",
    "left out, every cell is missing: empty",
    "dates, read as seconds since 1970 in UTC: seen",
    "read as numbers, with commas between thousands: price",
    "missing, marks among numbers: mark ('?')",
    "column 'street' has 130 different values: the 100 most frequent are its levels, the others (30 rows) "
    "count as missing",
    "missing cells: size 40, colour 57, wet 10, seen 2, mark 20",
}


def mixed(rows: int = 400):
    """Numbers, text, truth values, dates, an identifier, a counter, and cells missing of each."""
    rng = np.random.default_rng(1)
    kind = rng.choice(["ham", "spam", "eggs"], rows, p=[0.6, 0.3, 0.1]).astype(object)
    kind[[7, 70, 377]] = None
    street = np.array([f"street {i:03d}" for i in np.r_[np.arange(130), np.arange(rows - 130) % 89]], object)
    seen = pd.Timestamp("2021-03-28 01:30:00") + pd.to_timedelta(rng.integers(0, 10**7, rows), unit="s")
    frame = pd.DataFrame(
        {
            "id": np.arange(1000, 1000 + rows),
            "size": 1e6 + rng.normal(size=rows),
            "count": rng.integers(0, 9, rows),
            "colour": rng.choice(["red", "green", "blue, pale"], rows).astype(object),
            "wet": rng.choice([True, False], rows).astype(object),
            "seen": seen,
            "unit": "cm",
            "who": [f"person {i}" for i in range(rows)],
            "street": street,
            "empty": np.full(rows, np.nan),
            "price": [f"{x:,}" for x in rng.integers(10, 5000, rows)],
            "mark": np.where(np.arange(rows) % 20 == 3, "?", rng.integers(0, 9, rows).astype(str)),
            "note": "x",
            "kind": kind,
        }
    )
    for name, every in (("size", 10), ("colour", 7), ("wet", 40), ("seen", 200)):
        frame.loc[np.arange(rows) % every == 1, name] = None
    return frame


def test_a_mixed_table_becomes_numbers_categories_and_notes(tmp_path: Path):
    frame = mixed()
    frame.to_csv(tmp_path / "mine.csv", index=False)
    problem = read(tmp_path / "mine.csv", drop=["note"])
    kept = frame[frame["kind"].notna()]
    assert problem.number_names == ("size", "count", "seen", "price", "mark")
    assert list(problem.levels) == ["colour", "wet", "street"] and problem.levels["wet"] == ("False", "True")
    assert problem.class_names == ("eggs", "ham", "spam") and classes(problem) == kept["kind"].tolist()
    assert words(problem, "colour") == [x if isinstance(x, str) else None for x in kept["colour"]]
    assert len(problem.levels["street"]) == data.MOST_LEVELS
    prices = kept["price"].str.replace(",", "").astype(float)
    for name, cells in (("size", kept["size"]), ("count", kept["count"]), ("price", prices)):
        np.testing.assert_allclose(numbers(problem, name), standardised(cells), atol=CLOSE, rtol=0)
    seen = [None if x is pd.NaT else x.timestamp() for x in kept["seen"]]
    np.testing.assert_allclose(numbers(problem, "seen"), standardised(seen), atol=CLOSE, rtol=0)
    assert np.isnan(numbers(problem, "mark")).sum() == 20
    assert set(problem.notes) == NOTES and len(problem.notes) == len(NOTES)
    least, most = kept["kind"].value_counts().iloc[[-1, 0]]
    assert problem.description == (
        f"mine.csv: 397 rows, 5 columns of numbers and 3 of categories, 3 classes with {least} to {most} rows"
    )


def test_formats_batches_and_frames_give_the_same_problem(tmp_path: Path, monkeypatch):
    frame = mixed().drop(columns="note")
    frame.to_csv(tmp_path / "mine.csv", index=False)
    whole = read(tmp_path / "mine.csv")
    monkeypatch.setattr(tables, "BATCH", 64 * len(frame.columns))
    same(read(tmp_path / "mine.csv"), whole)
    frame.to_parquet(tmp_path / "mine.parquet", index=False)
    same(read(tmp_path / "mine.parquet"), whole)
    (tmp_path / "parts").mkdir()
    for i, part in enumerate((frame[:150], frame[150:])):
        pq.write_table(
            pa.Table.from_pandas(part, schema=pa.Schema.from_pandas(frame), preserve_index=False),
            tmp_path / "parts" / f"{i}.parquet",
        )
    same(read(tmp_path / "parts"), whole)
    same(data.make(frame.drop(columns="kind"), frame["kind"]), whole)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_of_a_long_table_a_stratified_sample_is_taken(suffix: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tables, "BATCH", 500)
    rows = 3000
    kind = np.where(np.arange(rows) % 100 == 0, "rare", np.where(np.arange(rows) % 3, "often", "some"))
    frame = pd.DataFrame({"at": np.arange(rows) ** 2, "kind": kind})
    frame.to_csv(tmp_path / "mine.csv", index=False)
    frame.to_parquet(tmp_path / "mine.parquet", index=False)
    table = getattr(tables, f"read_{suffix[1:]}")(tmp_path / f"mine{suffix}", "kind", rows=300)
    counts = table.labels.value_counts()
    shares = frame["kind"].value_counts(normalize=True)
    assert counts["rare"] == tables.FEWEST  # more than its share
    for name in ("often", "some"):
        assert counts[name] == int(shares[name] * 300)
    places = np.sqrt(table.features["at"].astype(float)).astype(int)
    assert (frame["kind"].to_numpy()[places] == table.labels.to_numpy()).all()
    assert places.max() > 2800 and "sample of" in table.notes[0]
    assert len(tables.read_csv(tmp_path / "mine.csv", "kind", rows=rows).labels) == rows


GOOD = "a,b,kind\n" + "".join(f"{i * i},{i % 5},{'uv'[i % 2]}\n" for i in range(12))


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_compressed_files(suffix: str, compress: Callable, tmp_path: Path):
    plain, packed = text(tmp_path, GOOD), tmp_path / f"mine.csv{suffix}"
    packed.write_bytes(compress(GOOD.encode()))
    same(read(packed), read(plain))


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    cells=st.lists(
        st.tuples(st.sampled_from(TEXTS), st.one_of(st.none(), st.floats(-1e6, 1e6)), st.sampled_from("uv")),
        min_size=8,
        max_size=24,
    )
)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, cells: list):
    folder = tmp_path_factory.mktemp("read")
    frame = pd.DataFrame(cells, columns=["text", "number", "kind"])
    hypothesis.assume(frame["kind"].nunique() == 2 and frame["text"].nunique() > 1)
    hypothesis.assume(frame["number"].nunique() > 1 and np.nanstd(frame["number"]) > 1e-3)
    frame.to_csv(folder / "mine.csv", index=False)
    problem = read(folder / "mine.csv")
    assert classes(problem) == frame["kind"].tolist() and words(problem, "text") == frame["text"].tolist()
    np.testing.assert_allclose(numbers(problem, "number"), standardised(frame["number"]), atol=CLOSE, rtol=0)


@pytest.mark.parametrize("mark", ";\t|")
def test_other_separators(mark: str, tmp_path: Path):
    file = text(tmp_path, GOOD.replace(",", mark))
    found = read(file)
    assert found.number_names == ("a", "b") and f"the cells are separated by {mark!r}" in found.notes
    assert read(file, sep=mark).number_names == ("a", "b")
    with pytest.raises(StudyError, match="no column 'kind'"):
        read(file, sep=",")


def test_columns_of_the_same_name_can_be_dropped(tmp_path: Path):
    file = text(tmp_path, GOOD.replace("a,b,kind", "a,a,kind"))
    assert read(file).number_names == ("a", "a.1")
    assert "columns of the same name, called now: a.1" in read(file).notes
    assert read(file, drop=["a.1"]).number_names == ("a",)
    columns = [pa.array(np.arange(12.0) ** 2), pa.array(np.arange(12) % 5), pa.array(list("uv") * 6)]
    pq.write_table(pa.Table.from_arrays(columns, names=["a", "a", "kind"]), tmp_path / "mine.parquet")
    same(read(tmp_path / "mine.parquet", drop=["a.1"]), read(file, drop=["a.1"]))
    assert data.unique(["a", "a.1", "a", "a"]) == ["a", "a.1", "a.2", "a.3"]


def test_a_column_has_one_kind_over_all_batches(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tables, "BATCH", 20)
    rows = [f"{i},{'word' if i == 35 else i % 4},{'uv'[i % 2]}" for i in range(40)]
    problem = read(text(tmp_path, "\n".join(["n,late,kind", *rows])))
    assert problem.levels == {"late": ("0", "1", "2", "3", "word")}
    assert "not read as numbers, text among them: late ('word')" in problem.notes


def test_saved_indices_blank_lines_and_excel(tmp_path: Path):
    lines = GOOD.splitlines()
    indexed = "\n".join(["," + lines[0], *(f"{i},{line}\n" for i, line in enumerate(lines[1:]))])
    problem = read(text(tmp_path, "\ufeff" + indexed))
    assert problem.number_names == ("a", "b") and len(problem.labels) == 12
    assert "left out, a saved row index or without a name: Unnamed: 0" in problem.notes
    frame = pd.DataFrame({"a": np.arange(30.0) ** 2, "kind": list("uvw") * 10}).set_index(np.arange(30)[::-1])
    frame.to_parquet(tmp_path / "mine.parquet")
    assert read(tmp_path / "mine.parquet").number_names == ("a",)


def test_large_offsets_keep_their_digits(tmp_path: Path):
    values = 1e9 + np.arange(12) ** 2 / 7
    rows = "\n".join(f"{v!r},{'uv'[i % 2]}" for i, v in enumerate(values.tolist()))
    np.testing.assert_allclose(
        read(text(tmp_path, f"a,kind\n{rows}")).numbers[:, 0], standardised(values), atol=1e-6
    )
    huge = data.make(np.array([[1e300], [-1e300]] * 6), np.arange(12) % 2)
    np.testing.assert_allclose(huge.numbers[:, 0], [1, -1] * 6)


def test_parquet_types(tmp_path: Path):
    n, days = 12, [datetime.date(2020, 1, 1 + i) for i in range(12)]
    columns = {
        "decimal": pa.array([decimal.Decimal(i * i) for i in range(n)], pa.decimal128(9, 2)),
        "time": pa.array([datetime.time(i * i % 24) for i in range(n)]),
        "duration": pa.array([datetime.timedelta(seconds=i * i) for i in range(n)]),
        "date": pa.array(days),
        "small": pa.array([None, *(i * i % 7 for i in range(n - 1))], pa.int8()),
        "truth": pa.array([True, False, None] * 4),
        "dictionary": pa.array(list("abc") * 4).dictionary_encode(),
        "list": pa.array([[1]] * n),
        "bytes": pa.array([b"x"] * n),
        "kind": pa.array(list("uv") * 6),
    }
    pq.write_table(pa.table(columns), tmp_path / "mine.parquet")
    problem = read(tmp_path / "mine.parquet")
    assert problem.number_names == ("decimal", "time", "duration", "date", "small")
    squares = standardised(np.arange(n) ** 2)
    for name in ("decimal", "duration"):
        np.testing.assert_allclose(numbers(problem, name), squares, atol=CLOSE)
    np.testing.assert_allclose(numbers(problem, "date"), standardised(range(n)), atol=CLOSE)
    assert (
        words(problem, "truth") == ["True", "False", None] * 4
        and words(problem, "dictionary") == list("abc") * 4
    )
    assert "left out, neither numbers, dates nor text: bytes, list" in problem.notes
    with pytest.raises(StudyError, match="'list' of .* is list<.*; expected classes"):
        read(tmp_path / "mine.parquet", "list")


# Arrays.


@pytest.mark.parametrize("shape", [(12, 3), (12, 2, 3), (12, 1, 2, 2)])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_features_of_any_rank(shape: tuple[int, ...], save: Callable, tmp_path: Path):
    x = np.asfortranarray(np.random.default_rng(0).normal(size=shape))
    save(tmp_path / "mine.npz", X=x, y=np.arange(12) % 3, spare=np.zeros(2))
    problem = read(tmp_path / "mine.npz", None)
    flat = x.reshape(12, -1)
    np.testing.assert_allclose(problem.numbers, (flat - flat.mean(0)) / flat.std(0), atol=CLOSE)
    assert "the features are the array 'X', the labels 'y'" in problem.notes
    assert "left out, other arrays of the file: spare" in problem.notes


@pytest.mark.parametrize(
    "labels", [lambda y: y, lambda y: y[:, None], lambda y: np.eye(3)[y], lambda y: np.eye(3, dtype=bool)[y]]
)
def test_labels_of_any_form(labels: Callable, tmp_path: Path):
    y = np.arange(12) % 3
    np.savez(tmp_path / "mine.npz", features=np.arange(12.0)[:, None] ** 2, labels=labels(y))
    problem = read(tmp_path / "mine.npz", None)
    np.testing.assert_array_equal(problem.labels, y)
    assert problem.class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([True, False] * 6, ("False", "True")),
        ([10, 9] * 6, ("9", "10")),
        ([1.0, 2.5] * 6, ("1", "2.5")),
        (["10", "9"] * 6, ("9", "10")),
        (["v", "u"] * 6, ("u", "v")),
        (pd.Categorical(["v", "u"] * 6), ("u", "v")),
        (pd.DataFrame({"cat": [1, 0] * 6, "dog": [0, 1] * 6}), ("cat", "dog")),
    ],
)
def test_labels_of_any_kind(labels, names: tuple[str, str]):
    problem = data.make(np.arange(12.0)[:, None] ** 2, labels)
    assert problem.class_names == names and sorted(np.bincount(problem.labels)) == [6, 6]


def test_a_thousand_classes_and_no_more():
    y = np.repeat(np.arange(data.MOST_CLASSES + 1), 3)
    x = np.random.default_rng(0).normal(size=(len(y), 2))
    assert len(data.make(x[3:], y[3:]).class_names) == data.MOST_CLASSES
    with pytest.raises(StudyError, match="1001 different values"):
        data.make(x, y)


# What is refused.


@pytest.mark.parametrize(
    ("features", "labels", "said"),
    [
        (np.zeros(12), np.arange(12) % 2, r"features \[N, ...\] of numbers, got float64 \[12\]"),
        (np.full((12, 1), "x"), np.arange(12) % 2, "of numbers, got <U1"),
        (np.eye(12), np.arange(10) % 2, "one label per row of features, got 10 and 12"),
        (np.eye(12), np.eye(12)[:, :3], "a single 1 in every row"),
        (np.eye(12), np.zeros((12, 3, 3)), r"one-hot \[N, C\], got \[12, 3, 3\]"),
        (np.eye(12), [None] * 12, "no row has a label"),
        (np.eye(12), [1] * 12, "one class only, '1'"),
        (np.eye(12), np.arange(12), "12 different values in 12 rows"),
        (np.eye(12), pd.date_range("2020-01-01", periods=12), "are dates"),
        (np.ones((12, 2)), np.arange(12) % 2, r"no feature columns .* left out, constant: x\[0\], x\[1\]"),
        (np.diag([np.inf] * 12), [None, *(np.arange(11) % 2)], r"column 'x\[1\]' is infinite in data row 2"),
    ],
)
def test_bad_arrays_are_refused(features, labels, said: str):
    with pytest.raises(StudyError, match=said):
        data.make(features, labels)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"a,b,kind\n", "columns but no rows"),
        (b"a,kind\n1,u,3\n2,v,3\n", "more cells than the header"),
        (b"a,kind\n1,\xff\n", "is not UTF-8 text"),
        (b'a,kind\n"1,u\n', "cannot be read as text with separated cells"),
        (b"a,b\n1,2\n", "no column 'kind'; it has: a, b"),
        (b"a,Kind \n1,2\n", r"no column 'kind' \(did you mean 'Kind '\?\)"),
    ],
)
def test_a_bad_csv_file_is_refused(content: bytes, said: str, tmp_path: Path):
    (tmp_path / "mine.csv").write_bytes(content)
    with pytest.raises(StudyError, match=said):
        read(tmp_path / "mine.csv")


@pytest.mark.parametrize("name", ["mine.csv.gz", "mine.parquet", "mine.npz"])
def test_a_damaged_file_is_refused(name: str, tmp_path: Path):
    frame = pd.DataFrame({"x": np.random.default_rng(0).normal(size=500), "kind": list("uv") * 250})
    file = tmp_path / name
    if name == "mine.npz":
        np.savez_compressed(file, x=frame[["x"]].to_numpy(), y=np.arange(500) % 2)
    else:
        getattr(frame, "to_parquet" if "parquet" in name else "to_csv")(file, index=False)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(StudyError, match="cannot be read as"):
        read(file)


def test_bad_parquet_folders_and_archives_are_refused(tmp_path: Path):
    with pytest.raises(StudyError, match="has no files"):
        read(tmp_path)
    pd.DataFrame({"a": [1], "kind": ["u"]}).to_parquet(tmp_path / "1.parquet")
    pd.DataFrame({"b": [1], "kind": ["u"]}).to_parquet(tmp_path / "2.parquet")
    with pytest.raises(StudyError, match=r"2\.parquet has other columns than .*1\.parquet"):
        read(tmp_path)
    with pytest.raises(StudyError, match="there is no file"):
        read(tmp_path / "3.npz")
    np.savez(tmp_path / "mine.npz", x=np.array([{}], object), z=np.zeros(2))
    with pytest.raises(StudyError, match="no usual pair of arrays .* it has: x, z"):
        read(tmp_path / "mine.npz", None)
    with pytest.raises(StudyError, match="no array 'w'"):
        tables.read_npz(tmp_path / "mine.npz", "w")
    with pytest.raises(StudyError, match="cannot be read as an .npz file: Object arrays"):
        tables.read_npz(tmp_path / "mine.npz", "x", "z")
    np.save(tmp_path / "one.npy", np.zeros(2))
    with pytest.raises(StudyError, match="a single array"):
        tables.read_npz(tmp_path / "one.npy")


def test_a_wide_table_names_some_columns(tmp_path: Path):
    names = [f"c{i}" for i in range(50)]
    file = text(tmp_path, ",".join([*names, "kind"]) + "\n" + ",".join("1" * 51) + "\n")
    with pytest.raises(StudyError, match="c29 and 21 more"):
        read(file, None)
    with pytest.raises(StudyError, match="both the label and dropped"):
        read(file, drop=["kind"])
