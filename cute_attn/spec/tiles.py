"""How kernels cut their problems: the tile of each operation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .checks import check_fields

__all__ = ["SHARED_MEMORY", "BackwardTile", "Tile", "TileConfig"]

SHARED_MEMORY = 232_448  # bytes that one CTA may have on sm_90


class Tile(Protocol):
    """What every tile has: it is a frozen dataclass of ints and bools that checks itself and prints well."""

    @property
    def m(self) -> int:
        """Query rows."""

    @property
    def n(self) -> int:
        """Keys."""


@dataclass(frozen=True)
class TileConfig:
    """How a kernel cuts its problem.

    m: query rows of a tile, 64 for each consumer warpgroup (two or three of them).
    n: keys of a tile, a multiple of 16.
    stages: depth of the rings of K and of V tiles, a power of two.
    ping_pong: whether the consumer warpgroups take turns on the tensor cores, one's softmax under another's products.

    Raises TypeError or ValueError for anything else.
    """

    m: int = 128
    n: int = 128
    stages: int = 2
    ping_pong: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        if self.m not in (128, 192):
            raise ValueError(f"TileConfig.m must be 128 or 192 (two or three warpgroups of 64 rows), got {self.m}")
        if self.n % 16 or not 16 <= self.n <= 256:
            raise ValueError(f"TileConfig.n must be a multiple of 16 in [16, 256], got {self.n}")
        if self.stages not in (2, 4, 8):
            raise ValueError(f"TileConfig.stages must be 2, 4 or 8, got {self.stages}")

    @property
    def consumers(self) -> int:
        """Number of consumer warpgroups."""
        return self.m // 64

    def __str__(self) -> str:
        return f"{self.m}x{self.n}, {self.stages} stages{', ping-pong' if self.ping_pong else ''}"


@dataclass(frozen=True)
class BackwardTile:
    """How a backward kernel cuts its problem; its two consumer warpgroups share a tile.

    m: query rows of a tile, 64: more would need too many registers beside dK and dV.
    n: keys of a tile: 128, of which each warpgroup takes half, or 64, each taking half of the queries and of the dims.
    q_stages, do_stages: depths of the rings of Q and of dO tiles.
    dq_chunks: in how many pieces the dQ of a tile goes through shared memory; 0 adds it to its sum from registers.

    Raises TypeError or ValueError for anything else.
    """

    n: int = 128
    q_stages: int = 2
    do_stages: int = 2
    dq_chunks: int = 1

    @property
    def m(self) -> int:
        return 64

    def __post_init__(self) -> None:
        check_fields(self)
        for name, allowed in (
            ("n", (64, 128)),
            ("q_stages", (2, 4)),
            ("do_stages", (1, 2, 4)),
            ("dq_chunks", (0, 1, 2, 4)),
        ):
            if getattr(self, name) not in allowed:
                given, these = getattr(self, name), ", ".join(map(str, allowed))
                raise ValueError(f"BackwardTile.{name} must be one of {these}, got {given}")

    def __str__(self) -> str:
        ways = {0: ", dQ from registers", 1: ""}
        chunks = ways.get(self.dq_chunks, f", dQ in {self.dq_chunks} pieces")
        return f"{self.m}x{self.n}, stages {self.q_stages} + {self.do_stages}{chunks}"
