"""The types that a user's checker sees: numbers, arrays and lists pass, other words do not."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAD = """
import jax.numpy as jnp
import numpy as np
import focaljax
from focaljax import calibration, class_weights, metrics

z, x, w = jnp.zeros((2, 3)), jnp.zeros((2, 4)), jnp.zeros((4, 3))
"""
RIGHT = {
    "losses": """
focaljax.softmax_focal_loss(z, [[1, 0, 0], [0, 0.5, 0.5]], alpha=[1, 2.0, 3], gamma=[[1.0], [2.0]])
focaljax.softmax_focal_loss(z, np.eye(3)[:2], alpha=jnp.ones(3), gamma=2, label_smoothing=0.1)
focaljax.softmax_focal_loss_with_integer_labels(z, [0, 2], alpha=(1.0, 2.0, 3.0), gamma=np.float32(2))
focaljax.sigmoid_focal_loss(z, [[1, 0, 0], [0, 1, 1]], alpha=[0.25, 0.5, 0.5], gamma=[0, 1, 2])
""",
    "Keras": """
focaljax.categorical_focal_crossentropy([[1, 0, 0], [0, 0.5, 0.5]], z, alpha=[1, 2.0, 3], gamma=[0, 1, 2])
focaljax.sparse_categorical_focal_crossentropy([0, 2], z, alpha=[1, 2.0, 3])
focaljax.binary_focal_crossentropy([[1, 0, 0], [0, 1, 1]], z, True, [0.25, 0.5, 0.5], gamma=(0, 1, 2))
for cls in (focaljax.CategoricalFocalCrossentropy, focaljax.SparseCategoricalFocalCrossentropy):
    cls(alpha=[1.0, 2.0, 3.0], gamma=np.ones(3), reduction="sum", axis=-1)
focaljax.BinaryFocalCrossentropy(gamma=[1, 2, 3], reduction=None)([[1, 0, 0], [0, 1, 1]], z, [1.0, 0.5])
focaljax.reduce_loss([1.0, 2.0], [1, 0], "mean_with_sample_weight", where=[True, False])
focaljax.reduce_loss([1.0, 2.0], normalizer=[True, False])
focaljax.CategoricalFocalCrossentropy()([[1, 0, 0], [0, 1, 0]], z, normalizer=2)
""",
    "linear": """
focaljax.linear_softmax_focal_loss(x, w, [0, 2], alpha=[1, 2, 3], sample_weight=[1, 0.5], reduction="none")
focaljax.linear_softmax_focal_loss(x, w, np.array([0, 2]), bias=[0.0, 0.0, 0.0], strategy="rows")
focaljax.linear_sigmoid_focal_loss(x, w, [[0, 2], [1, -1]], alpha=0.25, reduction="mean_with_sample_weight")
""",
    "streams": """
metric = metrics.SparseCategoricalFocalCrossentropy(alpha=[1.0, 2.0, 3.0], gamma=2)
state = metric.merge(metric.update(metric.init(), [0, 2], z, [1, 0]), metric.init())
total: metrics.MeanState = state
counter = class_weights.ClassCounts(3)
counts: class_weights.CountState = counter.update(counter.init(), [0, 1, 1], [1.0, 0.5, 0.5])
class_weights.inverse_frequency([6, 3, 1], normalize="max")
class_weights.effective_number(counts, normalize=None)
calibration.log_posterior([0.5, 1.0], alpha=[1, 2])
calibration.fit_temperature(z, [0, 2], sample_weight=[1, 2])
error = calibration.ExpectedCalibrationError(bins=5)
error.result(error.update(error.init(), [0, 2], z))
""",
}
WRONG = """
focaljax.CategoricalFocalCrossentropy(reduction="average")
focaljax.CategoricalFocalCrossentropy(alpha=None)
focaljax.CategoricalFocalCrossentropy(axis="last")
focaljax.reduce_loss(z, None, "average")
focaljax.linear_softmax_focal_loss(x, w, [0, 2], reduction="average")
focaljax.linear_softmax_focal_loss(x, w, [0, 2], strategy="columns")
focaljax.linear_sigmoid_focal_loss(x, w, [0, 2], reduction="average")
focaljax.linear_sigmoid_focal_loss(x, w, [0, 2], strategy="columns")
focaljax.categorical_focal_crossentropy(z, z, gamma=None)
focaljax.categorical_focal_crossentropy(z, z, alpha="auto")
focaljax.categorical_focal_crossentropy(z, z, alpha={"cat": 1.0})
class_weights.inverse_frequency([6, 3, 1], normalize="mean")
metrics.CategoricalFocalCrossentropy(from_logits="yes")
"""
CHECKERS = {
    "pyright": [sys.executable, "-m", "pyright"],
    "mypy": [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary"],
}


@pytest.mark.parametrize("checker", CHECKERS)
def test_what_a_users_checker_says(checker, tmp_path):
    """One run of each checker: it is the imports that take its time."""
    pytest.importorskip(checker)
    for name, body in RIGHT.items():
        (tmp_path / f"right_{name}.py").write_text(HEAD + body, encoding="utf-8")
    (tmp_path / "wrong.py").write_text(HEAD + WRONG, encoding="utf-8")
    files = sorted(str(file) for file in tmp_path.glob("*.py"))
    done = subprocess.run([*CHECKERS[checker], *files], cwd=ROOT, capture_output=True, text=True, timeout=600)
    errors = [line for line in done.stdout.splitlines() if ": error:" in line or " - error:" in line]
    assert [line for line in errors if "wrong.py" not in line] == [], done.stdout
    first = HEAD.count("\n") + 2
    expected = range(first, first + WRONG.strip().count("\n") + 1)
    found = {int(line.split("wrong.py:")[1].split(":")[0]) for line in errors}
    assert found == set(expected), done.stdout
