"""The report folder: numbers and pictures, complete or not there at all.

Everything is written into a fresh folder beside the target (or inside it, if it exists) and moved
at the end, so that an error leaves nothing half-written. Overwriting replaces the report's own
files and never deletes another.
"""

import csv
import json
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import focaljax
from focaljax.study import compare, network, tally, train, words
from focaljax.study.compare import Comparison
from focaljax.study.data import rarest
from focaljax.study.errors import StudyError
from focaljax.study.outcome import Outcome, Results


def check_folder(folder: Path, overwrite: bool) -> None:
    """Raise now what would otherwise stop the report after the training."""
    if folder.exists() and not folder.is_dir():
        raise StudyError(f"--out {folder} is a file, not a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise StudyError(
            f"the folder {folder} is not empty; choose another with --out, or replace the report "
            "in it with --overwrite"
        )
    parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise StudyError(f"--out {folder} cannot be made: {parent} is not a writable folder")


def write_folder(folder: Path, overwrite: bool, fill: Callable[[Path], None]) -> None:
    """Let `fill` write the report into a fresh folder, then move it to `folder` in one go."""
    check_folder(folder, overwrite)
    name = f".{folder.absolute().name}-{os.getpid()}.partial"
    partial = (folder if folder.is_dir() else folder.absolute().parent) / name
    try:
        partial.mkdir(parents=True)
        fill(partial)
        if folder.is_dir():
            for file in sorted(partial.iterdir()):
                os.replace(file, folder / file.name)
        else:
            partial.rename(folder)
    except OSError as error:
        raise StudyError(f"the report cannot be written: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def numbers(outcome: Outcome, options: dict[str, Any]) -> dict[str, Any]:
    """Return everything the report says as one JSON object."""
    study, advice = outcome.study, outcome.recommendation
    problem, names = study.problem, [setting.name for setting in study.settings]
    return {
        "data": {
            "description": problem.description,
            "notes": list(problem.notes),
            "rows": problem.rows,
            "numbers": len(problem.number_names),
            "categories": len(problem.category_names),
            "inputs_of_the_network": network.columns(problem, study.folds).width,
            "classes": list(problem.class_names),
            "rows_per_class": outcome.class_counts.tolist(),
            "rare_classes": [problem.class_names[k] for k in rarest(outcome.class_counts)],
        },
        "options": options,
        "training": {
            "network": f"multilayer perceptron, one hidden layer of {network.HIDDEN}",
            "optimizer": f"Adam, cosine schedule from {train.LEARNING_RATE}",
            "batch": study.reader.steps[1],
            "epochs": study.epochs,
            "folds": study.folds.count,
            "seeds": list(study.folds.seeds),
        },
        "settings": [{"name": s.name, **asdict(s)} for s in study.settings],
        "interval": f"{compare.LEVEL:.0%} corrected t over folds and seeds, paired; verdicts after Holm",
        "recommendation": {
            "for": outcome.metric.name,
            "when": outcome.stopped.when,
            "setting": names[advice.index],
            "found": advice.found,
            "headline": words.headline(outcome),
            "reasons": words.reasons(outcome),
            "call": study.settings[advice.index].call(problem.classes),
            "better_than_cross_entropy": [names[i] for i in advice.helpful],
            "not_told_from_the_best": [names[i] for i in advice.alike],
            "gain_of_choosing_on_validation": asdict(advice.chosen),
        },
        "caveats": words.caveats(outcome),
        "results": {
            results.when: {
                "findings": words.findings(results),
                "settings": [_summary(row) for row in results.table],
            }
            for results in outcome.both
        },
        "runs": [run for results in outcome.both for run in _runs(outcome, results)],
        "curves": {
            "what": "plain NLL after each epoch, mean over runs; one list per setting",
            "validation_nll": outcome.nll[:, 0].mean(axis=(1, 2)).T.tolist(),
            "test_nll": outcome.nll[:, 1].mean(axis=(1, 2)).T.tolist(),
        },
        "reliability": {
            results.when: [_diagram(bins) for bins in results.test.bins.sum(axis=(0, 1))]
            for results in outcome.both
        },
        "ece_bins": tally.BINS,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions that these numbers depend on."""
    names = ("jax", "jaxlib", "optax", "numpy", "scikit-learn")
    found = {name: metadata.version(name) for name in names}
    return {"focaljax": focaljax.__version__, "python": platform.python_version(), **found}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write strict JSON: a number that is not finite is an error here, never a NaN in the file."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def write_csv(path: Path, content: dict[str, Any]) -> None:
    """Write one row per run and time, with a column per metric and per class's recall."""
    kinds = {s["name"]: s for s in content["settings"]}
    fields = ["seed", "fold", "when", "epoch", *(metric.field for metric in compare.METRICS)]
    recalls = [f"recall[{name}]" for name in content["data"]["classes"]]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["setting", "gamma", "alpha", *fields, *recalls])
        for run in content["runs"]:
            kind = kinds[run["setting"]]
            start = [kind["name"], kind["gamma"], kind["alpha"]]
            writer.writerow([*start, *(run[field] for field in fields), *run["recall"]])


def _runs(outcome: Outcome, results: Results) -> list[dict[str, Any]]:
    study, stopped = outcome.study, results is outcome.stopped
    return [
        {
            "setting": setting.name,
            "seed": seed,
            "fold": k + 1,
            "when": results.when,
            "epoch": int(outcome.best_epoch[s, k, a]) if stopped else study.epochs,
            **{field: float(values[s, k, a]) for field, values in results.measures.items()},
            "recall": results.recall[s, k, a].tolist(),
        }
        for a, setting in enumerate(study.settings)
        for s, seed in enumerate(study.folds.seeds)
        for k in range(study.folds.count)
    ]


def _summary(row: Sequence[Comparison]) -> dict[str, Any]:
    cells = {
        c.metric.field: {
            "mean": asdict(c.mean),
            "difference_to_cross_entropy": asdict(c.difference),
            "p_after_holm": c.p,
            "verdict": c.verdict,
        }
        for c in row
    }
    return {"setting": row[0].setting.name, **cells}


def _diagram(bins: np.ndarray) -> dict[str, list[float | None]]:
    fields = tally.reliability(bins)._asdict().items()
    return {name: [None if v != v else v for v in values.tolist()] for name, values in fields}
