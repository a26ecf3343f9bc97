"""How context parallelism is configured: frozen, checked, compared by value and type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from ..checks import takes_keywords_of
from ..elsewhere import HINTS_OF_OVERLAP, KEYWORDS_IN_DIST
from .checks import END, check_finite, check_int
from .cost import CostModel

__all__ = [
    "MOVERS",
    "AttnOverlapMode",
    "AutoDispatchAlg",
    "ContiguousDispatchAlg",
    "DispatchAlg",
    "DispatchConfig",
    "DistAttnConfig",
    "LocalityDispatchAlg",
    "MinHeapDispatchAlg",
    "OverlapAlgType",
    "OverlapConfig",
    "ZigzagDispatchAlg",
]

Config = TypeVar("Config")
MOVERS = ("auto", "group_cast", "node_cast", "query_cast", "ring", "ulysses", "ulysses_ring")


def _with_keywords_of_others(*hints: str) -> Callable[[type[Config]], type[Config]]:
    """Decorates a config that newer MagiAttention makes with more."""

    def decorate(kind: type[Config]) -> type[Config]:
        kind.__init__ = takes_keywords_of(KEYWORDS_IN_DIST, hints)(kind.__init__)  # type: ignore[method-assign]
        return kind

    return decorate


@dataclass(frozen=True)
class DispatchAlg:
    """Base of the ways to give chunks to ranks. Every one gives each rank the same number of chunks."""


@dataclass(frozen=True)
class MinHeapDispatchAlg(DispatchAlg):
    """Largest chunk first, each to the rank with the least area so far: best balance, blind to traffic."""


@dataclass(frozen=True)
class ContiguousDispatchAlg(DispatchAlg):
    """Rank r holds the r-th consecutive part of the sequence: least traffic where the area is even."""


@dataclass(frozen=True)
class ZigzagDispatchAlg(DispatchAlg):
    """Rank r holds the r-th part from the front and the r-th from the back: made for one causal sequence."""


@dataclass(frozen=True)
class LocalityDispatchAlg(DispatchAlg):
    """Fewest bytes among the placements it finds whose largest area is at most `(1 + epsilon)` times the mean.

    epsilon: float >= 0. Where chunks are too coarse for the limit, the best balance found takes its place.
    """

    epsilon: float = 0.05

    def __post_init__(self) -> None:
        if check_finite("LocalityDispatchAlg: epsilon", self.epsilon) < 0:
            raise ValueError(f"LocalityDispatchAlg: epsilon must be >= 0, got {self.epsilon}")


@dataclass(frozen=True)
class AutoDispatchAlg(DispatchAlg):
    """The fastest by the cost model's prediction of what a search on predicted time finds, and of the simple ones."""


@_with_keywords_of_others()
@dataclass(frozen=True)
class DispatchConfig:
    """How a sequence is cut into chunks, and ranks get them.

    alg: an instance of one of the DispatchAlg classes.
    chunk_size: of a key that is given none: so many rows stay together, or an eighth of the rows of a rank where those
        are fewer; None: an eighth.
    """

    alg: DispatchAlg = field(default_factory=AutoDispatchAlg)
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.alg, DispatchAlg) or type(self.alg) is DispatchAlg:
            raise TypeError(
                "DispatchConfig: alg must be an instance of MinHeapDispatchAlg, ContiguousDispatchAlg, "
                f"ZigzagDispatchAlg, LocalityDispatchAlg or AutoDispatchAlg, got {self.alg!r}"
            )
        if self.chunk_size is not None:
            check_int("DispatchConfig: chunk_size", self.chunk_size, 1, END)


class AttnOverlapMode(Enum):
    """Who chooses the number of stages: the user (static) or the cost model (dynamic)."""

    STATIC = "static"
    DYNAMIC = "dynamic"


class OverlapAlgType(Enum):
    """How remote keys are cut into stages: equal numbers of rows, or communication as long as the compute before it."""

    UNIFORM = "uniform"
    GREEDY = "greedy"


@_with_keywords_of_others(*HINTS_OF_OVERLAP)
@dataclass(frozen=True)
class OverlapConfig:
    """How remote keys are cut into stages, so that one stage travels while another is computed.

    enable: if False, all keys are waited for and attended at once: one stage, no merge of partial results.
    mode: STATIC takes `degree` stages; DYNAMIC lets the cost model choose, and `degree` must be None.
    degree: int >= 1, stages of remote keys besides the stage of the rank's own keys.
    min_chunk_size: rows, >= 1; stages are cut at multiples of this many remote rows.
    max_num_chunks: >= 1; the unit of cutting grows so that no rank has more units than this.
    alg: how the units are given to stages.
    sm_margin: multiprocessors >= 0 that attention leaves free for communication while both run.
    dynamic_max_degree, calc_cost_factor, comm_cost_factor: by keyword, hints of newer versions that change nothing.
    """

    enable: bool = True
    mode: AttnOverlapMode = AttnOverlapMode.STATIC
    degree: int | None = 1
    min_chunk_size: int = 512
    max_num_chunks: int = 64
    alg: OverlapAlgType = OverlapAlgType.UNIFORM
    sm_margin: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.enable, bool):
            raise TypeError(f"OverlapConfig: enable must be a bool, got {self.enable!r}")
        for name, kind in (("mode", AttnOverlapMode), ("alg", OverlapAlgType)):
            if not isinstance(getattr(self, name), kind):
                allowed = ", ".join(f"{kind.__name__}.{x.name}" for x in kind)
                raise TypeError(f"OverlapConfig: {name} must be one of {allowed}, got {getattr(self, name)!r}")
        for name, least in (("min_chunk_size", 1), ("max_num_chunks", 1), ("sm_margin", 0)):
            check_int(f"OverlapConfig: {name}", getattr(self, name), least, END)
        if self.mode is AttnOverlapMode.STATIC:
            if check_int("OverlapConfig: degree", self.degree) == 0:
                raise ValueError("OverlapConfig: degree must be >= 1, got 0: enable=False attends all keys at once")
            check_int("OverlapConfig: degree", self.degree, 1, END)
        elif self.degree is not None:
            raise ValueError(f"OverlapConfig: degree must be None in DYNAMIC mode, got {self.degree!r}")


@_with_keywords_of_others()
@dataclass(frozen=True)
class DistAttnConfig:
    """Everything that context parallelism lets a user choose.

    dispatch_config: how chunks are given to ranks.
    overlap_config: how communication overlaps compute.
    mover: how keys reach queries. "group_cast" sends each needed row once to each rank that needs it; "node_cast" once
        to each node that needs it, and on to its ranks from there; "query_cast" sends queries to keys, and partial
        results back, between those ranks where that is predicted to be faster, and is "group_cast" between all others,
        on nodes too; "ring" rotates keys; "ulysses" exchanges heads for rows; "ulysses_ring" does both on a 2-D mesh
        (ring, ulysses); "auto" takes the best predicted.
    cost: the cost model by which placements, stages and "auto" are chosen: FLOP/s, bandwidths, latency, how many ranks
        a node has. Placements are made for its shape, calls have their own.
    check_ranks: ranks compare 16 bytes ahead of every call that communicates, so that ranks which were given different
        things raise instead of adding up what does not belong together. If False only the making of keys is compared.
    """

    dispatch_config: DispatchConfig = field(default_factory=DispatchConfig)
    overlap_config: OverlapConfig = field(default_factory=OverlapConfig)
    mover: str = "auto"
    check_ranks: bool = True
    cost: CostModel = field(default_factory=CostModel)

    def __post_init__(self) -> None:
        kinds = (("dispatch_config", DispatchConfig), ("overlap_config", OverlapConfig), ("cost", CostModel))
        for name, kind in kinds:
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"DistAttnConfig: {name} must be of type {kind.__name__}, got {getattr(self, name)!r}")
        if not isinstance(self.mover, str):
            raise TypeError(
                f"DistAttnConfig: mover must be a str, got {self.mover!r} of type {type(self.mover).__name__}"
            )
        if self.mover not in MOVERS:
            raise ValueError(f"DistAttnConfig: mover must be one of {', '.join(MOVERS)}, got {self.mover!r}")
        if self.mover == "node_cast" and self.cost.ranks_per_node == 1:
            raise ValueError(
                "DistAttnConfig: mover 'node_cast' needs nodes of several ranks, got ranks_per_node = 1; "
                "cost=CostModel(ranks_per_node=8) makes every 8 consecutive ranks one"
            )
        if not isinstance(self.check_ranks, bool):
            raise TypeError(f"DistAttnConfig: check_ranks must be a bool, got {self.check_ranks!r}")
