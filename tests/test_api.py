"""The public names: which there are, how they are called, and what each says about itself."""

import doctest
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
import types
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import focaljax
from focaljax import boosting, calibration, class_weights, metrics, terms

ROOT = Path(__file__).parents[1]
LOSSES = {
    "softmax_focal_loss": (
        "(logits, labels, *, gamma=2.0, term=None, alpha=None, label_smoothing=0.0, axis=-1, where=None, "
        "axis_name=None)"
    ),
    "softmax_focal_loss_with_integer_labels": (
        "(logits, labels, *, gamma=2.0, term=None, alpha=None, label_smoothing=0.0, axis=-1, where=None, "
        "ignore_index=None, axis_name=None)"
    ),
    "sigmoid_focal_loss": (
        "(logits, labels, *, gamma=2.0, term=None, alpha=None, label_smoothing=0.0, where=None, "
        "ignore_index=None, soft_labels=None)"
    ),
    "sigmoid_focal_loss_with_integer_labels": (
        "(logits, labels, *, gamma=2.0, term=None, alpha=None, label_smoothing=0.0, axis=-1, where=None, "
        "ignore_index=None, axis_name=None)"
    ),
    "linear_softmax_focal_loss": (
        "(inputs, kernel, labels, *, bias=None, sample_weight=None, reduction='mean', normalizer=None, "
        "gamma=2.0, term=None, alpha=None, label_smoothing=0.0, label_weights=None, where=None, "
        "ignore_index=None, logit_soft_cap=None, z_loss=0.0, strategy=None, chunk=None, memory=None, "
        "precision=None, axis_name=None, batch_axis_name=None, has_aux=False)"
    ),
    "linear_sigmoid_focal_loss": (
        "(inputs, kernel, labels, *, bias=None, sample_weight=None, reduction='mean', normalizer=None, "
        "gamma=2.0, term=None, alpha=None, label_smoothing=0.0, where=None, ignore_index=None, "
        "logit_soft_cap=None, strategy=None, chunk=None, memory=None, precision=None, "
        "axis_name=None, batch_axis_name=None)"
    ),
}
CROSSENTROPIES = {
    "categorical_focal_crossentropy": (
        "(y_true, y_pred, alpha=0.25, gamma=2.0, from_logits=False, label_smoothing=0.0, axis=-1)"
    ),
    "sparse_categorical_focal_crossentropy": (
        "(y_true, y_pred, alpha=0.25, gamma=2.0, from_logits=False, ignore_class=None, axis=-1)"
    ),
    "binary_focal_crossentropy": (
        "(y_true, y_pred, apply_class_balancing=False, alpha=0.25, gamma=2.0, from_logits=False, "
        "label_smoothing=0.0, axis=-1, *, where=None, ignore_class=None)"
    ),
}
REDUCTIONS = {
    "reduce_loss": (
        "(losses, sample_weight=None, reduction='sum_over_batch_size', *, where=None, normalizer=None, "
        "axis_name=None)"
    ),
}
FUNCTIONS = LOSSES | CROSSENTROPIES | REDUCTIONS
OBJECTS = {  # the class of each function
    "CategoricalFocalCrossentropy": "categorical_focal_crossentropy",
    "SparseCategoricalFocalCrossentropy": "sparse_categorical_focal_crossentropy",
    "BinaryFocalCrossentropy": "binary_focal_crossentropy",
}
LAST = {"BinaryFocalCrossentropy": ", ignore_class=None"}  # an option that Keras does not have comes last
METRIC_METHODS = {
    "init": "(self, axis_name=None)",
    "update": "(self, state, y_true, y_pred, sample_weight=None)",
    "merge": "(self, *states, axis_name=None)",
    "result": "(self, state)",
}
MEAN_METHODS = METRIC_METHODS | {"update": "(self, state, y_true, y_pred, sample_weight=None, *, where=None)"}
TERM_METHODS = {name: "(self, odds)" for name in ("value", "pull", "factor", "log_pull", "negative")}
ROOMS = {"calibration", "class_weights", "metrics", "terms"}
ROOM_FUNCTIONS = {
    calibration: {
        "fit_temperature": (
            "(logits, labels, *, sample_weight=None, ignore_index=None, bounds=(0.01, 100.0), axis=-1, "
            "axis_name=None)"
        ),
        "log_posterior": "(logits, *, gamma=2.0, term=None, alpha=None, axis=-1)",
    },
    class_weights: {
        "effective_number": "(counts, *, beta=0.999, normalize='classes', unseen=0.0)",
        "inverse_frequency": "(counts, *, power=1.0, normalize='examples', unseen=0.0)",
    },
}
ROOM_OBJECTS = {
    boosting: {
        "Objective": (
            "(activation, gamma=2.0, term=None, alpha=None, curvature='positive')",
            {
                "__call__": "(self, first, second, sample_weight=None)",
                "loss": "(self, labels, scores, sample_weight=None)",
                "metric": "(self, first, second, sample_weight=None)",
                "probabilities": "(self, scores)",
                "start": "(self, labels, sample_weight=None)",
            },
        ),
    },
    calibration: {
        "ClasswiseCalibrationError": (
            "(num_classes, bins=15, from_logits=False, ignore_class=None, axis=-1, "
            "name='classwise_calibration_error', dtype=None)",
            METRIC_METHODS | {"reliability": "(self, state)"},
        ),
        "ExpectedCalibrationError": (
            "(bins=15, from_logits=False, ignore_class=None, axis=-1, name='expected_calibration_error', "
            "dtype=None)",
            METRIC_METHODS | {"reliability": "(self, state)"},
        ),
    },
    class_weights: {
        "ClassCounts": (
            "(num_classes, ignore_index=None, dtype=None)",
            METRIC_METHODS | {"update": "(self, state, labels, sample_weight=None)"},
        ),
    },
    metrics: {
        "Mean": (
            "(name='mean', dtype=None)",
            METRIC_METHODS | {"update": "(self, state, losses, sample_weight=None, *, where=None)"},
        ),
    },
    terms: {
        "Asymmetric": ("(gamma_positive=1.0, gamma_negative=4.0, margin=0.05)", TERM_METHODS),
        "Detached": ("(term)", TERM_METHODS),
        "Focal": ("(gamma=2.0)", TERM_METHODS),
        "Poly": ("(gamma=2.0, epsilon=1.0)", TERM_METHODS),
    },
}
ADAPTERS = {  # the extra that each needs
    "focaljax.clu": "clu",
    "focaljax.keras": "keras",
    "focaljax.keras.losses": "keras",
    "focaljax.keras.metrics": "keras",
    "focaljax.nnx": "flax",
}
ADAPTED = {
    "focaljax.clu": {
        "metric_class": "(metric, y_pred='logits', y_true='labels', sample_weight='sample_weight')",
    },
    "focaljax.nnx": {
        "Metric.__init__": "(self, metric, y_pred='logits', y_true='labels', sample_weight='sample_weight')",
        "Metric.compute": "(self)",
        "Metric.reset": "(self)",
        "Metric.state": "(self)",
        "Metric.update": "(self, *, mask=None, **batch)",
    },
}
MODULES = [focaljax, boosting, calibration, class_weights, metrics, terms]
IN_ROOMS = [(room, name) for room, names in ROOM_FUNCTIONS.items() for name in names]
OBJECTS_IN_ROOMS = [(room, name) for room, names in ROOM_OBJECTS.items() for name in names]


def options_of(name: str) -> str:
    """The options that a class shares with its function, in its order."""
    return FUNCTIONS[OBJECTS[name]].removeprefix("(y_true, y_pred, ").partition(", *")[0].removesuffix(")")


def bare(function) -> str:
    """The signature without its types."""
    signature = inspect.signature(function)
    plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=signature.empty))


def public(module: types.ModuleType) -> set[str]:
    """What a module offers by a name without an underscore, other files of the package left out."""
    mine = {name for name in vars(module) if not name.startswith("_")}
    return {name for name in mine if name in ROOMS or not inspect.ismodule(getattr(module, name))}


def sections(docstring: str) -> set[str]:
    return set(re.findall(r"^ *(Args|Attributes|Returns|Raises|Example|References):$", docstring, re.M))


def test_the_names_are_these():
    assert set(focaljax.__all__) == {*FUNCTIONS, *OBJECTS, *ROOMS, "LinearAux"}
    assert set(metrics.__all__) == {*OBJECTS, *CROSSENTROPIES, "Mean", "MeanState"}
    states = {class_weights: {"CountState"}, calibration: {"CalibrationState", "Reliability"}}
    for room, names in states.items():
        assert set(room.__all__) == {*ROOM_FUNCTIONS[room], *ROOM_OBJECTS[room], *names}
    assert set(boosting.__all__) == {*ROOM_OBJECTS[boosting]}
    assert set(terms.__all__) == {*ROOM_OBJECTS[terms], "Odds", "Term"}


@pytest.mark.parametrize(("room", "name"), IN_ROOMS)
def test_functions_of_rooms(room: types.ModuleType, name: str):
    function = getattr(room, name)
    assert bare(function) == ROOM_FUNCTIONS[room][name]
    assert {"Args", "Returns", "Raises", "Example", "References"} <= sections(function.__doc__)
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"^ *(\w+, )*{parameter}(, \w+)*: \S", function.__doc__, re.M), parameter


@pytest.mark.parametrize(("room", "name"), OBJECTS_IN_ROOMS)
def test_objects_of_rooms(room: types.ModuleType, name: str):
    cls, (options, methods) = getattr(room, name), ROOM_OBJECTS[room][name]
    assert bare(cls) == options
    assert {method: bare(getattr(cls, method)) for method in methods} == methods
    assert {"Attributes", "Raises", "Example"} <= sections(cls.__doc__)
    for option in inspect.signature(cls).parameters:
        assert re.search(rf"^ *(\w+, )*{option}(, \w+)*: \S", cls.__doc__, re.M), option
    for method in methods:  # one that is written anew has the arguments of the one it replaces
        documented = (vars(base)[method].__doc__ for base in cls.__mro__ if method in vars(base))
        assert any("Returns" in sections(doc) for doc in documented), method


def adapter(name: str) -> types.ModuleType:
    pytest.importorskip(ADAPTERS[name])
    return importlib.import_module(name)


def defined_by_us(cls: type) -> dict[str, types.FunctionType]:
    """The public methods that a class has from this project, inherited ones too."""
    found = {name: inspect.unwrap(getattr(cls, name)) for name in dir(cls) if not name.startswith("_")}
    found = {name: getattr(method, "__func__", method) for name, method in found.items()}
    return {name: f for name, f in found.items() if getattr(f, "__module__", "").startswith("focaljax")}


def examples(thing: object) -> str:
    """The program of a docstring's example."""
    return "".join(e.source for e in doctest.DocTestParser().get_examples(thing.__doc__ or ""))


def missing_examples(module: types.ModuleType) -> list[str]:
    """The public names without an example, and the methods that neither their own nor their class' calls."""
    missing = []
    things = {name: getattr(module, name) for name in module.__all__}
    for name, thing in things.items():
        if inspect.ismodule(thing):
            continue
        if not examples(thing):
            missing.append(name)
        for method, function in defined_by_us(thing).items() if inspect.isclass(thing) else ():
            if f".{method}(" not in examples(thing) + examples(function):
                missing.append(f"{name}.{method}")
    return missing


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_name_has_an_example(module: types.ModuleType):
    assert missing_examples(module) == []


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_name_of_an_adapter_has_an_example(name: str):
    assert missing_examples(adapter(name)) == []


def test_a_missing_example_is_seen():
    """The law above looks at something."""

    class Bare:
        """Bare.

        >>> Bare().shown()
        """

        def shown(self): ...

        def hidden(self): ...

    for method in (Bare.shown, Bare.hidden):
        method.__module__ = "focaljax.bare"
    module = types.ModuleType("focaljax.bare")
    vars(module).update(Bare=Bare, bare=lambda: None, __all__=["Bare", "bare"])
    assert missing_examples(module) == ["Bare.hidden", "bare"]


@pytest.mark.parametrize("module", ADAPTED)
def test_signatures_of_adapters(module: str):
    room = adapter(module)
    assert room.__all__ == sorted({name.split(".")[0] for name in ADAPTED[module]})
    for name, signature in ADAPTED[module].items():
        thing = room
        for part in name.split("."):
            thing = getattr(thing, part)
        assert bare(thing) == signature, name
    for name in room.__all__:
        thing = getattr(room, name)
        teaches(thing, ADAPTED[module].get(f"{name}.__init__") and thing.__init__)


@pytest.mark.parametrize("module", ["focaljax.keras.losses", "focaljax.keras.metrics"])
@pytest.mark.parametrize("name", OBJECTS)
def test_keras_classes_take_the_options_of_their_function(module: str, name: str):
    room = adapter(module)
    assert room.__all__ == sorted(OBJECTS)
    options = options_of(name)
    reduction = ", reduction='sum_over_batch_size'" if module.endswith("losses") else ""
    cls = getattr(room, name)
    assert bare(cls) == f"({options}{reduction}, name='{OBJECTS[name]}', dtype=None{LAST.get(name, '')})"
    teaches(cls)
    update = cls.__call__ if module.endswith("losses") else cls.update_state
    arguments = "(self, y_true, y_pred, sample_weight=None)"
    assert bare(update) == arguments
    assert bare(cls.get_config) == "(self)"


def test_the_door_of_keras():
    room = adapter("focaljax.keras")
    assert room.__all__ == ["losses", "metrics"]


def teaches(thing: Any, call: Any = None) -> None:
    """Says what each parameter is, what is raised, and shows it in use (Flax hides what a class takes)."""
    assert {"Args", "Raises", "Example"} <= sections(thing.__doc__)
    for parameter in set(inspect.signature(call or thing).parameters) - {"self"}:
        assert re.search(rf"^ *(\w+, )*{parameter}(, \w+)*: \S", thing.__doc__, re.M), parameter


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_the_names_are_sorted_and_there(module: types.ModuleType):
    assert module.__all__ == sorted(set(module.__all__))
    assert all(hasattr(module, name) for name in module.__all__)


def test_the_door_offers_nothing_else():
    assert public(focaljax) == set(focaljax.__all__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures(name: str):
    assert bare(getattr(focaljax, name)) == FUNCTIONS[name]


@pytest.mark.parametrize("name", OBJECTS)
def test_loss_objects_take_the_options_of_their_function(name: str):
    expected = f"({options_of(name)}, reduction='sum_over_batch_size', name='{OBJECTS[name]}', dtype=None"
    assert bare(getattr(focaljax, name)) == expected + LAST.get(name, "") + ")"
    arguments = "(self, y_true, y_pred, sample_weight=None, *, normalizer=None, where=None)"
    assert bare(getattr(focaljax, name).__call__) == arguments


@pytest.mark.parametrize("name", OBJECTS)
def test_metrics_take_the_options_of_their_function(name: str):
    cls = getattr(metrics, name)
    assert bare(cls) == f"({options_of(name)}, name='{OBJECTS[name]}', dtype=None{LAST.get(name, '')})"
    assert {method: bare(getattr(cls, method)) for method in MEAN_METHODS} == MEAN_METHODS


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_teaches_in_one_minute(name: str):
    function = getattr(focaljax, name)
    said = sections(function.__doc__)
    assert {"Args", "Returns", "Raises", "Example", "References"} <= said
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"^ *{parameter}: \S", function.__doc__, re.M), parameter


@pytest.mark.parametrize("module", [focaljax, metrics], ids=lambda module: module.__name__)
@pytest.mark.parametrize("name", OBJECTS)
def test_a_class_teaches_in_one_minute(name: str, module: types.ModuleType):
    cls = getattr(module, name)
    assert {"Attributes", "Raises", "Example"} <= sections(cls.__doc__)
    for option in inspect.signature(cls).parameters:  # several may share a line
        assert re.search(rf"^ *(\w+, )*{option}(, \w+)*: \S", cls.__doc__, re.M), option
    for method, function in vars(cls).items():
        if callable(function) and not method.startswith("_"):
            assert function.__doc__, method


@pytest.mark.parametrize("method", METRIC_METHODS)
def test_a_method_of_a_metric_says_what_it_does(method: str):
    function = getattr(metrics.CategoricalFocalCrossentropy, method)
    said = sections(function.__doc__)
    assert "Returns" in said
    assert "Args" in said or method == "init"


def test_one_version_everywhere():
    """The module says it; the package's metadata and the top of the changelog repeat it."""
    assert metadata.version("focaljax") == focaljax.__version__
    changelog = ROOT.joinpath("CHANGELOG.md").read_text(encoding="utf-8")
    top = re.search(r"^## \[(\d[^]]*)\] - \d{4}-\d\d-\d\d$", changelog, re.M)
    assert top is not None and top[1] == focaljax.__version__
    project = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["readme", "version"]


def test_the_types_are_offered():
    assert Path(inspect.getfile(focaljax)).with_name("py.typed").is_file()


def test_the_import_is_light():
    """Whoever imports the losses gets JAX and NumPy, and no other framework."""
    heavy = (
        "optax",
        "keras",
        "flax",
        "matplotlib",
        "sklearn",
        "pandas",
        "rich",
        "lightgbm",
        "xgboost",
        "focaljax.study",
    )
    program = f"import focaljax, sys; print([name for name in {heavy} if name in sys.modules])"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT, timeout=120
    )
    assert ran.stdout.strip() == "[]"
