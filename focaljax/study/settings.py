"""What is compared: each setting is one gamma and one scheme of class weights, and nothing else differs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np

from focaljax.class_weights import effective_number, inverse_frequency

GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)
ALPHAS = ("none", "balanced", "effective")
ADJUSTED = "logit adjustment"


@dataclass(frozen=True)
class Setting:
    """One loss: `gamma`, and `alpha`, one of `ALPHAS`, or `ADJUSTED`, which moves logits instead."""

    gamma: float
    alpha: str = "none"

    @property
    def name(self) -> str:
        """The words that tables and pictures use."""
        if self.alpha == ADJUSTED:
            return ADJUSTED
        loss = f"focal gamma={self.gamma:g}" if self.gamma else "cross-entropy"
        return loss if self.alpha == "none" else f"{loss} with {self.alpha} alpha"

    @property
    def short(self) -> str:
        """The same where there is little room."""
        if self.alpha == ADJUSTED:
            return ADJUSTED
        loss = f"gamma {self.gamma:g}" if self.gamma else "CE"
        return loss if self.alpha == "none" else f"{loss}, {self.alpha}"

    @property
    def knobs(self) -> int:
        """In how many ways it departs from cross-entropy."""
        return (self.gamma > 0) + (self.alpha != "none")

    def class_weights(self, counts: np.ndarray) -> np.ndarray:
        """Return alpha [..., C] for training counts [..., C]; its mean over the training rows is 1.

        Effective number takes beta = 1 - 1 / (the mean rows per class), since beta says at how many rows a
        class is so well known that more of them add little.
        """
        counts = np.asarray(counts, np.float32)
        if self.alpha == "balanced":
            return _of_rows(inverse_frequency, counts)
        if self.alpha == "effective":
            return _of_rows(lambda n: effective_number(n, beta=beta_of(n), normalize="examples"), counts)
        return np.ones(counts.shape, np.float32)

    def logit_shift(self, counts: np.ndarray) -> np.ndarray:
        """Return [..., C], what training adds to logits: log priors in adjustment (Menon et al. 2021)."""
        if self.alpha != ADJUSTED:
            return np.zeros(counts.shape, np.float32)
        return np.log(counts / counts.sum(axis=-1, keepdims=True)).astype(np.float32)

    def call(self, classes: int) -> str:
        """Return the lines of a program that has this loss, for integer labels."""
        arguments = [f"gamma={self.gamma:g}"]
        if self.alpha == "none":
            lines = ["from focaljax import softmax_focal_loss_with_integer_labels", ""]
        else:
            name = {"balanced": "inverse_frequency", "effective": "effective_number"}.get(self.alpha)
            lines = ["import jax.numpy as jnp", "from focaljax import softmax_focal_loss_with_integer_labels"]
            lines += [f"from focaljax.class_weights import {name}"] if name else []
            lines += ["", f"counts = jnp.bincount(train_labels, length={classes})"]
            if self.alpha == "balanced":
                arguments.append("alpha=inverse_frequency(counts)")
            elif self.alpha == "effective":
                lines.append("beta = 1 - 1 / counts.mean()")
                arguments.append('alpha=effective_number(counts, beta=beta, normalize="examples")')
            else:
                lines.append("logits = logits + jnp.log(counts / counts.sum())  # in training only")
        call = "softmax_focal_loss_with_integer_labels"
        return "\n".join([*lines, f"losses = {call}(", f"    logits, labels, {', '.join(arguments)}", ")"])


BASELINE = Setting(0.0)


def beta_of(counts: jax.Array) -> jax.Array:
    """Return the beta that `Setting.class_weights` gives to `effective_number`."""
    return 1 - 1 / jnp.mean(counts)


def choose(gammas: Sequence[float] | None, alphas: Sequence[str] | None) -> tuple[Setting, ...]:
    """Return the settings to run: cross-entropy, every gamma with every alpha, and logit adjustment."""
    chosen = [Setting(float(g), a) for a, g in product(alphas or ALPHAS, gammas or GAMMAS)]
    return tuple(dict.fromkeys([BASELINE, *chosen, Setting(0.0, ADJUSTED)]))


def highlights(settings: Sequence[Setting]) -> list[int]:
    """Return up to four settings to show where all would crowd: indices, cross-entropy first.

    They are fixed before any result is seen (per alpha gamma 0 and the gamma nearest to 2, first without
    alpha, then with the first that there is), so a picture cannot pick its winner.
    """
    shown = [0]
    weighted = [s.alpha for s in settings if s.alpha not in ("none", ADJUSTED)]
    for alpha in dict.fromkeys(["none", *weighted[:1]]):
        group = [i for i, s in enumerate(settings) if s.alpha == alpha and i != 0]
        shown += [i for i in group if settings[i].gamma == 0.0]
        focal = [i for i in group if settings[i].gamma > 0.0]
        shown += sorted(focal, key=lambda i: abs(settings[i].gamma - 2.0))[:1]
    return shown


def _of_rows(weights, counts: np.ndarray) -> np.ndarray:
    rows = jax.vmap(weights)(jnp.asarray(counts.reshape(-1, counts.shape[-1])))
    return np.asarray(rows).reshape(counts.shape)
