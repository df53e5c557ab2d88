"""What is measured: logits and labels as training meets them, the same in every run.

Logits are standard normal. In a softmax the label's log-odds are raised to 2 on average with a spread of 3:
most examples are easy, some are wrong. Detection starts from RetinaNet's prior of 0.01.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SEED = 0
Shape = tuple[int, ...]
Generator = np.random.Generator


class Data(NamedTuple):
    """One batch; `features` and `kernel` make logits of this shape, for the training step."""

    logits: NDArray[np.float32]
    labels: NDArray  # int32 class indices, or float32 of the shape of the logits
    features: NDArray[np.float32]
    kernel: NDArray[np.float32]


class Case(NamedTuple):
    """A named shape of logits with a class axis."""

    name: str
    words: str
    shape: Shape
    labels: Callable[[Generator, Shape, int], NDArray[np.int32]]
    axis: int = -1
    family: str = "softmax"  # or sigmoid
    width: int = 128  # of the features in front of the head
    larger: int = 1  # times as many examples on a GPU, where these take too little time to measure
    scale: float = 1.0  # of the logits

    @property
    def rows(self) -> Shape:
        """The shape of the losses of a softmax."""
        return self._with()

    def _with(self, *sizes: int) -> Shape:
        """The shape with these sizes in place of the classes."""
        axis = self.axis % len(self.shape)
        return (*self.shape[:axis], *sizes, *self.shape[axis + 1 :])

    @property
    def head(self) -> str:
        """The einsum of features and kernel."""
        return "nf,fc->nc" if len(self.shape) == 2 else "nfhw,fc->nchw"

    def on(self, device: str) -> "Case":
        """The case in the size that `device` is measured at."""
        factor = self.larger if device == "gpu" else 1
        return self._replace(shape=(factor * self.shape[0], *self.shape[1:]))

    def small(self) -> "Case":
        """The same in tiny, to try the bench itself."""
        return self._replace(shape=tuple(map(min, self.shape, (8, 16, 16, 16))), width=4)

    def data(self) -> Data:
        """The batch."""
        rng, classes = np.random.default_rng([SEED, *self.shape]), self.shape[self.axis]
        logits = rng.standard_normal(self.shape, np.float32)
        if self.family == "sigmoid":
            labels = _positives(rng, self.shape)
            logits += np.where(labels > 0, 1, -math.log(99)).astype(np.float32)
        else:
            labels = self.labels(rng, self.rows, classes)
            index = np.expand_dims(labels, self.axis)
            log_odds = 2 + 3 * rng.standard_normal(index.shape, np.float32)
            rest = math.log(classes - 1) + 0.5  # of the log-sum-exp of so many normal logits
            np.put_along_axis(logits, index, rest + log_odds, self.axis)
        features = rng.standard_normal(self._with(self.width), np.float32)
        kernel = rng.standard_normal((self.width, classes), np.float32) / math.sqrt(self.width)
        logits *= np.float32(self.scale)
        return Data(logits, labels, features, kernel.astype(np.float32))


def even(rng: Generator, rows: Shape, classes: int) -> NDArray[np.int32]:
    """Every class as often."""
    return rng.integers(classes, size=rows, dtype=np.int32)


def _words(rng: Generator, rows: Shape, classes: int) -> NDArray[np.int32]:
    """Zipf's law: the k-th most frequent word has a share proportional to 1 / k."""
    share = 1 / np.arange(1, classes + 1)
    return rng.choice(classes, rows, p=share / share.sum()).astype(np.int32)


def regions(rng: Generator, rows: Shape, classes: int) -> NDArray[np.int32]:
    """Images of blocks of 16 x 16 pixels, the classes from road to bicycle ever rarer."""
    share = 0.75 ** np.arange(classes)
    *images, height, width = rows if len(rows) > 1 else (1, 1, *rows)
    coarse = (*images, math.ceil(height / 16), math.ceil(width / 16))
    blocks = rng.choice(classes, coarse, p=share / share.sum()).astype(np.int32)
    pixels = blocks.repeat(16, -2).repeat(16, -1)[..., :height, :width]
    return np.ascontiguousarray(pixels).reshape(rows)


def _positives(rng: Generator, shape: Shape) -> NDArray[np.float32]:
    """One anchor in a thousand has an object, of one class."""
    labels = np.zeros(shape, np.float32)
    positive = rng.permutation(shape[0])[: max(1, shape[0] // 1000)]
    labels[positive, rng.integers(shape[1], size=len(positive))] = 1
    return labels


CASES = [
    Case("imagenet", "ImageNet head", (1024, 1000), even, larger=64),
    Case("imagenet-16k", "ImageNet head, large batch", (16384, 1000), even, larger=8),
    Case("unscaled", "ImageNet head, logits in the hundreds", (1024, 1000), even, larger=64, scale=60),
    Case("unscaled-16k", "the same, large batch", (16384, 1000), even, larger=8, scale=60),
    Case("pixels", "19 classes, class axis last", (65536, 19), regions, width=64, larger=64),
    Case("cityscapes", "NCHW, 19 classes", (2, 19, 512, 1024), regions, axis=1, width=64, larger=8),
    Case("crops", "NCHW, 19 classes", (8, 19, 256, 512), regions, axis=1, width=64, larger=8),
    Case("3-classes", "NCHW, 3 classes", (4, 3, 512, 512), regions, axis=1, width=64, larger=8),
    Case("64-classes", "NCHW, 64 classes", (2, 64, 256, 256), regions, axis=1, width=64, larger=8),
    Case("vocab-32k", "32k tokens", (2048, 32768), _words, larger=4),
    Case("vocab-128k", "128k tokens", (512, 131072), _words, larger=4),
    Case("detection", "RetinaNet's anchors, 80 classes", (100_000, 80), even, family="sigmoid", larger=16),
]
NAMES = [case.name for case in CASES]


def named(names: list[str] | None) -> list[Case]:
    """The cases of these names, all of them without."""
    return [case for case in CASES if not names or case.name in names]
