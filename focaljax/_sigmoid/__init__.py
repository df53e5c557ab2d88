"""Losses of a sigmoid: independent labels, hard ones and those between 0 and 1."""
