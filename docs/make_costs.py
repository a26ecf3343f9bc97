"""Writes docs/costs.json, issue slots of the kernels that the galleries speak of: `python docs/make_costs.py`, then
`python docs/make_gallery.py`. Takes minutes; needs the compiler and a disassembler, no GPU. A test recomputes some.

With `--missing` kernels whose names are already in the file are left alone: their code must be as it was.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from make_gallery import functions, of_reading, of_score, priced, read

from cute_attn.jit.obtain import cached_or_compiled
from cute_attn.profile.inspect import inspect
from cute_attn.spec.forward import ForwardSpec
from cute_attn.spec.operation import Spec

__all__ = ["COSTS", "functions", "of_reading", "of_score", "priced", "read", "slots"]

COSTS = Path(__file__).parent / "costs.json"


def slots(spec: Spec) -> list[int]:
    """Issue slots of a warp for a tile, in each loop of a kernel: partial tiles, full ones."""
    loops = inspect(cached_or_compiled(spec)).loops
    if not isinstance(spec, ForwardSpec):
        return [loop.common for loop in loops]
    cycles = spec.tile.n * (spec.head_dim + spec.head_dim_v) // 32  # of a warpgroup's products: a pass has two tiles
    return [math.ceil(loop.common * cycles / loop.tensor_cycles) for loop in loops]


def main() -> None:
    known = json.loads(COSTS.read_text()) if "--missing" in sys.argv else {}
    wanted = {str(spec): spec for spec in priced()}
    costs = {name: known.get(name) or slots(spec) for name, spec in sorted(wanted.items())}
    COSTS.write_text(json.dumps(costs, indent=1) + "\n")


if __name__ == "__main__":
    main()
