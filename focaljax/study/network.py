"""The classifier: a small multilayer perceptron in plain JAX, on standardised numbers and one-hot codes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from focaljax.study.data import Problem
from focaljax.study.folds import Folds

HIDDEN = 64

Params = dict[str, jax.Array]


class Columns(NamedTuple):
    """What the network must know of the columns: static, one for all runs.

    Attributes:
      numbers: n, columns of numbers.
      missing: those of them that get a column more, which says where a cell is missing.
      levels: the number of codes of each column of categories.
    """

    numbers: int
    missing: tuple[int, ...]
    levels: tuple[int, ...]

    @property
    def width(self) -> int:
        """Inputs of the network."""
        return self.numbers + len(self.missing) + sum(self.levels)


def columns(problem: Problem, folds: Folds) -> Columns:
    """Describe the columns of a problem."""
    return Columns(problem.numbers.shape[1], folds.missing, tuple(map(len, problem.levels)))


def inputs(
    about: Columns, numbers: jax.Array, categories: jax.Array, mean: jax.Array, scale: jax.Array
) -> jax.Array:
    """Return [b, width] of b rows: a missing number becomes the mean, which is 0, and a 1 beside it."""
    numbers = (numbers - mean[None, :]) * scale[None, :]
    missing = jnp.isnan(numbers)
    parts = [jnp.where(missing, 0.0, numbers), missing[:, jnp.array(about.missing, int)].astype(jnp.float32)]
    parts += [jax.nn.one_hot(categories[:, j], count) for j, count in enumerate(about.levels)]
    return jnp.concatenate(parts, axis=1)


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


def logits(params: Params, x: jax.Array) -> jax.Array:
    """Return the logits [b, C] of inputs [b, width]."""
    hidden = jax.nn.relu(x @ params["w1"] + params["b1"][None, :])
    return hidden @ params["w2"] + params["b2"][None, :]
