"""The last layer and its loss, with and without logits: what `tests/test_linear_mesh.py` holds bounds of.

Time and temporary memory of value and gradient (by inputs and kernel) on this machine, and of programs
compiled for a TPU v5p: memory, and how often the flops of one matmul of all logits, 2 N D C.
"""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bench import compiled, hlo
from bench.contenders import BASELINE, OURS, textbook
from bench.timing import Effort, interleaved
from focaljax import linear_softmax_focal_loss, softmax_focal_loss_with_integer_labels

Shape = tuple[int, int, int]  # N, D, C
LARGE: Shape = (8192, 4096, 131_072)
FORMS = {
    "in chunks of rows": partial(linear_softmax_focal_loss, strategy="rows"),
    "in chunks of classes": partial(linear_softmax_focal_loss, strategy="classes"),
}


def contenders() -> dict[str, Callable]:
    """Mean losses of ``(inputs, kernel, labels)`` at gamma 2; Optax has the cross-entropy only."""
    import optax

    def of_logits(loss):
        def mean(inputs, kernel, labels):
            logits = jnp.matmul(inputs, kernel, preferred_element_type=jnp.float32)
            return jnp.mean(loss(logits, labels))

        return mean

    def cross_entropy(z, y):
        return optax.softmax_cross_entropy_with_integer_labels(z, y)

    return FORMS | {
        f"matmul and {OURS}": of_logits(softmax_focal_loss_with_integer_labels),
        "matmul and textbook focal": of_logits(lambda z, y: textbook(z, y, 2.0, -1)),
        f"matmul and {BASELINE}": of_logits(cross_entropy),
    }


def both(loss: Callable) -> Callable:
    """Value and gradient by inputs and kernel."""
    return jax.value_and_grad(loss, (0, 1))


def operands(shape: Shape, dtype: str) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Inputs, kernel and labels."""
    n, d, c = shape
    return tuple(jax.ShapeDtypeStruct(*x) for x in (((n, d), dtype), ((d, c), dtype), ((n,), "int32")))


def matmuls(text: str, shape: Shape) -> float:
    """The flops of all matmuls of an optimised program, times their loops' turns, in 2 N D C."""
    return flops(text) / (2 * math.prod(shape))


def flops(text: str) -> float:
    """Of all dots and of the convolutions that TPUs make of them."""
    module, turns = hlo.parse(text), trips(text)

    def of(computation: str) -> float:
        ops = module[computation]
        found = 0.0
        for op in ops.values():
            if op.code in ("dot", "convolution"):
                left, right = (ops[name].result[0].size for name in op.operands[:2])
                found += 2 * math.sqrt(left * right * op.result[0].size)  # MK, KN, MN: of matrices
            elif op.code in ("fusion", "call", "while", "conditional"):
                found += sum(turns.get(name, 1) * of(name) for name in hlo._called(op))
        return found

    return of("")


def trips(text: str) -> dict[str, int]:
    """How often the body of each loop runs: as XLA says, or the bound that its condition compares with."""
    found = {}
    for line in re.findall(r"^.* while\(.*$", text, re.M):
        condition, body = (re.search(rf"\b{word}=%?([\w.\-]+)", line) for word in ("condition", "body"))
        assert condition is not None and body is not None
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
        if known is None:
            block = re.search(rf"^%?{re.escape(condition[1])} \(.*?^\}}", text, re.M | re.S)
            known = re.search(r"constant\((\d+)\)", block[0] if block else "")
        if known is None:
            raise ValueError(f"a loop of unknown length: {body[1]}")
        found[body[1]] = int(known[1])
    return found


def program(loss: Callable, shape: Shape, dtype: str, target: str) -> dict[str, Any]:
    """Temporary bytes and matmuls of value and gradient, compiled for one device of `target`."""
    sharding = compiled.place(target)
    given = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in operands(shape, dtype)]
    done = jax.jit(both(loss)).lower(*given).compile()
    text, memory = done.as_text(), done.memory_analysis()
    assert text is not None and memory is not None
    return {"temp": memory.temp_size_in_bytes, "matmuls": matmuls(text, shape)}


def timed(shape: Shape, effort: Effort) -> list[dict[str, Any]]:
    """The rows of one shape on this machine, in float32."""
    keys = jax.random.split(jax.random.key(0), 3)
    n, d, c = shape
    inputs, kernel = jax.random.normal(keys[0], (n, d)), jax.random.normal(keys[1], (d, c)) / math.sqrt(d)
    labels = jax.random.randint(keys[2], (n,), 0, c)
    calls, temp = {}, {}
    for name, loss in contenders().items():
        done = jax.jit(both(loss)).lower(inputs, kernel, labels).compile()
        memory = done.memory_analysis()
        assert memory is not None
        temp[name] = memory.temp_size_in_bytes

        def call(times, done=done):
            for _ in range(times):
                jax.block_until_ready(done(inputs, kernel, labels))

        calls[name] = call
        call(1)
    found = interleaved(calls, effort, f"matmul and {BASELINE}")
    return [{"contender": name, "temp": temp[name], **timing._asdict()} for name, timing in found.items()]
