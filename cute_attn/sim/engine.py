"""Runs a launch: creates its clusters, schedules groups of lanes, delivers copies, and finds when nothing can go on."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from . import blas
from .barriers import MBarrier
from .block import MAX_DYNAMIC_SHARED, Block
from .copies import finish_stores
from .cta import CTA, Cluster
from .errors import AccumulatorInFlight, CopyInFlight, Deadlock, Place, SharedMemoryExceeded, TransactionCount
from .groups import WARP, Group, Join
from .lanes import Lanes, Warpgroup, mask_of
from .launch import Buffer, Launch, Report, Schedule
from .memory import Fault, GlobalMemory, SharedMemory
from .program import BRANCH, EXIT, SEGMENT, Node, Program, program_of
from .tma import Load, Store

HEAVY = 48  # instructions from which it pays to run the warps of a warpgroup together
RESIDENT = {"eager": 1, "late": 2, "random": 3}  # clusters that run side by side even if none has to wait


def execute(launch: Launch, buffers: Sequence[Buffer], schedule: Schedule) -> Report:
    """Runs one launch on the CPU; writes the buffers.

    Raises:
        SimError: for everything that the kernel does wrong, or that is not modelled.
        ValueError: for a launch whose shapes do not fit each other, or buffers that are not flat uint8.
    """
    _check(launch)
    program = program_of(launch.ptx, launch.kernel)
    with np.errstate(all="ignore"), blas.one_thread():
        return Machine(launch, program, GlobalMemory(buffers), schedule).run()


def _check(launch: Launch) -> None:
    for name, triple in (("grid", launch.grid), ("block", launch.block), ("cluster", launch.cluster)):
        if len(triple) != 3 or min(triple) < 1:
            raise ValueError(f"{name} is {triple}; allowed: three positive numbers")
    if any(g % c for g, c in zip(launch.grid, launch.cluster, strict=True)):
        raise ValueError(f"grid is {launch.grid}; it must be a multiple of the cluster {launch.cluster}")
    threads = launch.block[0] * launch.block[1] * launch.block[2]
    if threads > 1024:
        raise ValueError(f"block is {launch.block}, {threads} threads; allowed: at most 1024")
    if not 0 <= launch.smem_bytes <= MAX_DYNAMIC_SHARED:
        place = Place(launch.kernel)
        raise SharedMemoryExceeded(
            f"{launch.smem_bytes} bytes of dynamic shared memory; a CTA has {MAX_DYNAMIC_SHARED}", place
        )


class Machine:
    """One launch in progress."""

    def __init__(self, launch: Launch, program: Program, memory: GlobalMemory, schedule: Schedule):
        self.launch, self.program, self.memory, self.mode = launch, program, memory, schedule.mode
        self.nodes = program.nodes
        self.random = random.Random(schedule.seed)
        self.parameters = self._parameters()
        self.lanes: dict[int, dict[int, Lanes]] = {}
        self.files: list[dict[str, np.ndarray]] = []  # register files to use again
        self.spare: list[SharedMemory] = []
        self.resident: list[Cluster] = []
        self.unstarted = self._clusters()
        self.pending: list[Load] = []
        self.stalled: list[Group] = []  # polls that wait for any progress
        self.progress = 0
        self.woken = 0  # groups woken by the operation that runs
        self.denied: set[tuple[int, int]] = set()  # looks that were told no too early, once each
        self.statistics = dict.fromkeys(("ctas", "segments", "lane_instructions", "wgmmas", "copies"), 0)
        self.warnings: dict[str, None] = {}
        self.reducers: dict[str, int] = {}
        self.reduced: set[str] = set()

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

    def record_reduction(self, cta: Block, addresses: np.ndarray, size: int, *, floating: bool) -> None:
        """Notes who adds floating-point numbers to which buffer."""
        if not floating:
            return
        for address in {int(addresses.min()), int(addresses.max())}:
            index = self.memory.find(address, address + size)
            if index is not None:
                name = self.memory.buffers[index].name
                if self.reducers.setdefault(name, cta.linear) != cta.linear:
                    self.reduced.add(name)

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
        key = (id(g), g.pc)
        if key in self.denied:
            self.denied.remove(key)
            return False
        self.denied.add(key)
        return True

    def poll(self, g: Group) -> bool:
        """Whether an unsuccessful poll may go round again: only if something happened since the last."""
        mark = (g.pc, self.progress)
        if g.polled == mark:
            g.waits = ("progress of others", self.nodes[g.pc])
            self.stalled.append(g)
            return False
        g.polled = mark
        return True

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
            woken, cluster.waiters = cluster.waiters, []
            self.wake(woken)

    # ------------------------------------------------------------------ clusters

    def _clusters(self) -> list[tuple[int, int, int]]:
        """The first CTA of each cluster, in the order in which they start, last first."""
        (gx, gy, gz), (cx, cy, cz) = self.launch.grid, self.launch.cluster
        order = [(x, y, z) for z in range(0, gz, cz) for y in range(0, gy, cy) for x in range(0, gx, cx)]
        return order[::-1]

    def _start_cluster(self) -> None:
        first = self.unstarted.pop()
        cluster = Cluster()
        cx, cy, cz = self.launch.cluster
        for rank in range(cx * cy * cz):
            index = (first[0] + rank % cx, first[1] + rank // cx % cy, first[2] + rank // (cx * cy))
            cta = CTA(self, cluster, index, rank)
            cluster.ctas.append(cta)
            for wg in cta.warpgroups:
                cta.ready.append(Group(cta, wg, wg.everyone, 0, None))
        self.resident.append(cluster)
        self.statistics["ctas"] += len(cluster.ctas)

    def _finish(self, cta: CTA) -> None:
        """The last lane has left: nothing may be in flight or unbalanced."""
        for copy in self.pending:
            if any(c is cta for c, _, _ in copy.targets):
                cta.fail(CopyInFlight, f"the CTA ends while {copy} is in flight", copy.site, None)
        finish_stores(cta)
        for barrier in cta.mbarriers.values():
            if barrier.transaction:
                what = f"the CTA ends with {barrier.transaction} transaction bytes outstanding"
                raise Fault(TransactionCount, what, barrier.subject, [str(barrier)]).at(
                    Place(self.launch.kernel, cta=cta.index)
                )
        for wg in cta.warpgroups:
            for warp, state in enumerate(wg.state):
                if state.accumulators:
                    entry = next(e for group in [*state.committed, state.open] for e in group)
                    place = self.program.place(entry.sites[0], cta.index, (4 * wg.index + warp,))
                    raise AccumulatorInFlight("the warp ends with a wgmma that it never waited for", place)
        cluster = cta.cluster
        self.settle_cluster(cluster)
        if not any(any(c.live) for c in cluster.ctas):
            self.resident.remove(cluster)
            for c in cluster.ctas:
                self.spare.append(c.shared)
                self.files.extend(wg.files for wg in c.warpgroups)

    # ------------------------------------------------------------------ the main loop

    def run(self) -> Report:
        while self.unstarted or self.resident:
            while self.unstarted and len(self.resident) < RESIDENT[self.mode]:
                self._start_cluster()
            g = self._pick()
            if g is not None:
                self._advance(g)
            else:
                self._unblock()
        return Report(frozenset(self.reduced), tuple(self.warnings), dict(self.statistics))

    def _pick(self) -> Group | None:
        """The next group to run, taken off its CTA's list and merged with others at the same place."""
        if self.mode == "random":
            return self._pick_random()
        clusters = self.resident if self.mode == "eager" else reversed(self.resident)
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

    def _pick_random(self) -> Group | None:
        if self.pending and self.random.random() < 0.1:
            self._deliver(self.random.randrange(len(self.pending)))
        candidates = [g for cluster in self.resident for cta in cluster.ctas for g in cta.ready if not g.deferred]
        if candidates:
            g = self.random.choice(candidates)
            g.cta.ready.remove(g)
            if self.random.random() < 0.5:
                return self._merge(g, g.cta.ready)
            if g.lanes.warps > 1 and self.random.random() < 0.5:
                self.split(g)
                return self._pick_random()
            return g
        deferred = [g for cluster in self.resident for cta in cluster.ctas for g in cta.ready]
        if not deferred:
            return None
        g = self.random.choice(deferred)
        g.cta.ready.remove(g)
        g = self._merge(g, g.cta.ready)
        return g

    def _advance(self, g: Group) -> None:
        """Runs a group until it waits, parts, leaves, or another should run first."""
        cta, nodes, eager, late = g.cta, self.nodes, self.mode == "eager", self.mode == "late"
        ready = cta.ready
        while True:
            if g.join is not None and g.pc == g.join.pc:
                self._arrive(g)
                return
            node = nodes[g.pc]
            if node.kind == SEGMENT:
                if node.polls and node.spins and not self.poll(g):
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
            elif node.kind == BRANCH:
                if not self._branch(g, node):
                    return
            elif node.kind == EXIT:
                self._leave(g)
                return
            else:
                assert node.operation is not None
                self.woken = 0  # groups woken by the operation that runs
                before = g.pc
                if not node.operation(cta, g, node):
                    return
                if g.pc == before:
                    g.pc = node.next
                if late and self.woken:
                    ready.insert(max(len(ready) - self.woken, 0), g)
                    return
            if self.mode == "random":
                if self.random.random() < 0.2:
                    ready.append(g)
                    return
            elif eager and ready:
                for other in ready:
                    if other.wg is g.wg and other.pc <= g.pc:
                        ready.append(g)
                        return

    def _defers(self, g: Group) -> bool:
        """Whether a warp waits, for speed, until others of its warpgroup reach the same long segment."""
        return g.mask != g.wg.everyone & g.cta.live[g.wg.index] and self.random.random() < 0.75

    def _gather(self, g: Group, ready: list[Group]) -> bool:
        """wgmma needs the whole warpgroup: waits until the four warps are at the same instruction."""
        waiting = g.wg.gathering
        waiting.append(g)
        here = [x for x in waiting if x.pc == g.pc]
        mask = 0
        for x in here:
            mask |= x.mask
        if mask != g.wg.everyone:
            g.waits = ("the other warps of its warpgroup, for wgmma", self.nodes[g.pc])
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
        views = wg.view(g.mask)
        if views is not None:
            function(views, g.cta, g)
        else:
            views, written = wg.gathered(g.mask, node.groups, self.program.rows)
            function(views, g.cta, g)
            wg.put_back(views, written)
        self.statistics["segments"] += 1
        self.statistics["lane_instructions"] += node.weight * g.lanes.count

    def _check_locks(self, g: Group, node: Node) -> None:
        for warp in g.lanes.warp_numbers:
            state = g.wg.state[warp]
            if node.touched & state.accumulators or node.written & state.fragments:
                self._report_locked(g, node, warp)
            state.dirty |= node.written

    def _report_locked(self, g: Group, node: Node, warp: int) -> None:
        from .segment import registers_read, registers_written

        state = g.wg.state[warp]
        for t in node.detail:
            touched = [r for r in (*registers_read(t), *registers_written(t)) if not t.accumulator]
            for register in touched:
                bit = self.program.locks.get(register, 0)
                if bit & state.accumulators or (bit & state.fragments and register in registers_written(t)):
                    entries = [e for group in [*state.committed, state.open] for e in group]
                    owner = next(e for e in entries if bit & (e.locks[0] | e.locks[1]))
                    line = self.program.kernel.instructions[owner.sites[0]].line
                    what = f"register {register.name} is touched while the wgmma of PTX line {line} is in flight"
                    g.cta.fail(AccumulatorInFlight, what, self.program.sites[id(t.instruction)], g, register.name)

    # ------------------------------------------------------------------ control flow

    def _branch(self, g: Group, node: Node) -> bool:
        """Moves the group; false if it parted into several."""
        if node.row < 0:
            g.pc = node.target
            return True
        taken = g.wg.files["p"][node.row][g.lanes.index]
        count = int(np.count_nonzero(taken))
        if count == g.lanes.count or count == 0:
            g.pc = node.target if (count > 0) != node.negated else node.next
            return True
        if node.negated:
            taken = ~taken
        mask = mask_of(g.lanes.lanes[taken])
        self._part(g, node, mask)
        return False

    def _part(self, g: Group, node: Node, taken: int) -> None:
        """Whole warps just go their ways; lanes of one warp will meet at the join."""
        through = torn = gone = 0
        for mask in g.parts():
            if mask & taken == mask:
                gone |= mask
            elif mask & taken == 0:
                through |= mask
            else:
                torn |= mask
        cta, wg = g.cta, g.wg
        groups = []
        if torn:
            join = Join(node.join, torn, g.join) if node.join is not None else g.join
            groups.append(Group(cta, wg, torn & ~taken, node.next, join))
            groups.append(Group(cta, wg, torn & taken, node.target, join))
        if through:
            groups.append(Group(cta, wg, through, node.next, g.join))
        if gone:
            groups.append(Group(cta, wg, gone, node.target, g.join))
        cta.ready.extend(groups)

    def _arrive(self, g: Group) -> None:
        """A group reached its join; whole warps go on from there."""
        join = g.join
        assert join is not None
        join.arrived |= g.mask
        done = join.complete()
        if done:
            g.cta.ready.append(Group(g.cta, g.wg, done, join.pc, join.parent))

    def _leave(self, g: Group) -> None:
        """`ret`: the lanes are gone; joins do not wait for them."""
        cta, wg = g.cta, g.wg
        join = g.join
        while join is not None:
            join.expected &= ~g.mask
            join.arrived &= ~g.mask
            done = join.complete()
            if done:
                cta.ready.append(Group(cta, wg, done, join.pc, join.parent))
            join = join.parent
        cta.live[wg.index] &= ~g.mask
        if not any(cta.live):
            self._finish(cta)

    # ------------------------------------------------------------------ when nobody can run

    def _unblock(self) -> None:
        """Polls again after progress, delivers a copy, starts a cluster, or reports that nothing can go on."""
        again = [g for g in self.stalled if g.polled[1] != self.progress]
        if again:
            self.stalled = [g for g in self.stalled if g.polled[1] == self.progress]
            self.wake(again)
        elif self.pending:
            needed = [i for i, copy in enumerate(self.pending) if copy.needed()]
            choices = needed or range(len(self.pending))
            self._deliver(self.random.choice(list(choices)) if self.mode == "random" else choices[-1])
        elif self.unstarted:
            self._start_cluster()
        else:
            self._report_deadlock()

    def _deliver(self, index: int) -> None:
        copy = self.pending.pop(index)
        try:
            woken = copy.deliver(self.memory, held=True)
        except Fault as fault:
            copy.targets[0][0].raise_fault(fault, copy.site, None)
        self.progress += 1
        self.wake(woken)

    def _blocked(self) -> list[Group]:
        found: list[Group] = list(self.stalled)
        for cluster in self.resident:
            found += cluster.waiters
            for cta in cluster.ctas:
                found += [g for b in cta.barriers for g in b.waiters]
                found += [g for b in cta.mbarriers.values() for g in b.waiters]
                found += [g for wg in cta.warpgroups for g in wg.gathering]
        return found

    def _report_deadlock(self) -> None:
        blocked = self._blocked()
        notes = []
        for g in blocked[:24]:
            on, node = g.waits or ("nothing", self.nodes[g.pc])
            name = on[0] if isinstance(on, tuple) else on
            instruction = node.instruction
            notes.append(f"CTA {g.cta.index} warps {g.warps} at PTX line {instruction.line} wait on {name}")
        first = blocked[0] if blocked else None
        place = Place(self.launch.kernel)
        if first is not None:
            node = first.waits[1] if first.waits else self.nodes[first.pc]
            place = self.program.place(self.program.sites[id(node.instruction)], first.cta.index, first.warps)
        starving = next(
            (
                b
                for g in blocked
                if g.waits and isinstance(b := g.waits[0], MBarrier) and not b.pending and b.transaction
            ),
            None,
        )
        if starving is not None:
            what = f"the barrier waits for {starving.transaction} transaction bytes that no copy will deliver"
            raise TransactionCount(what, place, subject=starving.subject, notes=notes)
        subject = getattr(first.waits[0], "subject", "") if first is not None and first.waits else ""
        raise Deadlock("nothing can go on", place, subject=subject, notes=notes)


__all__ = ["Machine", "Warpgroup", "execute"]
