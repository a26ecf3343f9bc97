"""What flows to the elements of captured tensors, added up in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .evaluate import evaluate, nearest
from .graph import Graph
from .trace import Traced

__all__ = ["add_shares", "gather_from"]

Tensor = torch.Tensor


def add_shares(gradient: Tensor, indices: Sequence[Tensor], share: Tensor) -> None:
    """Adds a share of three dimensions to the elements that the indices name, which broadcast with it."""
    if not indices:
        gradient += share.sum()
        return
    shape = torch.broadcast_shapes(*(index.shape for index in indices))
    shape = (1,) * (3 - len(shape)) + shape
    shared = [dim for dim in range(3) if shape[dim] == 1]
    if shared:
        share = share.sum(shared, keepdim=True)
    gradient.index_put_(tuple(index.expand(shape) for index in indices), share, accumulate=True)


def gather_from(
    gradient: Tensor, function: Traced, graph: Graph, scatter: int, share: Tensor, by: str, weighs: bool
) -> None:
    """Adds what a scatter node of a graph takes of a share `(batch, heads, rows or keys)`.

    function: whose tensors and scalars the graph has. by: "q" or "kv", what the last dimension of the share is.
    weighs: whether the share is still to be multiplied with the value of the node.
    """
    if gradient.numel() == 0:
        return
    operands = graph.nodes[scatter].operands
    part = graph.only(operands if weighs else operands[:-1])
    b, h, last = (torch.arange(size, dtype=torch.int32, device=share.device) for size in share.shape)
    inputs = {"b": b[:, None, None], "h": h[:, None], by: last}
    found = evaluate(part, inputs, function.tensors, function.scalars, share.dtype, clamps=True)
    if weighs:
        share = torch.where(share == 0, 0.0, share * found[-1])  # 0 * inf where nothing is attended
    rank = len(operands) - 1
    indices = [nearest(x, size) for x, size in zip(found[:rank], gradient.shape, strict=True)]
    add_shares(gradient, indices, share)
