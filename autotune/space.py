"""The tiles that are tried, and those that are refused before anything is compiled."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

from cute_attn.jit.backward_spec import BackwardSpec, BackwardTile
from cute_attn.jit.compile import Spec
from cute_attn.jit.shapes import Tile
from cute_attn.jit.spec import TileConfig

from .problem import Problem

__all__ = ["Refused", "candidates", "space"]


class Refused(NamedTuple):
    tile: Tile
    reason: str


def space(op: str) -> list[Tile]:
    """All tiles of an operation, whatever the problem."""
    if op == "bwd":
        return [BackwardTile(*values) for values in product((64, 128), (2, 4), (1, 2, 4), (1, 2, 4))]
    return [TileConfig(*values) for values in product((128, 192), range(48, 257, 16), (2, 4), (True, False))]


def candidates(problem: Problem) -> tuple[list[Tile], list[Refused]]:
    """The tiles that fit, the default first, and the others with the reason: registers, shared memory, the kernel."""
    kept: list[Tile] = [problem.default]
    refused: list[Refused] = []
    for tile in space(problem.op):
        try:
            _check(problem.spec(tile))
        except ValueError as error:
            refused.append(Refused(tile, str(error)))
        else:
            kept += [tile] * (tile != problem.default)
    return kept, refused


def _check(spec: Spec) -> None:
    from cute_attn.bwd import config as bwd
    from cute_attn.fwd import config as fwd

    if isinstance(spec, BackwardSpec):
        bwd.check(spec)
    else:
        fwd.check(spec)
