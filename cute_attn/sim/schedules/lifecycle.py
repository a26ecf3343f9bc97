"""How clusters of CTAs start, and what must be in order when they end."""

from __future__ import annotations

import math
from dataclasses import replace

from ..code.copies import finish_stores
from ..errors import AccumulatorInFlight, CopyInFlight, Place, TransactionCount
from ..state.cta import CTA, Cluster
from ..state.groups import Group
from .machine import Machine


def start_cluster(machine: Machine) -> None:
    launch = machine.launch
    first = machine.unstarted.pop()
    cx, cy, cz = launch.cluster
    cluster = Cluster(cx * cy * cz, math.prod(launch.block), machine.races)
    for rank in range(cx * cy * cz):
        index = (first[0] + rank % cx, first[1] + rank // cx % cy, first[2] + rank // (cx * cy))
        cta = CTA(machine, machine.program, machine.spares, cluster, index, rank)
        cluster.ctas.append(cta)
        if machine.recorder:
            machine.recorder.start(cta)
        for wg in cta.warpgroups:
            cta.ready.append(Group(cta, wg, wg.everyone, 0, None))
    machine.resident.append(cluster)
    machine.statistics["ctas"] += len(cluster.ctas)


def finish(machine: Machine, cta: CTA) -> None:
    """The last lane has left: nothing may be in flight or unbalanced."""
    _check_copies(machine, cta)
    finish_stores(cta)
    _check_barriers(machine, cta)
    _check_products(machine, cta)
    cluster = cta.cluster
    machine.wake(cluster.settle())
    if not any(any(c.live) for c in cluster.ctas):
        machine.resident.remove(cluster)
        for c in cluster.ctas:
            machine.spares.keep(c.shared, c.warpgroups)


def _check_copies(machine: Machine, cta: CTA) -> None:
    for copy in machine.pending:
        if any(target.shared is cta.shared for target in copy.targets):
            raise CopyInFlight(f"the CTA ends while {copy} is in flight", replace(copy.place, cta=cta.index))


def _check_barriers(machine: Machine, cta: CTA) -> None:
    for barrier in cta.mbarriers.values():
        if barrier.transaction:
            what = f"the CTA ends with {barrier.transaction} transaction bytes outstanding"
            place = Place(machine.launch.kernel, cta=cta.index)
            if barrier.expecting is not None:
                site, warps = barrier.expecting
                place = machine.program.place(site, cta.index, warps)
            raise TransactionCount(what, place, subject=barrier.subject, notes=[str(barrier)])


def _check_products(machine: Machine, cta: CTA) -> None:
    for wg in cta.warpgroups:
        for warp, state in enumerate(wg.state):
            if state.accumulators:
                entry = next(e for group in [*state.committed, state.open] for e in group)
                place = machine.program.place(entry.sites[0], cta.index, (4 * wg.index + warp,))
                raise AccumulatorInFlight("the warp ends with a wgmma that it never waited for", place)
