"""Tensor maps that a kernel makes: how often a launch has changed each, who knows of it, which copies still read it.

A copy reads its map when the hardware comes to it: until its mbarrier says that it is over or, of a store, until its
thread has waited for the source to be read. A map that is changed before that may be the one it reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import Race, TensorMapInUse
from .epochs import ends, first_agent, packed, unordered, unpacked
from .fault import Fault
from .transfers import Load, Store


class Maps:
    """Those in global memory, by address, of a launch in progress."""

    def __init__(self) -> None:
        self._changes: dict[int, int] = {}
        self._released: dict[int, int] = {}  # of these changes
        self._under_way: dict[int, list[Load | Store]] = {}
        # where races are looked for: the last change, and by warp or mbarriers the ends of the last copy, one for each
        self._changed: dict[int, int] = {}
        self._read: dict[int, dict[tuple[int, ...], tuple[int, ...]]] = {}

    def changes(self, address: int) -> int:
        """How often it was changed."""
        return self._changes.get(address, 0)

    def released(self, address: int) -> int:
        """How many of its changes were released to the proxy that reads maps."""
        return self._released.get(address, 0)

    def release(self, c: Any, warp: int) -> None:
        """A warp releases the changes that it knows of."""
        for address, changes in self._changes.items():
            if self._knows(c, warp, address):
                self._released[address] = changes

    def acquired(self, c: Any, warp: int, address: int) -> int:
        """How many of its changes a warp may rely on that acquires it: none if nothing orders the last before it."""
        return self.released(address) if self._knows(c, warp, address) else 0

    def _knows(self, c: Any, warp: int, address: int) -> bool:
        last = self._changed.get(address)
        return last is None or not _unordered(c, warp, (last,))[0]

    def change(self, c: Any, warp: int, site: int, address: int, *, releases: bool) -> None:
        """A warp changes it, and releases that or does not.

        Raises:
            Fault: if a copy may still read it.
        """
        self._changes[address] = self.changes(address) + 1
        subject = f"tensor map {address:#x}"
        for copy in self._under_way.get(address, ()):
            if copy.under_way:
                what = f"the {subject} is changed while a copy in flight reads it"
                c.world.findings.found(Fault(TensorMapInUse, what, subject, [str(copy)]))
        if releases:
            self._released[address] = self._changes[address]
        if c.world.races:
            before = list(self._read.get(address, {}).values())
            if address in self._changed:
                before.append((self._changed[address],))
            self._check(c, warp, site, subject, before)
            self._changed[address] = packed(first_agent(c.cluster.order) + warp, c.cluster.order.clock[warp], site)

    def _check(self, c: Any, warp: int, site: int, subject: str, before: list[tuple[int, ...]]) -> None:
        late = next((epochs[0] for epochs in before if _unordered(c, warp, epochs).all()), None)
        if late is not None:
            other, races = unpacked(late), c.world.races
            cluster, who = divmod(other.agent, len(c.cluster.order.clock))
            place = races.place(cluster, races.issuer(cluster, who), other.site)
            what = "copy through it" if other.proxy else "change of it"
            said = f"change of the {subject}, and nothing orders it behind the {what} by {place.who}"
            fault = Fault(TensorMapInUse if other.proxy else Race, said, subject, [f"the other is at {place}"])
            races.found(c.world, fault, races.place(c.cluster.order.number, warp, site))

    def load(self, c: Any, address: int, copy: Load) -> None:
        """A load is about to start that goes through it."""
        self._use(address, copy)
        if c.world.races:
            self._note(address, ends(c.cluster.order, [target.barrier for target in copy.targets], copy.site))

    def store(self, c: Any, address: int, warp: int, store: Store, *, waited: bool = False) -> None:
        """A store has started that goes through it, or its thread has waited for its source to be read."""
        if not waited:
            self._use(address, store)  # so that until then no change is missed
        elif c.world.races:
            end = packed(first_agent(c.cluster.order) + warp, c.cluster.order.clock[warp], store.site, proxy=True)
            self._note(address, (int(end),))

    def _use(self, address: int, copy: Load | Store) -> None:
        self._under_way[address] = [*(x for x in self._under_way.get(address, ()) if x.under_way), copy]

    def _note(self, address: int, epochs: tuple[int, ...]) -> None:
        """A copy through it is over for whoever knows one of these."""
        if epochs:
            self._read.setdefault(address, {})[tuple(unpacked(epoch).agent for epoch in epochs)] = epochs


def _unordered(c: Any, warp: int, epochs: tuple[int, ...]) -> np.ndarray:
    return unordered(c.cluster.order, np.full(len(epochs), warp), np.array(epochs, np.int64))
