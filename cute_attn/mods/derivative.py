"""What the backward computes of a score_mod: its value, its derivative, and what flows to captured tensors."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from . import operators as _operators  # noqa: F401  (gives values their operators)
from .graph import Graph, Node
from .tape import Tape, needed

__all__ = ["derivative"]

Scalar = Any  # a Value, whose operators `operators` has set
# Derivatives by what is read: (adjoint, result, *operands) -> the adjoint of each operand, None for zero
Rule = Callable[..., tuple[Scalar, ...]]


@functools.lru_cache(maxsize=1024)
def derivative(graph: Graph, wanted: tuple[bool, ...]) -> Graph:
    """A graph with the outputs of the backward: the new score; its derivative by the score; then a "scatter" node for
    every read of a captured tensor that is wanted, whose value is the derivative by what was read.

    wanted: of each tensor whether it needs a gradient; for all others nothing is computed. Tensors and scalars keep
    their numbers.
    """
    tape = Tape("score_mod", torch.device("cpu"))
    values = [tape.add(node.op, node.args, node.dtype) for node in graph.nodes]  # equal nodes are one: numbers stay
    score, (output,) = values[graph.outputs[0]], graph.outputs
    adjoints: dict[int, Scalar] = {output: tape.constant(1.0, "f32")}
    scatters = []
    depends = _dependent(graph, wanted)
    for i in range(output, -1, -1):
        node, adjoint = graph.nodes[i], adjoints.get(i)
        if adjoint is None or not depends[i] or node.op == "score":
            continue
        if node.action == "load":
            scatter = "scatter_tabled" if node.op == "load_tabled" else "scatter"
            scatters.append(tape.add(scatter, (*node.args, adjoint.node), "f32").node)
            continue
        if node.op not in _RULES:
            continue
        found = _RULES[node.op](adjoint, values[i], *(values[a] for a in node.operands))
        for operand, share in zip(node.operands, found, strict=True):
            if share is not None and depends[operand]:
                adjoints[operand] = adjoints[operand] + share if operand in adjoints else share
    by_score = next((adjoints[i] for i, node in enumerate(graph.nodes) if node.op == "score" and i in adjoints), None)
    slope = tape.constant(0.0, "f32") if by_score is None else by_score
    nodes, outputs = needed(tape.nodes, (score.node, slope.node, *reversed(scatters)))
    return Graph(tuple(Node(*node) for node in nodes), outputs, graph.tensors, graph.scalars)


def _dependent(graph: Graph, wanted: tuple[bool, ...]) -> list[bool]:
    """Whether each node is a float that depends on the score or on a wanted tensor."""
    found: list[bool] = []
    for node in graph.nodes:
        own = node.op == "score" or (node.action == "load" and wanted[int(node.args[0])])
        found.append(node.dtype == "f32" and (own or (node.action != "load" and any(found[i] for i in node.operands))))
    return found


def _times(x: Scalar, number: float) -> Scalar:
    return x * x.tape.constant(number, "f32")


def _one(x: Scalar) -> Scalar:
    return x.tape.constant(1.0, "f32")


def _where(a: Scalar, _: Scalar, condition: Scalar, x: Scalar, y: Scalar) -> tuple[Scalar, ...]:
    zero = a.tape.constant(0.0, "f32")
    return None, torch.where(condition, a, zero), torch.where(condition, zero, a)


def _extremum(a: Scalar, _: Scalar, x: Scalar, y: Scalar, x_wins: Scalar) -> tuple[Scalar, ...]:
    half, zero = _times(a, 0.5), a.tape.constant(0.0, "f32")
    tie = x == y
    return tuple(torch.where(tie, half, torch.where(wins, a, zero)) for wins in (x_wins, ~x_wins))


def _pow(a: Scalar, out: Scalar, x: Scalar, y: Scalar) -> tuple[Scalar, ...]:
    zero = a.tape.constant(0.0, "f32")
    by_x = torch.where(y == zero, zero, a * y * x ** (y - _one(y)))
    by_y = torch.where((x == zero) & (zero <= y), zero, a * out * x.log())
    return by_x, by_y


_RULES: dict[str, Rule] = {
    "add": lambda a, out, x, y: (a, a),
    "sub": lambda a, out, x, y: (a, -a),
    "mul": lambda a, out, x, y: (a * y, a * x),
    "div": lambda a, out, x, y: (a / y, -(a * out) / y),
    "remainder": lambda a, out, x, y: (a, -(a * (x // y))),
    "fmod": lambda a, out, x, y: (a, -(a * torch.div(x, y, rounding_mode="trunc"))),
    "pow": _pow,
    "minimum": lambda a, out, x, y: _extremum(a, out, x, y, x < y),
    "maximum": lambda a, out, x, y: _extremum(a, out, x, y, y < x),
    "where": _where,
    "neg": lambda a, out, x: (-a,),
    "abs": lambda a, out, x: (a * x.sign(),),
    "exp": lambda a, out, x: (a * out,),
    "exp2": lambda a, out, x: (_times(a * out, math.log(2)),),
    "expm1": lambda a, out, x: (a * (out + _one(out)),),
    "log": lambda a, out, x: (a / x,),
    "log2": lambda a, out, x: (_times(a / x, 1 / math.log(2)),),
    "log1p": lambda a, out, x: (a / (x + _one(x)),),
    "sqrt": lambda a, out, x: (_times(a / out, 0.5),),
    "rsqrt": lambda a, out, x: (_times(a * (out * out * out), -0.5),),
    "tanh": lambda a, out, x: (a * (_one(out) - out * out),),
    "sigmoid": lambda a, out, x: (a * (out * (_one(out) - out)),),
    "erf": lambda a, out, x: (_times(a * (-(x * x)).exp(), 2 / math.sqrt(math.pi)),),
    "sin": lambda a, out, x: (a * x.cos(),),
    "cos": lambda a, out, x: (-(a * x.sin()),),
    "round_bf16": lambda a, out, x: (a,),
    "round_fp16": lambda a, out, x: (a,),
}
