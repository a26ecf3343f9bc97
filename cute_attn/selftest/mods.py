"""score_mods of the self-test by name, and that of any kernel by its graph: what they read is drawn here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cute_attn.mods.distance import ROOM, TABLED
from cute_attn.mods.graph import Graph
from cute_attn.mods.tape import CAPTURED
from cute_attn.mods.trace import Traced, trace

__all__ = ["ANY", "SCORE_MODS", "Drawn", "score_mod_of"]

ANY = "any"  # the name of what the graph of a spec says
_DTYPES = {name: dtype for dtype, (name, _) in CAPTURED.items()}
_SIZES = {0: 1, 1: 4096, 2: 256, 3: 40}  # of each dimension of a tensor of so many; more have 8


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
    table = drawn.floats(drawn.heads, drawn.rows + ROOM + drawn.keys - 1)
    return Traced(TABLED, [table], [drawn.keys - 1])


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
    """A score_mod of the table, or the one that has a graph, with tensors and numbers that keep most graphs finite."""
    if name != ANY:
        return SCORE_MODS[name].made(drawn)
    function = Graph.parse(graph)
    tensors = []
    for dtype, rank in function.tensors:
        shape = (_SIZES.get(rank, 8),) * rank
        is_float = CAPTURED[_DTYPES[dtype]][1] == "f32"
        of_dtype = {"dtype": _DTYPES[dtype]}
        tensors.append(drawn.floats(*shape, **of_dtype) if is_float else drawn.integers(2, *shape, **of_dtype))
    return Traced(graph, tensors, [0.5 if dtype == "f32" else 3 for dtype in function.scalars])
