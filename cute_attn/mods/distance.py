"""score_mods that add a function of query head and distance, q - kv: ALiBi, T5's buckets, any relative bias.

The function is evaluated once for each distance, in PyTorch, into a table, so that kernels know one score_mod for all
of them: score + table[h, q - kv + offset]. It has room for the rows and keys that fill up a tile past the ends, so that
kernels read it unguarded.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from .derivative import derivative
from .evaluate import Scatter, evaluate
from .gather import add_shares
from .graph import ELEMENT, Graph, Node
from .tape import Tape
from .trace import Traced, trace

__all__ = ["TABLED", "bias_of", "by_table", "distances_of", "table_gradients"]

Tensor = torch.Tensor

ROOM = 256  # rows and keys past the ends that a kernel may ask of, for nothing: less than a tile of each
FINITE = 1.0e30  # beyond every score
_ANY = torch.empty(0, 0, device="cpu")
# The text of every such function: it captured the table, fp32 (heads_q, distances), and how far behind its first column
# that of distance 0 is.
TABLED = trace(lambda score, b, h, q, kv: score + _ANY[h, q - kv + 2], "score_mod").text.replace(
    '"load"', '"load_tabled"'
)


def distances_of(seqlen_q: int, seqlen_k: int) -> range:
    """Those of the columns of a table."""
    return range(1 - seqlen_k - ROOM, seqlen_q + ROOM)


def by_table(
    score: Traced, heads: int, seqlen_q: int, seqlen_k: int, device: torch.device, for_backward: bool = False
) -> Traced:
    """The same score_mod with a table for its bias, where it has one that depends on the distance alone.

    for_backward: whether numbers are to stand in for NaN and infinity, which may be what it is where nobody attends: a
        row that attends one has an lse that says so.
    """
    bias = bias_of(score.graph)
    if bias is None or not seqlen_q or not seqlen_k:
        return score
    inputs, columns = _distances(bias, heads, seqlen_q, seqlen_k, device), distances_of(seqlen_q, seqlen_k)
    (table,) = evaluate(bias, inputs, score.tensors, score.scalars, torch.float32, clamps=True)
    if for_backward:
        table = torch.where(table < FINITE, table, FINITE)
    return Traced(TABLED, [table.expand(heads, len(columns))], [-columns.start])


def table_gradients(
    score: Traced, gradient: Tensor | None, wanted: Sequence[bool], seqlen_q: int, seqlen_k: int
) -> list[Tensor | None]:
    """What flows through the table of `by_table` to the tensors that the score_mod captured.

    gradient: fp32, of the table; None where nothing is wanted. wanted: which of the tensors need one. What a distance
    has no gradient for gives none, whatever the function is there.
    """
    if gradient is None:
        return [None] * len(wanted)
    bias = bias_of(score.graph)
    assert bias is not None
    scatters: list[Scatter] = []
    inputs = _distances(bias, gradient.shape[0], seqlen_q, seqlen_k, gradient.device)
    by_loads = derivative(bias, tuple(wanted))
    evaluate(by_loads, inputs, score.tensors, score.scalars, torch.float32, clamps=True, scatters=scatters)
    found = [
        torch.zeros(x.shape, dtype=torch.float32, device=gradient.device) if need else None
        for x, need in zip(score.tensors, wanted, strict=True)
    ]
    for number, indices, value in scatters:
        own = found[number]
        assert own is not None
        if own.numel():  # else nobody reads it
            share = torch.where(gradient == 0, 0.0, gradient * value)  # 0 * inf where nobody attends
            add_shares(own, indices, share[None])
    return [None if own is None else own.to(x.device, x.dtype) for own, x in zip(found, score.tensors, strict=True)]


def _distances(bias: Graph, heads: int, seqlen_q: int, seqlen_k: int, device: torch.device) -> dict[str, Tensor]:
    """Inputs of a bias: for every distance a pair that has it."""
    columns = distances_of(seqlen_q, seqlen_k)
    distance = torch.arange(columns.start, columns.stop, dtype=torch.int32, device=device)
    inputs = {
        "h": torch.arange(heads, dtype=torch.int32, device=device)[:, None],
        "q": distance.clamp(min=0),
        "kv": (-distance).clamp(min=0),
    }
    return {name: x for name, x in inputs.items() if bias.reads(name)}


# ---------------------------------------------------------------- which functions


@functools.lru_cache(maxsize=1024)
def bias_of(graph: Graph) -> Graph | None:
    """The graph of g where that of a score_mod is score + g(h, q - kv), whatever the numbers and tensors that it
    captured are; None for any other. Tensors and scalars keep their numbers."""
    tape = Tape("score_mod", torch.device("cpu"))
    values: list[Any] = [tape.add(node.op, node.args, node.dtype) for node in graph.nodes]
    reads_score = _reading_score(graph)
    node = graph.outputs[0]
    bias: Any = None
    while graph.nodes[node].op != "score":
        op, args = graph.nodes[node].op, graph.nodes[node].operands
        is_left = [reads_score[i] for i in args]
        if op == "add" and is_left == [False, True]:
            args, is_left = args[::-1], [True, False]
        if op not in ("add", "sub") or is_left != [True, False]:
            return None
        added = values[args[1]] if op == "add" else -values[args[1]]
        node, bias = args[0], added if bias is None else bias + added
    if bias is None:
        return None
    nodes = tuple(Node(*written) for written in tape.nodes)
    found = Graph(nodes, (bias.node,), graph.tensors, graph.scalars).only((bias.node,))
    (output,) = found.outputs
    return found if found.stages()[output] == ELEMENT and _shares(found)[output] == 0 else None


def _reading_score(graph: Graph) -> list[bool]:
    found: list[bool] = []
    for node in graph.nodes:
        found.append(node.op == "score" or any(found[i] for i in node.operands))
    return found


def _shares(graph: Graph) -> list[int | None]:
    """Of each node the n for which it is n * q + a function of h and q - kv, integers as they wrap; None where none is
    known. q and kv are such themselves, with 1."""
    found: list[int | None] = []
    for node in graph.nodes:
        found.append(_share(node, [graph.nodes[i] for i in node.operands], [found[i] for i in node.operands]))
    return found


def _share(node: Node, operands: list[Node], shares: list[int | None]) -> int | None:
    if node.op in ("b", "score"):
        return None
    if node.op in ("q", "kv"):
        return 1
    known = [n for n in shares if n is not None]
    if len(known) < len(shares):
        return None
    if not any(known):
        return 0
    if node.op == "add":
        return known[0] + known[1]
    if node.op == "sub":
        return known[0] - known[1]
    if node.op == "neg":
        return -known[0]
    # sums may wrap, which a comparison and a wider integer would see; positions do not
    if all(_is_position(x) for x in operands):
        if node.op in ("eq", "ne", "lt", "le"):
            return 0
        if node.op == "convert" and node.dtype == "i64":
            return 1
    return None


def _is_position(node: Node) -> bool:
    return node.op in ("q", "kv")
