"""The tiles that are tried, and those that are refused before anything is compiled."""

from __future__ import annotations

from typing import NamedTuple

from cute_attn.spec.operation import operation
from cute_attn.spec.tiles import Tile

from .problem import Problem

__all__ = ["Refused", "candidates"]


class Refused(NamedTuple):
    tile: Tile
    reason: str


def candidates(problem: Problem) -> tuple[list[Tile], list[Refused]]:
    """The tiles that fit, the default first, and the others with the reason: registers, shared memory, the kernel."""
    row = operation(problem.op)
    kept: list[Tile] = [problem.default]
    refused: list[Refused] = []
    for tile in row.tiles():
        try:
            row.check(problem.spec(tile))
        except ValueError as error:
            refused.append(Refused(tile, str(error)))
        else:
            kept += [tile] * (tile != problem.default)
    return kept, refused
