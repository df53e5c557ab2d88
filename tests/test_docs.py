"""README.md, pyproject.toml and CI say the same; what README and docs show runs, and docs has every name."""

import ast
import inspect
import re
import subprocess
import tomllib
from importlib.util import find_spec
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import pytest

import focaljax

ROOT = Path(__file__).parents[1]
README = ROOT.joinpath("README.md").read_text(encoding="utf-8")
CI = ROOT.joinpath(".ci", "run").read_text(encoding="utf-8")
PAGES = sorted(ROOT.joinpath("docs").rglob("*.md"))
PYPROJECT = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text(encoding="utf-8"))
PROJECT, GROUPS = PYPROJECT["project"], PYPROJECT["dependency-groups"]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.M | re.S)
COMMANDS = [code for language, code in BLOCKS if language == "sh"]
DOCS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
DIRECTIVES = {"{eval-rst}", "{include}", "{math}", "{program-output}", "{toctree}"}
FIRST = {"README.md", "docs/guide.md"}  # what is read first runs with every version of JAX
# The conversions of PyTorch's libraries run in the environment of the benchmarks: it is too large for CI.
PROGRAMS = [
    pytest.param(code, id=f"{name}-{i}", marks=[pytest.mark.versions] * (name in FIRST))
    for name, text in {"README.md": README, **DOCS}.items()
    for i, code in enumerate(re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S))
    if "import torch\n" not in code or find_spec("torch")
]


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def offered(text: str) -> list[str]:
    """What a file has in `__all__`."""
    (names,) = re.findall(r"^__all__ = (\[.*?\])$", text, re.M | re.S)
    return ast.literal_eval(names)


def documented() -> set[str]:
    """The modules and names that have a page in the reference."""
    found = set()
    for name, text in DOCS.items():
        module = ""
        for line in text.splitlines() if "/reference/" in name else []:
            if directive := re.fullmatch(r"\.\. (?:automodule|currentmodule):: (\S+)", line):
                module = directive[1]
                found.add(module)
            elif entry := re.fullmatch(r"   (\w+)", line):
                found.add(f"{module}.{entry[1]}")
    return found


FILES = {module_of(file): file for file in sorted(ROOT.joinpath("focaljax").rglob("*.py"))}
OFFERED = {
    module: offered(text)
    for module, text in ((module, file.read_text(encoding="utf-8")) for module, file in FILES.items())
    if "\n__all__ = " in text and "study" not in module
}
DOCUMENTED = documented()


def lower_bound(package: str) -> str:
    """What pyproject.toml says is the oldest version of a dependency."""
    (bound,) = (d.split(">=")[1] for d in PROJECT["dependencies"] if d.startswith(f"{package}>="))
    return bound


def test_every_block_is_a_program_or_a_command():
    assert README.count("```") == 2 * len(BLOCKS)
    assert {language for language, _ in BLOCKS} == {"python", "sh"}
    for name, text in DOCS.items():
        fences = re.findall(r"^```(.*)\n(?:(?s:.*?))^```$", text, re.M)
        assert text.count("```") == 2 * len(fences), name
        assert {fence.split()[0] for fence in fences} <= {"python", "r", "sh", *DIRECTIVES}, name


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A folder of its own for what a program draws, without a screen."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    plt.close("all")


@pytest.mark.parametrize("code", PROGRAMS)
def test_a_program_runs_and_prints_what_it_says(
    code: str, capsys: pytest.CaptureFixture[str], pictures: Path
):
    said = re.findall(r"^print\(.*\)  # (.*)$", code, re.M)
    assert len(said) == len(re.findall(r"^ *print\(", code, re.M)) >= 1
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # JAX' defaults
        exec(compile(code, "program", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.splitlines() == said
    assert {path.name for path in pictures.iterdir()} == set(re.findall(r"savefig\(\"(.*?)\"", code))


@pytest.mark.parametrize("name", [name for name in DOCS if name.startswith("docs/howto/")])
def test_a_how_to_page_shows_the_pictures_it_draws(name: str):
    """Each is small, has words for those who do not see it, and is drawn by `python docs/pictures.py`."""
    shown = dict(re.findall(r"^!\[(.*)\]\((.*)\)$", DOCS[name], re.M))
    drawn = re.findall(r"savefig\(\"(.*?)\"", DOCS[name])
    assert drawn and set(drawn) <= set(shown.values())
    for words, picture in shown.items():
        file = ROOT.joinpath(name).parent / picture
        assert file.stat().st_size < 60_000 and len(words) > 40, picture


def test_every_library_is_converted_by_a_program():
    """Only those on PyTorch may stay away from CI, and the environment of the benchmarks has them all."""
    page = DOCS["docs/conventions.md"]
    programs = dict(re.findall(r"^## ([^\n]*)\n\n```python\n(.*?)^```$", page, re.M | re.S))
    on_torch = {name for name, code in programs.items() if "import torch\n" in code}
    assert on_torch == {"torchvision", "kornia", "MONAI"}
    assert set(programs) - on_torch == {"Keras", "Optax", "scikit-learn"}
    for name, code in programs.items():
        module = {"scikit-learn": "sklearn"}.get(name, name.lower())
        assert re.search(rf"^(import|from) {module}\b", code, re.M) and "assert_allclose" in code, name
    bench = {re.split(r"[>=]", extra)[0] for extra in GROUPS["bench"]}
    assert {"torch", *(name.lower() for name in on_torch)} <= bench


def test_what_is_included_is_there():
    """A page takes parts of README.md and bench/README.md by their headings."""
    parts = 0
    include = r"^```{include} (\S+)\n((?::.*\n)*)```$"
    for page in PAGES:
        for target, options in re.findall(include, page.read_text(encoding="utf-8"), re.M):
            text = page.parent.joinpath(target).read_text(encoding="utf-8")
            headings = re.findall(r'^:(?:start-after|end-before): "(.*)"$', options, re.M)
            assert all(text.count(f"\n{heading}\n") == 1 for heading in headings), page.name
            parts += len(headings)
    assert parts > 5


def test_ci_builds_the_documentation_strictly():
    assert re.search(r"python -m sphinx -W .* docs .* && cffconvert --validate", CI)


def test_there_are_two_commands_and_ci_runs_them_as_they_are():
    main_job, tests = COMMANDS
    patterns = re.findall(r"^\w+=\$\(readme_line '(.*)'\)$", CI, re.M)
    assert len(patterns) == 2
    for pattern, command in zip(patterns, (main_job, tests), strict=True):
        found = subprocess.run(
            ["grep", "-E", pattern, "README.md"], capture_output=True, text=True, check=True, cwd=ROOT
        )
        assert found.stdout == command
    assert not [line for command in COMMANDS for line in command.splitlines() if line in CI]


def test_the_commands_install_extras_that_exist():
    for command in COMMANDS:
        (extra,) = re.findall(r'"\.\[(\w+)\]"', command)
        assert extra in PROJECT["optional-dependencies"]
        assert set(re.findall(r"--group (\w+)", command)) <= set(GROUPS)


def test_every_extra_is_explained():
    assert {"all", "demo", "flax", "keras"} <= set(PROJECT["optional-dependencies"])
    contributing = ROOT.joinpath("CONTRIBUTING.md").read_text(encoding="utf-8")
    for page in (README, DOCS["docs/installing.md"]):
        assert all(f"`{extra}`" in page for extra in PROJECT["optional-dependencies"])
    for group in set(GROUPS) - {"laws", "lint", "release"}:  # parts of `test`; its command stands beside it
        assert f"--group {group}" in contributing
    (every,) = PROJECT["optional-dependencies"]["all"]
    named = set(re.findall(r"\w+", every)) - {"focaljax"}
    assert named == set(PROJECT["optional-dependencies"]) - {"all"}


def test_every_dependency_has_a_reason():
    lines = ROOT.joinpath("pyproject.toml").read_text(encoding="utf-8").splitlines()
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values(), *GROUPS.values()]
    for dependency in (dependency for group in groups for dependency in group if isinstance(dependency, str)):
        named = [line for line in lines if re.match(rf'(\w+ = \[|    )"{re.escape(dependency)}"', line)]
        assert named and all(re.search(r"  # \w", line) for line in named), dependency


def test_the_lower_bounds_are_those_of_pyproject():
    assert f"Python {PROJECT['requires-python'].removeprefix('>=')} or newer" in README
    assert f"JAX {lower_bound('jax')} or newer" in README
    assert all("<" not in dependency for dependency in PROJECT["dependencies"])


def test_the_licence_is_named():
    assert PROJECT["license"] in README
    licence = ROOT.joinpath("LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence and "END OF TERMS AND CONDITIONS" in licence


def test_pictures_and_links_lead_somewhere():
    pages = {name: text for name, text in DOCS.items()} | {"README.md": README}
    pages["CONTRIBUTING.md"] = ROOT.joinpath("CONTRIBUTING.md").read_text(encoding="utf-8")
    for name, text in pages.items():
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            assert target.startswith("https://") or ROOT.joinpath(name).parent.joinpath(target).exists(), (
                target
            )
    assert README.count("![") == 2


def test_nothing_of_the_package_index_s_page_leads_nowhere():
    """Links into this folder are plain text there, as pyproject.toml says."""
    text = README
    for rule in PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    assert all(target.startswith("https://") for target in re.findall(r"\]\(([^)]+)\)", text))
    assert "](https://arxiv.org" in text and "![" not in text


@pytest.mark.parametrize("module", OFFERED)
def test_every_public_name_is_in_the_reference(module: str):
    """Where it is defined; the door's functions need no second entry where another module offers them too."""
    text = FILES[module].read_text(encoding="utf-8")
    assert OFFERED[module]
    for name in OFFERED[module]:
        defined_here = module == "focaljax" or re.search(rf"^(def|class) {name}\b", text, re.M)
        places = {f"{module}.{name}"} if defined_here else {f"{module}.{name}", f"focaljax.{name}"}
        assert places & DOCUMENTED, name


def test_no_colon_in_what_is_returned():
    """What stands before one would be shown as a type."""
    lines = [
        line
        for module, file in FILES.items()
        if "study" not in module
        for line in re.findall(r"^ +Returns:\n +(.*)$", file.read_text(encoding="utf-8"), re.M)
    ]
    assert len(lines) > 20 and not [line for line in lines if ": " in line]


def test_the_citation_is_of_this_version():
    citation = ROOT.joinpath("CITATION.cff").read_text(encoding="utf-8")
    changelog = ROOT.joinpath("CHANGELOG.md").read_text(encoding="utf-8")
    version, date, licence = (
        re.findall(rf"^{key}: (\S+)$", citation, re.M) for key in ("version", "date-released", "license")
    )
    assert (version, licence) == ([focaljax.__version__], [PROJECT["license"]])
    assert f"## [{focaljax.__version__}] - {date[0]}\n" in changelog
    assert "https://arxiv.org/abs/1708.02002" in citation


@pytest.mark.parametrize("name", focaljax.__all__)
def test_every_public_name_is_in_the_readme_and_the_changelog(name: str):
    for document in (README, ROOT.joinpath("CHANGELOG.md").read_text(encoding="utf-8")):
        assert re.search(rf"\b{name}\b", document)


OPENED = [name for name in focaljax.__all__ if callable(getattr(focaljax, name))]


@pytest.mark.parametrize("name", OPENED)
def test_help_opens_with_a_signature_that_can_be_read(name: str):
    """`Values` by its name: written out, all that may be an array is 300 characters for each argument."""
    signature = inspect.signature(getattr(focaljax, name))
    assert len(str(signature)) < 50 * len(signature.parameters)
