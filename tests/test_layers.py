"""The house keeps its rules: imports go down the floors only, and every file says what it is."""

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "focaljax"
FILES = sorted(PACKAGE.rglob("*.py"))
DOOR = "focaljax"  # __init__.py: re-exports and nothing else; only the top floors come in through it
OPEN = {DOOR, "boosting", "calibration", "class_weights", "metrics", "terms"}  # rooms with a public name
FLOORS = {
    "_entries": 0,
    "_exact": 0,
    "_interrupt": 0,
    "_sharding": 0,
    "_odds": 0,
    "_forms": 1,
    "terms": 1,
    "_arguments": 2,
    "_softmax": 2,
    "_sigmoid": 2,
    "_probabilities": 2,
    "_options": 3,
    "_streams": 4,
    "reductions": 3,
    "_operands": 3,
    "_linear": 4,
    "calibration": 5,
    "class_weights": 5,
    "losses": 5,
    "linear": 5,
    "crossentropy": 5,
    "loss_objects": 6,
    "metrics": 6,
    "boosting": 7,
    "clu": 7,
    "keras": 7,
    "nnx": 7,
    "study": 8,
    "__main__": 9,  # lets the study in when its packages are there
}
LONGEST = 320
LONGER = {  # each with its reason, and a limit of its own
    "_arguments.py": 620,  # every rule about arguments, and nothing else
    "terms.py": 380,  # the family, two thirds of it docstrings
}


class Import(NamedTuple):
    """One import of the package by itself: in which room, of what."""

    file: Path
    module: str

    @property
    def room(self) -> str:
        return room_of(self.file)

    @property
    def target(self) -> str:
        """The room that is imported; the door's name for the door."""
        return self.module.split(".")[1] if "." in self.module else DOOR


def room_of(file: Path) -> str:
    """The first name under the package: a file, or the folder that the file is in."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports(file: Path) -> list[Import]:
    """All of the package's own modules that a file imports, inside functions and branches too."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} has a relative import"
            base = node.module or ""
            inner = [f"{base}.{alias.name}" for alias in node.names]
            found += [name if is_module(name) else base for name in inner]
    return [Import(file, name) for name in found if name.split(".")[0] == DOOR]


def test_every_room_has_a_floor():
    assert {room_of(file) for file in FILES} == {*FLOORS, "__init__"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down(file: Path):
    for found in imports(file):
        if found.room == "__init__" or found.target == found.room:
            continue  # the door sees all; what happens inside a room is its own affair
        if found.target == DOOR:
            assert FLOORS[found.room] >= FLOORS["keras"], f"{file.name} imports the door"
            continue
        assert FLOORS[found.target] < FLOORS[found.room], f"{file.name} imports {found.module}"


def test_the_study_comes_in_by_the_door():
    for file in FILES:
        if room_of(file) == "study":
            assert {found.target for found in imports(file)} <= {*OPEN, "study"}, file.name


def test_the_door_has_no_logic():
    body = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body
    assert isinstance(body[0], ast.Expr)  # the docstring
    for node in body[1:]:
        assert isinstance(node, ast.ImportFrom | ast.Assign), ast.unparse(node)
    assigned = [ast.unparse(node.targets[0]) for node in body if isinstance(node, ast.Assign)]
    assert sorted(assigned) == ["__all__", "__version__"]


def test_imports_are_seen():
    """The rules above look at something."""
    seen = {(found.room, found.target) for file in FILES for found in imports(file)}
    wanted = {("losses", "_operands"), ("_operands", "_softmax"), ("_softmax", "_odds"), ("study", DOOR)}
    assert wanted <= seen


def foreign(text: str) -> list[str]:
    """The private names of others that a file uses; what a tuple has by a name of its class is no secret."""
    tree = ast.parse(text)
    found = [
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if is_private(alias.name) and not is_module(f"{node.module}.{alias.name}")
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = ast.unparse(node.value)
            if (
                node.attr not in OF_TUPLES
                and f"{owner}.{node.attr}" not in DOCUMENTED
                and owner not in ("self", "cls", "super()", "type(self)")
            ):
                found.append(f"{owner}.{node.attr}")
    return found


OF_TUPLES = ("_replace", "_asdict", "_fields")
DOCUMENTED = ("os._exit",)  # public under this name


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_private_names_stay_private(file: Path):
    assert foreign(file.read_text(encoding="utf-8")) == []


def test_a_private_name_of_another_is_seen():
    text = """
from focaljax import _odds
from focaljax._odds import _phi, along
class Own:
    def method(self):
        return self._mine, _odds.power, _odds._phi, self.other._theirs
"""
    assert foreign(text) == ["focaljax._odds._phi", "_odds._phi", "self.other._theirs"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_says_what_it_is(file: Path):
    text = file.read_text(encoding="utf-8")
    assert re.match(r'"""[^\s"].*\.', text), f"{file.name} must begin with a docstring, a sentence first"
    assert len(text.splitlines()) <= LONGER.get(str(file.relative_to(PACKAGE)), LONGEST)


@pytest.mark.parametrize("file", sorted(ROOT.joinpath("tests").glob("*.py")), ids=lambda file: file.name)
def test_a_test_file_says_what_it_is(file: Path):
    assert re.match(r'"""[^\s"].*', file.read_text(encoding="utf-8"))


def test_no_room_for_what_belongs_nowhere():
    vague = {"utils", "util", "misc", "helpers", "common", "tools"}
    for path in (PACKAGE, ROOT / "tests"):
        assert not {part.lower().strip("_") for file in path.rglob("*") for part in (file.stem,)} & vague
