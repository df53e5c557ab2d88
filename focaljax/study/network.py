"""The model: one small network per run, all of them trained by one compiled program.

Runs differ only in arrays (gamma, alpha, logit shift, key, folds), never in code: gamma = 0 with alpha = 1
*is* cross-entropy. So a run is written once, and `vmap` makes it A settings, K folds and S seeds. It scans
minibatches of its training rows; all settings see the same ones. After every epoch a second program adds up
the NLL of the validation and test rows and keeps the weights of the lowest validation NLL: "stopped early".

The rest of the study knows of a model what `fit` returns: `nll`, and `logits` of any run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from focaljax import reduce_loss, softmax_focal_loss_with_integer_labels
from focaljax.study.data import Problem
from focaljax.study.errors import StudyError
from focaljax.study.folds import Folds, Picks
from focaljax.study.settings import POST_HOC, Setting

HIDDEN = 64
LEARNING_RATE = 5e-3
DESCRIPTION = f"one hidden layer of {HIDDEN}; Adam, cosine schedule from {LEARNING_RATE}"

Params = dict[str, jax.Array]
Progress = Callable[[str, int, int], None]  # what is done, how far, of how much


@dataclass(frozen=True)
class Study:
    """S seeds, K folds, A settings, and for how many epochs they train."""

    problem: Problem
    folds: Folds
    settings: tuple[Setting, ...]
    epochs: int

    @property
    def trained(self) -> tuple[Setting, ...]:
        """The A' settings that need a training of their own, which come first."""
        return tuple(setting for setting in self.settings if setting.alpha != POST_HOC)

    @property
    def shape(self) -> tuple[int, int, int]:
        """S, K and A'."""
        return len(self.folds.seeds), self.folds.count, len(self.trained)

    @property
    def width(self) -> int:
        """How many inputs the network has."""
        levels = sum(1 + len(levels) for levels in self.problem.levels.values())
        return self.problem.numbers.shape[1] + len(self.folds.missing) + levels


class Rows(NamedTuple):
    """Rows of a problem: numbers [b, n], categories [b, k] and labels [b]."""

    numbers: Any
    categories: Any
    labels: Any


class Fold(NamedTuple):
    """What the folds fix in a run, [S, K, n] under vmap: the mean and scale of its training rows."""

    mean: Any
    scale: Any


class Loss(NamedTuple):
    """What a setting fixes in a run, [S, K, A', ...] under vmap: gamma [], alpha [C], logit shift [C]."""

    gamma: Any
    alpha: Any
    shift: Any


class State(NamedTuple):
    """What a run learns, [S, K, A', ...] under vmap; `best` are the weights of the lowest validation NLL."""

    params: Params
    optimizer: optax.OptState
    best: Params
    lowest: jax.Array


def inputs(study: Study, rows: Rows, fold: Fold) -> jax.Array:
    """Return [b, width] of b rows: a missing number becomes the mean, which is 0, and a 1 beside it."""
    numbers = (rows.numbers - fold.mean[None, :]) * fold.scale[None, :]
    missing = jnp.isnan(numbers)
    marks = missing[:, jnp.array(study.folds.missing, int)].astype(jnp.float32)
    levels = enumerate(1 + len(levels) for levels in study.problem.levels.values())
    hot = [jax.nn.one_hot(rows.categories[:, j], count) for j, count in levels]
    return jnp.concatenate([jnp.where(missing, 0.0, numbers), marks, *hot], axis=1)


def initial(key: jax.Array, width: int, classes: int) -> Params:
    """Return weights by He's rule, and biases of 0."""
    first, second = jax.random.split(key)
    normal = jax.nn.initializers.he_normal()
    return {
        "w1": normal(first, (width, HIDDEN), jnp.float32),
        "b1": jnp.zeros(HIDDEN, jnp.float32),
        "w2": normal(second, (HIDDEN, classes), jnp.float32),
        "b2": jnp.zeros(classes, jnp.float32),
    }


def outputs(params: Params, x: jax.Array) -> jax.Array:
    """Return the logits [b, C] of inputs [b, width]."""
    hidden = jax.nn.relu(x @ params["w1"] + params["b1"][None, :])
    return hidden @ params["w2"] + params["b2"][None, :]


class Networks:
    """All runs, trained.

    Attributes:
      nll: [epochs, 2, S, K, A'] of validation and test rows after each epoch.
    """

    def __init__(self, study: Study, state: State, rows: Rows, fold: Fold, nll: np.ndarray) -> None:
        """Make one program for the logits of any run."""
        self.nll, self.state, self._data = nll, state, (rows, fold, study.folds.measuring().rows)

        def of_run(params: Params, rows: Rows, fold: Fold, picks: jax.Array, s: int, k: int, a: int):
            params, fold = jax.tree.map(lambda x: x[s, k, a], params), jax.tree.map(lambda x: x[s, k], fold)

            def step(_: None, batch: jax.Array) -> tuple[None, jax.Array]:
                return None, outputs(params, inputs(study, Rows(*(x[batch] for x in rows)), fold))

            logits = jax.lax.scan(step, None, jnp.concatenate(picks[:, s, k]))[1]
            return logits.reshape(2, -1, logits.shape[-1])

        self._logits = jax.jit(of_run)

    def logits(self, stopped: bool, s: int, k: int, a: int) -> jax.Array:
        """Return the logits [2, rows, C] of a run's `Folds.measuring` rows, stopped early or at the end."""
        return self._logits(self.state.best if stopped else self.state.params, *self._data, s, k, a)


def silent(what: str, done: int, total: int) -> None:
    """Show no progress."""


def fit(study: Study, progress: Progress = silent) -> Networks:
    """Train all runs; tell `progress` after each part of an epoch.

    Raises:
      StudyError: a run has no finite NLL any more.
    """
    progress("compiling one program for all runs", 0, 1)
    problem, folds = study.problem, study.folds
    rows = Rows(*map(jnp.asarray, (problem.numbers, problem.categories, problem.labels)))
    fold, picks = Fold(jnp.asarray(folds.mean), jnp.asarray(folds.scale)), folds.measuring()
    state, loss, part = start(study), losses(study), next(folds.training(0))
    learn = _all_runs(_learner(study), (0, 0, None, None, None), (0, 0, 0, 0, None))
    learn = _compile(learn, state, loss, fold, part, rows)
    measure = _all_runs(_measurer(study), (0, None, None, None), (0, 0, 1, None))
    measure = _compile(measure, state, fold, picks, rows)
    (s, k, a), done, total = study.shape, 0, study.epochs * folds.steps[0]
    what = f"training {s * k * a} runs ({a} settings x {k} folds x {s} seeds)"
    nll = np.empty((study.epochs, *study.shape, 2))
    for epoch in range(study.epochs):
        for part in folds.training(epoch):
            progress(what, done, total)
            state, done = jax.block_until_ready(learn(state, loss, fold, part, rows)), done + 1
        state, nll[epoch] = measure(state, fold, picks, rows)
        check_finite(study, nll[epoch])
    progress(what, done, total)
    return Networks(study, state, rows, fold, np.moveaxis(nll, -1, 1))


def losses(study: Study) -> Loss:
    """Return what the settings that are trained fix in each run."""
    counts, settings = study.folds.class_counts, study.trained
    gamma = np.broadcast_to(np.array([s.gamma for s in settings], np.float32), study.shape)
    alpha = np.stack([s.class_weights(counts) for s in settings], axis=2)
    shift = np.stack([s.logit_shift(counts) for s in settings], axis=2)
    return Loss(*map(jnp.asarray, (gamma, alpha, shift)))


def start(study: Study) -> State:
    """Return all runs before training: one initialisation per seed, shared by its folds and settings."""

    def of_seed(key: jax.Array) -> State:
        params = initial(key, study.width, len(study.problem.class_names))
        return State(params, _optimizer(study).init(params), params, jnp.array(jnp.inf))

    def repeated(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x[:, None, None], (*study.shape, *x.shape[1:]))

    keys = jax.vmap(jax.random.key)(jnp.asarray(study.folds.seeds, jnp.uint32))
    return jax.jit(lambda keys: jax.tree.map(repeated, jax.vmap(of_seed)(keys)))(keys)


def _optimizer(study: Study) -> optax.GradientTransformation:
    parts, steps, _ = study.folds.steps
    return optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, study.epochs * parts * steps))


def _learner(study: Study) -> Callable[..., State]:
    """Return what one run learns from a part of an epoch: state -> state."""
    optimizer = _optimizer(study)

    def run(state: State, loss: Loss, fold: Fold, picks: jax.Array, rows: Rows) -> State:
        def step(state: State, batch: jax.Array) -> tuple[State, None]:
            mine = Rows(*(x[batch] for x in rows))
            x = inputs(study, mine, fold)

            def objective(params: Params) -> jax.Array:
                logits = outputs(params, x) + loss.shift[None, :]
                options = {"gamma": loss.gamma, "alpha": loss.alpha}
                losses = softmax_focal_loss_with_integer_labels(logits, mine.labels, **options)
                return reduce_loss(losses)

            gradient = jax.grad(objective)(state.params)
            with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction: float ** int32
                updates, slots = optimizer.update(gradient, state.optimizer)
            params = cast(Params, optax.apply_updates(state.params, updates))
            return state._replace(params=params, optimizer=slots), None

        return jax.lax.scan(step, state, picks)[0]

    return run


def _measurer(study: Study) -> Callable[..., tuple[State, jax.Array]]:
    """Return what an epoch was worth to one run: its state with the best weights, and NLL [2]."""

    def run(state: State, fold: Fold, picks: Picks, rows: Rows) -> tuple[State, jax.Array]:
        def step(total: jax.Array, batch: Picks) -> tuple[jax.Array, None]:
            mine = Rows(*(x[batch.rows] for x in rows))
            log_p = jax.nn.log_softmax(outputs(state.params, inputs(study, mine, fold)))
            own = jnp.take_along_axis(log_p, mine.labels[:, None], axis=1)[:, 0]
            return total - jnp.sum(own * batch.counts), None

        def mean(role: int) -> jax.Array:
            mine = Picks(*(x[role] for x in picks))
            return jax.lax.scan(step, jnp.zeros(()), mine)[0] / jnp.sum(mine.counts)

        nll = jnp.stack([mean(0), mean(1)])
        better = nll[0] < state.lowest
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.params, state.best)
        return state._replace(best=best, lowest=jnp.where(better, nll[0], state.lowest)), nll

    return run


def _all_runs(run: Callable, settings: tuple, folds_and_seeds: tuple) -> Callable:
    """Return the program of all runs, by which axes of the arguments settings, folds and seeds are."""
    return jax.vmap(jax.vmap(jax.vmap(run, settings), folds_and_seeds), folds_and_seeds)


def _compile(program: Callable, *arguments: Any) -> Callable:
    """Compile ahead of time: a second compilation is impossible. The first argument is given away."""
    return jax.jit(program, donate_argnums=0).lower(*arguments).compile()


def check_finite(study: Study, nll: np.ndarray) -> None:
    """Raise if a run of [S, K, A', 2] has no finite NLL."""
    for s, k, a, _ in np.argwhere(~np.isfinite(nll)):
        where = f"{study.trained[a].name}, seed {study.folds.seeds[s]}, fold {k + 1}"
        raise StudyError(f"training diverged with {where}")
