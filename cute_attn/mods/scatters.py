"""How the kernels gather what flows to captured tensors: each read has one of three kinds.

A read that depends on the row alone, and adds to the score, takes its share of dlse: what a row adds to all its scores
moves its lse and nothing else. A read whose index does not depend on the row is summed key by key, in one order; what
the sums belong to is looked up afterwards. All others are added where they belong, in any order.
"""

from __future__ import annotations

from typing import Literal

from .graph import Graph

__all__ = ["ScatterKind", "kind_of"]

ScatterKind = Literal["row", "key", "anywhere"]


def kind_of(graph: Graph, number: int) -> ScatterKind:
    """Of a scatter node of a graph of `derivative`."""
    inputs = graph.inputs()
    *indices, value = graph.nodes[number].operands
    read_at = frozenset[str]().union(*(inputs[i] for i in indices))
    if not (read_at | inputs[value]) & {"kv", "score"}:
        return "row"
    return "anywhere" if read_at & {"q", "score"} else "key"
