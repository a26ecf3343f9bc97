"""The scripts of the first light are a folder beside each other, not a package."""

import sys
from pathlib import Path

FIRST_LIGHT = Path(__file__).parents[2] / "benchmarks" / "first_light"
sys.path.insert(0, str(FIRST_LIGHT))
