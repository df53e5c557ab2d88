"""The last layer and its loss in PyTorch on CUDA: the fused kernels of others, from inputs of JAX.

No GPU was at hand: written after the published interfaces of Liger 0.8.5 and cut-cross-entropy 25.1.1, and
not run yet. Whatever fails is listed with its reason and ends nothing.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from bench.linear import Ready
from bench.timing import repeated

Loss = Callable[..., Any]  # of inputs [N, D], weight [C, D] and labels: their mean


def _torch() -> list[tuple[str, Loss]]:
    torch: Any = importlib.import_module("torch")
    if not torch.cuda.is_available():
        raise ImportError("torch has no CUDA device here")
    functional = torch.nn.functional

    def mean(x, weight, labels):
        return functional.cross_entropy(functional.linear(x, weight).float(), labels)

    return [("torch matmul and cross-entropy", mean)]


def _liger() -> list[tuple[str, Loss]]:
    functional: Any = importlib.import_module("liger_kernel.transformers.functional")
    return [("Liger linear cross-entropy", functional.liger_fused_linear_cross_entropy)]


def _apple() -> list[tuple[str, Loss]]:
    loss = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    exact = partial(loss, filter_eps=None)
    return [("Apple cut cross-entropy", loss), ("Apple cut cross-entropy, unfiltered", exact)]


def ready(loss: Loss, arrays: tuple[jax.Array, ...], dtype: str) -> Ready:
    """Called once, which compiles its kernels; memory is what PyTorch allocates beside the gradients."""
    from bench import on_torch

    torch = on_torch.torch
    x, kernel, labels = (torch.from_numpy(np.array(a, "int32" if a.ndim == 1 else "float32")) for a in arrays)
    x, weight = (a.to("cuda", getattr(torch, dtype)).contiguous().requires_grad_() for a in (x, kernel.T))
    labels = labels.to("cuda", torch.int64)
    value: list[Any] = [None]

    def step() -> Any:
        mean = loss(x, weight, labels)
        value[0] = mean.detach()
        return torch.autograd.grad(mean, (x, weight))

    call = repeated(step, on_torch.wait)
    call(1)
    return Ready(call, on_torch.temp(step), lambda: float(value[0]))


LIBRARIES = {"torch": _torch, "Liger": _liger, "cut-cross-entropy": _apple}  # all are plain cross-entropies
