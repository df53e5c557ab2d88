"""A contender as JAX runs it: compiled programs of a case, numbers for the oracle, traces and compile times.

`on_torch` has the same functions for PyTorch.
"""

import time
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench.cases import Case, Data
from bench.contenders import Contender
from bench.timing import Call

PROGRAMS = ("value", "value and gradient", "step")
RATE = 1e-3  # of the gradient descent in a step


class Ready(NamedTuple):
    """A program that can be timed."""

    call: Call
    probe: tuple[float, float] | None  # the loss and the sum of the absolute gradient of the logits
    temp: int | None  # bytes beside operands and results, None where nobody says
    compiling: float | None  # seconds until the first call could run


class Arrays:
    """One batch on the device, the labels in both forms."""

    def __init__(self, case: Case, data: Data, dtype: str, device: str):
        """Copies the batch; `device` is JAX' own default, which the command line has chosen."""
        del device
        self.axis, self.classes = case.axis, case.classes
        self.logits = jnp.asarray(data.logits, dtype)
        self.features = jnp.asarray(data.features, dtype)
        self.kernel = jnp.asarray(data.kernel, dtype)
        self._labels = data.labels

    @cached_property
    def _indices(self) -> jax.Array:
        return jnp.asarray(self._labels)

    @cached_property
    def _dense(self) -> jax.Array:
        labels = jnp.asarray(self._labels)
        if jnp.issubdtype(labels.dtype, jnp.floating):
            return labels.astype(self.logits.dtype)
        return jax.nn.one_hot(labels, self.classes, axis=self.axis, dtype=self.logits.dtype)

    def labels(self, contender: Contender) -> jax.Array:
        """As the contender wants them; made before anything is timed."""
        return self._indices if contender.indices else self._dense


def _mean(contender: Contender, gamma: Any, axis: int, alpha: Any) -> Callable:
    def mean(z, y):
        return jnp.mean(contender.loss(z, y, gamma, axis, alpha))

    return mean


def ready(contender: Contender, case: Case, arrays: Arrays, program: str, gamma: Any, alpha: Any) -> Ready:
    """Compiles one of PROGRAMS for a batch and runs it once."""
    mean = _mean(contender, gamma, case.axis, alpha)
    z, y = arrays.logits, arrays.labels(contender)

    def step(kernel, features, y):
        def objective(kernel, features):
            return mean(jnp.einsum(case.head, features, kernel), y)

        loss, (by_kernel, by_features) = jax.value_and_grad(objective, (0, 1))(kernel, features)
        return kernel - RATE * by_kernel, loss, by_features

    if program == "step":
        jitted, operands = jax.jit(step, donate_argnums=0), (arrays.kernel, arrays.features, y)
    else:
        jitted = jax.jit(jax.value_and_grad(mean) if program == "value and gradient" else mean)
        operands = (z, y)
    start = time.perf_counter()
    compiled = jitted.lower(*operands).compile()
    compiling = time.perf_counter() - start
    memory = compiled.memory_analysis()

    def call(times: int) -> None:
        result = None
        for _ in range(times):
            result = compiled(*operands)
        jax.block_until_ready(result)

    def train(times: int) -> None:
        result = (state["kernel"],)
        for _ in range(times):
            result = compiled(result[0], *operands[1:])
        state["kernel"] = result[0]
        jax.block_until_ready(result)

    probe = None
    state = {"kernel": jnp.copy(arrays.kernel)}  # what a step is given it takes
    if program == "value and gradient":
        loss, gradient = compiled(*operands)
        probe = float(loss), float(jnp.sum(jnp.abs(gradient.astype(jnp.float32))))
    run = train if program == "step" else call
    run(1)
    return Ready(run, probe, memory.temp_size_in_bytes if memory else None, compiling)


def copy(arrays: Arrays) -> Call:
    """The logits copied on the device: one read and one write, the floor of whatever moves them."""
    compiled = jax.jit(jnp.copy).lower(arrays.logits).compile()

    def call(times: int) -> None:
        result = None
        for _ in range(times):
            result = compiled(arrays.logits)
        jax.block_until_ready(result)

    return call


def evaluate(
    contender: Contender, logits: np.ndarray, labels: np.ndarray, gamma: float, axis: int, alpha: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """The losses and the gradient of their sum, of labels in the contender's form."""

    @jax.jit
    def losses_and_gradient(z, y):
        losses, pull = jax.vjp(lambda z: contender.loss(z, y, gamma, axis, alpha), z)
        return losses, pull(jnp.ones_like(losses))[0]

    losses, gradient = losses_and_gradient(jnp.asarray(logits), jnp.asarray(labels))
    return np.asarray(losses), np.asarray(gradient)


def compile_seconds(contender: Contender, case: Case, arrays: Arrays, gamma: Any, alpha: Any) -> float:
    """Seconds of one fresh trace and compilation of value and gradient."""
    jax.clear_caches()
    seconds = ready(contender, case, arrays, "value and gradient", gamma, alpha).compiling
    assert seconds is not None
    return seconds


def traces(contender: Contender, case: Case, arrays: Arrays, options: list[tuple[float, float]]) -> int:
    """How often value and gradient are traced for several (gamma, alpha)."""
    counted = []

    def mean(z, y, gamma, alpha):
        counted.append(None)
        return jnp.mean(contender.loss(z, y, gamma, case.axis, alpha))

    operands = arrays.logits, arrays.labels(contender)
    program = jax.jit(jax.value_and_grad(mean))
    try:
        for gamma, alpha in options:
            program(*operands, gamma, alpha)
    except (TypeError, ValueError, jax.errors.JAXTypeError):  # it wants to know them
        counted.clear()
        program = jax.jit(jax.value_and_grad(mean), static_argnums=(2, 3))
        for gamma, alpha in options:
            program(*operands, gamma, alpha)
    return len(counted)
