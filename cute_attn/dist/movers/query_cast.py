"""Queries that visit: rows go to the ranks that hold their keys; partial results, or their gradients, return."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from ...mask import IntervalMask
from ...merge import Merger
from ..comm import Arrival, add_returned, send_rows
from ..plans.query_cast import Visits

__all__ = ["QueryCast"]

Tensor = torch.Tensor
Attend = Callable[[Tensor, IntervalMask], tuple[Tensor, Tensor]]
# Of rows q, dout, lse and dlse, and their mask: what they give to dq, and to the packed gradient of own keys.
AttendBackward = Callable[[Tensor, Tensor, Tensor, Tensor, IntervalMask], tuple[Tensor | None, Tensor | None]]


@dataclass(frozen=True, eq=False)
class QueryCast:
    """visits: on the device of the queries. group: the process group whose ranks they number.

    Every rank takes the same steps in the same order: rows leave ahead of the first block of keys, are attended behind
    it, and what returns is waited for behind the last.
    """

    visits: Visits
    group: dist.ProcessGroup

    def leave(self, rows: Tensor) -> Arrival:
        """Sends what this rank's rows need elsewhere, `(rows, ...)`."""
        return send_rows(rows[self.visits.send_index], self.visits.send_splits, self.visits.receive_splits, self.group)

    def attend(self, arrival: Arrival, attend: Attend, dtype: torch.dtype, head_dim_v: int) -> Arrival:
        """Attends the rows that have come, and sends their results home: O and LSE packed, unrounded."""
        q = arrival.wait()
        if self.visits.mask is None:
            results = q.new_zeros(0, q.shape[1], head_dim_v + 1, dtype=dtype)
        else:
            out, lse = attend(q, self.visits.mask)
            results = torch.cat([out, lse.T[..., None]], 2)
        return self._return(results)

    def merge(self, arrival: Arrival, merger: Merger) -> None:
        """Takes up the results of this rank's rows, peer after peer."""
        results, first = arrival.wait(), 0
        for count in self.visits.send_splits:
            if count:
                part, rows = results[first : first + count], self.visits.send_index[first : first + count]
                merger.add_rows(rows, part[..., :-1], part[..., -1].T)
                first += count

    def leave_backward(self, q: Tensor, dout: Tensor, lse: Tensor, dlse: Tensor) -> tuple[Arrival, Arrival]:
        """As `leave`. lse, dlse: `(heads_q, rows)` in the compute dtype, dlse without the rows' sums of dout * out."""
        return self.leave(torch.cat([q, dout], 2)), self.leave(torch.stack([lse.T, dlse.T], 2))

    def attend_backward(
        self, arrivals: tuple[Arrival, Arrival], attend: AttendBackward, head_dim: int, needs_q: bool
    ) -> tuple[Arrival | None, Tensor | None]:
        """The way home of gradients of queries, if they are needed, and the packed gradient of own keys."""
        rows, sums = (arrival.wait() for arrival in arrivals)
        dq = dkv = None
        if self.visits.mask is not None:
            lse, dlse = sums.unbind(2)
            q, dout = rows[..., :head_dim].contiguous(), rows[..., head_dim:].contiguous()
            dq, dkv = attend(q, dout, lse.T.contiguous(), dlse.T.contiguous(), self.visits.mask)
        if not needs_q:
            return None, dkv
        return self._return(sums.new_zeros(*rows.shape[:2], head_dim) if dq is None else dq), dkv

    def add(self, arrival: Arrival, dq: Tensor) -> None:
        """Adds the gradients of this rank's rows, peer after peer."""
        add_returned(dq, arrival.wait(), self.visits.send_index, self.visits.send_splits)

    def _return(self, rows: Tensor) -> Arrival:
        return send_rows(rows, self.visits.receive_splits, self.visits.send_splits, self.group)
