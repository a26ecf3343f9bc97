"""What `attention.py` measures: problems by name, their tensors, and the arithmetic that they need."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import NamedTuple

import torch

from autotune.problem import PRESETS, Problem

__all__ = ["CASES", "OPERATIONS", "Inputs", "flops", "make_inputs", "mask_arguments", "shrunk"]

OPERATIONS = ("forward", "backward", "deterministic")  # the last is the backward with equal bits from run to run
_ANSWERS = "/".join(["1536"] * 8)
CASES: dict[str, Problem] = {name: problems[0] for name, problems in PRESETS.items()} | {
    "prefix": Problem(
        mask=f"shared_prefix:prefix_length=4096,lengths={_ANSWERS}", seqlen_q=16384, seqlen_k=16384
    )
}  # fmt: skip


class Inputs(NamedTuple):
    """q `(batch, seqlen_q, heads_q, head_dim)`, k, v, and the gradient of the output."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    dout: torch.Tensor

    @property
    def bytes(self) -> int:
        """Of what a forward reads."""
        return sum(x.numel() * x.element_size() for x in (self.q, self.k, self.v))


def make_inputs(problem: Problem, device: torch.device) -> Inputs:
    """Normal random numbers in bf16."""
    p = problem

    def random(seqlen: int, heads: int, dim: int) -> torch.Tensor:
        return torch.randn(p.batch, seqlen, heads, dim, device=device).bfloat16()

    return Inputs(
        random(p.seqlen_q, p.heads_q, p.head_dim),
        random(p.seqlen_k, p.heads_k, p.head_dim),
        random(p.seqlen_k, p.heads_k, p.head_dim_v),
        random(p.seqlen_q, p.heads_q, p.head_dim_v),
    )


def flops(problem: Problem, operation: str) -> int:
    """Floating-point operations of the products, over exactly the pairs that the mask attends.

    Forward: `q k^T` and `p v`, 2 area (d + dv) a head. Backward: `q k^T`, `dp = do v^T`, `dv = p^T do`, `dk = ds^T q`,
    `dq = ds k`, 2 area (3 d + 2 dv): 2.5 forwards where d = dv.
    """
    d, dv = problem.head_dim, problem.head_dim_v
    dims = d + dv if operation == "forward" else 3 * d + 2 * dv
    return 2 * problem.intervals().area() * problem.batch * problem.heads_q * dims


def shrunk(problem: Problem, factor: int) -> Problem:
    """The same with lengths divided; every number in the masks of CASES counts tokens as well."""
    mask = re.sub(r"\d+", lambda number: str(int(number[0]) // factor), problem.mask)
    return replace(problem, mask=mask, seqlen_q=problem.seqlen_q // factor, seqlen_k=problem.seqlen_k // factor)


def mask_arguments(problem: Problem) -> tuple[str, dict[str, list[int]]]:
    """The name of the problem's mask, and the numbers that it takes."""
    name, _, rest = problem.mask.partition(":")
    items = (item.split("=") for item in rest.split(",") if item)
    return name, {key: [int(number) for number in value.split("/")] for key, value in items}
