"""What a score_mod or a predicate captured, as kernels take it."""

from __future__ import annotations

import torch

from ..mods.graph import Graph
from ..mods.ranges import with_reads_inside
from ..mods.trace import Traced
from .tensors import rows_contiguous

__all__ = ["captured_by", "text_of"]


def captured_by(function: Traced | None) -> tuple[tuple[torch.Tensor, ...] | None, tuple[int | float, ...] | None]:
    """Its tensors, 0-d ones as (1,), with a last stride of 1, and its numbers; None for none."""
    if function is None:
        return None, None
    return tuple(map(_stored, function.tensors)) or None, tuple(function.scalars) or None


def text_of(function: Traced, sizes: tuple[int, int, int, int], graph: Graph | None = None) -> str:
    """The graph of a spec. sizes: batch elements, query heads, rows and keys of the call. graph: in place of the
    function's own, with the same tensors and numbers."""
    shapes = [x.shape for x in function.tensors]
    return with_reads_inside(graph or function.graph, sizes, shapes, function.scalars).text


def _stored(x: torch.Tensor) -> torch.Tensor:
    x = x.detach() if x.numel() else x.new_zeros((1,) * x.ndim)  # nobody attended reads it, but others may
    x = x.view(torch.uint8) if x.dtype == torch.bool else x
    return rows_contiguous(x) if x.ndim else x.view(1)
