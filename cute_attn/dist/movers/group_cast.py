"""Group cast and group reduce: each needed key row goes once to each rank that needs it, its gradient comes back.

In a node cast both take two steps. What has crossed to a node is handed on inside of it; gradients are added up there
before they cross back.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist

from ..comm import Arrival, Departure, add_returned, send_rows
from ..plans.group_cast import CastPlan, CastStage, Crossing
from .blocks import KeyBlock

__all__ = ["GroupCast"]


class GroupCast:
    """The mover of a CastPlan. While one stage is attended the rows of the next are on their way.

    plan: on the device of the keys. group: the process group whose ranks the plan numbers.
    """

    def __init__(self, plan: CastPlan, group: dist.ProcessGroup) -> None:
        self._stages, self._group = plan.stages, group
        self._masks = [stage.mask if stage.area else None for stage in plan.stages]

    def forward(self, kv: torch.Tensor) -> Iterator[KeyBlock]:
        """The stages' keys, own keys first, from packed own keys `(rows, heads_k, head_dim + head_dim_v)`."""
        return self._blocks(kv, range(len(self._stages)))

    def backward(self, kv: torch.Tensor) -> Iterator[KeyBlock]:
        """The same last stage first, so that the return of the last gradient hides behind the own keys."""
        return self._blocks(kv, range(len(self._stages) - 1, -1, -1))

    def collect(self, kv: torch.Tensor, dtype: torch.dtype) -> CastGradients:
        return CastGradients(self._stages, self._group, torch.zeros_like(kv, dtype=dtype))

    def _blocks(self, kv: torch.Tensor, order: range) -> Iterator[KeyBlock]:
        arrival = self._start(kv, order[0])
        for index, following in zip(order, [*order[1:], None], strict=True):
            received = arrival.wait() if arrival else None
            arrival = self._start(kv, following) if following is not None else None
            yield KeyBlock(index, _stage_keys(self._stages[index], kv, received), self._masks[index])

    def _start(self, kv: torch.Tensor, index: int) -> Arrival | Departure | None:
        stage, across = self._stages[index], self._stages[index].across
        if not stage.communicates:
            return None
        if across is None:
            return self._hand_on(stage, kv)
        crossing = across

        def start() -> Arrival:
            sent = kv[crossing.send_index]
            crossed = send_rows(sent, crossing.send_splits, crossing.receive_splits, self._group).wait()
            return self._hand_on(stage, torch.cat([kv, crossed]))

        return Departure(start, kv.device)

    def _hand_on(self, stage: CastStage, rows: torch.Tensor) -> Arrival:
        return send_rows(rows[stage.send_index], stage.send_splits, stage.receive_splits, self._group)


class CastGradients:
    """Gradients of the packed keys, on their way back to the owners: `total` is complete after `finish`."""

    def __init__(self, stages: tuple[CastStage, ...], group: dist.ProcessGroup, total: torch.Tensor) -> None:
        self._stages, self._group, self._total = stages, group, total
        self._under_way: tuple[CastStage, Arrival | _Return] | None = None

    def add(self, number: int, grad: torch.Tensor) -> None:
        """Takes the gradient of the keys of a stage; every rank calls it for the same stages in the same order."""
        stage = self._stages[number]
        if stage.key_index is not None:
            grad = torch.empty_like(grad).index_copy_(0, stage.key_index, grad)
        if stage.includes_local:
            self._total += grad[: len(self._total)]
            grad = grad[len(self._total) :]
        if stage.communicates:
            arrival: Arrival | _Return
            if stage.across is None:
                arrival = send_rows(grad, stage.receive_splits, stage.send_splits, self._group)
            else:
                arrival = _Return(stage, stage.across, grad, len(self._total), self._group)
            self._absorb()
            self._under_way = stage, arrival

    def finish(self) -> torch.Tensor:
        self._absorb()
        return self._total

    def _absorb(self) -> None:
        if self._under_way is not None:
            stage, arrival = self._under_way
            if isinstance(arrival, _Return):
                arrival.add_to(self._total)
            else:
                add_returned(self._total, arrival.wait(), stage.send_index, stage.send_splits)
            self._under_way = None


class _Return:
    """Gradients of a stage of a node cast on their way: inside of the node first, then their sums across."""

    def __init__(
        self, stage: CastStage, across: Crossing, grad: torch.Tensor, own: int, group: dist.ProcessGroup
    ) -> None:
        self._across, self._grad, self._own = across, grad, own  # grad is read until all is here

        def start() -> Arrival:
            returned = send_rows(grad, stage.receive_splits, stage.send_splits, group).wait()
            self._sums = grad.new_zeros(own + sum(across.receive_splits), *grad.shape[1:])
            add_returned(self._sums, returned, stage.send_index, stage.send_splits)
            return send_rows(self._sums[own:], across.receive_splits, across.send_splits, group)

        self._departure = Departure(start, grad.device)

    def add_to(self, total: torch.Tensor) -> None:
        returned = self._departure.wait()
        total += self._sums[: self._own]
        add_returned(total, returned, self._across.send_index, self._across.send_splits)


def _stage_keys(stage: CastStage, local: torch.Tensor, received: torch.Tensor | None) -> torch.Tensor:
    """The keys of a stage in ascending global order."""
    if received is None:
        keys = local if stage.includes_local else local[:0]
    else:
        keys = torch.cat([local, received]) if stage.includes_local else received
    return keys if stage.key_index is None else keys[stage.key_index]
