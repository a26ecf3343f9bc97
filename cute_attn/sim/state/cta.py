"""A running thread block, how it reports what goes wrong, and the cluster that it belongs to."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np

from ..addresses import GENERIC_LOCAL, GENERIC_SHARED, OFFSET_MASK, RANK_SHIFT
from ..errors import Deadlock, OutOfBounds, Place, SimError
from .barriers import MBarrier, NamedBarrier, Told
from .fault import Fault
from .groups import WARP, Group
from .lanes import Warpgroup
from .order import Order
from .races import Races
from .registers import Registers
from .spares import Spares
from .special import special_registers
from .translation import Translation
from .world import World


class Cluster:
    """CTAs that run together and reach each other's shared memory."""

    def __init__(self, size: int, threads: int, races: Races | None = None) -> None:
        warps = 4 * -(-threads // 128)
        self.order = races.start(size, warps) if races else Order(size, warps)
        self.told = Told()  # at its barrier
        self.ctas: list[CTA] = []
        self.phase = 0
        self.arrived: set[tuple[int, int]] = set()  # (rank, warp)
        self.waiters: list[Group] = []

    def settle(self) -> list[Group]:
        """Whom to wake if all warps that live have arrived at the cluster's barrier."""
        alive = {
            (c.rank, 4 * wg.index + w)
            for c in self.ctas
            for wg in c.warpgroups
            for w in range(4)
            if c.live[wg.index] >> 32 * w & WARP
        }
        if not alive <= self.arrived:
            return []
        self.arrived.clear()
        self.phase += 1
        self.told.complete()
        woken, self.waiters = self.waiters, []
        return woken


class CTA:
    """A running thread block. Its translated code, and operations on it, are given it as `c`."""

    def __init__(
        self,
        world: World,
        translation: Translation,
        spares: Spares,
        cluster: Cluster,
        index: tuple[int, int, int],
        rank: int,
    ):
        self.world, self.translation, self.cluster, self.index, self.rank = world, translation, cluster, index, rank
        self.shared = spares.shared()
        if world.races:
            world.races.start_cta(self.shared, cluster.order, index, translation)
        self.base = rank << RANK_SHIFT
        block = world.launch.block
        threads = math.prod(block)
        groups = -(-threads // 128)
        self.first_warp = 1 + 4 * groups * rank
        self.warpgroups = [
            Warpgroup(
                i, min(128, threads - 128 * i), self.first_warp + 4 * i, block, spares.files(), spares.known_lanes(i)
            )
            for i in range(groups)
        ]
        self.live = [wg.everyone for wg in self.warpgroups]
        self.mbarriers: dict[int, MBarrier] = {}
        self.barriers = [NamedBarrier(i) for i in range(16)]
        entry = translation.registers_at_entry
        self.registers = Registers(entry, threads) if entry is not None else None
        self.ready: list[Group] = []
        self.bulk: dict[tuple[int, int], Any] = {}  # by (warpgroup, lane): bulk copies of that thread
        self.classic: dict[tuple[int, int], Any] = {}  # cp.async of that thread
        self.reductions: dict[tuple[Any, ...], tuple[int, Any]] = {}
        self.maps: dict[int, int] = {}  # by the address of a tensor map: which of its changes the CTA has acquired
        self.cluster_phase: dict[int, int] = {}  # by warp: the cluster barrier's phase in which it arrived
        self.special = special_registers(world.launch, index, rank, self.shared.end - self.shared.start)

    def threads_rounded(self) -> int:
        """Threads of the CTA that have not ended, in whole warps."""
        return 32 * sum(bool(live >> shift & WARP) for live in self.live for shift in (0, 32, 64, 96))

    # ------------------------------------------------------------------ errors

    def place(self, site: int, g: Group | None = None) -> Place:
        return self.translation.place(site, self.index, g.warps if g is not None else ())

    def raise_fault(self, fault: Fault, site: int | tuple[int, ...], g: Group | None) -> NoReturn:
        first = site if isinstance(site, int) else site[0]
        raise fault.at(self.place(first, g)) from None

    def fail(
        self, error: type[SimError], what: str, site: int | tuple[int, ...], g: Group | None, subject: str = ""
    ) -> NoReturn:
        self.raise_fault(Fault(error, what, subject), site, g)

    def warn_found(self, site: int | tuple[int, ...], g: Group | None) -> None:
        """Names the place of findings that are no errors, if there are any: it is this one."""
        if self.world.findings.kept:
            self.world.warn_found(self.place(site if isinstance(site, int) else site[0], g))

    def alive(self, g: Group) -> np.ndarray:
        """[warps of the group, 32]: lanes that have not left the kernel."""
        bits = np.unpackbits(np.frombuffer(self.live[g.wg.index].to_bytes(16, "little"), np.uint8), bitorder="little")
        return bits.reshape(4, 32)[list(g.lanes.warp_numbers)].astype(bool)

    def diverged(self, site: tuple[int, ...], g: Group, absent: np.ndarray) -> NoReturn:
        lanes = sorted({int(lane) for lane in np.nonzero(absent)[-1]})
        self.fail(Deadlock, f"the member mask names lanes {lanes}, which are elsewhere: they diverged before", site, g)

    def inactive_source(self, site: tuple[int, ...], g: Group) -> None:
        self.world.warn("shfl reads a lane that does not take part: its value is undefined", self.place(site[0], g))

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

    # ------------------------------------------------------------------ addresses

    def shared_address(self, offset: int, wide: bool) -> np.ndarray:
        return np.array([self.base + offset], np.uint64 if wide else np.uint32)

    def local_address(self, offset: int, wide: bool) -> np.ndarray:
        return np.array([offset], np.uint64 if wide else np.uint32)

    @staticmethod
    def to_generic_shared(address: np.ndarray) -> np.ndarray:
        return address + np.uint64(GENERIC_SHARED)

    @staticmethod
    def from_generic_shared(address: np.ndarray) -> np.ndarray:
        return address - np.uint64(GENERIC_SHARED)

    @staticmethod
    def to_generic_local(address: np.ndarray) -> np.ndarray:
        return address + np.uint64(GENERIC_LOCAL)

    @staticmethod
    def from_generic_local(address: np.ndarray) -> np.ndarray:
        return address - np.uint64(GENERIC_LOCAL)
