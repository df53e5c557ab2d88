"""The whole study as one function: data in, outcome out. The command line calls it, and notebooks do."""

import math
import platform
from collections.abc import Iterable, Sequence
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

import focaljax
from focaljax.study import data, measures, network, settings, words
from focaljax.study.errors import StudyError
from focaljax.study.folds import LEAST, choose_count, deal, epochs_for
from focaljax.study.network import Progress, silent
from focaljax.study.outcome import Outcome
from focaljax.study.verdict import CRITERIA

STEPS, SEEDS, MARGIN, ROUNDS = 1000, 3, 0.01, 100
MODELS = ("network", "trees")
STOPPED, END = "stopped early", "at the end of training"


def compare(
    X: Any,
    y: Any,
    *,
    gamma: Iterable[float] | None = None,
    alpha: Iterable[str] | None = None,
    criterion: str = "balanced-accuracy",
    margin: float = MARGIN,
    folds: int | None = None,
    seeds: int = SEEDS,
    seed: int = 0,
    epochs: int | None = None,
    steps: int = STEPS,
    model: str = "network",
    name: str = "the data",
    notes: Sequence[str] = (),
    progress: Progress = silent,
) -> Outcome:
    """Which gamma and which alpha for this data: cross-validate them, and say what is better, if anything is.

    One small network, or one booster of trees, per setting, fold and seed. All networks are trained in one
    compiled program.

    Args:
      X: a DataFrame of numbers, categories, text and dates, or an array ``[N, ...]`` of numbers.
      y: labels of 2 to 1000 classes, ``[N]``, or one-hot ``[N, C]``.
      gamma: focusing parameters, at least 0; None for 0, 0.5, 1, 2 and 5.
      alpha: of "none", "balanced" and "effective"; None for all. Each gamma runs with each alpha.
      criterion: "balanced-accuracy", "auroc", "average-precision", "nll", "calibrated-nll", "ece" or
        "calibrated-ece": what the recommendation goes by.
      margin: the least difference in the criterion that is worth having, at least 0.
      folds: how many, at least 3; None for 5, or fewer if a class has fewer rows.
      seeds: how many times the folds are dealt.
      seed: the first seed; the others follow it.
      epochs: passes over the training rows; None for as many as make about `steps` steps. Of trees the
        number of rounds; None for 100.
      steps: of the optimiser, about; at least 3 epochs. Trees have none.
      model: "network", or "trees": LightGBM with :class:`focaljax.boosting.Objective`.
      name: what the data is called in the report.
      notes: sentences for the report about where it comes from, without a full stop.
      progress: is called with what is done, how far it is, and of how much; a sentence comes with 0 of 0.

    Returns:
      An :class:`focaljax.study.Outcome`: its `frame` and `runs` are DataFrames, its `advice` is what to use,
      and its `save(folder)` writes the report. A notebook shows it as HTML.

    Raises:
      focaljax.study.StudyError: `X`, `y` or an option cannot be used, or training diverged.

    Example:
      >>> import numpy as np
      >>> from focaljax.study import compare
      >>> X, y = np.random.default_rng(0).normal(size=(60, 2)), np.arange(60) % 2
      >>> outcome = compare(X, y, gamma=[0, 2], alpha=["none"], folds=3, seeds=1, epochs=1)
      >>> list(outcome.frame.index)  # balanced classes: their priors move nothing
      ['cross-entropy', 'focal gamma=2']
    """
    if criterion not in CRITERIA:
        raise StudyError(f"expected a criterion out of {', '.join(CRITERIA)}; got {criterion!r}")
    gammas = None if gamma is None else list(gamma)
    alphas = None if alpha is None else list(alpha)
    if gammas is not None and not (gammas and all(0.0 <= g < math.inf for g in gammas)):
        raise StudyError(f"expected finite gammas of at least 0, got {gammas}")
    if alphas is not None and not (alphas and {*alphas} <= {*settings.ALPHAS}):
        raise StudyError(f"expected alphas out of {', '.join(settings.ALPHAS)}; got {alphas}")
    whole = (("folds", folds, LEAST), ("seeds", seeds, 1), ("epochs", epochs, 1), ("seed", seed, 0))
    for option, value, least in (*whole, ("margin", margin, 0.0)):
        if value is not None and not value >= least:
            raise StudyError(f"expected {option} of at least {least}, got {value!r}")
    kind = _model(model)
    problem = data.make(X, y, name, notes)
    count, few = choose_count(problem, folds)
    chosen, same = settings.choose(gammas, alphas, problem.class_counts)
    if len(chosen) == 1:
        raise StudyError("there is nothing to compare: on this data all settings are cross-entropy")
    study = network.Study(
        problem,
        deal(problem, range(seed, seed + seeds), count),
        chosen,
        epochs or (ROUNDS if model == "trees" else epochs_for(len(problem.labels), count, steps)),
    )
    progress(f"{problem.description}.", 0, 0)
    for note in (*problem.notes, *few, *same):
        progress(words.sentence(note), 0, 0)
    runs = kind.fit(study, progress)
    stopped, end = (measures.results(study, runs, *at, progress) for at in ((True, STOPPED), (False, END)))
    return Outcome(
        settings=chosen,
        seeds=study.folds.seeds,
        folds=count,
        class_names=problem.class_names,
        class_counts=problem.class_counts,
        metric=CRITERIA[criterion],
        margin=margin,
        stopped=stopped,
        end=end,
        nll=runs.nll,
        model=model,
        about=_about(study, kind, [*problem.notes, *few, *same]),
    )


def _model(name: str) -> Any:
    """Return the module that trains it, which has `fit` and `DESCRIPTION`."""
    if name not in MODELS:
        raise StudyError(f"expected a model out of {', '.join(MODELS)}; got {name!r}")
    if name == "trees" and find_spec("lightgbm") is None:
        raise StudyError("lightgbm not found; pip install focaljax[boosting]")
    return import_module(f"focaljax.study.{name}")


def _about(study: network.Study, kind: Any, notes: list[str]) -> dict[str, Any]:
    """Return what the report says of the data and the training."""
    problem = study.problem
    names = ("jax", "jaxlib", "optax", "numpy", "scikit-learn")
    versions = {"focaljax": focaljax.__version__, "python": platform.python_version()}
    return {
        "data": {
            "description": problem.description,
            "notes": notes,
            "rows": len(problem.labels),
            "inputs_of_the_network": study.width,
            "classes": list(problem.class_names),
            "rows_per_class": problem.class_counts.tolist(),
        },
        "training": {
            "model": kind.DESCRIPTION,
            "batch": study.folds.steps[2],
            "epochs": study.epochs,
            "folds": study.folds.count,
            "seeds": list(study.folds.seeds),
        },
        "versions": versions | {name: metadata.version(name) for name in names},
    }
