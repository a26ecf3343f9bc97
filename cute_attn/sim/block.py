"""The state of a thread block: its warpgroups, barriers, special registers, its place in a cluster."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from .addresses import OFFSET_MASK, RANK_SHIFT
from .barriers import MBarrier, NamedBarrier
from .errors import (
    Deadlock,
    OutOfBounds,
    Place,
    SimError,
)
from .groups import WARP
from .lanes import Warpgroup
from .memory import Fault

if TYPE_CHECKING:
    from .cta import CTA, Cluster
    from .groups import Group
    from .machine import Machine

MAX_DYNAMIC_SHARED = 227 * 1024


class Block:
    """The state of a running thread block, and how it reports what goes wrong."""

    def __init__(self, machine: Machine, cluster: Cluster, index: tuple[int, int, int], rank: int):
        launch, program = machine.launch, machine.program
        self.machine, self.program, self.cluster, self.index, self.rank = machine, program, cluster, index, rank
        self.linear = index[0] + launch.grid[0] * (index[1] + launch.grid[1] * index[2])
        self.shared = machine.take_shared()
        self.base = rank << RANK_SHIFT
        self.threads_total = launch.block[0] * launch.block[1] * launch.block[2]
        groups = -(-self.threads_total // 128)
        self.first_warp = 1 + 4 * groups * rank
        self.warpgroups = [
            Warpgroup(
                self, i, min(128, self.threads_total - 128 * i), program.rows, machine.known_lanes(i), machine.files
            )
            for i in range(groups)
        ]
        self.live = [wg.everyone for wg in self.warpgroups]
        self.mbarriers: dict[int, MBarrier] = {}
        self.barriers = [NamedBarrier(i) for i in range(16)]
        self.ready: list[Group] = []
        self.bulk: dict[tuple[int, int], Any] = {}  # by (warpgroup, lane): bulk copies of that thread
        self.classic: dict[tuple[int, int], Any] = {}  # cp.async of that thread
        self.reductions: dict[tuple[Any, ...], tuple[int, Any]] = {}
        self.cluster_phase: dict[int, int] = {}  # by warp: the cluster barrier's phase in which it arrived
        self.special = self._special()

    def threads_rounded(self) -> int:
        """Threads of the CTA that have not ended, in whole warps."""
        return 32 * sum(bool(live >> shift & WARP) for live in self.live for shift in (0, 32, 64, 96))

    def _special(self) -> SimpleNamespace:
        launch, s = self.machine.launch, SimpleNamespace()
        clusters = tuple(g // c for g, c in zip(launch.grid, launch.cluster, strict=True))
        values: dict[str, tuple[int, ...]] = {"ntid": launch.block, "ctaid": self.index, "nctaid": launch.grid}
        values["clusterid"] = tuple(i // c for i, c in zip(self.index, launch.cluster, strict=True))
        values["nclusterid"] = clusters
        values["cluster_ctaid"] = tuple(i % c for i, c in zip(self.index, launch.cluster, strict=True))
        values["cluster_nctaid"] = launch.cluster
        for name, triple in values.items():
            for axis, value in zip("xyz", triple, strict=True):
                setattr(s, f"{name}_{axis}", np.array([value], np.uint32))
        size = launch.cluster[0] * launch.cluster[1] * launch.cluster[2]
        plain = {"cluster_ctarank": self.rank, "cluster_nctarank": size, "nsmid": 132, "smid": self.linear % 132}
        plain |= {"gridid": 1, "nwarpid": 64, "dynamic_smem_size": launch.smem_bytes, "clock_hi": 0}
        plain |= {"total_smem_size": self.shared.end - self.shared.start, "clock": 0, "globaltimer_lo": 0}
        for name, value in plain.items():
            setattr(s, name, np.array([value], np.uint32))
        s.is_explicit_cluster = np.array([size > 1])
        s.clock64 = s.globaltimer = np.array([0], np.uint64)
        return s

    def threads(self, first: int) -> dict[str, np.ndarray]:
        """Thread indices of a warpgroup's 128 lanes."""
        x, y, _ = self.machine.launch.block
        linear = np.arange(first, first + 128)
        return {
            "x": (linear % x).astype(np.uint32),
            "y": (linear // x % y).astype(np.uint32),
            "z": (linear // (x * y)).astype(np.uint32),
        }

    # ------------------------------------------------------------------ errors

    def place(self, site: int, g: Group | None = None) -> Place:
        return self.program.place(site, self.index, g.warps if g is not None else ())

    def raise_fault(self, fault: Fault, site: int | tuple[int, ...], g: Group | None) -> NoReturn:
        first = site if isinstance(site, int) else site[0]
        raise fault.at(self.place(first, g)) from None

    def fail(
        self, error: type[SimError], what: str, site: int | tuple[int, ...], g: Group | None, subject: str = ""
    ) -> NoReturn:
        self.raise_fault(Fault(error, what, subject), site, g)

    def alive(self, g: Group) -> np.ndarray:
        """[warps of the group, 32]: lanes that have not left the kernel."""
        bits = np.unpackbits(np.frombuffer(self.live[g.wg.index].to_bytes(16, "little"), np.uint8), bitorder="little")
        return bits.reshape(4, 32)[list(g.lanes.warp_numbers)].astype(bool)

    def diverged(self, site: tuple[int, ...], g: Group, absent: np.ndarray) -> NoReturn:
        lanes = sorted({int(lane) for lane in np.nonzero(absent)[-1]})
        self.fail(Deadlock, f"the member mask names lanes {lanes}, which are elsewhere: they diverged before", site, g)

    def inactive_source(self, site: tuple[int, ...], g: Group) -> None:
        self.machine.warn("shfl reads a lane that does not take part: its value is undefined", self.place(site[0], g))

    # ------------------------------------------------------------------ clusters

    def peer(self, rank: int, offset: int) -> CTA:
        """The CTA of the cluster with this rank, for an access at `offset` of its shared memory."""
        ctas = self.cluster.ctas
        if rank == self.rank:
            return ctas[rank]
        subject = f"shared {offset:#x} of CTA {rank}"
        if not 0 <= rank < len(ctas):
            raise Fault(OutOfBounds, f"access to {subject} in a cluster of {len(ctas)}", subject)
        if not any(ctas[rank].live):
            raise Fault(
                OutOfBounds, f"access to {subject}: CTA {rank} of the cluster has ended, no barrier kept it", subject
            )
        return ctas[rank]

    def mapa(self, address: np.ndarray, rank: np.ndarray) -> np.ndarray:
        kind = address.dtype.type
        return (address & kind(OFFSET_MASK | ~((1 << 32) - 1) & (1 << 8 * address.itemsize) - 1)) | (
            rank.astype(kind) << kind(RANK_SHIFT)
        )
