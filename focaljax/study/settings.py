"""What is compared: each setting is one gamma and one scheme of class weights, and nothing else differs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np

from focaljax.class_weights import effective_number, inverse_frequency

GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)
ALPHAS = ("none", "balanced", "effective")
ADJUSTED = "logit adjustment"
POST_HOC = "post-hoc logit adjustment"
ALIKE = 0.05  # class weights that differ by less are one scheme


@dataclass(frozen=True)
class Setting:
    """One loss: `gamma`, and `alpha`, one of `ALPHAS`; or one of the two that move logits instead.

    Both are of Menon et al. 2021: `ADJUSTED` adds the log priors of the classes to the logits in training;
    `POST_HOC` is trained by cross-entropy, and subtracts them afterwards.
    """

    gamma: float
    alpha: str = "none"

    @property
    def name(self) -> str:
        """The words that sentences use."""
        if self.alpha in (ADJUSTED, POST_HOC):
            return self.alpha
        loss = f"focal gamma={self.gamma:g}" if self.gamma else "cross-entropy"
        return loss if self.alpha == "none" else f"{loss} with {self.alpha} alpha"

    @property
    def short(self) -> str:
        """The same where there is little room."""
        name = self.name.replace("focal gamma=", "gamma ").replace("cross-entropy", "CE")
        return name.replace(" with ", ", ").replace(" alpha", "").replace("post-hoc logit", "post-hoc")

    @property
    def plainness(self) -> tuple[float, float]:
        """What sorts settings by how little they change: what comes after the training first."""
        return 0.5 if self.alpha == POST_HOC else (self.gamma > 0) + (self.alpha != "none"), self.gamma

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
        """Return [..., C], what training adds to the logits."""
        return log_priors(counts) * (self.alpha == ADJUSTED)

    def call(self, classes: int, trees: bool = False) -> str:
        """Return the lines of a program that has this loss, of integer labels or as an objective of trees."""
        arguments, after = [f"gamma={self.gamma:g}"], []
        function = "Objective" if trees else "softmax_focal_loss_with_integer_labels"
        imports, lines = [f"from focaljax{'.boosting' if trees else ''} import {function}"], []
        xp, numpy, size = ("np", "numpy", "minlength") if trees else ("jnp", "jax.numpy", "length")
        if self.alpha != "none":
            imports = [f"import {numpy} as {xp}", *imports]
            lines = [f"counts = {xp}.bincount(train_labels, {size}={classes})"]
        prior = f"{xp}.log(counts / counts.sum())"
        if self.alpha == "balanced":
            imports.append("from focaljax.class_weights import inverse_frequency")
            arguments.append("alpha=inverse_frequency(counts)")
        elif self.alpha == "effective":
            imports.append("from focaljax.class_weights import effective_number")
            lines.append("beta = 1 - 1 / counts.mean()")
            arguments.append('alpha=effective_number(counts, beta=beta, normalize="examples")')
        elif self.alpha == ADJUSTED:
            start = f"init_score = np.tile({prior}, (len(train_labels), 1))"
            lines.append(f"{start if trees else f'logits = logits + {prior}'}  # in training only")
        elif self.alpha == POST_HOC:
            after = [f"logits = logits - {prior}  # to predict, after training"]
        given = ", ".join(arguments)
        if trees:
            lines.append(f'objective = {function}("softmax", {given})')
        else:
            lines += [f"losses = {function}(", f"    logits, labels, {given}", ")"]
        lines += after
        return "\n".join([*imports, "", *lines])


BASELINE = Setting(0.0)


def log_priors(counts: np.ndarray) -> np.ndarray:
    """Return [..., C], the logarithms of the shares of the classes."""
    return np.log(counts / counts.sum(axis=-1, keepdims=True)).astype(np.float32)


def beta_of(counts: jax.Array) -> jax.Array:
    """Return the beta that `Setting.class_weights` gives to `effective_number`."""
    return 1 - 1 / jnp.mean(counts)


def choose(
    gammas: Iterable[float] | None, alphas: Iterable[str] | None, counts: np.ndarray
) -> tuple[tuple[Setting, ...], list[str]]:
    """Return the settings to run on classes of so many rows, and notes.

    They are cross-entropy, every gamma with every alpha, and both shifts of logits. What is the same on
    these rows, as all class weights are where classes are balanced, runs once.
    """
    asked = [Setting(float(g), a) for a, g in product(alphas or ALPHAS, gammas or GAMMAS)]
    kept: list[tuple[Setting, np.ndarray]] = []  # each with what it does to the classes
    notes: dict[str, None] = {}
    for setting in dict.fromkeys([BASELINE, *asked, Setting(0.0, ADJUSTED), Setting(0.0, POST_HOC)]):
        moves = setting.alpha in (ADJUSTED, POST_HOC)
        effect = log_priors(counts) if moves else np.log(setting.class_weights(counts))
        effect = effect - effect.mean()
        same = (
            other.alpha
            for other, of_other in kept
            if other.gamma == setting.gamma and np.ptp(effect - of_other) < ALIKE
            if other.alpha == "none" or (setting.alpha in ALPHAS and other.alpha in ALPHAS)
        )
        alike = next(same, None)
        if alike is None:
            kept.append((setting, effect))
        else:
            notes[f"left out, as on these classes it does what {alike} alpha does: {setting.alpha}"] = None
    return tuple(setting for setting, _ in kept), list(notes)


def highlights(settings: Sequence[Setting]) -> list[int]:
    """Return up to four settings to show where all would crowd: indices, cross-entropy first.

    They are fixed before any result is seen (gamma 0 and the gamma nearest to 2, without alpha and with the
    first that there is), so a picture cannot pick its winner.
    """
    focal = min((s.gamma for s in settings if s.gamma > 0.0), key=lambda g: abs(g - 2.0), default=0.0)
    weighted = [s.alpha for s in settings if s.alpha in ALPHAS[1:]][:1]
    wanted = [Setting(gamma, alpha) for alpha in ("none", *weighted) for gamma in (0.0, focal)]
    return list(dict.fromkeys(settings.index(setting) for setting in wanted if setting in settings))


def _of_rows(weights, counts: np.ndarray) -> np.ndarray:
    rows = jax.vmap(weights)(jnp.asarray(counts.reshape(-1, counts.shape[-1])))
    return np.asarray(rows).reshape(counts.shape)
