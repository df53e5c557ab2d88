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

import focaljax
from focaljax.study import compare, evaluate, train, words
from focaljax.study.compare import Comparison
from focaljax.study.errors import StudyError
from focaljax.study.evaluate import Measures
from focaljax.study.outcome import Outcome


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
    problem, seeds = outcome.problem, outcome.splits.seeds.tolist()
    return {
        "data": {
            "description": problem.description,
            "notes": list(problem.notes),
            "classes": list(problem.class_names),
            "rare_classes": [problem.class_names[k] for k in problem.rare],
            "train_rows_per_class": problem.train_counts.tolist(),
            "held_out_rows_per_class": problem.test_counts.tolist(),
            "features": problem.features.shape[1],
        },
        "options": options,
        "training": {
            "network": f"multilayer perceptron, one hidden layer of {train.HIDDEN}",
            "optimizer": f"Adam, cosine schedule from {train.LEARNING_RATE}",
            "batch": min(train.BATCH, int(problem.train_counts.sum())),
            "epochs": outcome.trained.test_nll.shape[2],
        },
        "settings": [{"name": s.name, **asdict(s)} for s in outcome.settings],
        "seeds": seeds,
        "ece_bins": evaluate.BINS,
        "interval": f"{compare.LEVEL:.0%} Student t over seeds; differences are paired by seed",
        "headline": words.headline(outcome),
        "findings": words.findings(outcome),
        "caveats": words.caveats(outcome),
        "summary": [_summary(row) for row in outcome.table],
        "runs": [
            {"setting": setting.name, "seed": seed, **_plain(measures)}
            for setting, of_setting in zip(outcome.settings, outcome.runs, strict=True)
            for seed, measures in zip(seeds, of_setting, strict=True)
        ],
        "curves": {
            "what": "plain cross-entropy after each epoch, mean over seeds; one list per setting",
            "train_nll": outcome.trained.train_nll.mean(axis=1).tolist(),
            "held_out_nll": outcome.trained.test_nll.mean(axis=1).tolist(),
        },
        "reliability": [
            {field: _finite(values.tolist()) for field, values in diagram._asdict().items()}
            for diagram in outcome.diagrams
        ],
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
    """Write one row per run, with a column per metric and per class's recall."""
    kinds = {s["name"]: s for s in content["settings"]}
    metrics = [metric.field for metric in compare.METRICS]
    recalls = [f"recall[{name}]" for name in content["data"]["classes"]]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["setting", "gamma", "alpha", "seed", *metrics, *recalls])
        for run in content["runs"]:
            kind = kinds[run["setting"]]
            start = [kind["name"], kind["gamma"], kind["alpha"], run["seed"]]
            writer.writerow([*start, *(run[field] for field in metrics), *run["recall"]])


def _summary(row: Sequence[Comparison]) -> dict[str, Any]:
    cells = {
        c.metric.field: {
            "mean": asdict(c.mean),
            "difference_to_cross_entropy": asdict(c.difference),
            "verdict": c.verdict,
        }
        for c in row
    }
    return {"setting": row[0].setting.name, **cells}


def _plain(measures: Measures) -> dict[str, Any]:
    return {**asdict(measures), "recall": measures.recall.tolist()}


def _finite(values: list[float]) -> list[float | None]:
    return [None if value != value else value for value in values]
