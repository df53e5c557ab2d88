"""A contender as JAX runs it: compiled programs of a case, numbers for the oracle, and traces.

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
        self.axis, self.classes, self._labels = case.axis, case.classes, data.labels
        self.logits, self.features, self.kernel = (
            jnp.asarray(x, dtype) for x in (data.logits, data.features, data.kernel)
        )

    @cached_property
    def _indices(self) -> jax.Array:
        return jnp.asarray(self._labels)

    @cached_property
    def _dense(self) -> jax.Array:
        if self._labels.dtype == np.float32:
            return jnp.asarray(self._labels, self.logits.dtype)
        return jax.nn.one_hot(self._indices, self.classes, axis=self.axis, dtype=self.logits.dtype)

    def labels(self, contender: Contender) -> jax.Array:
        """As the contender wants them; made before anything is timed."""
        return self._indices if contender.indices else self._dense


def repeated(run: Callable[[], Any]) -> Call:
    """`run` so many times; waits for the last result."""

    def call(times: int) -> None:
        result = None
        for _ in range(times):
            result = run()
        jax.block_until_ready(result)

    return call


def _mean(contender: Contender, axis: int) -> Callable:
    def mean(z, y, gamma, alpha):
        return jnp.mean(contender.loss(z, y, gamma, axis, alpha))

    return mean


def _step(mean: Callable, head: str) -> Callable:
    """The next kernel, the loss and the gradient of the features."""

    def step(kernel, features, y):
        def objective(kernel, features):
            return mean(jnp.einsum(head, features, kernel), y)

        loss, (by_kernel, by_features) = jax.value_and_grad(objective, (0, 1))(kernel, features)
        return kernel - RATE * by_kernel, loss, by_features

    return step


def ready(contender: Contender, case: Case, arrays: Arrays, program: str, gamma: Any, alpha: Any) -> Ready:
    """Compiles one of PROGRAMS for a batch and runs it once."""

    def mean(z, y):
        return _mean(contender, case.axis)(z, y, gamma, alpha)

    operands = arrays.logits, arrays.labels(contender)
    if program == "step":  # it takes the kernel that it is given
        operands = jnp.copy(arrays.kernel), arrays.features, operands[1]
        jitted = jax.jit(_step(mean, case.head), donate_argnums=0)
    else:
        jitted = jax.jit(jax.value_and_grad(mean) if program == "value and gradient" else mean)
    start = time.perf_counter()
    compiled = jitted.lower(*operands).compile()
    compiling = time.perf_counter() - start
    memory, probe, kernel = compiled.memory_analysis(), None, [operands[0]]

    def train() -> Any:
        kernel[0], *rest = compiled(kernel[0], *operands[1:])
        return kernel[0], rest

    if program == "value and gradient":
        loss, gradient = compiled(*operands)
        probe = float(loss), float(jnp.sum(jnp.abs(gradient.astype(jnp.float32))))
    call = repeated(train if program == "step" else lambda: compiled(*operands))
    call(1)
    return Ready(call, probe, memory.temp_size_in_bytes if memory else None, compiling)


def copy(arrays: Arrays) -> Call:
    """The logits copied on the device: one read and one write, the floor of whatever moves them."""
    compiled = jax.jit(jnp.copy).lower(arrays.logits).compile()
    return repeated(lambda: compiled(arrays.logits))


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


def traces(contender: Contender, case: Case, arrays: Arrays, options: list[tuple[float, float]]) -> int:
    """How often value and gradient are traced for several (gamma, alpha)."""
    mean, operands = _mean(contender, case.axis), (arrays.logits, arrays.labels(contender))

    def count(**static: Any) -> int:
        counted = []

        def counting(*arguments):
            counted.append(None)
            return mean(*arguments)

        program = jax.jit(jax.value_and_grad(counting), **static)
        for gamma, alpha in options:
            program(*operands, gamma, alpha)
        return len(counted)

    try:
        return count()
    except (TypeError, ValueError, jax.errors.JAXTypeError):  # it wants to know them
        return count(static_argnums=(2, 3))
