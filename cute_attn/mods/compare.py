"""`column[key] op row[query]` as intervals of keys for each query: binary searches, never a pair."""

from __future__ import annotations

import torch

from ..mask import IntervalMask

__all__ = ["Column", "NotIntervals", "TooMany", "limited", "swapped"]

swapped = {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le", "eq": "eq", "ne": "ne"}


class NotIntervals(ValueError):
    """Why a mask, or a part of it, is not read as intervals."""


class TooMany(NotIntervals):
    """There are more intervals a row than there is room for, with so many rows at once."""


def limited(mask: IntervalMask, most: int) -> IntervalMask:
    if mask.layers > most:
        raise TooMany(f"it has more than {most} intervals a row")
    return mask


class Column:
    """A value for each key, `(keys,)`, for comparisons that give at most `most` intervals a row. NaN is refused."""

    def __init__(self, values: torch.Tensor, most: int) -> None:
        self.most = most
        self.values = values.long() if not values.dtype.is_floating_point else values
        if values.dtype.is_floating_point and bool(values.isnan().any()):
            raise NotIntervals("it compares NaN")

    def compared(self, op: str, row: torch.Tensor) -> IntervalMask:
        """The keys of each row, `row` being `(rows,)` of the column's dtype."""
        if row.dtype.is_floating_point and bool(row.isnan().any()):
            raise NotIntervals("it compares NaN")
        if op == "ne":
            return limited(~self.compared("eq", row), self.most)
        lo, hi = self._equal(row) if op == "eq" else self._ordered(op, row)
        return IntervalMask._united(lo[None], hi[None], len(self.values), 1)

    def _pieces(self) -> list[tuple[int, int, bool]]:
        """[begin, end) of consecutive keys whose values never fall, or (True) never rise; few, or NotIntervals."""
        end = len(self.values)
        above, below = self.values[1:] > self.values[:-1], self.values[1:] < self.values[:-1]
        step = above.to(torch.int8) - below.to(torch.int8)
        at = step.nonzero()[:, 0]
        sign = step[at]
        turns = (sign[1:] != sign[:-1]).nonzero()[:, 0] + 1
        begins, broken = [0], -2
        for i in turns[: 2 * self.most + 2].tolist():
            if i != broken + 1:  # the step after a break may go either way
                broken = i
                begins.append(int(at[i]) + 1)
        if len(begins) > self.most:
            raise TooMany(f"it orders keys whose values rise and fall more than {self.most} times")
        bounds = [*begins, end]
        first = self.values[begins].tolist()
        last = self.values[[x - 1 for x in bounds[1:]]].tolist()
        return [(bounds[i], bounds[i + 1], first[i] > last[i]) for i in range(len(begins))]

    def _ordered(self, op: str, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        lo, hi = [], []
        for begin, end, falls in self._pieces() if len(self.values) else []:
            values = self.values[begin:end].flip(0) if falls else self.values[begin:end]
            below = torch.searchsorted(values.contiguous(), row.contiguous(), right=op in ("le", "gt"))
            takes_front = (op in ("lt", "le")) != falls
            edge = end - below if falls else begin + below
            lo.append(torch.full_like(edge, begin) if takes_front else edge)
            hi.append(edge if takes_front else torch.full_like(edge, end))
        return _stacked(lo, hi, row)

    def _runs(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Runs of equal values: values in order, and begin and end of each."""
        changes = (self.values[1:] != self.values[:-1]).nonzero()[:, 0] + 1
        begin = torch.cat([changes.new_zeros(min(1, len(self.values))), changes])
        end = torch.cat([changes, changes.new_full((min(1, len(self.values)),), len(self.values))])
        values, order = self.values[begin].sort(stable=True)
        return values, begin[order], end[order]

    def _equal(self, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, begin, end = self._runs()
        first, last = (torch.searchsorted(values, row.contiguous(), right=right) for right in (False, True))
        layers = int((last - first).max()) if len(row) else 0
        if layers > self.most:
            raise TooMany(f"a value lies in more than {self.most} runs of keys")
        lo, hi = [], []
        for layer in range(layers):
            is_there = first + layer < last
            at = (first + layer).clamp(max=len(values) - 1)
            lo.append(begin[at] * is_there)
            hi.append(end[at] * is_there)
        return _stacked(lo, hi, row)


def _stacked(lo: list[torch.Tensor], hi: list[torch.Tensor], row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if not lo:
        nothing = torch.zeros(1, len(row), dtype=torch.int64, device=row.device)
        return nothing, nothing
    return torch.stack(lo), torch.stack(hi)
