"""focaljax in real Keras models: they train, evaluate, save and load to the same numbers."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pairs import every_pair

keras = pytest.importorskip("keras")

from keras.src.backend import set_keras_mask  # noqa: E402  (it has no public name)

import focaljax  # noqa: E402
from focaljax.keras import losses, metrics  # noqa: E402

# Keras writes weights by np.array of a variable, in NumPy 1's manner.
OLD_ARRAY = "ignore:__array__ implementation doesn't accept:DeprecationWarning"
pytestmark = [pytest.mark.filterwarnings(OLD_ARRAY), pytest.mark.usefixtures("jax_defaults")]
ROOT = Path(__file__).parents[1]
NAMES = ("CategoricalFocalCrossentropy", "SparseCategoricalFocalCrossentropy", "BinaryFocalCrossentropy")
LOSSES = [getattr(losses, name) for name in NAMES]
METRICS = [getattr(metrics, name) for name in NAMES]


def data(n=64, classes=3):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 4)).astype(np.float32)
    y = np.argmax(x[:, :classes] + rng.gumbel(size=(n, classes)), 1)
    return x, y.astype(np.int32)  # Keras warns of int64 itself, on the newest JAX


def labels_for(name, y, classes=3):
    return y if name.startswith("Sparse") else np.eye(classes, dtype=np.float32)[y]


def model_for(name, *, from_logits=True, weights=None, **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
    if not from_logits:
        model.add(keras.layers.Activation("sigmoid" if name.startswith("Binary") else "softmax"))
    loss = getattr(losses, name)(from_logits=from_logits, **options)
    metric = getattr(metrics, name)(from_logits=from_logits, **options, name="focal")
    model.compile(optimizer="adam", loss=loss, metrics=[metric])
    return model


@pytest.mark.parametrize(("name", "from_logits"), [*zip(NAMES, (False, True, False), strict=True)])
def test_a_model_trains_and_evaluates(name, from_logits):
    x, y = data()
    y = labels_for(name, y)
    model = model_for(name, from_logits=from_logits, gamma=1.5)
    history = model.fit(x, y, epochs=3, batch_size=16, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    loss, focal = model.evaluate(x, y, batch_size=24, verbose=0)
    function = getattr(focaljax, name)(from_logits=from_logits, gamma=1.5)
    truth = float(function(jnp.asarray(y), jnp.asarray(model.predict(x, verbose=0))))
    np.testing.assert_allclose([loss, focal], truth, rtol=2e-6)


def test_saved_models_come_back_with_our_classes_in_a_new_process(tmp_path):
    before = {}
    for name in NAMES:
        x, y = data()
        y = labels_for(name, y)
        alpha = {} if "Binary" in name else {"alpha": [1.0, 2.0, 3.0]}
        model = model_for(name, gamma=[0.5, 1.0, 2.0], **alpha)
        model.fit(x, y, epochs=1, verbose=0)
        before[name] = model.evaluate(x, y, verbose=0)
        model.save(tmp_path / f"{name}.keras")
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
        with zipfile.ZipFile(tmp_path / f"{name}.keras") as file:
            config = json.loads(file.read("config.json"))["compile_config"]
        assert config["loss"]["registered_name"] == f"focaljax>{name}"
    program = f"""
import numpy as np, keras
try:
    print(type(keras.saving.load_model({str(tmp_path / NAMES[0])!r} + ".keras").loss).__module__)
except Exception:
    print("refused")
import focaljax.keras
for name in {list(NAMES)}:
    model = keras.saving.load_model({str(tmp_path)!r} + f"/{{name}}.keras")
    data = np.load({str(tmp_path)!r} + f"/{{name}}.npz")
    print(*model.evaluate(data["x"], data["y"], verbose=0))
    focal = model.metrics[1].metrics[0]
    print(*(word for x in (model.loss, focal) for word in (type(x).__module__, type(x).__name__)))
    print(focal.get_config()["gamma"])
"""
    said = iter(run(program))
    assert next(said) in ("focaljax.keras.losses", "refused")  # without our module it is none of Keras'
    for name in NAMES:
        numbers, classes, gamma = next(said), next(said), next(said)
        np.testing.assert_allclose([float(x) for x in numbers.split()], before[name], rtol=1e-6, err_msg=name)
        assert classes == f"focaljax.keras.losses {name} focaljax.keras.metrics {name}"
        assert gamma == "[0.5, 1.0, 2.0]"
    assert list(said) == []


def run(program):
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("cls", [*LOSSES, *METRICS], ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_configurations_survive(cls):
    options = {"gamma": [1.0, 2.0], "axis": 1, "from_logits": True, "name": "mine", "dtype": "float32"}
    if "Binary" in cls.__name__:
        options |= {"apply_class_balancing": True, "alpha": 0.3}
    else:
        options |= {"alpha": [0.5, 2.0]}
    options |= {"ignore_class": 7} if "Sparse" in cls.__name__ else {"label_smoothing": 0.1}
    if cls in LOSSES:
        options |= {"reduction": "sum"}
    one = cls(**options)
    assert {name: one.get_config()[name] for name in options} == options
    again = keras.saving.deserialize_keras_object(
        json.loads(json.dumps(keras.saving.serialize_keras_object(one)))
    )
    assert type(again) is cls and again.get_config() == one.get_config()


@pytest.mark.parametrize("name", [NAMES[0], NAMES[2]])
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", None])
def test_numbers_are_those_of_keras(name, reduction):
    rng = np.random.default_rng(0)
    y_true = np.eye(3, dtype=np.float32)[rng.integers(0, 3, 8)]
    y_pred = rng.uniform(0.05, 0.9, (8, 3)).astype(np.float32)
    w = rng.uniform(0, 2, 8).astype(np.float32)
    ours, theirs = (
        getattr(m, name)(gamma=2.5, label_smoothing=0.1, reduction=reduction) for m in (losses, keras.losses)
    )
    for weights in (None, w, w[:, None]):
        theirs_now = np.squeeze(theirs(y_true, y_pred, weights))  # [N, 1] there, where the weights are so
        np.testing.assert_allclose(ours(y_true, y_pred, weights), theirs_now, rtol=2e-6)


def test_sample_and_class_weights():
    x, y = data()
    model = model_for(NAMES[1])
    w = np.random.default_rng(1).uniform(0, 2, len(y)).astype(np.float32)
    z = model.predict(x, verbose=0)
    values = np.asarray(focaljax.sparse_categorical_focal_crossentropy(y, z, from_logits=True))
    loss = model.evaluate(x, y, sample_weight=w, batch_size=len(y), verbose=0)[0]
    np.testing.assert_allclose(loss, (values * w).mean(), rtol=2e-6)
    metric = metrics.SparseCategoricalFocalCrossentropy(from_logits=True)
    for part in (slice(0, 10), slice(10, 64)):
        metric.update_state(y[part], z[part], w[part])
    np.testing.assert_allclose(metric.result(), (values * w).sum() / w.sum(), rtol=2e-6)
    metric.reset_state()
    assert metric.result() == 0
    by_class = {0: 1.0, 1: 2.0, 2: 0.5}
    history = model.fit(x, y, class_weight=by_class, batch_size=len(y), verbose=0).history
    np.testing.assert_allclose(history["loss"][0], (values * np.array([1.0, 2.0, 0.5])[y]).mean(), rtol=2e-6)


def masked_model(loss, metric=None):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.layers.Input((None, 4)),
            keras.layers.Masking(0.0),
            keras.layers.Dense(3),
            keras.layers.Activation("linear"),
        ]
    )
    model.compile(loss=loss, metrics=[] if metric is None else [metric])
    return model


def test_a_masked_entry_is_silent():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 5, 4)).astype(np.float32)
    x[0, 3:] = 0
    y = rng.integers(0, 3, (4, 5)).astype(np.int32)
    model = masked_model(
        losses.SparseCategoricalFocalCrossentropy(from_logits=True),
        metrics.SparseCategoricalFocalCrossentropy(from_logits=True),
    )
    loss, focal = model.evaluate(x, y, verbose=0)
    values = np.asarray(
        focaljax.sparse_categorical_focal_crossentropy(y, model.predict(x, verbose=0), from_logits=True)
    )
    kept = np.ones((4, 5), bool)
    kept[0, 3:] = False
    np.testing.assert_allclose([loss, focal], values[kept].mean(), rtol=2e-6)
    y_pred = jnp.zeros((2, 3)).at[1].set(jnp.nan)
    set_keras_mask(y_pred, jnp.array([True, False]))
    assert np.isfinite(losses.SparseCategoricalFocalCrossentropy(from_logits=True)([0, 1], y_pred))
    metric = metrics.SparseCategoricalFocalCrossentropy(from_logits=True)
    metric.update_state([0, 1], y_pred)
    assert np.isfinite(metric.result())


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    x, y = data()
    old = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy(policy)
    try:
        model = model_for(NAMES[1], gamma=0.5)
        history = model.fit(x, y, epochs=3, batch_size=16, verbose=0).history
    finally:
        keras.mixed_precision.set_dtype_policy(old)
    assert np.isfinite(history["loss"]).all() and history["loss"][-1] < history["loss"][0]
    assert np.isfinite(history["focal"]).all()


def test_no_gradient_is_lost_where_keras_clips():
    """What the user comes for: an example that the model is sure of, and wrong about."""
    logits = jnp.array([[30.0, 0.0, 0.0]])
    y_true = jnp.array([[0.0, 1.0, 0.0]])
    ours, theirs = (
        jax.grad(lambda z, m=m: m.CategoricalFocalCrossentropy(from_logits=True)(y_true, z))(logits)
        for m in (losses, keras.losses)
    )
    assert np.all(theirs == 0) and ours[0, 1] < -0.2


def test_less_is_better():
    for cls in METRICS:
        assert cls()._direction == "down"
    x, y = data()
    model = model_for(NAMES[1])
    stop = keras.callbacks.EarlyStopping("focal", mode="auto", patience=2)
    model.fit(x, y, epochs=2, callbacks=[stop], verbose=0)
    assert stop.monitor_op is np.less or stop._is_improvement(0.0, 1.0)


def test_labels_as_keras_makes_them():
    y_pred = jnp.array([[0.05, 0.95, 0.0], [0.1, 0.8, 0.1]])
    sparse = losses.SparseCategoricalFocalCrossentropy()
    for y in ([1, 2], [[1], [2]], np.array([1.0, 2.0]), np.array([1, 2], np.uint8)):
        np.testing.assert_allclose(sparse(y, y_pred), 0.23315, rtol=1e-4)
    binary = losses.BinaryFocalCrossentropy()
    a, b = binary([1, 0], jnp.array([[0.6], [0.3]])), binary([[1], [0]], jnp.array([[0.6], [0.3]]))
    assert a == b


@pytest.mark.parametrize(
    ("of_labels", "of_predictions", "of_losses"),
    [
        ((6,), (6, 1), (6,)),
        ((6, 1), (6,), (6,)),
        ((2, 3), (2, 3, 1), (2, 3)),
        ((2, 3, 1), (2, 3), (2,)),
    ],
)
def test_labels_take_the_rank_of_the_predictions(of_labels, of_predictions, of_losses):
    rng = np.random.default_rng(0)
    y_true = rng.integers(0, 2, of_labels).astype(np.float32)
    y_pred = rng.uniform(0.1, 0.9, of_predictions).astype(np.float32)
    ours, theirs = (
        np.asarray(m.BinaryFocalCrossentropy(reduction=None)(y_true, y_pred)) for m in (losses, keras.losses)
    )
    assert ours.shape == of_losses
    assert theirs.shape == of_losses[:1]  # Keras takes the mean over the entries of [2, 3, 1]
    np.testing.assert_allclose(ours.reshape(len(ours), -1).mean(1), theirs, rtol=1e-5)  # of Keras' 1 - p_t
    metric = metrics.BinaryFocalCrossentropy()
    metric.update_state(y_true, y_pred)
    np.testing.assert_allclose(metric.result(), np.mean(theirs), rtol=1e-5)


@every_pair(
    wrong=[np.nan, 1.7, -0.5, np.inf, 1e30], ignored=[None, -1, 0], kind=["list", "float32", "float64"]
)
def test_a_label_that_is_no_whole_number_is_no_class(wrong, ignored, kind):
    known = [1.0, wrong] if kind == "list" else np.array([1.0, wrong], kind)
    y_pred = np.full((2, 3), 1 / 3, np.float32)
    loss = losses.SparseCategoricalFocalCrossentropy(ignore_class=ignored, reduction=None)
    metric = metrics.SparseCategoricalFocalCrossentropy(ignore_class=ignored)
    for call in (loss, metric.update_state):
        with pytest.raises(ValueError, match="^`y_true` must be whole numbers, the indices of classes, got "):
            call(known, y_pred)
    unknown = jnp.asarray(known, jnp.float32)
    for call in (loss, jax.jit(loss)):
        np.testing.assert_array_equal(np.isnan(call(unknown, y_pred)), [False, True])
    metric.update_state(unknown, y_pred)
    assert np.isnan(metric.result())
    np.testing.assert_array_equal(loss(unknown, y_pred, sample_weight=np.float32([1.0, 0.0]))[1], 0)


def test_metrics_need_a_dtype_that_counts():
    with pytest.raises(ValueError, match="`dtype` must be float32, or float64"):
        metrics.CategoricalFocalCrossentropy(dtype="bfloat16")
