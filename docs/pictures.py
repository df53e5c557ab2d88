"""Draws the pictures of the documentation again: `python docs/pictures.py`, or with names of how-to pages."""

import os
import re
import sys
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

from focaljax import sigmoid_focal_loss

DOCS = Path(__file__).parent


def loss() -> None:
    """The loss of an example against the probability of its class, for several gammas."""
    p = jnp.linspace(0.001, 0.999, 500)
    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    for gamma in (0.0, 0.5, 1.0, 2.0, 5.0):
        values = sigmoid_focal_loss(jax.scipy.special.logit(p), jnp.ones_like(p), gamma=gamma)
        axes.plot(p, values, label="0 (cross-entropy)" if gamma == 0 else f"{gamma:g}")
    axes.set(xlabel="probability p of the true class", ylabel="loss (nats)", xlim=(0, 1), ylim=(0, 5))
    axes.legend(title="gamma")
    figure.savefig(DOCS / "loss.png", dpi=100)


if __name__ == "__main__":
    loss()
    os.chdir(DOCS / "howto")
    for page in sorted(Path().glob("*.md")):
        if len(sys.argv) == 1 or page.stem in sys.argv[1:]:
            for code in re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S):
                exec(compile(code, page.name, "exec"), {"__name__": "__main__"})
