"""The fastest tiles for given problems: searched, pruned, compiled, measured, and written where kernels find them."""

from .problem import PRESETS, Problem, load_shapes
from .tune import Tuning, tune

__all__ = ["PRESETS", "Problem", "Tuning", "load_shapes", "tune"]
