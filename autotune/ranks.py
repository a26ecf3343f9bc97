"""Several ranks, one decision: rank 0 tunes, the others take what it found."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["decided_by_rank_0"]


def decided_by_rank_0(decide: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `decide()` returns on rank 0 of the default group, on every rank; without a group just `decide()`.

    Raises on every rank what went wrong on rank 0: RuntimeError elsewhere, the error itself there.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return decide()
    failure: Exception | None = None
    answer: dict[str, Any] = {}
    if dist.get_rank() == 0:
        try:
            answer = {"found": decide()}
        except Exception as error:  # told to the others before it goes on: they are waiting
            failure, answer = error, {"error": f"{type(error).__name__}: {error}"}
    answer = json.loads(_broadcast(json.dumps(answer)))
    if failure is not None:
        raise failure
    if "error" in answer:
        raise RuntimeError(f"rank 0 could not tune: {answer['error']}")
    found: dict[str, Any] = answer["found"]
    return found


def _broadcast(text: str) -> str:
    """Rank 0's text on every rank, as bytes: no pickle."""
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    data = torch.tensor(list(text.encode()), dtype=torch.uint8, device=device)
    size = torch.tensor([len(data)], device=device)
    dist.broadcast(size, 0)
    if dist.get_rank() != 0:
        data = torch.empty(int(size), dtype=torch.uint8, device=device)
    dist.broadcast(data, 0)
    return bytes(data.cpu().tolist()).decode()
