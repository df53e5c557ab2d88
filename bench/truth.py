"""The 60-digit oracle and the hard rows of the tests: tests/ is put on the path in this one place."""

import sys
from pathlib import Path

TESTS = str(Path(__file__).parents[1] / "tests")
if TESTS not in sys.path:
    sys.path.append(TESTS)

import cases as hard  # noqa: E402
import oracle  # noqa: E402
import tolerances  # noqa: E402

__all__ = ["hard", "oracle", "tolerances"]
