"""Which tile a call gets that asks for none."""

from __future__ import annotations

import torch

from cute_attn.mask import IntervalMask
from cute_attn.spec.operation import operation
from cute_attn.spec.tiles import Tile

from .dims import kernel_dims
from .tensors import DTYPE_NAMES
from .tuned import Found, TunedKey, lookup, tables, tuned_tile

__all__ = ["default_tile", "tile_of_call", "tile_on"]


def default_tile(op: str, head_dims: tuple[int, int], *, has_graph: bool = False) -> Tile:
    """The tile of tensors of such head dims where nothing was measured. has_graph: whether the kernel has one."""
    row, dims = operation(op), kernel_dims(op, *head_dims)
    return row.graph_tile(*dims) if has_graph else row.default_tile(*dims)


def tile_of_call(
    op: str,
    dtype: torch.dtype,
    head_dims: tuple[int, int],
    heads: tuple[int, int],
    mask: IntervalMask,
    *,
    has_graph: bool,
    is_exact: bool = False,
) -> Tile:
    """What was measured fastest for such a call, else the default.

    Tables serve the kernels that `autotune` measures: with a graph, or where the exact maximum is kept, there are other
    registers, and the fastest tile of those may not fit.

    head_dims: of q and v. heads: of q and k. has_graph: whether a score_mod or a predicate comes with the mask.
    """
    tile = default_tile(op, head_dims, has_graph=has_graph)
    if has_graph or is_exact:
        return tile
    return tuned_tile(op, DTYPE_NAMES[dtype], kernel_dims(op, *head_dims), heads, mask, mask.device, tile)


def tile_on(
    gpu: str,
    op: str,
    dtype: str,
    head_dims: tuple[int, int],
    heads: tuple[int, int],
    mask: IntervalMask,
    *,
    is_exact: bool = False,
) -> Found:
    """What `tile_of_call` would take on a GPU that is not here. gpu: a part of its name. dtype: as specs have it."""
    found = Found(default_tile(op, head_dims), "static default", None)
    if is_exact:
        return found
    for name, sms in sorted({(key.gpu, key.sms) for table in tables() for key in table.tiles if gpu in key.gpu}):
        key = TunedKey.of(name, sms, op, dtype, kernel_dims(op, *head_dims), heads, mask)
        if found.key is None:
            found = lookup(key, found.tile)
    return found
