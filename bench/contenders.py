"""Who is measured: our losses, the textbook one, and what people use today.

Each contender is one function ``loss(logits, labels, gamma, axis, alpha=None)`` that returns one loss per row
(softmax) or per entry (sigmoid), of JAX arrays or of PyTorch tensors. A library that is missing is reported
with the reason, never left out in silence.
"""

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import focaljax

BASELINE = "Optax cross-entropy"  # what every ratio is a ratio to
OURS = "focaljax"
DENSE = "focaljax, dense labels"


class Contender(NamedTuple):
    """A loss as the bench calls it."""

    name: str
    loss: Callable[..., Any]
    family: str = "softmax"  # or sigmoid
    indices: bool = True  # labels are class indices, not one per class
    focal: bool = True  # else it is a cross-entropy: gamma and alpha are ignored
    framework: str = "jax"  # or torch
    compiled: bool = True  # else eager
    mean: Callable[..., Any] | None = None  # the library's own mean, where that is its faster way
    overwrites: bool = False  # the logits, with their gradient
    cuda: bool = False  # runs on CUDA only
    note: str = ""  # what it cannot do, for the tables


class Absent(NamedTuple):
    """A contender that cannot run here, and why."""

    name: str
    reason: str


def textbook(logits: jax.Array, labels: jax.Array, gamma: Any, axis: int, alpha: Any = None) -> jax.Array:
    """Focal loss as it is usually written, differentiated by JAX."""
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits, axis), jnp.expand_dims(labels, axis), axis)
    losses = jnp.squeeze(-((1 - jnp.exp(log_p)) ** gamma) * log_p, axis)
    return losses if alpha is None else alpha * losses


def integer(z: Any, y: Any, gamma: Any, axis: int, alpha: Any = None) -> jax.Array:
    """Ours, from class indices."""
    return focaljax.softmax_focal_loss_with_integer_labels(z, y, gamma=gamma, alpha=alpha, axis=axis)


def smoothed(z: Any, y: Any, gamma: Any, axis: int, alpha: Any = None) -> jax.Array:
    """Ours, from class indices with label smoothing: nobody else has that, so it is in `compiled` only."""
    return focaljax.softmax_focal_loss_with_integer_labels(
        z, y, gamma=gamma, alpha=alpha, axis=axis, label_smoothing=0.1
    )


def dense(z: Any, y: Any, gamma: Any, axis: int, alpha: Any = None) -> jax.Array:
    """Ours, from one label per class."""
    return focaljax.softmax_focal_loss(z, y, gamma=gamma, alpha=alpha, axis=axis)


def sigmoid(z: Any, y: Any, gamma: Any, axis: int, alpha: Any = None) -> jax.Array:
    """Ours, of independent labels."""
    del axis
    return focaljax.sigmoid_focal_loss(z, y, gamma=gamma, alpha=alpha)


def contenders(
    device: str = "cpu", libraries: Sequence[str] = ("optax", "keras", "torch")
) -> tuple[list[Contender], list[Absent]]:
    """All of these libraries that can run on `device` (cpu or gpu), ours first, and those that cannot."""
    found = [
        Contender(OURS, integer),
        Contender(DENSE, dense, indices=False),
        Contender("textbook focal", textbook),
        Contender(OURS, sigmoid, family="sigmoid", indices=False),
    ]
    absent: list[Absent] = []
    made = {"optax": _optax, "keras": _keras, "torch": _torch}
    for library in libraries:
        try:
            found += made[library](device, absent)
        except Exception as error:  # not installed, or not for the others that are
            absent.append(Absent(library, f"{type(error).__name__}: {error}"))
    return found, absent


def _optax(device: str, absent: list[Absent]) -> list[Contender]:
    import optax

    def cross_entropy(z, y, gamma, axis, alpha=None):
        return optax.softmax_cross_entropy_with_integer_labels(z, y, axis)

    def dense_cross_entropy(z, y, gamma, axis, alpha=None):
        return optax.softmax_cross_entropy(z, y, axis)

    def binary_cross_entropy(z, y, gamma, axis, alpha=None):
        return optax.sigmoid_binary_cross_entropy(z, y)

    def sigmoid_focal(z, y, gamma, axis, alpha=None):
        return optax.sigmoid_focal_loss(z, y, alpha=alpha, gamma=gamma)

    plain = {"focal": False, "note": "gamma 0 only"}
    return [
        Contender(BASELINE, cross_entropy, **plain),
        Contender(f"{BASELINE}, dense", dense_cross_entropy, indices=False, **plain),
        Contender(BASELINE, binary_cross_entropy, family="sigmoid", indices=False, **plain),
        Contender("Optax focal", sigmoid_focal, family="sigmoid", indices=False),
    ]


def _keras(device: str, absent: list[Absent]) -> list[Contender]:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    if (backend := keras.backend.backend()) != "jax":
        raise ImportError(f"Keras runs on {backend} here; set KERAS_BACKEND=jax")

    def categorical(z, y, gamma, axis, alpha=None):
        alpha = 1.0 if alpha is None else alpha
        return keras.losses.categorical_focal_crossentropy(
            y, z, alpha=alpha, gamma=gamma, from_logits=True, axis=axis
        )

    def binary(z, y, gamma, axis, alpha=None):
        """One loss per entry: Keras averages over an axis, here one of size 1."""
        return keras.losses.binary_focal_crossentropy(
            y[..., None],
            z[..., None],
            apply_class_balancing=alpha is not None,
            alpha=0.25 if alpha is None else alpha,  # without balancing it is ignored
            gamma=gamma,
            from_logits=True,
        )

    return [
        Contender("Keras focal", categorical, indices=False, note="one-hot labels only"),
        Contender("Keras focal", binary, family="sigmoid", indices=False),
    ]


def _torch(device: str, absent: list[Absent]) -> list[Contender]:
    torch: Any = importlib.import_module("torch")
    if device == "gpu" and not torch.cuda.is_available():
        raise ImportError("torch has no CUDA device here")
    functional = torch.nn.functional
    found: list[Contender] = []

    def cross_entropy(z, y, gamma, axis, alpha=None):
        return functional.cross_entropy(z.movedim(axis, 1), y, reduction="none")

    def focal(z, y, gamma, axis, alpha=None):
        ce = functional.cross_entropy(z.movedim(axis, 1), y, reduction="none")
        losses = (1 - torch.exp(-ce)) ** gamma * ce
        return losses if alpha is None else alpha * losses

    def binary_cross_entropy(z, y, gamma, axis, alpha=None):
        return functional.binary_cross_entropy_with_logits(z, y, reduction="none")

    def add(contender: Contender) -> None:
        found.append(contender._replace(framework="torch", compiled=False))
        if not contender.cuda:  # those are compiled kernels already
            found.append(contender._replace(framework="torch", name=f"{contender.name}, compiled"))

    plain = {"focal": False, "note": "gamma 0 only"}
    add(Contender("torch cross-entropy", cross_entropy, **plain))
    add(Contender("torch focal", focal))
    add(Contender("torch cross-entropy", binary_cross_entropy, family="sigmoid", indices=False, **plain))
    libraries = [("torchvision", _torchvision), ("kornia", _kornia)]
    if device == "gpu":
        libraries += [("Liger", _liger), ("QuACK", _quack), ("FlashAttention", _flash)]
    for library, make in libraries:
        try:
            for contender in make():
                add(contender)
        except Exception as error:  # not installed, or not for the others that are
            absent.append(Absent(library, f"{type(error).__name__}: {error}"))
    return found


def _torchvision() -> list[Contender]:
    ops: Any = importlib.import_module("torchvision.ops")

    def focal(z, y, gamma, axis, alpha=None):
        return ops.sigmoid_focal_loss(z, y, alpha=-1 if alpha is None else alpha, gamma=gamma)

    note = "scalar gamma and alpha"
    return [Contender("torchvision focal", focal, family="sigmoid", indices=False, note=note)]


def _kornia() -> list[Contender]:
    losses: Any = importlib.import_module("kornia.losses")

    def focal(z, y, gamma, axis, alpha=None):
        return losses.focal_loss(z.movedim(axis, 1), y, alpha, gamma).sum(1)

    def mean(z, y, gamma, axis, alpha=None):
        return losses.focal_loss(z.movedim(axis, 1), y, alpha, gamma, reduction="sum") / y.numel()

    def binary(z, y, gamma, axis, alpha=None):
        return losses.binary_focal_loss_with_logits(z, y, alpha, gamma)

    note = "scalar gamma and alpha"
    return [
        Contender("kornia focal", focal, mean=mean, note=note),
        Contender("kornia focal", binary, family="sigmoid", indices=False, note=note),
    ]


def _fused(name: str, losses: Callable, **options: Any) -> Contender:
    """A fused cross-entropy of rows: the class axis must be the last."""

    def loss(z, y, gamma, axis, alpha=None):
        classes = z.movedim(axis, -1)
        return losses(classes.reshape(-1, classes.shape[-1]), y.reshape(-1)).reshape(y.shape)

    return Contender(name, loss, focal=False, cuda=True, note="gamma 0 only", **options)


def _liger() -> list[Contender]:
    functional: Any = importlib.import_module("liger_kernel.transformers.functional")
    losses = functional.liger_cross_entropy
    mean = lambda z, y, gamma, axis, alpha=None: losses(  # noqa: E731
        z.movedim(axis, -1).reshape(y.numel(), -1), y.reshape(-1)
    )
    return [
        _fused("Liger cross-entropy", lambda z, y: losses(z, y, reduction="none"), mean=mean, overwrites=True)
    ]


def _quack() -> list[Contender]:
    quack: Any = importlib.import_module("quack.cross_entropy")
    return [_fused("QuACK cross-entropy", lambda z, y: quack.cross_entropy(z, y, reduction="none"))]


def _flash() -> list[Contender]:
    flash: Any = importlib.import_module("flash_attn.ops.triton.cross_entropy")
    return [_fused("FlashAttention cross-entropy", lambda z, y: flash.cross_entropy_loss(z, y)[0])]
