"""Losses of a softmax: statistics of a row, its term, the spread of the slope."""
