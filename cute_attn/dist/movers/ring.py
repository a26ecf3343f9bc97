"""The ring: blocks of keys travel from rank to rank, and their gradients with them; rows nobody needs any more leave.

A block's gradient follows it: what earlier ranks added arrives while a rank computes its own share. A row whose
journey ends sends its gradient straight home. So a rank holds two blocks and two gradients, however long the ring.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist

from ..comm import Arrival, send_rows
from ..plans.ring import RingPlan
from .blocks import KeyBlock

__all__ = ["Ring"]


class Ring:
    """The mover of a RingPlan, for keys that already lie in ascending order over the ring position.

    plan: on the device of the keys. group: the process group whose rank is the plan's `ring_rank`.
    """

    def __init__(self, plan: RingPlan, group: dist.ProcessGroup) -> None:
        self._steps, self._group = plan.steps, group
        self._rank, self._size = plan.ring_rank, plan.ring_size
        self._masks = [step.mask if step.area else None for step in plan.steps]

    def forward(self, kv: torch.Tensor) -> Iterator[KeyBlock]:
        """The blocks, own keys first, from packed own keys `(rows, heads_k, head_dim + head_dim_v)`."""
        last = len(self._steps) - 1
        for number, step in enumerate(self._steps):
            arrival = None
            if number < last:
                arrival = self._send([(1, kv[step.send_index])], [(-1, step.receive_rows)])
            yield KeyBlock(number, kv, self._masks[number])
            if arrival is not None:
                kv = arrival.wait()

    backward = forward  # a gradient follows its block, so blocks come in the same order

    def collect(self, kv: torch.Tensor, dtype: torch.dtype) -> RingGradients:
        return RingGradients(self)

    def return_gradient(self, number: int, grad: torch.Tensor) -> Arrival:
        """Sends on the gradient of the rows that travel on, and home that of the rows whose journey ends here.

        What arrives is the gradient so far of the next block, and that of own rows whose journey ended `number` ranks
        further; see `split_returned`.
        """
        step = self._steps[number]
        sends = [(1, grad[step.send_index]), (-number, grad[step.end_index])]
        return self._send(sends, [(-1, step.receive_rows), (number, len(step.home_index))])

    def split_returned(self, number: int, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What arrived for `return_gradient(number)`: the next block's gradient so far, own rows' and their indices."""
        onward, home = self._steps[number].receive_rows, self._steps[number].home_index
        if (self._rank - 1) % self._size < (self._rank + number) % self._size:
            return rows[:onward], rows[onward:], home
        return rows[len(home) :], rows[: len(home)], home

    def _send(self, sends: list[tuple[int, torch.Tensor]], receives: list[tuple[int, int]]) -> Arrival:
        """Exchanges rows with ranks a number of places further; the sender's and receiver's lists fit together."""
        send_splits, receive_splits = [0] * self._size, [0] * self._size
        parts = sorted((((self._rank + away) % self._size, rows) for away, rows in sends), key=lambda part: part[0])
        for peer, rows in parts:
            send_splits[peer] += len(rows)
        for away, count in receives:
            receive_splits[(self._rank + away) % self._size] += count
        return send_rows(torch.cat([rows for _, rows in parts]), send_splits, receive_splits, self._group)


class RingGradients:
    """Gradients of the packed keys, on their way round the ring: `add` takes the blocks in the order of the ring."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._total = torch.empty(0, device="cpu")
        self._under_way: tuple[int, Arrival] | None = None

    def add(self, number: int, grad: torch.Tensor) -> None:
        if number == 0:
            self._total = grad
            return
        so_far = self._absorb()
        if so_far is not None:
            grad = so_far.add_(grad)
        self._under_way = number, self._ring.return_gradient(number, grad)

    def finish(self) -> torch.Tensor:
        self._absorb()
        return self._total

    def _absorb(self) -> torch.Tensor | None:
        """Adds the gradients that came home; returns what earlier ranks gave to the block that this rank holds now."""
        if self._under_way is None:
            return None
        number, arrival = self._under_way
        self._under_way = None
        so_far, returned, home = self._ring.split_returned(number, arrival.wait())
        self._total[home] = self._total[home] + returned
        return so_far
