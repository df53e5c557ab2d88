"""All that one study found, in one place: what the terminal, the pictures and the folder tell."""

from collections.abc import Sequence
from dataclasses import dataclass

from focaljax.calibration import Reliability
from focaljax.study.compare import Comparison, compare
from focaljax.study.former import Problem, Splits
from focaljax.study.evaluate import Measures, measure, reliability
from focaljax.study.settings import Setting
from focaljax.study.train import Trained


@dataclass(frozen=True)
class Outcome:
    """A study of A settings on S seeds.

    Attributes:
      problem: the data.
      splits: who trained and who was held out, per seed.
      settings: the A losses, cross-entropy first.
      trained: curves and held-out logits.
      runs: A lists of S measures.
      diagrams: A reliability diagrams, over the held-out rows of all seeds together.
      table: A lists of one comparison per metric.
    """

    problem: Problem
    splits: Splits
    settings: tuple[Setting, ...]
    trained: Trained
    runs: list[list[Measures]]
    diagrams: list[Reliability]
    table: list[list[Comparison]]


def judge(problem: Problem, splits: Splits, settings: Sequence[Setting], trained: Trained) -> Outcome:
    """Measure every run and compare every setting with cross-entropy."""
    labels = problem.labels[splits.test]
    runs = [
        [measure(logits, y, problem.rare) for logits, y in zip(of_setting, labels, strict=True)]
        for of_setting in trained.logits
    ]
    n_classes = len(problem.class_names)
    diagrams = [reliability(z.reshape(-1, n_classes), labels.ravel()) for z in trained.logits]
    table = compare(settings, runs)
    return Outcome(problem, splits, tuple(settings), trained, runs, diagrams, table)
