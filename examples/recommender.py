"""`python -m examples.recommender`: two towers, a long tail of items, and no logits of users by items.

A user is the mean of the embeddings of the items seen so far; the other tower has an embedding of each item.
The score of a pair is their product, and each row has a padded list of the items that came next: with 100 000
items the logits of 1024 users would take 0.4 GB, and several times that in a step.
`linear_sigmoid_focal_loss` makes them chunk by chunk. The table of items is sharded over "model", the users
over "data"::

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m examples.recommender --model 4

Popular items are easy negatives of almost every user and rare ones almost never positive: the imbalance that
focal loss is for.
"""

import argparse
import sys
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from examples.pod import make_step, mesh_of
from focaljax import linear_sigmoid_focal_loss

Params = dict[str, Any]
PLACES = {"seen": P(), "items": P(None, "model"), "bias": P("model")}


class Batch(NamedTuple):
    """Lists of items; -1 is none."""

    seen: Any  # [N, L]
    bought: Any  # [N, L]


PAD = -1


def history(rng: np.random.Generator, users: int, items: int, length: int = 8) -> Batch:
    """Stands in for your logs: items come in groups, a few are popular, and a user likes one group."""
    groups = max(2, items // 50)
    popularity = 1 / np.arange(1, items + 1)  # Zipf's law
    group = np.arange(items) % groups
    taste = rng.integers(0, groups, users)
    seen, bought = (np.full((users, length), PAD, np.int32) for _ in range(2))
    for user, mine in enumerate(taste):
        members = np.flatnonzero(group == mine)
        weights = popularity[members] / popularity[members].sum()
        drawn = rng.choice(members, size=min(2 * length, len(members)), replace=False, p=weights)
        some = len(drawn) // 2
        seen[user, :some], bought[user, : len(drawn) - some] = drawn[:some], drawn[some:]
    return Batch(seen, bought)


def initial(key: jax.Array, items: int, width: int) -> Params:
    """Both towers, and a bias by which every item is a rare event at first (Lin et al. 2018, section 3.3)."""
    first, second = jax.random.split(key)
    prior = 8 / items
    return {
        "seen": jax.random.normal(first, (items, width)) / width**0.5,
        "items": jax.random.normal(second, (width, items)) / width**0.5,
        "bias": jnp.full((items,), np.log(prior / (1 - prior)), jnp.float32),
    }


def users_of(params: Params, seen: jax.Array) -> jax.Array:
    """The mean embedding of what was seen."""
    there = seen != PAD
    found = jnp.where(there[..., None], params["seen"][jnp.where(there, seen, 0)], 0)
    return jnp.sum(found, 1) / jnp.maximum(jnp.sum(there, 1, keepdims=True, dtype=found.dtype), 1)


def objective(params: Params, batch: Batch) -> jax.Array:
    """The focal loss of all pairs by the number of positives; no array has users by items."""
    return linear_sigmoid_focal_loss(
        users_of(params, batch.seen),
        params["items"],
        batch.bought,
        bias=params["bias"],
        gamma=1.0,
        normalizer=batch.bought != PAD,
    )


@partial(jax.jit, static_argnums=2)
def recall(params: Params, batch: Batch, k: int) -> jax.Array:
    """How many of the bought items are among the k best that were not seen."""
    scores = users_of(params, batch.seen) @ params["items"] + params["bias"]
    rows = jnp.arange(scores.shape[0])[:, None]
    best = jax.lax.top_k(scores.at[rows, batch.seen].set(-jnp.inf), k)[1]
    hits = jnp.any(batch.bought[:, :, None] == best[:, None, :], 2)
    return jnp.sum(hits) / jnp.sum(batch.bought != PAD)


def popular(train: Batch, test: Batch, items: int, k: int) -> float:
    """The same of the items that sold best: what anybody gets without a model."""
    sold = np.bincount(train.bought[train.bought != PAD], minlength=items)
    best = np.argsort(-sold, kind="stable")
    hits = 0
    for seen, bought in zip(test.seen, test.bought, strict=True):
        hits += np.isin(bought, best[~np.isin(best, seen)][:k]).sum()
    return float(hits / (test.bought != PAD).sum())


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m examples.recommender", description=words)
    parser.add_argument("--model", type=int, default=1, help="devices that share the items; default: 1")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=5)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Trains, and prints recall beside that of the best sellers."""
    args, k = parser().parse_args(argv), 20
    mesh = mesh_of(args.model)
    rng, optimizer = np.random.default_rng(0), optax.adam(3e-2)
    train, test = history(rng, args.users, args.items), history(rng, args.batch, args.items)
    step, where = make_step(optimizer, objective), NamedSharding(mesh, P("data"))
    with jax.set_mesh(mesh):
        places = {name: NamedSharding(mesh, spec) for name, spec in PLACES.items()}
        params = jax.jit(initial, static_argnums=(1, 2), out_shardings=places)(
            jax.random.key(0), args.items, args.width
        )
        state = optimizer.init(params)
        print(f"best sellers: {popular(train, test, args.items, k):.3f} of what was bought is among {k}")
        held_out = jax.device_put(test, where)
        for epoch in range(args.epochs):
            order, loss = rng.permutation(args.users), float("nan")
            for start in range(0, args.users - args.batch + 1, args.batch):
                rows = order[start : start + args.batch]
                batch = jax.device_put(Batch(train.seen[rows], train.bought[rows]), where)
                params, state, loss = step(params, state, batch)
            print(f"epoch {epoch + 1}: loss {loss:.3f}, recall {recall(params, held_out, k):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
