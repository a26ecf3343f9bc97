"""What a placement makes ranks send, across nodes and inside of them, and how long that takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..cost import CostModel
from .needs import Spans, positions_of, remote_needs, rows_within
from .placement import Placement, merge_ranks

__all__ = ["Traffic", "cast_traffic", "node_needs", "relayed_traffic", "relays"]


@dataclass(frozen=True, eq=False)
class Traffic:
    """Key rows that each rank sends and receives in a forward, int64 `(world,)` each, across nodes and inside of them.

    collectives: one after another for every stage; 2 where rows cross first and are handed on inside then.
    """

    across_sent: torch.Tensor
    across_received: torch.Tensor
    inside_sent: torch.Tensor
    inside_received: torch.Tensor
    collectives: int

    @property
    def sent(self) -> torch.Tensor:
        return self.across_sent + self.inside_sent

    @property
    def received(self) -> torch.Tensor:
        return self.across_received + self.inside_received

    def seconds(self, cost: CostModel, stages: int = 1) -> float:
        """Of the busiest rank. Where there is one collective, both networks work at the same time."""
        across, inside = (
            int(torch.maximum(sent, received).max()) * cost.key_bytes
            for sent, received in (
                (self.across_sent, self.across_received),
                (self.inside_sent, self.inside_received),
            )
        )
        if self.collectives == 1:
            return cost.send_seconds(across, stages, inside)
        return cost.send_seconds(across, stages) + cost.send_seconds(0, stages, inside)


def cast_traffic(remote: Spans, key: Placement, node_size: int) -> Traffic:
    """Each rank receives its `remote` rows from their owners."""
    if node_size == key.world:
        sent, received = _inside(remote, *_held(key), key.world, node_size)
        return Traffic(torch.zeros_like(sent), torch.zeros_like(sent), sent, received, 1)
    sent, received = _inside(remote, *_held(key), key.world, 0)
    if node_size == 1:
        return Traffic(sent, received, torch.zeros_like(sent), torch.zeros_like(sent), 1)
    inside_sent, inside_received = _inside(remote, *_held(key), key.world, node_size)
    return Traffic(sent - inside_sent, received - inside_received, inside_sent, inside_received, 1)


def relayed_traffic(needs: Spans, remote: Spans, key: Placement, node_size: int) -> Traffic:
    """Each row that ranks of other nodes need crosses once to each of these, and is handed on inside."""
    relay = relays(node_needs(needs, key, node_size), key.world, node_size)
    across_sent, across_received = _inside(relay, *_held(key), key.world, 0)
    holder, held = _held(key)
    spans = Spans(*[torch.cat(both) for both in zip(Spans(holder, *held), relay, strict=True)])
    inside_sent, inside_received = _inside(remote, spans.group, (spans.lo, spans.hi), key.world, node_size)
    # What a rank relays to itself does not travel again.
    bound = key.padded_length + 1
    own = rows_within(
        (relay.lo + relay.group * bound, relay.hi + relay.group * bound),
        remote.lo + remote.group * bound,
        remote.hi + remote.group * bound,
    )
    own = torch.zeros_like(inside_sent).index_add_(0, remote.group, own)
    return Traffic(across_sent, across_received, inside_sent - own, inside_received - own, 2)


def node_needs(needs: Spans, key: Placement, node_size: int) -> Spans:
    """By node, the rows that its ranks need and none of them holds; `needs` is grouped by rank."""
    return remote_needs(needs.merged(node_size, key.padded_length), merge_ranks(key, node_size))


def relays(crossing: Spans, world: int, node_size: int) -> Spans:
    """By rank, the rows that cross to its node through it: each rank of a node takes an equal part, in order."""
    nodes = world // node_size
    rows = crossing.rows_by_group(nodes)
    cuts = positions_of(crossing, rows * torch.arange(node_size + 1, device="cpu")[:, None] // node_size)
    parts = []
    for place in range(node_size):
        node, lo, hi = crossing.clip(cuts[place], cuts[place + 1])
        parts.append(Spans(node * node_size + place, lo, hi))
    group, lo, hi = (torch.cat(x) for x in zip(*parts, strict=True))
    order = group.argsort(stable=True)
    return Spans(group[order], lo[order], hi[order])


def _held(key: Placement) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """The rank of each chunk, and its rows."""
    edges = torch.arange(key.chunks.numel(), device="cpu") * key.chunk_size
    return key.owner(), (edges, edges + key.chunk_size)


def _inside(
    remote: Spans, holder: torch.Tensor, held: tuple[torch.Tensor, torch.Tensor], world: int, node_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(sent, received)` of each rank where holders send what they hold of `remote` to ranks of their node; to all
    ranks where node_size is 0."""
    bound = int(held[1].max()) + 1
    there, here = (x // node_size * bound if node_size else torch.zeros_like(x) for x in (remote.group, holder))
    needed, held = (remote.lo + there, remote.hi + there), (held[0] + here, held[1] + here)
    zeros = torch.zeros(world, dtype=torch.int64, device="cpu")
    sent = zeros.index_add(0, holder, rows_within(needed, *held))
    return sent, zeros.index_add(0, remote.group, rows_within(held, *needed))
