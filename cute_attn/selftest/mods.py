"""score_mods and mask_mods of the self-test by name, and those of any kernel by its graph: what they read is drawn
here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from cute_attn.mask import IntervalMask
from cute_attn.mods.distance import ROOM, TABLED, distances_of
from cute_attn.mods.evaluate import evaluate
from cute_attn.mods.graph import Graph
from cute_attn.mods.ranges import with_reads_inside
from cute_attn.mods.tape import CAPTURED
from cute_attn.mods.trace import Traced, trace

__all__ = ["ANY", "MASK_MODS", "SCORE_MODS", "Drawn", "certain_of", "held", "mask_mod_of", "score_mod_of", "wanted_of"]

ANY = "any"  # the name of what the graph of a spec says
_DTYPES = {name: dtype for dtype, (name, _) in CAPTURED.items()}


@dataclass(frozen=True)
class Drawn:
    """Random tensors for a problem of so many queries, keys and query heads."""

    rows: int
    keys: int
    heads: int
    numbers: torch.Generator
    device: torch.device

    def floats(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=self.numbers, device="cpu").to(dtype).to(self.device)

    def integers(self, most: int, *shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.randint(most, shape, generator=self.numbers, device="cpu").to(dtype).to(self.device)


@dataclass(frozen=True)
class NamedMod:
    """made: the score_mod for a problem. approximation: of its scores, by the hardware's tanh and the like."""

    made: Callable[[Drawn], Traced]
    approximation: float = 0.0


def _distance(drawn: Drawn) -> Traced:
    columns = distances_of(drawn.rows, drawn.keys)
    return Traced(TABLED, [drawn.floats(drawn.heads, len(columns))], [-columns.start])


def _stages(drawn: Drawn) -> Traced:
    """Something to compute once a head, a row and a column, and for every element; floats of 16 bits and integers."""
    gain, by_key = drawn.floats(drawn.heads), drawn.floats(drawn.heads, drawn.keys, dtype=torch.bfloat16)
    document = drawn.integers(3, max(drawn.rows, drawn.keys) + ROOM, dtype=torch.uint8)
    by_row = drawn.floats(drawn.rows + ROOM)

    def score_mod(
        score: torch.Tensor, b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, kv: torch.Tensor
    ) -> torch.Tensor:
        found = torch.where(document[q] == document[kv], score * torch.exp(gain[h] * 0.1), torch.tanh(score))
        return found + by_key[h, kv] + by_row[q] - 0.01 * (q - kv).abs()

    return trace(score_mod, "score_mod", drawn.device)


SCORE_MODS = {"distance": NamedMod(_distance), "stages": NamedMod(_stages, 2**-10)}


def score_mod_of(name: str, graph: str, drawn: Drawn) -> Traced:
    """A score_mod of the table, or the one that has a graph, or whose backward has it, with tensors and numbers that
    keep most graphs finite."""
    return _of_graph(graph, drawn) if name == ANY else SCORE_MODS[name].made(drawn)


def _of_graph(graph: str, drawn: Drawn) -> Traced:
    marked = Graph.parse(graph)
    marked = marked.only(marked.outputs[:1])
    if marked.text == TABLED:
        return _distance(drawn)
    nodes = tuple(replace(node, op=node.action if node.action == "load" else node.op) for node in marked.nodes)
    function = replace(marked, nodes=nodes)
    inside = {node.args[0] for node in marked.nodes if node.op == "load_inside"}
    tensors = []
    for number, (dtype, rank) in enumerate(function.tensors):
        shape = _shape(rank, drawn) if number in inside else (1,) * rank
        is_float = CAPTURED[_DTYPES[dtype]][1] == "f32"
        make = drawn.floats if is_float else functools.partial(drawn.integers, 2)
        tensors.append(make(*shape, dtype=_DTYPES[dtype]))
    sizes, shapes = (1, drawn.heads, drawn.rows, drawn.keys), [x.shape for x in tensors]
    for whole in (3, drawn.keys - 1):  # an offset of distances may be needed for reads to lie inside
        numbers = [0.5 if dtype == "f32" else whole for dtype in function.scalars]
        if with_reads_inside(function, sizes, shapes, numbers) == marked:
            break
    return Traced(function.text, tensors, numbers)


def _shape(rank: int, drawn: Drawn) -> tuple[int, ...]:
    """With room for every position and distance in the last two dimensions, for batch elements and heads before."""
    most = drawn.rows + drawn.keys
    return (64,) * (rank - 2) + (most if rank == 2 else 64, most)[-rank:] if rank else ()


# ---------------------------------------------------------------- mask_mods


@dataclass(frozen=True)
class NamedMaskMod:
    """made: what thins the intervals of a problem. has_certain: whether those of the first half of the keys stay whole
    whatever it says."""

    made: Callable[[Drawn], Traced]
    has_certain: bool = True


def _ranks(drawn: Drawn) -> tuple[torch.Tensor, torch.Tensor]:
    """Of rows and of keys, of which the first half come before every row."""
    of_keys = drawn.floats(drawn.keys)
    of_keys[: drawn.keys // 2] = -100.0
    return drawn.floats(drawn.rows + ROOM), of_keys


def _one_comparison(drawn: Drawn) -> Traced:
    rows, keys = _ranks(drawn)
    return trace(lambda b, h, q, kv: rows[q] >= keys[kv], "mask_mod", drawn.device)


def _two_comparisons(drawn: Drawn) -> Traced:
    (rows, keys), (others, limits) = _ranks(drawn), _ranks(drawn)
    return trace(lambda b, h, q, kv: (rows[q] >= keys[kv]) & (others[q] + 0.5 > limits[kv]), "mask_mod", drawn.device)


def _documents(drawn: Drawn) -> Traced:
    """Of each head, in any order."""
    document = drawn.integers(3, drawn.heads, max(drawn.rows, drawn.keys) + ROOM)
    return trace(lambda b, h, q, kv: document[h, q] == document[h, kv], "mask_mod", drawn.device)


def _diagonals(drawn: Drawn) -> Traced:
    return trace(lambda b, h, q, kv: (q - kv) % 5 < 2, "mask_mod", drawn.device)


MASK_MODS = {
    "one comparison": NamedMaskMod(_one_comparison),
    "two comparisons": NamedMaskMod(_two_comparisons),
    "documents": NamedMaskMod(_documents, has_certain=False),
    "unless certain": NamedMaskMod(_diagonals),
}


def mask_mod_of(name: str, graph: str, drawn: Drawn) -> Traced:
    """A mask_mod of the table, or the one that has a graph, with tensors and numbers that leave most rows a key."""
    if name != ANY:
        return MASK_MODS[name].made(drawn)
    for _ in range(8):
        made = _of_graph(graph, drawn)
        if held(made, drawn.heads, drawn.rows, drawn.keys).any(2).all():
            break
    return made


def certain_of(name: str, has_certain: bool, mask: IntervalMask) -> IntervalMask | None:
    """Pairs of a mask that are attended whatever a mask_mod says, None for none; has_certain: of one that a graph
    has."""
    if not (has_certain if name == ANY else MASK_MODS[name].has_certain):
        return None
    half = mask.seqlen_k // 2
    return IntervalMask(mask.lo.clamp_max(half), mask.hi.clamp_max(half), mask.seqlen_k, heads=mask.heads)


def held(mask_mod: Traced, heads: int, rows: int, keys: int) -> torch.Tensor:
    """Where a mask_mod is true, bool `(heads, rows, keys)`; it reads captured tensors as kernels do."""
    device = next((x.device for x in mask_mod.tensors), torch.device("cpu"))
    b, h, q, kv = (torch.arange(n, dtype=torch.int32, device=device) for n in (1, heads, rows, keys))
    inputs = {"b": b[0], "h": h[:, None, None], "q": q[:, None], "kv": kv}
    (found,) = evaluate(mask_mod.graph, inputs, mask_mod.tensors, mask_mod.scalars, torch.float32, clamps=True)
    return found.expand(heads, rows, keys)


def wanted_of(name: str, graph: str, score_mod: Traced) -> list[bool]:
    """Of each captured tensor whether its gradient is tested: of all floats, or of what the graph of a backward has."""
    if name != ANY:
        return [x.is_floating_point() for x in score_mod.tensors]
    scattered = {node.args[0] for node in Graph.parse(graph).nodes if node.action == "scatter"}
    return [i in scattered for i in range(len(score_mod.tensors))]
