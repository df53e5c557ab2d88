"""focaljax: the focal cross-entropy family for JAX."""

from focaljax.losses import (
    sigmoid_focal_loss,
    softmax_focal_loss,
    softmax_focal_loss_with_integer_labels,
)

__all__ = [
    "sigmoid_focal_loss",
    "softmax_focal_loss",
    "softmax_focal_loss_with_integer_labels",
]
__version__ = "0.1.0"
