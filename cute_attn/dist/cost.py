"""The cost model: seconds from area and rows. Its numbers steer choices; they never change results."""

from __future__ import annotations

from dataclasses import dataclass

from .checks import END, check_finite, check_int

__all__ = ["CostModel"]


@dataclass(frozen=True)
class CostModel:
    """What a row and an attended pair cost on one rank.

    heads_q, heads_k, head_dim, head_dim_v: shape of the attention. element_size: bytes of one element of q, k, v.
    flops: attention FLOP/s that one rank sustains. bandwidth: bytes/s that one rank sends, and at the same time
    receives. latency: seconds before the first byte of a collective. overlap: share of communication that can hide
    behind compute, in [0, 1]. The defaults are one H100 among others, with NVLink inside and 400 Gb/s between hosts.
    """

    heads_q: int = 32
    heads_k: int = 8
    head_dim: int = 128
    head_dim_v: int = 128
    element_size: int = 2
    flops: float = 4.5e14
    bandwidth: float = 4.0e10
    latency: float = 3.0e-5
    overlap: float = 0.9

    def __post_init__(self) -> None:
        for name in ("heads_q", "heads_k", "head_dim", "head_dim_v", "element_size"):
            check_int(f"CostModel: {name}", getattr(self, name), 1, END)
        if self.heads_q % self.heads_k:
            raise ValueError(f"CostModel: heads_q = {self.heads_q} must be divisible by heads_k = {self.heads_k}")
        for name in ("flops", "bandwidth"):
            if check_finite(f"CostModel: {name}", getattr(self, name)) <= 0:
                raise ValueError(f"CostModel: {name} must be > 0, got {getattr(self, name)!r}")
        if check_finite("CostModel: latency", self.latency) < 0:
            raise ValueError(f"CostModel: latency must be >= 0, got {self.latency!r}")
        if not 0 <= check_finite("CostModel: overlap", self.overlap) <= 1:
            raise ValueError(f"CostModel: overlap must be in [0, 1], got {self.overlap!r}")

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
        return 2 * area * self.heads_q * (self.head_dim + self.head_dim_v) / self.flops

    def send_seconds(self, size: float, collectives: int = 1) -> float:
        """Time for one rank to send or receive `size` bytes in a number of collectives."""
        return size / self.bandwidth + collectives * self.latency

    def total_seconds(self, compute: float, communication: float) -> float:
        """Compute, and what of communication cannot hide behind it."""
        return compute + communication - min(compute, self.overlap * communication)
