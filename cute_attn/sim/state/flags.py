"""Flags in global memory: what those who release tell to those who acquire (PTX manual: Release and Acquire Patterns).

A release, or a fence and a relaxed store behind it, leaves at an address what its warp knows. An acquire, or a relaxed
load and a fence behind it, takes what is there. An atomic or a reduction adds to it; a store replaces it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from .order import Elsewhere, Order, joined

SCOPES = {"cta": 0, "cluster": 1, "gpu": 2, "sys": 3}


class Strength(NamedTuple):
    """What an instruction says of its order: relaxed, acquire, release or acq_rel, and for whom."""

    order: str
    scope: int

    @property
    def acquires(self) -> bool:
        return self.order in ("acquire", "acq_rel")

    @property
    def releases(self) -> bool:
        return self.order in ("release", "acq_rel")

    @property
    def narrow(self) -> bool:
        """Whether it says nothing to other clusters."""
        return self.scope < SCOPES["gpu"]


Party = tuple[int, int]  # cluster, rank of the CTA


def among(scope: int, first: Party, second: Party) -> bool:
    """Whether a scope of one takes in the other."""
    return scope >= SCOPES["gpu"] or (first[0] == second[0] and (scope == SCOPES["cluster"] or first == second))


class Message(NamedTuple):
    scope: int
    party: Party
    known: Elsewhere


class Flags:
    """What was left at which address, by whom; what warps have seen, or fenced, and made no use of yet."""

    def __init__(self) -> None:
        self.left: dict[int, list[Message]] = {}
        self.seen: dict[tuple[Order, int], list[Message]] = {}  # by relaxed loads, until a fence
        self.fenced: dict[tuple[Order, int], Message] = {}

    def concerns(self, order: Order, warps: Iterable[int], strength: Strength) -> bool:
        """Whether an access tells or learns anything at all: most atomic operations are on no flags."""
        return bool(self.left) or strength.releases or any((order, warp) in self.fenced for warp in warps)

    def publish(self, c: Any, warp: int, address: int, strength: Strength, *, replaces: bool) -> None:
        """A warp stores to a flag, or (not `replaces`) changes it by an atomic operation."""
        order, party = c.cluster.order, (c.cluster.order.number, c.rank)
        message = self.fenced.get((order, warp))
        if strength.releases:
            message = Message(strength.scope, party, order.release_abroad([warp]))
        elif message is not None:
            message = message._replace(scope=min(message.scope, strength.scope))
        left = [] if replaces else self.left.get(address, [])
        if message is not None:
            alike = [m for m in left if (m.scope, m.party) == (message.scope, message.party) or _wide(m, message)]
            known = message.known
            for other in alike:
                known = joined(known, other.known)
            left = [m for m in left if m not in alike] + [message._replace(known=known)]
        if left:
            self.left[address] = left
        else:
            self.left.pop(address, None)

    def observe(self, c: Any, warp: int, address: int, strength: Strength) -> None:
        """A warp looks at a flag."""
        left = self.left.get(address)
        if not left:
            return
        order, party = c.cluster.order, (c.cluster.order.number, c.rank)
        told = [m for m in left if among(m.scope, m.party, party) and among(strength.scope, party, m.party)]
        if strength.acquires:
            for message in told:
                order.acquire_abroad([warp], message.known)
        elif told:
            seen = self.seen.setdefault((order, warp), [])
            seen += [m for m in told if not any(m is other for other in seen)]

    def fence(self, c: Any, warp: int, scope: int) -> None:
        """fence.acq_rel or fence.sc of a warp."""
        order, party = c.cluster.order, (c.cluster.order.number, c.rank)
        for message in self.seen.pop((order, warp), ()):
            if among(scope, party, message.party):
                order.acquire_abroad([warp], message.known)
        self.fenced[order, warp] = Message(scope, party, order.release_abroad([warp]))


def _wide(first: Message, second: Message) -> bool:
    """Whether both are for everybody, whoever sent them."""
    return first.scope >= SCOPES["gpu"] and second.scope >= SCOPES["gpu"]
