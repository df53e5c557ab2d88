"""What is compared: each setting is one gamma and one kind of alpha, and nothing else differs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from focaljax.class_weights import inverse_frequency

GAMMAS = (0.5, 1.0, 2.0, 5.0)
ALPHAS = ("none", "balanced")


@dataclass(frozen=True)
class Setting:
    """One loss: `gamma`, and `alpha` "none" (every class weighs 1) or "balanced"."""

    gamma: float
    alpha: str = "none"

    @property
    def name(self) -> str:
        """The words that tables and pictures use."""
        loss = f"focal gamma={self.gamma:g}" if self.gamma else "cross-entropy"
        return loss if self.alpha == "none" else f"{loss}, {self.alpha} alpha"

    def class_weights(self, counts: np.ndarray) -> np.ndarray:
        """Return alpha [C]: ones, or inverse frequency with mean 1 over the training examples."""
        return np.asarray(inverse_frequency(counts)) if self.alpha == "balanced" else np.ones(len(counts))


BASELINE = Setting(0.0)
DEFAULT = (
    BASELINE,
    *(Setting(g) for g in GAMMAS),
    Setting(0.0, "balanced"),
    Setting(2.0, "balanced"),
)


def choose(gammas: Sequence[float] | None, alphas: Sequence[str] | None) -> tuple[Setting, ...]:
    """Return the settings to run, cross-entropy first: it is what the others are compared with.

    Without a choice these are all of `GAMMAS` unweighted, and balanced alpha at gamma 0 and 2. With
    one, every chosen gamma runs with every chosen alpha.
    """
    if gammas is None and alphas is None:
        return DEFAULT
    chosen = product(alphas or ("none",), gammas or (0.0, *GAMMAS))
    return tuple(dict.fromkeys([BASELINE, *(Setting(float(g), a) for a, g in chosen)]))


def highlights(settings: Sequence[Setting]) -> list[int]:
    """Return up to four settings to show where all would crowd: indices, cross-entropy first.

    They are fixed before any result is seen (gamma 0 and the gamma nearest to 2, per alpha), so a
    picture cannot pick its winner.
    """
    shown = [0]
    for alpha in ALPHAS:
        group = [i for i, s in enumerate(settings) if s.alpha == alpha and i != 0]
        shown += [i for i in group if settings[i].gamma == 0.0]
        focal = [i for i in group if settings[i].gamma > 0.0]
        shown += sorted(focal, key=lambda i: abs(settings[i].gamma - 2.0))[:1]
    return shown
