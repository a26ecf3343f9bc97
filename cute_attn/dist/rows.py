"""Rows between global tensors and local ones: dispatch, undispatch and roll, with their gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from .comm import gather_rows, send_rows, sum_rows_of_ranks
from .placement import Placement

__all__ = ["RollPlan", "dispatch_rows", "plan_roll", "roll_rows", "undispatch_rows"]


def dispatch_rows(x: torch.Tensor, placement: Placement, group: dist.ProcessGroup) -> torch.Tensor:
    """This rank's rows of x padded with zeros, `(length, ...)` to `(rows_per_rank, ...)`.

    Gradient: an all-gather; every rank gets the complete gradient of x.
    """
    return _Dispatch.apply(x, placement, group)


def undispatch_rows(
    x: torch.Tensor, placement: Placement, group: dist.ProcessGroup, is_partial_grad: bool
) -> torch.Tensor:
    """The whole tensor without padding from every rank's rows, `(rows_per_rank, ...)` to `(length, ...)`.

    Gradient: this rank's rows, of the sum over ranks if `is_partial_grad`.
    """
    return _Undispatch.apply(x, placement, group, is_partial_grad)


def roll_rows(x: torch.Tensor, there: RollPlan, back: RollPlan, group: dist.ProcessGroup) -> torch.Tensor:
    """x `(rows_per_rank, ...)` with rows moved as `there` says; `back` moves the gradient."""
    return _Roll.apply(x, there, back, group)


@dataclass(frozen=True, eq=False)
class RollPlan:
    """How one rank takes part in a roll: rows `send_index` leave in the order of peers, arriving rows go to `order`."""

    send_index: torch.Tensor
    send_splits: list[int]
    order: torch.Tensor
    receive_splits: list[int]

    def to(self, device: torch.device) -> RollPlan:
        return RollPlan(self.send_index.to(device), self.send_splits, self.order.to(device), self.receive_splits)


def plan_roll(placement: Placement, rank: int, shift: int) -> RollPlan:
    """The row at position p comes from position `(p - shift) % length`; padding stays where it is."""
    world, size, length = placement.world, placement.chunk_size, placement.length
    to = torch.stack([placement.positions(r) for r in range(world)])
    source = torch.where(to < length, (to - shift) % max(length, 1), to)
    owner, slot = placement.owner(), torch.empty(placement.chunks.numel(), dtype=torch.int64, device="cpu")
    slot[placement.chunks.reshape(-1)] = torch.arange(placement.chunks.shape[1], device="cpu").repeat(world)
    sender = owner[source // size]
    peer, row = (sender == rank).nonzero(as_tuple=True)
    leaving = source[peer, row]
    return RollPlan(
        send_index=slot[leaving // size] * size + leaving % size,
        send_splits=torch.bincount(peer, minlength=world).tolist(),
        order=sender[rank].argsort(stable=True),
        receive_splits=torch.bincount(sender[rank], minlength=world).tolist(),
    )


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, placement: Placement, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.placement, ctx.group = placement, group
        return _take(x, placement, group.rank())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _whole(grad, ctx.placement, ctx.group), None, None


class _Undispatch(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, placement: Placement, group: dist.ProcessGroup, is_partial_grad: bool
    ) -> torch.Tensor:
        ctx.placement, ctx.group, ctx.is_partial_grad = placement, group, is_partial_grad
        return _whole(x, placement, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        placement, group = ctx.placement, ctx.group
        if ctx.is_partial_grad:
            everyone = torch.cat([_take(grad, placement, rank) for rank in range(placement.world)])
            return sum_rows_of_ranks(everyone, group), None, None, None
        return _take(grad, placement, group.rank()), None, None, None


class _Roll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, there: RollPlan, back: RollPlan, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.back, ctx.group = back, group
        return _exchange(x, there, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return _exchange(grad, ctx.back, ctx.group), None, None, None


def _take(x: torch.Tensor, placement: Placement, rank: int) -> torch.Tensor:
    """A rank's rows of a global tensor, zeros where they are padding."""
    positions = placement.positions(rank)
    inside = int((positions < placement.length).sum())  # positions ascend: padding is last
    local = x.new_zeros(len(positions), *x.shape[1:])
    local[:inside] = x[positions[:inside].to(x.device)]
    return local


def _whole(x: torch.Tensor, placement: Placement, group: dist.ProcessGroup) -> torch.Tensor:
    """The global tensor, without padding, of every rank's rows."""
    chunks = gather_rows(x, group).unflatten(0, (-1, placement.chunk_size))
    order = placement.chunks.reshape(-1).argsort().to(x.device)
    return chunks[order].flatten(0, 1)[: placement.length]


def _exchange(x: torch.Tensor, plan: RollPlan, group: dist.ProcessGroup) -> torch.Tensor:
    received = send_rows(x[plan.send_index], plan.send_splits, plan.receive_splits, group).wait()
    return torch.empty_like(received).index_copy_(0, plan.order, received)
