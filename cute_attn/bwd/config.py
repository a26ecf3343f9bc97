"""Tiles of the backward: what fits a multiprocessor, and the default for every head_dim."""

from __future__ import annotations

from cute_attn.spec.backward import BackwardSpec
from cute_attn.spec.tiles import SHARED_MEMORY, BackwardTile

__all__ = ["check", "default_tile", "graph_tile", "shared_memory_bytes"]

ALIGNMENT = 1024  # of each tile in shared memory


def shared_memory_bytes(spec: BackwardSpec) -> int:
    """Dynamic shared memory of a CTA of the main kernel: barriers, numbers of rows, and tiles."""
    tile, dims = spec.tile, spec.head_dim + spec.head_dim_v
    rows = 4 * tile.m * (tile.q_stages + tile.do_stages)
    words = 4 * tile.do_stages * (tile.m * tile.n // 32) * (spec.mask.is_bounded + spec.mask.has_certain)
    head = 256 + rows + words  # barriers and places take less than 256 bytes
    inputs = tile.m * (tile.q_stages * spec.head_dim + tile.do_stages * spec.head_dim_v) + tile.n * dims
    scores = 2 * tile.m * tile.n  # two stages of dS, or P and dS
    dq = 4 * tile.m * spec.head_dim // tile.dq_chunks if tile.dq_chunks else 0
    return -(-head // ALIGNMENT) * ALIGNMENT + spec.element_bytes * (inputs + scores) + dq


def check(spec: BackwardSpec) -> None:
    """Raises ValueError if no multiprocessor holds the spec's tile: compiled, it would spill or not launch."""
    if spec.tile.n == 128 and spec.head_dim + spec.head_dim_v > 320:
        raise ValueError(
            f"BackwardTile.n = 128 needs head dims of up to 320 together, got {spec.head_dim}/{spec.head_dim_v}: "
            f"beyond, dK and dV of 64 keys overfill the registers of a warpgroup"
        )
    if (need := shared_memory_bytes(spec)) > SHARED_MEMORY:
        raise ValueError(
            f"tile {spec.tile} at head_dim {spec.head_dim}/{spec.head_dim_v} needs {need} bytes of shared memory; "
            f"a CTA has {SHARED_MEMORY}"
        )


# Rows are 64: S, dP, P and dS of 128 spill beside dK and dV, at head_dim 64 too. There are as many keys as
# registers hold dK and dV of: 128, and 64 beyond 320 dims of K and V together. Beyond head_dim 128 shared memory is
# short, and what dQ leaves of it serves the loads.
_DEFAULT = {
    (64, 64): BackwardTile(128),
    (96, 96): BackwardTile(128),
    (128, 128): BackwardTile(128),
    (192, 128): BackwardTile(128, dq_chunks=0),
    (192, 192): BackwardTile(64, dq_chunks=0),
    (256, 256): BackwardTile(64, dq_chunks=0),  # 32 KiB a tile of Q or dO, 64 KiB of dQ
}
# The values of a graph want registers that 128 keys do not leave, and it has no use for the address of a sum.
_WITH_GRAPH = _DEFAULT | {
    (192, 128): BackwardTile(64),
    (192, 192): BackwardTile(64),
    (256, 256): BackwardTile(64, do_stages=1, dq_chunks=2),
}


def default_tile(head_dim: int, head_dim_v: int) -> BackwardTile:
    """The tile that a backward gets unless told otherwise."""
    return _DEFAULT[head_dim, head_dim_v]


def graph_tile(head_dim: int, head_dim_v: int) -> BackwardTile:
    """That of a backward that carries a graph."""
    return _WITH_GRAPH[head_dim, head_dim_v]
