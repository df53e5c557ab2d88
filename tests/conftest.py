"""One JAX for every test: eight CPU devices, and the strict promotion modes.

``pytest -m gpu`` runs the tests against the oracle on a GPU; without it they run on CPU with all others.
``pytest --optimized`` compiles all programs as users do; without it only those with the options of
`OPTIMIZED`: values and gradients of focal loss of logits where they meet the oracle. All else becomes plain
code, sooner.
"""

import contextlib
import gc
import os
import tempfile
from importlib.metadata import version

import pytest

_DEVICES = "--xla_force_host_platform_device_count"
_PLAIN = {"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1}
OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_cpu_parallel_codegen_split_count": 32}
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):  # a newer XLA has one emitter, and no flag
    _PLAIN |= {"xla_cpu_use_fusion_emitters": False}
    OPTIMIZED |= {"xla_cpu_use_fusion_emitters": True}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option to what `pytest --help` lists."""
    parser.addoption("--optimized", action="store_true", help="compile as users do, which takes longer")


def pytest_configure(config: pytest.Config) -> None:
    """Prepares the environment before any test imports JAX, which reads it then."""
    on_gpu = config.getoption("markexpr") == "gpu"
    flags = [os.environ.get("XLA_FLAGS", "")]
    if _DEVICES not in flags[0]:  # a worker inherits them
        flags.append(f"{_DEVICES}=8")
        plain = {} if on_gpu or config.getoption("optimized") else _PLAIN
        flags += [f"--{name}={value}" for name, value in plain.items()]
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()
    os.environ.setdefault("JAX_PLATFORMS", "cuda" if on_gpu else "cpu")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the workers share the GPU
    os.environ.setdefault("KERAS_BACKEND", "jax")

    gc.set_threshold(100_000, 10, 10)  # to look for garbage more often takes a tenth of the time

    import jax

    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        # A program that is traced anew is compiled once. The key is all of its code, so that no choice of the
        # form, the version or an option can be missed. Half a file of another worker is a program not found.
        if "PYTEST_XDIST_WORKER" not in os.environ:
            compiled = tempfile.TemporaryDirectory(prefix="compiled-")
            config.add_cleanup(compiled.cleanup)
            os.environ["PYTEST_COMPILED"] = compiled.name
        jax.config.update("jax_compilation_cache_dir", os.environ["PYTEST_COMPILED"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_sessionfinish() -> None:
    """One collection looks at everything, and leaves nothing to the five that pytest ends with."""
    gc.collect()
    gc.freeze()


# What `-m "not slow"` runs: rules about arguments, the house, README's programs, other libraries' formulas.
QUICK = ("api", "arguments", "docs", "layers", "recipes", "types", "verdict")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One file after the other, in each the form of CPU first: between two forms JAX forgets its programs."""
    for item in items:
        if item.path.stem.removeprefix("test_") not in QUICK or "docs/" in item.nodeid:
            item.add_marker("slow")
    files = {path: i for i, path in enumerate(dict.fromkeys(item.path for item in items))}
    items.sort(key=lambda item: (files[item.path], FORMS.index(form_of(item))))


@pytest.fixture
def jax_defaults():
    """The promotion of shapes and dtypes that other libraries rely on."""
    import jax

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="session", params=["Auto", "Explicit"])
def mesh(request: pytest.FixtureRequest):
    """All devices along "data", with each way of naming a sharding."""
    import jax
    from jax.sharding import AxisType

    assert jax.device_count() > 1, "the laws of a mesh need several devices"
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType[request.param],))


@contextlib.contextmanager
def _as_of_one_device():
    import jax

    from focaljax import _sharding
    from focaljax._softmax import one_pass

    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patch:
        for module in (_sharding, one_pass):
            patch.setattr(module, "parts", lambda x: 1)
        yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def one_device():
    """Programs as they are where there is one device, though the tests have several."""
    with _as_of_one_device():
        yield


@pytest.fixture
def alone():
    """`one_device` for a single test."""
    with _as_of_one_device():
        yield


FORMS = ("cpu", "accelerators")


def form_of(item: pytest.Item) -> str:
    """Which form of an operation the test traces."""
    callspec = getattr(item, "callspec", None)
    wanted = "cpu" if callspec is None else callspec.params.get("form", "cpu")
    return wanted if wanted in FORMS else "cpu"


_traced = {"form": "cpu"}  # what the programs in JAX' caches were made of


@pytest.fixture(autouse=True)
def _form_of_the_test(request: pytest.FixtureRequest):
    """Programs of the form of accelerators, if the test is one of `form`; else those of CPU."""
    import jax

    def branch_of_accelerators(*operands, default, like=None, **platforms):
        return platforms.get("tpu", default)(*operands)

    wanted = form_of(request.node)
    if wanted != _traced["form"]:
        jax.clear_caches()  # the choice is made while tracing
        _traced["form"] = wanted
    with pytest.MonkeyPatch.context() as patch:
        if wanted == "accelerators":
            from focaljax import _forms
            from focaljax._softmax import one_pass

            patch.setattr(jax.lax, "platform_dependent", branch_of_accelerators)
            patch.setattr(_forms, "of_platform", branch_of_accelerators)
            # Tiles so small that a few classes are several blocks of them, on the one device that is used.
            for name, size in {"BLOCK": 4, "ROWS": 1, "LANES": 2, "MANY": 4}.items():
                patch.setattr(one_pass, name, size)
            patch.setattr(one_pass, "parts", lambda logits: 1)
        yield


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    """The form of an operation that each kind of device runs; that of accelerators runs on CPU too."""
    return request.param
