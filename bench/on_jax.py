"""A contender as JAX runs it: compiled programs of a case, numbers for the oracle, and traces.

`on_torch` is the same for PyTorch, but for the copy.
"""

import time
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench.cases import Case, Data
from bench.contenders import Contender
from bench.timing import Call, repeated

PROGRAMS = ("value", "value and gradient", "step")
RATE = 1e-3  # of the gradient descent in a step


class Ready(NamedTuple):
    """A program that can be timed."""

    call: Call
    probe: tuple[float, float] | None = None  # the loss and the sum of the absolute gradient of the logits
    temp: int | None = None  # bytes beside operands and results, None where nobody says
    compiling: float | None = None  # seconds until the first call could run


class Arrays:
    """One batch on the device, the labels in both forms."""

    def __init__(self, case: Case, data: Data, dtype: str, device: str):
        """Copies the batch; `device` is JAX' own default, which the command line has chosen."""
        del device
        given = data.logits, data.features, data.kernel
        self.logits, self.features, self.kernel = (jnp.asarray(x, dtype) for x in given)
        self._labels, self._axis = jnp.asarray(data.labels), case.axis

    @cached_property
    def _dense(self) -> jax.Array:
        dtype, axis = self.logits.dtype, self._axis
        if jnp.issubdtype(self._labels.dtype, jnp.floating):
            return self._labels.astype(dtype)
        return jax.nn.one_hot(self._labels, self.logits.shape[axis], axis=axis, dtype=dtype)

    def labels(self, contender: Contender) -> jax.Array:
        """As the contender wants them; made before anything is timed."""
        return self._labels if contender.indices else self._dense


def ready(contender: Contender, case: Case, arrays: Arrays, program: str, gamma: Any, alpha: Any) -> Ready:
    """Compiles one of PROGRAMS for a batch and runs it once."""

    def mean(z, y):
        return jnp.mean(contender.loss(z, y, gamma, case.axis, alpha))

    def step(kernel, features, y):
        def objective(kernel, features):
            return mean(jnp.einsum(case.head, features, kernel), y)

        loss, (by_kernel, by_features) = jax.value_and_grad(objective, (0, 1))(kernel, features)
        return kernel - RATE * by_kernel, loss, by_features

    operands = arrays.logits, arrays.labels(contender)
    if program == "step":  # it takes the kernel that it is given
        operands = jnp.copy(arrays.kernel), arrays.features, operands[1]
        jitted = jax.jit(step, donate_argnums=0)
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
    run = train if program == "step" else lambda: compiled(*operands)
    call = repeated(run, jax.block_until_ready)
    call(1)
    return Ready(call, probe, memory.temp_size_in_bytes if memory else None, compiling)


def copy(arrays: Arrays) -> Ready:
    """The logits copied on the device: one read and one write, the floor of whatever moves them."""
    compiled = jax.jit(jnp.copy).lower(arrays.logits).compile()
    return Ready(repeated(lambda: compiled(arrays.logits), jax.block_until_ready))


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
    counted, operands = [], (arrays.logits, arrays.labels(contender))

    def mean(z, y, gamma, alpha):
        counted.append(None)
        return jnp.mean(contender.loss(z, y, gamma, case.axis, alpha))

    for static in ((), (2, 3)):
        counted.clear()
        program = jax.jit(jax.value_and_grad(mean), static_argnums=static)
        try:
            for gamma, alpha in options:
                program(*operands, gamma, alpha)
            break
        except (TypeError, ValueError, jax.errors.JAXTypeError):  # it wants to know them
            if static:
                raise
    return len(counted)
