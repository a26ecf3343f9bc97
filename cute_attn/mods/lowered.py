"""Which operations of a graph kernels have machine code for: see `cute_attn.mods.device.operations`."""

from __future__ import annotations

from .graph import Graph

__all__ = ["without_code"]

_OF_INTEGERS_ALONE = ("floor_divide", "remainder", "trunc_divide", "fmod")


def without_code(graph: Graph) -> str:
    """What of a score_mod there is no machine code for, in words; "" if there is for all."""
    for node in graph.nodes:
        if node.op in _OF_INTEGERS_ALONE and node.dtype == "f32":
            return f"the operator {node.op} of floats"
        if node.op == "pow" and node.dtype != "f32":
            exponent = graph.nodes[node.operands[1]]
            if exponent.op != "const" or int(exponent.args[0]) < 0:
                return "** of integers beyond the third power"
    return ""
