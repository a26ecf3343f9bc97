"""Stand-ins for what graphs captured, to compile with."""

from typing import Any

import cutlass.cute as cute
from cutlass import Float32

from ..graph import Graph
from ..scatters import kind_of
from .operations import STORED, VALUES

__all__ = ["fake_captured", "fake_scattered"]


def fake_captured(text: str) -> tuple[Any, Any]:
    """Tensors whose last stride is 1, and numbers, of the graph with this text; None for none."""
    if not text:
        return None, None
    graph = Graph.parse(text)
    captured = tuple(_fake(STORED[dtype], max(1, rank)) for dtype, rank in graph.tensors)
    numbers = tuple(VALUES[dtype](1) for dtype in graph.scalars)
    return captured or None, numbers or None


def fake_scattered(text: str) -> tuple[Any, ...] | None:
    """What the scatters of a graph add to: see `cute_attn.mods.device.keys.Flow`."""
    if not text:
        return None
    graph, ranks = Graph.parse(text), []
    for number in graph.outputs:
        if graph.nodes[number].action == "scatter":
            rank = graph.tensors[int(graph.nodes[number].args[0])][1]
            ranks.append(4 if kind_of(graph, number) == "key" else rank)
    return tuple(_fake(Float32, rank) for rank in ranks) or None


def _fake(of: Any, rank: int) -> Any:
    shape, strides = tuple(cute.sym_int() for _ in range(rank)), tuple(cute.sym_int64() for _ in range(rank - 1))
    return cute.runtime.make_fake_tensor(of, shape, (*strides, 1))
