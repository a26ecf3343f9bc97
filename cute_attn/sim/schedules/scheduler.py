"""Decides which lanes run next, in the order of the mode, and what happens when none can."""

from __future__ import annotations

from ..code.node import BRANCH, EXIT, SEGMENT, Node
from ..code.polls import Poll, note_poll, poll_of
from ..code.program import Program
from ..code.template import registers_read, registers_written
from ..errors import AccumulatorInFlight
from ..launch import Launch, Schedule
from ..state.fault import Fault
from ..state.global_memory import GlobalMemory
from ..state.groups import Group
from . import flow
from .batches import RESIDENT, Batch
from .deadlock import deadlock
from .lifecycle import start_cluster
from .machine import Machine
from .starvation import Starved

HEAVY = 48  # instructions from which it pays to run the warps of a warpgroup together


class Scheduler:
    """Runs a machine."""

    def __init__(self, launch: Launch, program: Program, memory: GlobalMemory, schedule: Schedule):
        self.machine = Machine(launch, program, memory, schedule)
        self.program, self.mode, self.seed, self.random = program, schedule.mode, schedule.seed, self.machine.random
        self.starved = Starved(launch, schedule.seed)

    def run(self, number: int, batch: Batch) -> None:
        """Runs a batch to its end: nothing is resident, in flight or waiting then."""
        m = self.machine
        self.random.seed(self.seed + (number << 64))  # the first batch, often the only one, has the seed as it came
        m.unstarted = batch[::-1]
        while m.resident or m.unstarted:
            while m.unstarted and len(m.resident) < RESIDENT[self.mode]:
                start_cluster(m)
            g = self._pick()
            if g is not None:
                self._advance(g)
            else:
                self._unblock()

    def _pick(self) -> Group | None:
        """The next group to run, taken off its CTA's list and merged with others at the same place."""
        if self.mode == "random":
            return self._pick_random()
        if self.mode == "starve":
            return self._pick_fed()
        clusters = self.machine.resident if self.mode == "eager" else reversed(self.machine.resident)
        for cluster in clusters:
            for cta in cluster.ctas:
                ready = cta.ready
                if ready:
                    if self.mode == "late":
                        g = ready.pop()
                    elif len(ready) == 1:
                        return ready.pop()
                    else:
                        first = ready[0].wg
                        g = min((x for x in ready if x.wg is first), key=lambda x: x.pc)
                        ready.remove(g)
                    return self._merge(g, ready)
        return None

    def _merge(self, g: Group, ready: list[Group]) -> Group:
        same = [x for x in ready if x.merges(g)]
        if same:
            for other in same:
                ready.remove(other)
            mask = g.mask
            for other in same:
                mask |= other.mask
            g.resize(mask)
        return g

    def _pick_fed(self) -> Group | None:
        """The newest group that is not starved; a starved one if no other can run and no copy lets another run."""
        starved: Group | None = None
        for cluster in reversed(self.machine.resident):
            for cta in cluster.ctas:
                for g in reversed(cta.ready):
                    if g in self.starved:
                        starved = starved or g
                        continue
                    cta.ready.remove(g)
                    return self.starved.part(self._merge(g, cta.ready))
        if starved is None or any(copy.needed() for copy in self.machine.pending):
            return None
        starved.cta.ready.remove(starved)
        return starved

    def _pick_random(self) -> Group | None:
        if self.machine.pending and self.random.random() < 0.1:
            self._deliver(self.random.randrange(len(self.machine.pending)))
        ready = [g for cluster in self.machine.resident for cta in cluster.ctas for g in cta.ready]
        candidates = [g for g in ready if not g.deferred]
        if candidates:
            g = self.random.choice(candidates)
            g.cta.ready.remove(g)
            if self.random.random() < 0.5:
                return self._merge(g, g.cta.ready)
            if g.lanes.warps > 1 and self.random.random() < 0.5:
                flow.split(g)
                return self._pick_random()
            return g
        if not ready:
            return None
        g = self.random.choice(ready)
        g.cta.ready.remove(g)
        g = self._merge(g, g.cta.ready)
        return g

    def _advance(self, g: Group) -> None:
        """Runs a group until it waits, parts, leaves, or another should run first."""
        cta, nodes, eager, late = g.cta, self.program.nodes, self.mode == "eager", self.mode in ("late", "starve")
        ready = cta.ready
        while True:
            if g.join is not None and g.pc == g.join.pc:
                flow.arrive(g)
                return
            node = nodes[g.pc]
            if node.kind == SEGMENT:
                if node.polls and node.spins and not self.machine.poll(g):
                    return
                if node.warpgroup and g.mask != g.wg.everyone:
                    if self._gather(g, ready):
                        continue
                    return
                if self.mode == "random" and node.weight >= HEAVY and not g.deferred and self._defers(g):
                    g.deferred = True
                    ready.append(g)
                    return
                g.deferred = False
                self._run_segment(g, node)
                g.pc = node.next
                if node.publishes and self._polled_now():
                    ready.append(g)
                    self.machine.wake_pollers()
                    return
            elif node.kind == BRANCH:
                if not flow.branch(g, node):
                    return
            elif node.kind == EXIT:
                flow.leave(self.machine, g)
                return
            else:
                assert node.operation is not None
                self.machine.woken = 0  # groups woken by the operation that runs
                before = g.pc
                goes_on = node.operation(cta, g, node)
                cta.warn_found(node.detail[0], g)
                if not goes_on:
                    return
                if g.pc == before:
                    g.pc = node.next
                if late and self.machine.woken:
                    ready.insert(max(len(ready) - self.machine.woken, 0), g)
                    return
            if self.mode == "random":
                if self.random.random() < 0.2:
                    ready.append(g)
                    return
            elif self.mode == "starve":
                if g in self.starved and any(x not in self.starved for x in ready):
                    ready.append(g)
                    return
            elif eager and ready:
                for other in ready:
                    if other.wg is g.wg and other.pc <= g.pc:
                        ready.append(g)
                        return

    def _polled_now(self) -> bool:
        """Whether those who poll look at once: first of all in a late schedule, sometimes in a random one."""
        if not self.machine.stalled:
            return False
        return self.mode in ("late", "starve") or (self.mode == "random" and self.random.random() < 0.5)

    def _defers(self, g: Group) -> bool:
        """Whether a warp waits, for speed, until others of its warpgroup reach the same long segment."""
        return g.mask != g.wg.everyone & g.cta.live[g.wg.index] and self.random.random() < 0.75

    def _gather(self, g: Group, ready: list[Group]) -> bool:
        """wgmma needs the whole warpgroup: waits until the four warps are there, which orders no memory among them."""
        waiting = g.wg.gathering
        waiting.append(g)
        here = [x for x in waiting if x.pc == g.pc]
        mask = 0
        for x in here:
            mask |= x.mask
        if mask != g.wg.everyone:
            g.waits = ("the other warps of its warpgroup, for wgmma", self.program.nodes[g.pc])
            return False
        g.wg.gathering = [x for x in waiting if x.pc != g.pc]
        g.join = None
        g.resize(mask)
        return True

    def _run_segment(self, g: Group, node: Node) -> None:
        wg = g.wg
        if node.touched:
            self._check_locks(g, node)
        function = node.function or self.program.compile(node)
        if node.warpgroup and self.machine.recorder:
            site = self.program.sites[id(node.instruction)]
            self.machine.recorder.multiply(g.cta, g, site)
        poll = poll_of(self.program, g.pc) if node.polls and self.machine.recorder else None
        address = poll.address(g.cta, g) if isinstance(poll, Poll) else None
        views = wg.view(g.mask)
        if views is not None:
            function(views, g.cta, g)
        else:
            touched, written = self.program.file_rows(node)
            views = wg.gathered(g.mask, touched)
            function(views, g.cta, g)
            wg.put_back(views, written)
        if poll:
            note_poll(g.cta, g, poll, address)
        if node.polls and "global" not in node.instruction.modifiers:  # a flag in shared memory may tell anything
            g.cta.cluster.order.acquire_all(g.numbers)
        self.machine.statistics["segments"] += 1
        self.machine.statistics["lane_instructions"] += node.weight * g.lanes.count

    def _check_locks(self, g: Group, node: Node) -> None:
        for warp in g.lanes.warp_numbers:
            state = g.wg.state[warp]
            if node.touched & state.accumulators or node.written & state.fragments:
                self._report_locked(g, node, warp)
            state.dirty |= node.written
            state.constant = state.constant & ~node.written | node.constant
            state.read |= node.touched & ~node.written

    def _report_locked(self, g: Group, node: Node, warp: int) -> None:
        state = g.wg.state[warp]
        for t in node.detail:
            touched = [r for r in (*registers_read(t), *registers_written(t)) if not t.multiply]
            for register in touched:
                bit = self.program.locks.get(register, 0)
                if bit & state.accumulators or (bit & state.fragments and register in registers_written(t)):
                    entries = [e for group in [*state.committed, state.open] for e in group]
                    owner = next(e for e in entries if bit & (e.locks[0] | e.locks[1]))
                    line = self.program.kernel.instructions[owner.sites[0]].line
                    what = f"register {register.name} is touched while the wgmma of PTX line {line} is in flight"
                    g.cta.fail(AccumulatorInFlight, what, self.program.sites[id(t.instruction)], g, register.name)

    # ------------------------------------------------------------------ when nobody can run

    def _unblock(self) -> None:
        """Polls again after progress, delivers a copy, starts a cluster, or reports that nothing can go on."""
        if self.machine.wake_pollers():
            return
        if self.machine.pending:
            needed = [i for i, copy in enumerate(self.machine.pending) if copy.needed()]
            choices = needed or range(len(self.machine.pending))
            self._deliver(self.random.choice(list(choices)) if self.mode == "random" else choices[-1])
        elif self.machine.unstarted:
            start_cluster(self.machine)
        else:
            raise deadlock(self.machine)

    def _deliver(self, index: int) -> None:
        copy = self.machine.pending.pop(index)
        try:
            woken = copy.deliver(self.machine.memory, held=True)
        except Fault as fault:
            raise fault.at(copy.place) from None
        self.machine.warn_found(copy.place)
        self.machine.progress += 1
        self.machine.wake(woken)
