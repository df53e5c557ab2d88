"""Tests over several factors without their whole product."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import pytest
from allpairspy import AllPairs


def every_pair(**factors: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrizes over few combinations in which any two values of two factors meet.

    What breaks a law is nearly always one value or the meeting of two; the product of four factors only
    repeats them. Each value should be a number, a name, or a dtype, as it becomes a part of the test's name.
    """
    rows = AllPairs(OrderedDict((name, list(values)) for name, values in factors.items()))
    return pytest.mark.parametrize(tuple(factors), [tuple(row) for row in rows])
