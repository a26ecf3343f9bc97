"""The cost model: seconds from area and rows. Its numbers steer choices; they never change results."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from .checks import END, check_finite, check_int, check_kind
from .rates import sustained

if TYPE_CHECKING:
    from .groups import GroupOrMesh

__all__ = ["CostModel"]

ELSEWHERE = 4.5e14  # FLOP/s where no kernel serves the shape
BACKWARD = 2.5  # times the forward's products, where both go at one rate


@dataclass(frozen=True)
class CostModel:
    """What a row and an attended pair cost on one rank.

    heads_q, heads_k, head_dim, head_dim_v: shape of the attention. element_size: bytes of one element of q, k, v.
    flops: attention FLOP/s that one rank sustains, forward and backward; None takes what `cute_attn.predict` says of
    our kernels at these head dims on a Hopper GPU, and 450 TFLOP/s where there are none. bandwidth: bytes/s that one
    rank sends, and at the same time receives, to and from other nodes. latency: seconds before the first byte of a
    collective. overlap: share of communication that can hide behind compute, in [0, 1]. ranks_per_node: so many
    consecutive ranks are a node; as many as there are make one, else it must divide their number. node_bandwidth:
    bytes/s inside a node. The defaults are one H100 among others, with 400 Gb/s between hosts and NVLink inside, which
    nothing uses until ranks_per_node is given.
    """

    heads_q: int = 32
    heads_k: int = 8
    head_dim: int = 128
    head_dim_v: int = 128
    element_size: int = 2
    flops: float | None = None
    bandwidth: float = 4.0e10
    latency: float = 3.0e-5
    overlap: float = 0.9
    ranks_per_node: int = 1
    node_bandwidth: float = 4.0e11

    def __post_init__(self) -> None:
        for name in ("heads_q", "heads_k", "head_dim", "head_dim_v", "element_size", "ranks_per_node"):
            check_int(f"CostModel: {name}", getattr(self, name), 1, END)
        if self.heads_q % self.heads_k:
            raise ValueError(f"CostModel: heads_q = {self.heads_q} must be divisible by heads_k = {self.heads_k}")
        for name in ("flops", "bandwidth", "node_bandwidth"):
            if name == "flops" and self.flops is None:
                continue
            if check_finite(f"CostModel: {name}", getattr(self, name)) <= 0:
                raise ValueError(f"CostModel: {name} must be > 0, got {getattr(self, name)!r}")
        if check_finite("CostModel: latency", self.latency) < 0:
            raise ValueError(f"CostModel: latency must be >= 0, got {self.latency!r}")
        if not 0 <= check_finite("CostModel: overlap", self.overlap) <= 1:
            raise ValueError(f"CostModel: overlap must be in [0, 1], got {self.overlap!r}")

    @classmethod
    def measured(
        cls,
        cp_group_or_mesh: GroupOrMesh,
        cost: CostModel | None = None,
        *,
        ranks_per_node: int | None = None,
        size: int = 1 << 26,
    ) -> CostModel:
        """`cost`, None for the default, with bandwidths and latency as they are measured now on a process group.

        Every rank calls it, with equal arguments, and every rank gets the same numbers; it takes a few exchanges of
        `size` bytes a rank. All ranks send at the same time, to the same place in the next node, and to the next rank
        of their node; the fastest of five rounds counts, of each the slowest rank. ranks_per_node: None takes that of
        `cost`. What one node, or nodes of one rank, do not have keeps its number. Raises as making a key does: where
        arguments differ, ValueError on every rank; where a rank does not call, RuntimeError on the others once they
        have waited for the timeout of the group, which cannot be used any more then.
        """
        from .groups import find_groups
        from .measure import measure

        groups = find_groups(cp_group_or_mesh)
        cost = cls() if cost is None else cost

        def check() -> tuple[int, dict[str, object]]:
            check_kind("cost", cost, CostModel)
            check_int("size", size, 1, END)
            on_nodes = cost if ranks_per_node is None else replace(cost, ranks_per_node=ranks_per_node)
            return on_nodes.node_size(groups.world), asdict(on_nodes)

        bandwidth, node_bandwidth, latency = measure(groups, check, size)
        return replace(
            cost,
            bandwidth=cost.bandwidth if bandwidth is None else bandwidth,
            node_bandwidth=cost.node_bandwidth if node_bandwidth is None else node_bandwidth,
            latency=cost.latency if latency is None else latency,
            ranks_per_node=cost.ranks_per_node if ranks_per_node is None else ranks_per_node,
        )

    @property
    def key_bytes(self) -> int:
        """Bytes of one row of K and V together."""
        return self.heads_k * (self.head_dim + self.head_dim_v) * self.element_size

    @property
    def query_bytes(self) -> int:
        """Bytes of one row of Q and O together."""
        return self.heads_q * (self.head_dim + self.head_dim_v) * self.element_size

    def compute_seconds(self, area: float) -> float:
        """Forward time of `area` attended pairs on one rank."""
        return area * self._pair_seconds[0]

    def backward_seconds(self, area: float) -> float:
        """Backward time of `area` attended pairs on one rank."""
        return area * self._pair_seconds[1]

    @cached_property
    def _pair_seconds(self) -> tuple[float, float]:
        """Of one attended pair, forward and backward."""
        products = 2 * self.heads_q * (self.head_dim + self.head_dim_v)
        rates = None if self.flops is not None else sustained(self.head_dim, self.head_dim_v, self.element_size)
        if rates is None:
            forward = products / (self.flops or ELSEWHERE)
            return forward, BACKWARD * forward
        return products / rates[0], 2 * self.heads_q * (3 * self.head_dim + 2 * self.head_dim_v) / rates[1]

    def send_seconds(self, across: float, collectives: int = 1, inside: float = 0.0) -> float:
        """Time for one rank to send or receive so many bytes, across and inside of nodes at the same time, in a number
        of collectives."""
        return max(across / self.bandwidth, inside / self.node_bandwidth) + collectives * self.latency

    def node_size(self, world: int) -> int:
        """Ranks of a node among `world` ranks. Raises ValueError where nodes would not be equal."""
        size = min(self.ranks_per_node, world)
        if world % size:
            raise ValueError(f"CostModel: ranks_per_node must divide the number of ranks, got {size} for {world} ranks")
        return size

    def total_seconds(self, compute: float, communication: float) -> float:
        """Compute, and what of communication cannot hide behind it."""
        return compute + communication - min(compute, self.overlap * communication)
