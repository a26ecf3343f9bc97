"""Collectives over rows: contiguous, with splits that the host knows, sums in the order of ranks.

Everything travels by all_to_all_single or an all-gather, which gloo and NCCL both have. Under NCCL an all-to-all is one
group of sends and receives in which empty splits cost nothing, so a shift round a ring is one too; batches of separate
sends and receives would need every rank's first call to match and hang beyond a few hundred operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
import torch.distributed as dist

from ..reference import compute_dtype
from .soundness import REMEDY, first_line

__all__ = [
    "Arrival",
    "Departure",
    "add_returned",
    "gather_rows",
    "heads_to_rows",
    "max_over_ranks",
    "rows_to_heads",
    "send_rows",
    "sum_over_ranks",
    "sum_rows_of_ranks",
]

# The name that torch < 2.13 has.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


# What every backend carries; other dtypes travel as bytes.
_CARRIED = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8}
)


class Arrival:
    """Rows that are on their way. Keeps what is sent alive until they are here."""

    def __init__(self, rows: torch.Tensor, sent: torch.Tensor, work: dist.Work) -> None:
        self._rows, self._sent, self._work = rows, sent, work

    def wait(self) -> torch.Tensor:
        """The rows, once they are here; on a GPU the current stream waits, not the host."""
        with _explaining():
            self._work.wait()
        return self._rows


class Departure:
    """Exchanges of which each needs what the one before has brought; the last is on its way.

    On a GPU they have a stream of their own, so that what is computed meanwhile waits for none of them.
    """

    def __init__(self, start: Callable[[], Arrival], device: torch.device) -> None:
        self._stream = _stream_of(device) if device.type == "cuda" else None
        if self._stream is None:
            self._last = start()
            return
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            self._last = start()

    def wait(self) -> torch.Tensor:
        """The rows of the last exchange, once they are here; on a GPU the current stream waits, not the host."""
        if self._stream is None:
            return self._last.wait()
        with torch.cuda.stream(self._stream):
            rows = self._last.wait()
        current = torch.cuda.current_stream(rows.device)
        current.wait_stream(self._stream)
        rows.record_stream(current)
        return rows


@cache
def _stream_of(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def send_rows(
    rows: torch.Tensor, send_splits: Sequence[int], receive_splits: Sequence[int], group: dist.ProcessGroup
) -> Arrival:
    """Starts sending the first `send_splits[0]` rows to peer 0, the next `send_splits[1]` to peer 1, and so on.

    rows: `(sum(send_splits), ...)`. What arrives is `(sum(receive_splits), ...)`, peer 0's rows first.
    """
    rows = rows.contiguous()
    received = rows.new_empty(sum(receive_splits), *rows.shape[1:])
    with _explaining():
        work = dist.all_to_all_single(
            _carried(received), _carried(rows), list(receive_splits), list(send_splits), group=group, async_op=True
        )
    return Arrival(received, rows, work)


def add_returned(
    total: torch.Tensor, returned: torch.Tensor, index: torch.Tensor, splits: Sequence[int]
) -> torch.Tensor:
    """Adds `returned[i]` to `total[index[i]]` in place, peer after peer: a fixed order of additions.

    A peer's rows, `splits[peer]` of them, have distinct indices.
    """
    first = 0
    for count in splits:
        if count:
            rows = index[first : first + count]
            total[rows] = total[rows] + returned[first : first + count]
            first += count
    return total


def heads_to_rows(x: torch.Tensor, group: dist.ProcessGroup) -> Arrival:
    """From all heads of own rows, `(rows, world * heads, dim)`, to own heads of all rows, `(world * rows, heads, dim)`.

    Rank r gets the r-th part of the heads; rank 0's rows come first.
    """
    world, (rows, heads, dim) = group.size(), x.shape
    parts = x.reshape(rows, world, heads // world, dim).transpose(0, 1).reshape(world * rows, heads // world, dim)
    return send_rows(parts, [rows] * world, [rows] * world, group)


def rows_to_heads(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The way back: from `(world * rows, heads, dim)` to `(rows, world * heads, dim)`."""
    world, (rows, heads, dim) = group.size(), x.shape
    mine = [rows // world] * world
    parts = send_rows(x, mine, mine, group).wait()
    return parts.view(world, rows // world, heads, dim).transpose(0, 1).reshape(rows // world, world * heads, dim)


def gather_rows(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """`(world * rows, ...)`: the rows of every rank, rank 0's first."""
    x = x.contiguous()
    out = x.new_empty(group.size() * x.shape[0], *x.shape[1:])
    with _explaining():
        _all_gather(_carried(out), _carried(x), group=group)
    return out


def sum_rows_of_ranks(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Of `(world * rows, ...)` on every rank, this rank's rows of the sum over ranks, `(rows, ...)` in x's dtype.

    Added up in fp32 (fp64 for fp64) in the order of ranks, rounded once.
    """
    world, rows = group.size(), x.shape[0] // group.size()
    parts = send_rows(x, [rows] * world, [rows] * world, group).wait()
    return parts.view(world, rows, *x.shape[1:]).to(compute_dtype(x.dtype)).sum(0).to(x.dtype)


def sum_over_ranks(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The sum over ranks, the same bits on every rank: added up in the order of ranks. For small tensors."""
    return gather_rows(x[None], group).sum(0)


def max_over_ranks(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The largest of every rank, element by element."""
    x = x.clone()
    with _explaining():
        dist.all_reduce(x, dist.ReduceOp.MAX, group=group)
    return x


@contextmanager
def _explaining() -> Iterator[None]:
    """Says what an error of a collective means: it names sockets and seconds, and neither the cause nor the way out."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            "an exchange with the other ranks of the process group failed or timed out: another rank has raised, has "
            "ended, is too late, or makes other calls. The group cannot be used any more: "
            f"{REMEDY}. It was {first_line(error)}"
        ) from error


def _carried(x: torch.Tensor) -> torch.Tensor:
    """A view of contiguous x, as many rows, in a dtype that every backend carries."""
    return x if x.dtype in _CARRIED else x[..., None].view(torch.uint8)
