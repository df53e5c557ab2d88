"""focaljax inside Keras 3 models on the JAX backend: losses and metrics for `compile`, which save and load.

In use::

    from focaljax.keras.losses import CategoricalFocalCrossentropy

Keras is imported when this module is, and not before. A saved model names these classes: it comes back with
them, not with Keras' own of the same names.
"""

import keras

if keras.backend.backend() != "jax":
    raise ImportError(
        "focaljax.keras needs Keras on the JAX backend (KERAS_BACKEND=jax before Keras is imported), "
        f"got {keras.backend.backend()}."
    )

from focaljax.keras import losses, metrics

__all__ = ["losses", "metrics"]
