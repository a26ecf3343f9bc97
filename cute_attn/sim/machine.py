"""One launch in progress: what its CTAs share, how copies start, whom an event wakes."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from .batches import Batch
from .cta import CTA, Cluster
from .errors import Place
from .groups import WARP, Group
from .lanes import Lanes
from .launch import Launch, Schedule
from .memory import GlobalMemory, SharedMemory
from .node import Node
from .program import Program
from .tma import Load, Store


class Machine:
    """The state of a launch in progress."""

    def __init__(self, launch: Launch, program: Program, memory: GlobalMemory, schedule: Schedule):
        self.launch, self.program, self.memory, self.mode = launch, program, memory, schedule.mode
        self.nodes = program.nodes
        self.seed, self.random = schedule.seed, random.Random()
        self.parameters = self._parameters()
        self.lanes: dict[int, dict[int, Lanes]] = {}
        self.files: list[dict[str, np.ndarray]] = []  # register files to use again
        self.spare: list[SharedMemory] = []
        self.resident: list[Cluster] = []
        self.unstarted: Batch = []  # of the batch that runs, last first
        self.pending: list[Load] = []
        self.stalled: list[Group] = []  # polls that wait for any progress
        self.progress = 0
        self.woken = 0  # groups woken by the operation that runs
        self.statistics = dict.fromkeys(("ctas", "segments", "lane_instructions", "wgmmas", "copies"), 0)
        self.warnings: dict[str, None] = {}

    def _parameters(self) -> np.ndarray:
        params = list(self.program.kernel.params.values())
        if len(params) != len(self.launch.arguments):
            raise ValueError(f"arguments: {len(self.launch.arguments)} came; the kernel has {len(params)} parameters")
        data = np.zeros(max((p.offset + p.size for p in params), default=0), np.uint8)
        for param, raw in zip(params, self.launch.arguments, strict=True):
            if len(raw) != param.size:
                raise ValueError(f"argument {param.name}: {len(raw)} bytes came; the kernel has {param.size}")
            data[param.offset : param.offset + param.size] = np.frombuffer(raw, np.uint8)
        return data

    # ------------------------------------------------------------------ what CTAs ask for

    def known_lanes(self, warpgroup: int) -> dict[int, Lanes]:
        return self.lanes.setdefault(warpgroup, {})

    def take_shared(self) -> SharedMemory:
        if self.spare:
            shared = self.spare.pop()
            shared.clear()
            return shared
        start = 1024
        return SharedMemory(start, self.program.dynamic_start + self.launch.smem_bytes)

    def warn(self, what: str, place: Place) -> None:
        """Once for each kind and PTX line, whichever warp or CTA."""
        self.warnings[f"{what}; PTX line {place.line}: {place.text}"] = None

    def runs_wgmma_at_commit(self) -> bool:
        return self.mode == "eager" or (self.mode == "random" and self.random.random() < 0.5)

    def holds_copies(self) -> bool:
        return self.mode == "late" or (self.mode == "random" and self.random.random() < 0.7)

    def start(self, copy: Load, cta: CTA, g: Group) -> None:
        """Starts an asynchronous load: now, or held back."""
        self.statistics["copies"] += 1
        hold = self.holds_copies()
        copy.begin(hold=hold)
        self.progress += 1
        if hold:
            self.pending.append(copy)
        else:
            self.wake(copy.deliver(self.memory, held=False))

    def begin_store(self, store: Store) -> None:
        if not self.holds_copies():
            store.read()
            store.write(self.memory)

    def look_away(self, g: Group) -> bool:
        """Whether a look at a barrier is answered with no although its phase is over: legal, and hostile."""
        if self.mode == "eager" or (self.mode == "random" and self.random.random() < 0.5):
            return False
        again = g.denied == g.pc
        g.denied = -1 if again else g.pc
        return not again

    def poll(self, g: Group) -> bool:
        """Whether an unsuccessful poll may go round again: only if something happened since the last."""
        mark = (g.pc, self.progress)
        if g.polled == mark:
            g.waits = ("progress of others", self.nodes[g.pc])
            self.stalled.append(g)
            return False
        g.polled = mark
        return True

    def wake_pollers(self) -> bool:
        """Makes those ready whose polls may find something new; whether there are any."""
        again = [g for g in self.stalled if g.polled[1] != self.progress]
        self.stalled = [g for g in self.stalled if g.polled[1] == self.progress]
        self.wake(again)
        return bool(again)

    def wake(self, groups: Sequence[Group]) -> None:
        """Makes groups ready; in a late schedule they run before whoever woke them."""
        for g in groups:
            g.waits = None
            g.cta.ready.append(g)
        self.woken += len(groups)

    def split(self, g: Group) -> None:
        """Every warp of a group on its own."""
        for mask in g.parts():
            g.cta.ready.append(Group(g.cta, g.wg, mask, g.pc, g.join))

    def one_by_one(self, g: Group, node: Node) -> None:
        """Runs an operation for every warp of a group on its own: its operands differ among them."""
        assert node.operation is not None
        for mask in g.parts():
            part = Group(g.cta, g.wg, mask, g.pc, g.join)
            if node.operation(g.cta, part, node):
                part.pc = node.next
                g.cta.ready.append(part)

    def settle_cluster(self, cluster: Cluster) -> None:
        alive = {
            (c.rank, 4 * wg.index + w)
            for c in cluster.ctas
            for wg in c.warpgroups
            for w in range(4)
            if c.live[wg.index] >> 32 * w & WARP
        }
        if alive <= cluster.arrived:
            cluster.arrived.clear()
            cluster.phase += 1
            cluster.told.complete()
            woken, cluster.waiters = cluster.waiters, []
            self.wake(woken)
