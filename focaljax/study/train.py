"""All runs at once: one compiled program that trains every setting on every seed for one epoch.

Runs differ only in arrays (gamma, alpha, key, rows), never in code: gamma = 0 with alpha = 1 *is*
cross-entropy. So a run is written once, `vmap` makes it S seeds and then A settings, and the
program is compiled ahead of time: a second compilation is impossible. The state is donated, since
nobody looks at the weights of the epoch before. One call per epoch lets a progress bar move.

The classifier is a small multilayer perceptron in plain JAX, trained by Optax's Adam to the end of
a cosine schedule, without the early stopping or weight decay that would hide what a loss does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from focaljax import softmax_focal_loss_with_integer_labels
from focaljax.study.former import Problem, Splits
from focaljax.study.errors import StudyError
from focaljax.study.settings import Setting

HIDDEN = 64
BATCH = 64
LEARNING_RATE = 5e-3

Params = dict[str, jax.Array]


class Loss(NamedTuple):
    """What one setting fixes: gamma [] and alpha [C] ([A, ...] under vmap)."""

    gamma: jax.Array
    alpha: jax.Array


class Table(NamedTuple):
    """What all runs share: features [N, F] and labels [N]."""

    features: jax.Array
    labels: jax.Array


class Split(NamedTuple):
    """What one seed fixes: its random key, its rows and their statistics ([S, ...] under vmap)."""

    key: jax.Array
    train: jax.Array
    test: jax.Array
    mean: jax.Array
    scale: jax.Array


class State(NamedTuple):
    """What one run learns ([A, S, ...] under vmap)."""

    params: Params
    optimizer: optax.OptState


@dataclass(frozen=True)
class Trained:
    """The outcome of A settings on S seeds over E epochs.

    Attributes:
      train_nll: [A, S, E] mean plain cross-entropy of the training batches, whatever the loss was.
      test_nll: [A, S, E] mean plain cross-entropy of the held-out rows.
      logits: [A, S, n_test, C] of the held-out rows, after the last epoch.
    """

    train_nll: np.ndarray
    test_nll: np.ndarray
    logits: np.ndarray


def epochs_for(problem: Problem, steps: int) -> int:
    """Return how many epochs make about `steps` optimiser steps; at least 3."""
    return max(3, round(steps / _steps_per_epoch(int(problem.train_counts.sum()))))


def train(
    problem: Problem,
    splits: Splits,
    settings: Sequence[Setting],
    epochs: int,
    on_epoch: Callable[[int], None] = lambda epoch: None,
) -> Trained:
    """Train every setting on every seed; call `on_epoch` before the first and after each epoch."""
    steps = _steps_per_epoch(splits.train.shape[1])
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, epochs * steps))
    table = Table(jnp.asarray(problem.features), jnp.asarray(problem.labels))
    split = Split(
        jax.vmap(jax.random.key)(jnp.asarray(splits.seeds, jnp.uint32)),
        *map(jnp.asarray, (splits.train, splits.test, splits.mean, splits.scale)),
    )
    loss = Loss(
        jnp.asarray([s.gamma for s in settings], jnp.float32),
        jnp.asarray([s.class_weights(problem.train_counts) for s in settings], jnp.float32),
    )

    state = _start(optimizer, split.key, len(settings), problem)
    program = _compile(_epoch(optimizer), (state, loss, split, jnp.int32(0), table))
    on_epoch(0)
    curves = []
    for epoch in range(epochs):
        state, nll = program(state, loss, split, jnp.int32(epoch), table)
        curves.append(np.asarray(nll))
        on_epoch(epoch + 1)
    held_out = jax.vmap(jax.vmap(_held_out, in_axes=(0, 0, None)), in_axes=(0, None, None))
    logits = np.asarray(jax.jit(held_out)(state.params, split, table))
    _check_finite(logits, settings, splits)
    train_nll, test_nll = np.moveaxis(np.stack(curves), (0, -1), (-1, 0))
    return Trained(train_nll, test_nll, logits)


def _check_finite(logits: np.ndarray, settings: Sequence[Setting], splits: Splits) -> None:
    for setting, seed in np.argwhere(~np.isfinite(logits).all(axis=(2, 3))):
        name = settings[setting].name
        raise StudyError(f"training diverged with {name}, seed {splits.seeds[seed]}")


def _steps_per_epoch(n_train: int) -> int:
    return max(1, n_train // BATCH)


def _logits(params: Params, x: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(x @ params["w1"] + params["b1"][None, :])
    return hidden @ params["w2"] + params["b2"][None, :]


def _inputs(split: Split, table: Table, rows: jax.Array) -> jax.Array:
    return (table.features[rows] - split.mean[None, :]) * split.scale[None, :]


def _held_out(params: Params, split: Split, table: Table) -> jax.Array:
    return _logits(params, _inputs(split, table, split.test))


def _mean_nll(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return Optax's plain cross-entropy: a common yardstick, whatever loss is trained."""
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels))


def _epoch(optimizer: optax.GradientTransformation) -> Callable[..., tuple[State, jax.Array]]:
    """Return one epoch of one run: state -> state and [2] NLL (training batches, held out)."""

    def run(
        state: State, loss: Loss, split: Split, epoch: jax.Array, table: Table
    ) -> tuple[State, jax.Array]:
        def objective(params: Params, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = _logits(params, x)
            losses = softmax_focal_loss_with_integer_labels(logits, y, **loss._asdict())
            return jnp.mean(losses), _mean_nll(logits, y)

        def step(state: State, rows: jax.Array) -> tuple[State, jax.Array]:
            x, y = _inputs(split, table, rows), table.labels[rows]
            gradient, nll = jax.grad(objective, has_aux=True)(state.params, x, y)
            with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction: float ** int32
                updates, slots = optimizer.update(gradient, state.optimizer)
            params = cast(Params, optax.apply_updates(state.params, updates))
            return State(params, slots), nll

        # Depends on seed and epoch only, so that all settings see the same batches.
        rows = jax.random.permutation(jax.random.fold_in(split.key, epoch), split.train)
        steps = _steps_per_epoch(rows.size)
        batches = rows[: steps * BATCH].reshape(steps, -1)
        state, train_nll = jax.lax.scan(step, state, batches)
        test_nll = _mean_nll(_held_out(state.params, split, table), table.labels[split.test])
        return state, jnp.stack([jnp.mean(train_nll), test_nll])

    return run


def _compile(epoch: Callable, arguments: tuple) -> Callable:
    """Compile one epoch of all runs; `arguments` start with the state, which is donated."""
    seeds = jax.vmap(epoch, in_axes=(0, None, 0, None, None))
    runs = jax.vmap(seeds, in_axes=(0, 0, None, None, None))
    return jax.jit(runs, donate_argnums=0).lower(*arguments).compile()


def _start(
    optimizer: optax.GradientTransformation, keys: jax.Array, settings: int, problem: Problem
) -> State:
    """Return the state [A, S, ...] before training: one initialisation per seed, shared by all."""
    n_features, n_classes = problem.features.shape[1], len(problem.class_names)
    normal = jax.nn.initializers.he_normal()

    def initial(key: jax.Array) -> State:
        first, second = jax.random.split(key)
        params = {
            "w1": normal(first, (n_features, HIDDEN), jnp.float32),
            "b1": jnp.zeros(HIDDEN, jnp.float32),
            "w2": normal(second, (HIDDEN, n_classes), jnp.float32),
            "b2": jnp.zeros(n_classes, jnp.float32),
        }
        return State(params, optimizer.init(params))

    return jax.jit(jax.vmap(lambda _: jax.vmap(initial)(keys)))(jnp.arange(settings))
