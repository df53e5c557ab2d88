"""What focaljax costs, measured against what people use today."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # the 60-digit oracle and its hard rows
