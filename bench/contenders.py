"""Who is measured: our losses, the textbook one, and what people use today.

Each is one function ``loss(logits, labels, gamma, axis, alpha=None)`` that returns one loss per row (softmax)
or per entry (sigmoid). A library that is missing is reported with the reason, never left out in silence.
"""

import importlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

import focaljax

T = TypeVar("T")
BASELINE = "Optax cross-entropy"  # what every ratio is a ratio to
IN_PLACE = f"{BASELINE}, axis not moved"
OURS = "focaljax"
DENSE = "focaljax, dense labels"
COPY = "copy of the logits"
LINEAR = f"matmul and {BASELINE}"


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


ENTRIES: dict[str, Any] = {"family": "sigmoid", "indices": False}
SCALARS = "scalar gamma and alpha"


def textbook(logits: jax.Array, labels: jax.Array, gamma: Any, axis: int, alpha: Any = None) -> jax.Array:
    """Focal loss as it is usually written, differentiated by JAX."""
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits, axis), jnp.expand_dims(labels, axis), axis)
    losses = jnp.squeeze(-((1 - jnp.exp(log_p)) ** gamma) * log_p, axis)
    return losses if alpha is None else alpha * losses


def textbook_dense(
    logits: jax.Array, labels: jax.Array, gamma: Any, axis: int, alpha: Any = None
) -> jax.Array:
    """The same of labels per class."""
    log_p = jax.nn.log_softmax(logits, axis)
    losses = -jnp.sum(labels * (1 - jnp.exp(log_p)) ** gamma * log_p, axis)
    return losses if alpha is None else alpha * losses


def ours(loss: Callable, **options: Any) -> Callable:
    """One of our losses, called as all contenders are."""

    def of(z, y, gamma, axis, alpha=None):
        return loss(z, y, gamma=gamma, alpha=alpha, axis=axis, **options)

    return of


INTEGER = focaljax.softmax_focal_loss_with_integer_labels
SMOOTHED = Contender(
    "focaljax, smoothed", ours(INTEGER, label_smoothing=0.1)
)  # only compiled: nobody else has it


def reason(error: Exception) -> str:
    """The first line of an error."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:200]


def _plain(name: str, loss: Callable, **options: Any) -> Contender:
    """A cross-entropy ``loss(logits, labels, axis)``."""

    def of(z, y, gamma, axis, alpha=None):
        return loss(z, y, axis)

    return Contender(name, of, focal=False, note="gamma 0 only", **options)


def spelled(found: Iterable[Contender]) -> list[Contender]:
    """Both spellings of the baseline for a class axis that is not the last: moved there, and as it is."""

    def moved(c: Contender) -> Contender:
        return c._replace(
            loss=lambda z, y, gamma, axis, alpha=None: c.loss(jnp.moveaxis(z, axis, -1), y, gamma, -1)
        )

    pairs = ([moved(c), c._replace(name=IN_PLACE)] if c.name == BASELINE else [c] for c in found)
    return [c for pair in pairs for c in pair]


def gathered(makers: Mapping[str, Callable[[], Iterable[T]]], absent: list[Absent]) -> list[T]:
    """What the libraries have; of those that fail the name and the reason go into `absent`."""
    found: list[T] = []
    for library, make in makers.items():
        try:
            found += make()
        except Exception as error:  # not installed, or not for the others that are
            absent.append(Absent(library, reason(error)))
    return found


def contenders(
    device: str = "cpu", libraries: Sequence[str] = ("optax", "keras", "torch")
) -> tuple[list[Contender], list[Absent]]:
    """All of these libraries that can run on `device` (cpu or gpu), ours first, and those that cannot."""
    absent: list[Absent] = []
    makers = {"optax": _optax, "keras": _keras, "torch": lambda: _torch(device, absent)}

    def sigmoid(z, y, gamma, axis, alpha=None):
        return focaljax.sigmoid_focal_loss(z, y, gamma=gamma, alpha=alpha)

    found = [
        Contender(OURS, ours(INTEGER)),
        Contender(DENSE, ours(focaljax.softmax_focal_loss), indices=False),
        Contender("textbook focal", textbook),
        Contender(OURS, sigmoid, **ENTRIES),
    ]
    return found + gathered({library: makers[library] for library in libraries}, absent), absent


def _optax() -> list[Contender]:
    import optax

    def sigmoid_focal(z, y, gamma, axis, alpha=None):
        return optax.sigmoid_focal_loss(z, y, alpha=alpha, gamma=gamma)

    return [
        _plain(BASELINE, optax.softmax_cross_entropy_with_integer_labels),
        _plain(f"{BASELINE}, dense", optax.softmax_cross_entropy, indices=False),
        _plain(BASELINE, lambda z, y, axis: optax.sigmoid_binary_cross_entropy(z, y), **ENTRIES),
        Contender("Optax focal", sigmoid_focal, **ENTRIES),
    ]


def _keras() -> list[Contender]:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    if (backend := keras.backend.backend()) != "jax":
        raise ImportError(f"Keras runs on {backend} here; set KERAS_BACKEND=jax")

    def categorical(z, y, gamma, axis, alpha=None):
        options = {"gamma": gamma, "alpha": 1.0 if alpha is None else alpha}
        return keras.losses.categorical_focal_crossentropy(y, z, from_logits=True, axis=axis, **options)

    def binary(z, y, gamma, axis, alpha=None):
        """One loss per entry: Keras averages over an axis, here one of size 1."""
        options = {} if alpha is None else {"apply_class_balancing": True, "alpha": alpha}
        y, z = y[..., None], z[..., None]
        return keras.losses.binary_focal_crossentropy(y, z, gamma=gamma, from_logits=True, **options)

    return [
        Contender("Keras focal", categorical, indices=False, note="one-hot labels only"),
        Contender("Keras focal", binary, **ENTRIES),
    ]


def _torch(device: str, absent: list[Absent]) -> list[Contender]:
    torch: Any = importlib.import_module("torch")
    if device == "gpu" and not torch.cuda.is_available():
        raise ImportError("torch has no CUDA device here")
    functional = torch.nn.functional

    def cross_entropy(z, y, axis):
        return functional.cross_entropy(z.movedim(axis, 1), y, reduction="none")

    def binary_cross_entropy(z, y, axis):
        return functional.binary_cross_entropy_with_logits(z, y, reduction="none")

    def focal(z, y, gamma, axis, alpha=None):
        ce = cross_entropy(z, y, axis)
        losses = (1 - torch.exp(-ce)) ** gamma * ce
        return losses if alpha is None else alpha * losses

    found = [
        _plain("torch cross-entropy", cross_entropy),
        Contender("torch focal", focal),
        _plain("torch cross-entropy", binary_cross_entropy, **ENTRIES),
    ]
    makers = {"torchvision": _torchvision, "kornia": _kornia}
    if device == "gpu":
        makers |= {"Liger": _liger, "QuACK": _quack, "FlashAttention": _flash}
    both = []
    for c in (*found, *gathered(makers, absent)):
        both.append(c._replace(framework="torch", compiled=False))
        if not c.cuda:  # those are compiled kernels already
            both.append(c._replace(framework="torch", name=f"{c.name}, compiled"))
    return both


def _torchvision() -> list[Contender]:
    ops: Any = importlib.import_module("torchvision.ops")

    def focal(z, y, gamma, axis, alpha=None):
        return ops.sigmoid_focal_loss(z, y, alpha=-1 if alpha is None else alpha, gamma=gamma)

    return [Contender("torchvision focal", focal, **ENTRIES, note=SCALARS)]


def _kornia() -> list[Contender]:
    losses: Any = importlib.import_module("kornia.losses")

    def focal(z, y, gamma, axis, alpha=None):
        return losses.focal_loss(z.movedim(axis, 1), y, alpha, gamma).sum(1)

    def mean(z, y, gamma, axis, alpha=None):
        return losses.focal_loss(z.movedim(axis, 1), y, alpha, gamma, reduction="sum") / y.numel()

    def binary(z, y, gamma, axis, alpha=None):
        return losses.binary_focal_loss_with_logits(z, y, alpha, gamma)

    entries = Contender("kornia focal", binary, **ENTRIES, note=SCALARS)
    return [Contender("kornia focal", focal, mean=mean, note=SCALARS), entries]


def _fused(losses: Callable) -> Callable:
    """A fused cross-entropy of [N, C] along any axis: its losses, or their mean."""

    def loss(z, y, axis):
        found = losses(z.movedim(axis, -1).reshape(y.numel(), -1), y.reshape(-1))
        return found.reshape(y.shape) if found.ndim else found

    return loss


def _liger() -> list[Contender]:
    functional: Any = importlib.import_module("liger_kernel.transformers.functional")
    losses = _fused(lambda z, y: functional.liger_cross_entropy(z, y, reduction="none"))
    mean = _plain("", _fused(functional.liger_cross_entropy)).loss
    return [_plain("Liger cross-entropy", losses, mean=mean, overwrites=True, cuda=True)]


def _quack() -> list[Contender]:
    loss = importlib.import_module("quack.cross_entropy").cross_entropy
    return [_plain("QuACK cross-entropy", _fused(lambda z, y: loss(z, y, reduction="none")), cuda=True)]


def _flash() -> list[Contender]:
    loss = importlib.import_module("flash_attn.ops.triton.cross_entropy").cross_entropy_loss
    return [_plain("FlashAttention cross-entropy", _fused(lambda z, y: loss(z, y)[0]), cuda=True)]
