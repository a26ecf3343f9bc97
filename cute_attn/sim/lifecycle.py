"""How clusters of CTAs start, and what must be in order when they end."""

from __future__ import annotations

import math

from .copies import finish_stores
from .cta import CTA, Cluster
from .errors import AccumulatorInFlight, CopyInFlight, Place, TransactionCount
from .groups import Group
from .machine import Machine


class Lifecycle(Machine):
    """The part of a machine that starts and ends CTAs."""

    def start_cluster(self) -> None:
        first = self.unstarted.pop()
        cx, cy, cz = self.launch.cluster
        cluster = Cluster(cx * cy * cz, math.prod(self.launch.block))
        for rank in range(cx * cy * cz):
            index = (first[0] + rank % cx, first[1] + rank // cx % cy, first[2] + rank // (cx * cy))
            cta = CTA(self, cluster, index, rank)
            cluster.ctas.append(cta)
            for wg in cta.warpgroups:
                cta.ready.append(Group(cta, wg, wg.everyone, 0, None))
        self.resident.append(cluster)
        self.statistics["ctas"] += len(cluster.ctas)

    def finish(self, cta: CTA) -> None:
        """The last lane has left: nothing may be in flight or unbalanced."""
        for copy in self.pending:
            if any(c is cta for c, _, _ in copy.targets):
                cta.fail(CopyInFlight, f"the CTA ends while {copy} is in flight", copy.site, None)
        finish_stores(cta)
        for barrier in cta.mbarriers.values():
            if barrier.transaction:
                what = f"the CTA ends with {barrier.transaction} transaction bytes outstanding"
                place = Place(self.launch.kernel, cta=cta.index)
                if barrier.expecting is not None:
                    site, warps = barrier.expecting
                    place = self.program.place(site, cta.index, warps)
                raise TransactionCount(what, place, subject=barrier.subject, notes=[str(barrier)])
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
