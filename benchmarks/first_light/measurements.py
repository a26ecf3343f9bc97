"""What the first light measures: attention beside its peers in order of value, and tiles beside each other."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
from attention_cases import CASES

from autotune.problem import Problem
from cute_attn.launch.shapes import spec_for
from cute_attn.spec.operation import Spec
from cute_attn.spec.tiles import BackwardTile, Tile, TileConfig

__all__ = ["CORE", "PROBLEMS", "REST", "TILES", "Beside", "TiledCase", "specs", "tiles_of"]

PROBLEMS: dict[str, Problem] = {
    **CASES,
    "causal-4k": replace(CASES["causal"], batch=2, seqlen_q=4096, seqlen_k=4096),
    "causal-16k": replace(CASES["causal"], seqlen_q=16384, seqlen_k=16384),
    "causal-32k": replace(CASES["causal"], heads_q=16, heads_k=4, seqlen_q=32768, seqlen_k=32768),
    "full-16k": replace(CASES["full"], heads_q=16, heads_k=4, seqlen_q=16384, seqlen_k=16384),
    "small-16k": replace(CASES["small"], batch=1, seqlen_q=16384, seqlen_k=16384),
}
SDPA, FLEX = ("sdpa-cudnn", "sdpa-flash"), ("flex_attention",)
BOTH = ("forward", "backward")


class Beside(NamedTuple):
    """A problem of PROBLEMS, the operations that are timed, and beside which peers."""

    problem: str
    operations: tuple[str, ...]
    peers: tuple[str, ...]


# Most valuable first, peers that need no compiler before others.
CORE = [
    *(Beside(name, BOTH, SDPA) for name in ("causal", "full", "small", "latent", "large")),
    *(Beside(name, BOTH, FLEX) for name in ("window", "packed")),
    Beside("causal", ("deterministic",), SDPA),
]
REST = [
    Beside("causal", BOTH, FLEX),
    Beside("prefix", BOTH, FLEX),
    *(Beside(name, BOTH, SDPA) for name in ("causal-16k", "causal-32k", "causal-4k", "full-16k", "small-16k")),
    *(Beside(name, ("deterministic",), ()) for name in ("window", "packed", "small")),
]


class TiledCase(NamedTuple):
    """An operation of a problem, and what is timed beside its default: tiles, and tiles with softmax="exact"."""

    problem: str
    operation: str
    tiles: tuple[Tile, ...]
    exact: tuple[TileConfig, ...] = ()


_EXACT = (TileConfig(128, 128), TileConfig(128, 176))
_TURNS_OFF = TileConfig(128, 128, 2, ping_pong=False)
TILES = [
    TiledCase("causal", "forward", (_TURNS_OFF, *(TileConfig(128, n) for n in (144, 112, 96))), _EXACT),
    TiledCase("full", "forward", (_TURNS_OFF, TileConfig(128, 144)), _EXACT),
    TiledCase("causal", "backward", (BackwardTile(128, 2, 1), BackwardTile(128, 2, 2, 2), BackwardTile(64))),
    TiledCase(
        "small",
        "forward",
        (_TURNS_OFF, TileConfig(128, 128, 4), TileConfig(128, 176)),
        (TileConfig(128, 128), TileConfig(192, 128)),
    ),
    TiledCase("small", "backward", (BackwardTile(128, 2, 2, 2), BackwardTile(128, 4, 4))),
]


def tiles_of(case: TiledCase) -> Iterator[tuple[str, Tile | None, str]]:
    """(name, tile, softmax) of each candidate, the default first."""
    yield "default", None, "stale"
    for tile in case.tiles:
        yield str(tile), tile, "stale"
    for tile in case.exact:
        yield f"{tile}, exact", tile, "exact"


def specs() -> list[Spec]:
    """Of every kernel that is measured here."""
    found = []
    for problem, operations, _ in (*CORE, *REST):
        found.append(_spec(problem, "fwd"))  # a backward is timed behind its forward
        found += [_spec(problem, "bwd")] * ("backward" in operations)
        found += [_spec(problem, "bwd", deterministic=True)] * ("deterministic" in operations)
    for case in TILES:
        for _, tile, softmax in tiles_of(case):
            variant = {"softmax": softmax} if case.operation == "forward" else {}
            found.append(_spec(case.problem, "fwd" if case.operation == "forward" else "bwd", tile, **variant))
    return list(dict.fromkeys(found))


def _spec(name: str, op: str, tile: Tile | None = None, **variant: object) -> Spec:
    p = PROBLEMS[name]
    return spec_for(op, p.dtype, p.head_dim, p.head_dim_v, p.intervals(), tile, **variant)
