"""The spec that a problem leads to: what the launchers would ask for."""

from __future__ import annotations

from typing import Any

from cute_attn.mask import IntervalMask
from cute_attn.spec.operation import Spec, operation
from cute_attn.spec.tiles import Tile

from .forms import kernel_dims

__all__ = ["spec_for"]


def spec_for(
    op: str, dtype: str, head_dim: int, head_dim_v: int, mask: IntervalMask, tile: Tile | None = None, **variant: Any
) -> Spec:
    """The spec of an operation on a mask; `variant` are further fields of the spec, None as tile is the default.

    Raises ValueError or TypeError for head dims, tiles or variants that no kernel serves.
    """
    row = operation(op)
    dims = kernel_dims(head_dim, head_dim_v)
    tile = tile or row.default_tile(*dims)
    layers, has_lower, has_upper = row.mask_kind(mask.schedule((tile.m, tile.n)), variant.get("score") == "softcap")
    return row.spec(
        dtype=dtype,
        head_dim=dims[0],
        head_dim_v=dims[1],
        layers=layers,
        has_lower=has_lower,
        has_upper=has_upper,
        tile=tile,
        **variant,
    )
