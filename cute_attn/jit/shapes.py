"""The spec that a problem leads to: what the launchers would ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cute_attn.mask import IntervalMask

from .backward_spec import BackwardSpec, BackwardTile
from .compile import Spec
from .spec import KernelSpec, TileConfig

__all__ = ["Tile", "default_tile", "spec_for"]

Tile = TileConfig | BackwardTile


def default_tile(op: str, head_dim: int, head_dim_v: int) -> Tile:
    """The static default of an operation, "fwd" or "bwd", at a pair of HEAD_DIMS."""
    from cute_attn.bwd import config as bwd
    from cute_attn.fwd import config as fwd

    return (bwd if op == "bwd" else fwd).default_tile(head_dim, head_dim_v)


def spec_for(
    op: str, dtype: str, head_dim: int, head_dim_v: int, mask: IntervalMask, tile: Tile | None = None, **variant: Any
) -> Spec:
    """The spec of an operation on a mask; `variant` are further fields of the spec, None as tile is the default.

    Raises ValueError or TypeError for head dims, tiles or variants that no kernel serves.
    """
    from cute_attn.bwd.launch import backward_mask_kind
    from cute_attn.fwd.launch import kernel_dims, mask_kind

    dims = kernel_dims(head_dim, head_dim_v)
    tile = tile or default_tile(op, *dims)
    schedule = mask.schedule((tile.m, tile.n))
    if op == "bwd":
        layers, has_lower, has_upper = backward_mask_kind(schedule, variant.get("score") == "softcap")
    else:
        layers, has_lower, has_upper = mask_kind(schedule.layers, schedule.has_lower, schedule.has_upper)
    kind: Callable[..., Spec] = BackwardSpec if op == "bwd" else KernelSpec
    return kind(
        dtype=dtype,
        head_dim=dims[0],
        head_dim_v=dims[1],
        layers=layers,
        has_lower=has_lower,
        has_upper=has_upper,
        tile=tile,
        **variant,
    )
