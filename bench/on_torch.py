"""A contender as PyTorch runs it, eager or through `torch.compile`, as `on_jax` does in JAX.

Only the loss is compiled, with its mean, as a user would; the head of a step stays eager. Where torch is
missing this file cannot be imported, and no contender asks for it.
"""

import importlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.cases import Case, Data
from bench.contenders import Contender
from bench.on_jax import RATE, Ready
from bench.timing import repeated

torch: Any = importlib.import_module("torch")
if torch.cuda.is_available():
    torch.set_float32_matmul_precision("high")  # TF32, as XLA does
_dynamo: Any = importlib.import_module("torch._dynamo")
_dynamo.config.recompile_limit = 64  # all contenders of a case share the code of `mean`
_dynamo.config.fail_on_recompile_limit_hit = True  # never eager in silence


class Arrays:
    """One batch on the device."""

    def __init__(self, case: Case, data: Data, dtype: str, device: str):
        """On the CPU float32 arrays share the memory of `data`."""
        _dynamo.reset()  # what was compiled for the case before
        self.device = "cuda" if device == "gpu" else "cpu"
        put = lambda x: torch.from_numpy(x).to(self.device, getattr(torch, dtype))  # noqa: E731
        self.logits, self.features, self.kernel = put(data.logits), put(data.features), put(data.kernel)
        labels = torch.from_numpy(data.labels).to(self.device)
        self._labels = labels.to(self.logits.dtype) if labels.is_floating_point() else labels.long()

    def labels(self, contender: Contender) -> Any:
        """Indices, or one per entry of a sigmoid; no contender here wants one-hot labels."""
        assert self._labels.is_floating_point() != contender.indices
        return self._labels


def _mean(contender: Contender, gamma: Any, axis: int, alpha: Any) -> Callable:
    def mean(z, y):
        if contender.mean is not None:
            return contender.mean(z, y, gamma, axis, alpha)
        return contender.loss(z, y, gamma, axis, alpha).mean()

    return torch.compile(mean, dynamic=False) if contender.compiled else mean


def wait(result: Any) -> None:
    """Until the device is ready."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ready(contender: Contender, case: Case, arrays: Arrays, program: str, gamma: Any, alpha: Any) -> Ready:
    """One of the programs of `on_jax` for a batch; the first call compiles where something is compiled."""
    mean, y = _mean(contender, gamma, case.axis, alpha), arrays.labels(contender)
    z = arrays.logits.clone() if contender.overwrites else arrays.logits.detach()
    kernel, features = arrays.kernel.clone(), arrays.features.detach()
    for operand in {"step": (kernel, features), "value and gradient": (z,)}.get(program, ()):
        operand.requires_grad_()

    def value() -> Any:
        with torch.no_grad():
            return mean(z, y)

    def value_and_gradient() -> Any:
        loss = mean(z, y)
        return loss.detach(), torch.autograd.grad(loss, z)[0]

    def step() -> Any:
        loss = mean(torch.einsum(case.head, features, kernel), y)
        by_kernel, by_features = torch.autograd.grad(loss, (kernel, features))
        with torch.no_grad():
            kernel.sub_(by_kernel, alpha=RATE)
        return loss.detach(), by_features

    run = {"value": value, "value and gradient": value_and_gradient, "step": step}[program]
    start = time.perf_counter()
    result, probe = run(), None
    wait(result)
    compiling = time.perf_counter() - start if contender.compiled else None
    if program == "value and gradient":
        probe = float(result[0]), float(result[1].float().abs().sum())
    del result
    return Ready(repeated(run, wait), probe, temp(run) if arrays.device == "cuda" else None, compiling)


def temp(run: Callable[[], Any]) -> int:
    """Bytes that a call needs at its worst moment beside its operands and results."""
    wait(None)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = run()
    wait(result)
    peak, after = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
    del result
    return max(0, peak - max(before, after))


def evaluate(
    contender: Contender, logits: np.ndarray, labels: np.ndarray, gamma: float, axis: int, alpha: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """The losses and the gradient of their sum, of labels in the contender's form."""
    device = "cuda" if contender.cuda else "cpu"
    z, y = torch.from_numpy(np.array(logits)).to(device), torch.from_numpy(np.array(labels)).to(device)
    z.requires_grad_()
    losses = contender.loss(z, y.long() if contender.indices else y, gamma, axis, alpha)
    (gradient,) = torch.autograd.grad(losses.sum(), z)
    return losses.detach().cpu().numpy(), gradient.cpu().numpy()


def traces(contender: Contender, case: Case, arrays: Arrays, options: list) -> int | None:
    """How many graphs `torch.compile` makes of the loss for several (gamma, alpha); None for eager."""
    if not contender.compiled:
        return None
    counter = importlib.import_module("torch._dynamo.testing").CompileCounter()
    program = torch.compile(contender.mean or contender.loss, backend=counter)
    z, y = arrays.logits, arrays.labels(contender)
    for gamma, alpha in options:
        program(z, y, gamma, case.axis, alpha)
    return counter.frame_count
