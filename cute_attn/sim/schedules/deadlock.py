"""Who waits on what, when nothing can go on."""

from __future__ import annotations

from ..errors import Deadlock, Place, RegistersExceeded, SimError, TransactionCount
from ..state.barriers import MBarrier
from ..state.groups import Group
from ..state.registers import Registers
from .machine import Machine

LISTED = 24  # groups named in a report


def deadlock(machine: Machine) -> SimError:
    """The error to raise: a deadlock, or the transaction bytes that an mbarrier waits for in vain."""
    blocked = _blocked(machine)
    place, subject, notes = Place(machine.launch.kernel), "", []
    for g in blocked[:LISTED]:
        on, node = g.waits or ("nothing", machine.program.nodes[g.pc])
        notes.append(f"CTA {g.cta.index} warps {g.warps} at PTX line {node.instruction.line} wait on {on}")
    if blocked:
        first = blocked[0]
        on, node = first.waits or ("", machine.program.nodes[first.pc])
        place = machine.program.place(machine.program.sites[id(node.instruction)], first.cta.index, first.warps)
        subject = getattr(on, "subject", "")
    for g in blocked:
        on = g.waits[0] if g.waits else None
        if isinstance(on, Registers):
            site, (_, count) = machine.program.nodes[g.pc].detail
            place = machine.program.place(site, g.cta.index, g.warps)
            return RegistersExceeded(on.short(g.warps, count), place, subject=on.subject, notes=notes)
        if isinstance(on, MBarrier) and not on.pending and on.transaction:
            what = f"the barrier waits for {on.transaction} transaction bytes that no copy will deliver"
            return TransactionCount(what, place, subject=on.subject, notes=notes)
    return Deadlock("nothing can go on", place, subject=subject, notes=notes)


def _blocked(machine: Machine) -> list[Group]:
    found: list[Group] = list(machine.stalled)
    for cluster in machine.resident:
        found += cluster.waiters
        for cta in cluster.ctas:
            found += [g for barrier in cta.barriers for g in barrier.waiters]
            found += [g for barrier in cta.mbarriers.values() for g in barrier.waiters]
            found += [g for wg in cta.warpgroups for g in wg.gathering]
            found += cta.registers.waiters if cta.registers else []
    return found
