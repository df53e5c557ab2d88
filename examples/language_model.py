"""`python -m examples.language_model`: a small model of this project's README, one byte at a time.

What a trainer of language models needs of the last layer: a vocabulary that is padded to a multiple of 128,
so that the mesh divides it (`where`), padding of the text (`ignore_index`), microbatches that add up
(`normalizer`), a penalty of large logits (`z_loss`), and accuracy at no cost (`has_aux`). The head is sharded
over "model", the text over "data"::

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m examples.language_model --model 4
"""

import argparse
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from examples.pod import mesh_of
from focaljax import linear_softmax_focal_loss

Params = dict[str, Any]
PLACES = {"embedding": P(), "body": P(), "head": P(None, "model")}
CONTEXT, WIDTH, HIDDEN = 8, 16, 64
PAD = -1


def corpus(size: int) -> tuple[np.ndarray, int]:
    """The text as indices of the bytes that occur in it, and how many there are."""
    text = np.frombuffer(Path(__file__).parents[1].joinpath("README.md").read_bytes()[:size], np.uint8)
    vocabulary, tokens = np.unique(text, return_inverse=True)
    return tokens.astype(np.int32), len(vocabulary)


def rows(tokens: np.ndarray, microbatch: int) -> tuple[np.ndarray, np.ndarray]:
    """Each position with the bytes before it, in microbatches; what is left over is padding."""
    count = -(-(len(tokens) - CONTEXT) // microbatch) * microbatch
    at = np.arange(count)
    inside = at < len(tokens) - CONTEXT
    at = np.where(inside, at, 0)
    before = tokens[at[:, None] + np.arange(CONTEXT)]
    after = np.where(inside, tokens[at + CONTEXT], PAD)
    return before.reshape(-1, microbatch, CONTEXT), after.reshape(-1, microbatch)


def initial(key: jax.Array, tokens: int, padded: int) -> Params:
    """An embedding, one hidden layer, and the head with a column for each token and for the padding."""
    keys = jax.random.split(key, 3)
    return {
        "embedding": jax.random.normal(keys[0], (tokens, WIDTH)),
        "body": jax.random.normal(keys[1], (CONTEXT * WIDTH, HIDDEN)) / (CONTEXT * WIDTH) ** 0.5,
        "head": jax.random.normal(keys[2], (HIDDEN, padded)) / HIDDEN**0.5,
    }


def objective(params: Params, before: jax.Array, after: jax.Array, tokens: int, number: jax.Array) -> Any:
    """The loss of a microbatch by the `number` of tokens in all of them, and how many it got right."""
    hidden = jax.nn.relu(params["embedding"][before].reshape(len(before), -1) @ params["body"])
    loss, aux = linear_softmax_focal_loss(
        hidden,
        params["head"],
        after,
        gamma=1.0,
        where=jnp.arange(params["head"].shape[1]) < tokens,
        ignore_index=PAD,
        z_loss=1e-4,
        normalizer=number,
        has_aux=True,
    )
    return loss, jnp.sum(aux.correct)


def make_step(optimizer: optax.GradientTransformation, tokens: int) -> Any:
    """One training step over all microbatches; parameters and optimiser state are overwritten."""

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, before, after):
        number = jnp.sum(after != PAD)
        both = jax.value_and_grad(partial(objective, tokens=tokens, number=number), has_aux=True)

        def add(sums, microbatch):
            return jax.tree.map(jnp.add, sums, both(params, *microbatch)), ()

        nothing = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(both, params, before[0], after[0])
        )
        ((loss, right), gradient), _ = jax.lax.scan(add, nothing, (before, after))
        updates, state = optimizer.update(gradient, state, params)
        return (
            optax.apply_updates(params, updates),
            state,
            loss,
            right.astype(loss.dtype) / number.astype(loss.dtype),
        )

    return step


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m examples.language_model", description=words)
    parser.add_argument("--model", type=int, default=1, help="devices that share the vocabulary; default: 1")
    parser.add_argument("--bytes", type=int, default=20_000)
    parser.add_argument("--microbatch", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=200)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Trains, and prints loss and accuracy."""
    args = parser().parse_args(argv)
    mesh = mesh_of(args.model)
    text, tokens = corpus(args.bytes)
    multiple = math.lcm(128, args.model)
    padded = -(-tokens // multiple) * multiple
    optimizer, where = optax.adam(1e-2), NamedSharding(mesh, P(None, "data"))
    print(f"{tokens} tokens, a head of {padded} on {dict(mesh.shape)}")
    with jax.set_mesh(mesh):
        places = {name: NamedSharding(mesh, spec) for name, spec in PLACES.items()}
        params = jax.jit(initial, static_argnums=(1, 2), out_shardings=places)(
            jax.random.key(0), tokens, padded
        )
        state, step = optimizer.init(params), make_step(optimizer, tokens)
        before, after = jax.device_put(rows(text, args.microbatch), where)
        for number in range(args.steps):
            params, state, loss, right = step(params, state, before, after)
            if number % max(1, args.steps // 5) == 0 or number == args.steps - 1:
                print(f"step {number + 1}: loss {loss:.3f}, accuracy {right:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
