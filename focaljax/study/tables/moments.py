"""Means and deviations of many columns over a stream of rows, by the merge of Chan, Golub and LeVeque.

Each column is measured from its own first value, in units of a power of two above its largest: neither
changes a digit, so a column of 1e15 + {0, 1} keeps its deviation and one of 1e307 has finite squares.

References:
  Chan, T. F., Golub, G. H., LeVeque, R. J. (1983). Algorithms for computing the sample variance. The
  American Statistician 37(3), equations 2.1.
"""

import numpy as np

LEAST_EXPONENT = -1000  # its reciprocal is finite, and a subnormal number times that is an ordinary one


class Moments:
    """What is known of the numbers of `columns` columns; each attribute has one entry per column.

    Attributes:
      count: cells that are there.
      low, high: the smallest and the largest of them, NaN if there is none.
      infinite: the first row with an infinity, 0 if there is none; infinities are not counted.
      counting: whether each number is that of its row plus a constant, and none is missing.
    """

    def __init__(self, columns: int) -> None:
        """Start with no rows."""
        self.count = np.zeros(columns, np.int64)
        self.low = np.full(columns, np.nan)
        self.high = np.full(columns, np.nan)
        self.infinite = np.zeros(columns, np.int64)
        self.counting = np.ones(columns, bool)
        self._offset = np.full(columns, np.nan)
        self._origin = np.full(columns, np.nan)
        self._exponent = np.full(columns, LEAST_EXPONENT)
        self._mean = np.zeros(columns)
        self._squares = np.zeros(columns)  # the sum of squared distances from the mean

    def add(self, which: np.ndarray, values: np.ndarray, rows: np.ndarray) -> None:
        """Add `values` [m, r], float64 and NaN where missing, of the columns `which` in the rows `rows`."""
        if not values.size:
            return
        values = self._without_infinities(which, values, rows)
        self._follow(which, values, rows)
        missing = np.isnan(values)
        count = values.shape[1] - missing.sum(axis=1)
        self.low[which] = np.fmin(self.low[which], np.fmin.reduce(values, axis=1))
        self.high[which] = np.fmax(self.high[which], np.fmax.reduce(values, axis=1))
        first = np.take_along_axis(values, np.argmin(missing, axis=1)[:, None], axis=1)[:, 0]
        self._origin[which] = np.where(np.isnan(self._origin[which]), first, self._origin[which])
        self._rescale(which)

        distance = self._distance(which, values)
        distance[missing] = 0.0
        some = np.maximum(count, 1)
        mean = distance.sum(axis=1) / some
        distance -= mean[:, None]
        distance[missing] = 0.0
        squares = np.einsum("ij,ij->i", distance, distance) - distance.sum(axis=1) ** 2 / some

        total = np.maximum(self.count[which] + count, 1)
        apart = mean - self._mean[which]
        self._squares[which] += squares + apart**2 * (self.count[which] / total * count)
        self._mean[which] += apart * (count / total)
        self.count[which] += count

    def standardise(self, which: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Return float32 `values` [m, r] less their column's mean, over its deviation (1 if that is 0)."""
        deviation = np.sqrt(self._squares[which] / np.maximum(self.count[which], 1))
        deviation[deviation == 0.0] = 1.0
        centred = self._distance(which, values)
        centred -= self._mean[which, None]
        centred /= deviation[:, None]
        return centred.astype(np.float32)

    def _distance(self, which: np.ndarray, values: np.ndarray) -> np.ndarray:
        """From the origin, in the column's units."""
        unit = np.ldexp(1.0, -self._exponent[which])
        distance = values * unit[:, None]
        distance -= (self._origin[which] * unit)[:, None]
        return distance

    def _rescale(self, which: np.ndarray) -> None:
        """Let the unit be above all numbers seen; a power of two, so no digit of the sums changes."""
        largest = np.fmax(np.abs(self.low[which]), np.abs(self.high[which]))
        exponent = np.where(largest > 0.0, np.frexp(largest)[1], LEAST_EXPONENT)  # of 0 and NaN it is 0
        exponent = np.maximum(self._exponent[which], exponent)
        change = np.ldexp(1.0, self._exponent[which] - exponent)
        self._mean[which] *= change
        self._squares[which] *= change**2
        self._exponent[which] = exponent

    def _without_infinities(self, which: np.ndarray, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        infinite = np.isinf(values)
        if not infinite.any():
            return values
        found = np.flatnonzero(infinite.any(axis=1) & (self.infinite[which] == 0))
        self.infinite[which[found]] = rows[infinite[found].argmax(axis=1)]
        return np.where(infinite, np.nan, values)

    def _follow(self, which: np.ndarray, values: np.ndarray, rows: np.ndarray) -> None:
        counting = np.flatnonzero(self.counting[which])
        columns = which[counting]
        offset = values[counting] - rows
        known = np.where(np.isnan(self._offset[columns]), offset[:, 0], self._offset[columns])
        self.counting[columns] = (offset == known[:, None]).all(axis=1)
        self._offset[columns] = known
