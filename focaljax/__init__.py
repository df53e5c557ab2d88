"""focaljax: the focal cross-entropy family for JAX."""

from focaljax import _interrupt as _interrupt  # first: it also guards the imports that follow
from focaljax import calibration, class_weights, metrics, terms
from focaljax._linear.softmax import LinearAux
from focaljax.crossentropy import (
    binary_focal_crossentropy,
    categorical_focal_crossentropy,
    sparse_categorical_focal_crossentropy,
)
from focaljax.linear import linear_sigmoid_focal_loss, linear_softmax_focal_loss
from focaljax.loss_objects import (
    BinaryFocalCrossentropy,
    CategoricalFocalCrossentropy,
    SparseCategoricalFocalCrossentropy,
)
from focaljax.losses import (
    sigmoid_focal_loss,
    sigmoid_focal_loss_with_integer_labels,
    softmax_focal_loss,
    softmax_focal_loss_with_integer_labels,
)
from focaljax.reductions import reduce_loss

__all__ = [
    "BinaryFocalCrossentropy",
    "CategoricalFocalCrossentropy",
    "LinearAux",
    "SparseCategoricalFocalCrossentropy",
    "binary_focal_crossentropy",
    "calibration",
    "categorical_focal_crossentropy",
    "class_weights",
    "linear_sigmoid_focal_loss",
    "linear_softmax_focal_loss",
    "metrics",
    "reduce_loss",
    "sigmoid_focal_loss",
    "sigmoid_focal_loss_with_integer_labels",
    "softmax_focal_loss",
    "softmax_focal_loss_with_integer_labels",
    "sparse_categorical_focal_crossentropy",
    "terms",
]
__version__ = "0.2.0"
