"""All runs at once: one compiled program trains every setting on every fold of every seed.

Runs differ only in arrays (gamma, alpha, logit shift, key, folds), never in code: gamma = 0 with
alpha = 1 *is* cross-entropy. So a run is written once, and `vmap` makes it A settings, K folds and S
seeds. It takes one block of rows and scans the minibatches of a run's training rows in it: all settings
see the same ones. A second program adds up what validation and test rows of a block are worth. Both are
compiled ahead of time.

The classifier is trained by Optax's Adam on a cosine schedule. After every epoch all runs are measured;
what a run is worth "stopped early" are the figures of its epoch of lowest validation NLL.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from focaljax import reduce_loss, softmax_focal_loss_with_integer_labels
from focaljax.study import network, tally
from focaljax.study.blocks import MOST_ROWS, Block, Picks, Reader
from focaljax.study.data import Problem
from focaljax.study.errors import DivergedError
from focaljax.study.folds import Folds
from focaljax.study.network import Params
from focaljax.study.settings import Setting
from focaljax.study.tally import Tally

LEARNING_RATE = 5e-3


class Loss(NamedTuple):
    """What a setting fixes in a run, [S, K, A, ...] under vmap: gamma [], alpha [C], logit shift [C]."""

    gamma: jax.Array
    alpha: jax.Array
    shift: jax.Array


class Fold(NamedTuple):
    """What the folds fix in a run, [S, K, n] under vmap: the mean and scale of its training rows."""

    mean: jax.Array
    scale: jax.Array


class State(NamedTuple):
    """What a run learns, [S, K, A, ...] under vmap."""

    params: Params
    optimizer: optax.OptState


class Progress(NamedTuple):
    """How far the runs have come: a pytree of all that is needed to go on.

    Attributes:
      state: weights and optimiser of all runs.
      epoch, block: what comes next.
      nll: [epochs, 2, S, K, A] after each epoch, of validation and test rows; NaN where none has been.
      last, best: sums [2, S, K, A, ...] over the same rows, after the last epoch, and after the epoch of
        lowest validation NLL so far.
    """

    state: State
    epoch: int
    block: int
    nll: np.ndarray
    last: Tally
    best: Tally


@dataclass(frozen=True)
class Study:
    """S seeds, K folds, A settings, and for how many epochs they train."""

    problem: Problem
    folds: Folds
    settings: tuple[Setting, ...]
    epochs: int
    block_rows: int = MOST_ROWS

    @property
    def reader(self) -> Reader:
        """What makes blocks of the rows."""
        return Reader(self.problem, self.folds, self.block_rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """S, K and A."""
        return len(self.folds.seeds), self.folds.count, len(self.settings)


def start(study: Study) -> Progress:
    """Return all runs before training: one initialisation per seed, shared by its folds and settings."""
    seeds, folds, settings = study.shape
    width, classes = network.columns(study.problem, study.folds).width, study.problem.classes

    def initial(key: jax.Array) -> State:
        params = network.initial(key, width, classes)
        return State(params, _optimizer(study).init(params))

    def repeated(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x[:, None, None], (seeds, folds, settings, *x.shape[1:]))

    keys = jax.vmap(jax.random.key)(jnp.asarray(study.folds.seeds, jnp.uint32))
    state = jax.jit(lambda keys: jax.tree.map(repeated, jax.vmap(initial)(keys)))(keys)
    nothing = jax.tree.map(lambda x: np.zeros((2, *study.shape, *x.shape)), tally.empty(classes))
    return Progress(state, 0, 0, np.full((study.epochs, 2, *study.shape), np.nan), nothing, nothing)


def train(
    study: Study, progress: Progress | None = None, on_block: Callable[[Progress], None] = lambda _: None
) -> Progress:
    """Train all runs, from the start or from where `progress` is; call `on_block` first and after each block.

    Raises:
      DivergedError: A run has no finite NLL any more.
    """
    progress = progress or start(study)
    if progress.epoch == study.epochs:  # only the report was missing
        on_block(progress)
        return progress
    reader, loss, fold = study.reader, _loss(study), _fold(study)
    learn = jax.vmap(_train_run(study), (0, 0, None, None, None))
    for _ in ("folds", "seeds"):
        learn = jax.vmap(learn, (0, 0, 0, 0, None))
    block, picks = next(reader.training(0))
    learn = _compile(learn, progress.state, loss, fold, picks, block, donate=True)
    measure = jax.vmap(_measure_run(study), (0, None, None, None))
    for _ in ("folds", "seeds"):
        measure = jax.vmap(measure, (0, 0, 0, None))
    block, picks = next(reader.measuring())
    measure = _compile(jax.vmap(measure, (None, None, 0, None)), progress.state.params, fold, picks, block)
    on_block(progress)
    for epoch in range(progress.epoch, study.epochs):
        for block, picks in reader.training(epoch, progress.block):
            jax.block_until_ready(progress.state)  # so that only one block waits in memory
            state = learn(progress.state, loss, fold, picks, block)
            progress = progress._replace(state=state, block=progress.block + 1)
            if progress.block < reader.count:
                on_block(progress)
        progress = _measured(study, progress, measure, fold)
        on_block(progress)
    return progress


def _measured(study: Study, progress: Progress, measure: Callable, fold: Fold) -> Progress:
    """Return the progress after an epoch: all runs measured on their validation and test rows."""
    last = None
    for block, picks in study.reader.measuring():
        last = tally.add(last, measure(progress.state.params, fold, picks, block))
    assert last is not None
    nll, earlier = progress.nll.copy(), progress.nll[: progress.epoch, 0]
    nll[progress.epoch] = tally.mean_nll(last)
    _check_finite(study, nll[progress.epoch])
    better = nll[progress.epoch, 0] < np.min(earlier, axis=0, initial=np.inf)

    def choose(new: np.ndarray, old: np.ndarray) -> np.ndarray:
        return np.where(better.reshape((1, *better.shape, *(1,) * (new.ndim - 4))), new, old)

    return Progress(
        progress.state, progress.epoch + 1, 0, nll, last, jax.tree.map(choose, last, progress.best)
    )


def _check_finite(study: Study, nll: np.ndarray) -> None:
    for _, s, k, a in np.argwhere(~np.isfinite(nll)):
        where = f"{study.settings[a].name}, seed {study.folds.seeds[s]}, fold {k + 1}"
        raise DivergedError(f"training diverged with {where}")


def _optimizer(study: Study) -> optax.GradientTransformation:
    steps = study.epochs * study.reader.count * study.reader.steps[0]
    return optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))


def _fold(study: Study) -> Fold:
    return Fold(jnp.asarray(study.folds.mean), jnp.asarray(study.folds.scale))


def _loss(study: Study) -> Loss:
    gamma = np.broadcast_to(np.array([s.gamma for s in study.settings], np.float32), study.shape)
    counts = study.folds.train_counts
    alpha = np.stack([s.class_weights(counts) for s in study.settings], axis=2)
    shift = np.stack([s.logit_shift(counts) for s in study.settings], axis=2)
    return Loss(*map(jnp.asarray, (gamma, alpha, shift)))


def _train_run(study: Study) -> Callable[..., State]:
    """Return what one run learns from one block: state -> state."""
    about, optimizer = network.columns(study.problem, study.folds), _optimizer(study)

    def run(state: State, loss: Loss, fold: Fold, picks: Picks, block: Block) -> State:
        def step(state: State, batch: Picks) -> tuple[State, None]:
            rows = Block(*(x[batch.rows] for x in block))
            x = network.inputs(about, rows.numbers, rows.categories, fold.mean, fold.scale)

            def objective(params: Params) -> jax.Array:
                losses = softmax_focal_loss_with_integer_labels(
                    network.logits(params, x) + loss.shift[None, :],
                    rows.labels,
                    gamma=loss.gamma,
                    alpha=loss.alpha,
                )
                return reduce_loss(losses, batch.counts, "mean_with_sample_weight")

            gradient = jax.grad(objective)(state.params)
            with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction: float ** int32
                updates, slots = optimizer.update(gradient, state.optimizer)
            return State(cast(Params, optax.apply_updates(state.params, updates)), slots), None

        return jax.lax.scan(step, state, picks)[0]

    return run


def _measure_run(study: Study) -> Callable[..., Tally]:
    """Return what rows of a block are worth in one run."""
    about = network.columns(study.problem, study.folds)

    def run(params: Params, fold: Fold, picks: Picks, block: Block) -> Tally:
        def step(total: Tally, batch: Picks) -> tuple[Tally, None]:
            rows = Block(*(x[batch.rows] for x in block))
            x = network.inputs(about, rows.numbers, rows.categories, fold.mean, fold.scale)
            seen = tally.of_rows(network.logits(params, x), rows.labels, batch.counts)
            return jax.tree.map(jnp.add, total, seen), None

        return jax.lax.scan(step, tally.empty(study.problem.classes), picks)[0]

    return run


def _compile(program: Callable, *arguments: Any, donate: bool = False) -> Callable:
    """Compile ahead of time: a second compilation is impossible. `donate` gives the first argument away."""
    return jax.jit(program, donate_argnums=(0,) if donate else ()).lower(*arguments).compile()
