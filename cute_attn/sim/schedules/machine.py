"""One launch in progress: what its CTAs share, how copies start, whom an event wakes."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from ..code.program import Program
from ..errors import Place
from ..launch import Launch, Report, Schedule
from ..state.cta import Cluster
from ..state.global_memory import GlobalMemory
from ..state.groups import Group
from ..state.maps import Maps
from ..state.races import Races
from ..state.spares import Spares
from ..state.steps import Recorder
from ..state.transfers import Load, Store
from .batches import Batch


class Machine:
    """The state of a launch in progress: the world of its CTAs."""

    def __init__(self, launch: Launch, program: Program, memory: GlobalMemory, schedule: Schedule):
        self.findings = memory.findings
        self.launch, self.program, self.memory, self.mode = launch, program, memory, schedule.mode
        self.random = random.Random()
        self.recorder: Recorder | None = None
        memory.watches_sums = schedule.fixed_sums
        self.races = Races(*program.units, fixed_sums=schedule.fixed_sums) if schedule.races else None
        self.parameters = self._parameters()
        self.spares = Spares(program.dynamic_start + launch.smem_bytes, program.registers, self.findings)
        self.resident: list[Cluster] = []
        self.unstarted: Batch = []  # of the batch that runs, last first
        self.pending: list[Load] = []
        self.stalled: list[Group] = []  # polls that wait for any progress
        self.progress = 0
        self.maps = Maps()
        self.woken = 0  # groups woken by the operation that runs
        self.statistics = dict.fromkeys(("ctas", "segments", "lane_instructions", "wgmmas", "copies"), 0)
        self.warnings: dict[tuple[str, int | None], str] = {}  # by kind and PTX line

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

    def warn(self, what: str, place: Place) -> None:
        self._warn(what, what, place)

    def warn_found(self, place: Place) -> None:
        for fault in self.findings.kept:
            name = fault.error.__name__
            self._warn(name, f"{name}: {fault.what}", place)
        self.findings.kept.clear()

    def _warn(self, kind: str, what: str, place: Place) -> None:
        self.warnings.setdefault((kind, place.line), f"{what}; PTX line {place.line}: {place.text}")

    def multiplies_at_commit(self) -> bool:
        return self.mode == "eager" or (self.mode == "random" and self.random.random() < 0.5)

    def holds_copies(self) -> bool:
        return self.mode in ("late", "starve") or (self.mode == "random" and self.random.random() < 0.7)

    def start(self, copy: Load) -> None:
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
        told_at_once = self.mode == "eager" or (self.mode == "random" and self.random.random() < 0.5)
        if told_at_once and self.recorder is None:  # what a look finds may not steer what is recorded
            return False
        again = g.denied == g.pc
        g.denied = -1 if again else g.pc
        return not again

    def poll(self, g: Group) -> bool:
        """Whether an unsuccessful poll may go round again: only if something happened since the last."""
        mark = (g.pc, self.progress)
        if g.polled == mark:
            g.waits = ("progress of others", self.program.nodes[g.pc])
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

    def report(self) -> Report:
        if self.races:
            self.races.end(self)
        buffers = self.memory.buffers
        noted = [(buffers[i], additions) for i, additions in self.memory.additions.items() if additions.several]
        rounding = {b.name: additions.bound(b.data) for b, additions in noted}
        loaded, stored = (frozenset(buffers[i].name for i in x) for x in (self.memory.loaded, self.memory.stored))
        warnings, statistics = tuple(self.warnings.values()), dict(self.statistics)
        return Report(frozenset(rounding), warnings, statistics, rounding, loaded=loaded, stored=stored)
