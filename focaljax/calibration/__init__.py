"""Probabilities that mean what they say: the posteriors behind a focal loss, and how far off any are.

A model that minimises focal loss does not output the posteriors of the classes, even where it is perfect. Its
output determines them all the same, in closed form (:func:`log_posterior`). What training left wrong is
measured by :class:`ExpectedCalibrationError` and :class:`ClasswiseCalibrationError`, streams like those of
:mod:`focaljax.metrics`, and mended by one temperature (:func:`fit_temperature`).
"""

from focaljax.calibration._errors import (
    CalibrationState,
    ClasswiseCalibrationError,
    ExpectedCalibrationError,
    Reliability,
)
from focaljax.calibration._posterior import log_posterior
from focaljax.calibration._temperature import fit_temperature

__all__ = [
    "CalibrationState",
    "ClasswiseCalibrationError",
    "ExpectedCalibrationError",
    "Reliability",
    "fit_temperature",
    "log_posterior",
]
