"""Tiles of the decode kernel: what fits a multiprocessor, how many CTAs share it, and the default."""

from __future__ import annotations

from cute_attn.spec.decode import DecodeSpec, DecodeTile
from cute_attn.spec.tiles import SHARED_MEMORY

__all__ = ["check", "ctas_per_multiprocessor", "default_tile", "most_rows", "shared_memory_bytes"]

ALIGNMENT = 1024  # of each tile in shared memory


def _tiles(rows: int, columns: int, width: int) -> int:
    return -(-rows * columns * width // ALIGNMENT) * ALIGNMENT


def shared_memory_bytes(spec: DecodeSpec) -> int:
    """Dynamic shared memory of a CTA: barriers and what is small, Q, P, and the rings of K and V."""
    tile, width = spec.tile, spec.cache_bytes
    rings = sum(_tiles(tile.n * tile.stages, dim, width) for dim in (spec.head_dim, spec.head_dim_v))
    barriers, rows = 2 * 8 * (2 * tile.stages + 1), tile.rows
    small = barriers + rows * (16 + 8 + 8 * spec.tree + 4 * spec.eight) + 64  # see storage.py
    return _tiles(1, small, 1) + _tiles(tile.rows, spec.head_dim, 2) + _tiles(tile.rows, tile.n, 2) + rings


def ctas_per_multiprocessor(spec: DecodeSpec) -> int:
    """How many of them hide each other's waits; registers allow three of up to 16 rows, two of 32."""
    by_registers = {8: 3, 16: 3, 32: 2, 64: 1}[spec.tile.rows]
    # A multiprocessor has what one CTA may have, and 1 KiB for each.
    return max(1, min(by_registers, SHARED_MEMORY // (shared_memory_bytes(spec) + 1024)))


def most_rows(head_dim_v: int) -> int:
    """Rows whose output and scores a thread's registers hold."""
    return 64 if head_dim_v <= 128 else 32


def check(spec: DecodeSpec) -> None:
    """Raises ValueError if no multiprocessor holds the spec's tile: compiled, it would spill or not launch."""
    if spec.tile.rows > most_rows(spec.head_dim_v):
        raise ValueError(
            f"DecodeTile.rows must be at most {most_rows(spec.head_dim_v)} with head_dim_v {spec.head_dim_v}, "
            f"got {spec.tile.rows}"
        )
    if (need := shared_memory_bytes(spec)) > SHARED_MEMORY:
        raise ValueError(f"{spec} needs {need} bytes of shared memory; a CTA has {SHARED_MEMORY}")


def default_tile(head_dim: int, head_dim_v: int) -> DecodeTile:
    """For one token of up to eight heads a key head."""
    return DecodeTile(8, 4 if head_dim == 64 else 2)
