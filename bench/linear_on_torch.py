"""The last layer and its loss in PyTorch on CUDA: the fused kernels of others, from inputs of JAX.

No GPU was at hand: written after the published interfaces of Liger 0.8.5 and cut-cross-entropy 25.1.1, and
not run yet. Whatever fails is listed with its reason and ends nothing.
"""

import importlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bench.contenders import Absent
from bench.linear import Ready

Loss = Callable[..., Any]  # of inputs [N, D], weight [C, D] and labels: their mean


def contenders() -> tuple[dict[str, Loss], list[Absent]]:
    """Those that can be imported, and those that cannot; all are plain cross-entropies."""
    found, absent = {}, []
    makers = {"torch": _torch, "Liger": _liger, "cut-cross-entropy": _apple}
    for library, make in makers.items():
        try:
            found |= make()
        except Exception as error:  # not installed, or not for the others that are
            absent.append(Absent(library, f"{type(error).__name__}: {error}"))
    return found, absent


def _torch() -> dict[str, Loss]:
    torch: Any = importlib.import_module("torch")
    if not torch.cuda.is_available():
        raise ImportError("torch has no CUDA device here")
    functional = torch.nn.functional

    def mean(x, weight, labels):
        return functional.cross_entropy(functional.linear(x, weight).float(), labels)

    return {"torch matmul and cross-entropy": mean}


def _liger() -> dict[str, Loss]:
    functional: Any = importlib.import_module("liger_kernel.transformers.functional")
    return {"Liger linear cross-entropy": functional.liger_fused_linear_cross_entropy}


def _apple() -> dict[str, Loss]:
    library: Any = importlib.import_module("cut_cross_entropy")
    exact = lambda x, weight, labels: library.linear_cross_entropy(  # noqa: E731
        x, weight, labels, filter_eps=None
    )
    return {
        "Apple cut cross-entropy": library.linear_cross_entropy,
        "Apple cut cross-entropy, unfiltered": exact,
    }


def ready(loss: Loss, arrays: tuple[jax.Array, ...], dtype: str) -> Ready:
    """Called once, which compiles its kernels; memory is what PyTorch allocates beside the gradients."""
    torch: Any = importlib.import_module("torch")
    x, kernel, labels = (
        torch.from_numpy(np.array(a, a.dtype if a.dtype == "int32" else "float32")) for a in arrays
    )
    x, weight = (a.to("cuda", getattr(torch, dtype)).contiguous().requires_grad_() for a in (x, kernel.T))
    labels = labels.to("cuda", torch.int64)

    def step() -> Any:
        mean = loss(x, weight, labels)
        return mean, torch.autograd.grad(mean, (x, weight))

    value = [float(step()[0])]

    def call(times: int) -> None:
        for _ in range(times):
            value[0] = step()[0].detach()
        value[0] = float(value[0])  # waits for the device

    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call(1)
    gradients = x.nbytes + weight.nbytes
    return Ready(call, max(0, torch.cuda.max_memory_allocated() - before - gradients), value)
