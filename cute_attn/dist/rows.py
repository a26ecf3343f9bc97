"""Rows between global tensors and local ones: dispatch, undispatch and roll, with their gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from .comm import gather_rows, send_rows, sum_rows_of_ranks
from .guard import Guard, rows_fields
from .placing.placement import Placement

__all__ = ["RollPlan", "dispatch_rows", "plan_roll", "roll_rows", "undispatch_rows"]


def dispatch_rows(x: torch.Tensor, placement: Placement, guard: Guard, pad_value: float) -> torch.Tensor:
    """This rank's rows of x padded with `pad_value`, `(length, ...)` to `(rows_per_rank, ...)`.

    Gradient: an all-gather; every rank gets the complete gradient of x.
    """
    return _Dispatch.apply(x, placement, guard, pad_value)


def undispatch_rows(x: torch.Tensor, placement: Placement, guard: Guard, is_partial_grad: bool) -> torch.Tensor:
    """The whole tensor without padding from every rank's rows, `(rows_per_rank, ...)` to `(length, ...)`.

    Gradient: this rank's rows, of the sum over ranks if `is_partial_grad`.
    """
    return _Undispatch.apply(x, placement, guard, is_partial_grad)


def roll_rows(x: torch.Tensor, there: RollPlan, back: RollPlan, guard: Guard) -> torch.Tensor:
    """x `(rows_per_rank, ...)` with rows moved as `there` says; `back` moves the gradient."""
    return _Roll.apply(x, there, back, guard)


@dataclass(frozen=True, eq=False)
class RollPlan:
    """How one rank takes part in a roll: rows `send_index` leave in the order of peers, arriving rows go to `order`."""

    shift: int
    send_index: torch.Tensor
    send_splits: list[int]
    order: torch.Tensor
    receive_splits: list[int]

    def to(self, device: torch.device) -> RollPlan:
        return replace(self, send_index=self.send_index.to(device), order=self.order.to(device))


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
        shift=shift,
        send_index=slot[leaving // size] * size + leaving % size,
        send_splits=torch.bincount(peer, minlength=world).tolist(),
        order=sender[rank].argsort(stable=True),
        receive_splits=torch.bincount(sender[rank], minlength=world).tolist(),
    )


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, placement: Placement, guard: Guard, pad_value: float) -> torch.Tensor:
        ctx.placement, ctx.guard = placement, guard
        return _take(x, placement, guard.groups.rank, pad_value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        with ctx.guard.exchange("the backward of dispatch", rows_fields(grad)):
            return _whole(grad, ctx.placement, ctx.guard.groups.whole), None, None, None


class _Undispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, placement: Placement, guard: Guard, is_partial_grad: bool) -> torch.Tensor:
        ctx.placement, ctx.guard, ctx.is_partial_grad = placement, guard, is_partial_grad
        with guard.exchange("undispatch", rows_fields(x, is_partial_grad=is_partial_grad)):
            return _whole(x, placement, guard.groups.whole)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        placement, groups = ctx.placement, ctx.guard.groups
        if not ctx.is_partial_grad:
            return _take(grad, placement, groups.rank), None, None, None
        with ctx.guard.exchange("the backward of undispatch", rows_fields(grad)):
            everyone = torch.cat([_take(grad, placement, rank) for rank in range(placement.world)])
            return sum_rows_of_ranks(everyone, groups.whole), None, None, None


class _Roll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, there: RollPlan, back: RollPlan, guard: Guard) -> torch.Tensor:
        ctx.back, ctx.guard = back, guard
        with guard.exchange("roll", rows_fields(x, shift=there.shift)):
            return _exchange(x, there, guard.groups.whole)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        with ctx.guard.exchange("the backward of roll", rows_fields(grad, shift=ctx.back.shift)):
            return _exchange(grad, ctx.back, ctx.guard.groups.whole), None, None, None


def _take(x: torch.Tensor, placement: Placement, rank: int, pad_value: float = 0) -> torch.Tensor:
    """A rank's rows of a global tensor, `pad_value` where they are padding."""
    positions = placement.positions(rank)
    inside = int((positions < placement.length).sum())  # positions ascend: padding is last
    local = x.new_full((len(positions), *x.shape[1:]), pad_value)
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
