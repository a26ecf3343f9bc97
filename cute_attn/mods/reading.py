"""What a block mask attends: intervals, and where these do not say all a predicate that thins them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from ..eager import outside_of_graphs
from ..mask import IntervalMask
from ..mask.blocks import BlockGrid
from ..mask.thinned import thin
from .evaluate import evaluate
from .ranges import may_wrap
from .recognise import recognise
from .trace import Traced
from .watched import Watched

__all__ = ["Captured", "Reading", "Seen", "is_reachable", "read_function", "read_lists"]

_PAIRS = 1 << 18  # evaluated together
_NO_ANSWER = IndexError, ZeroDivisionError, ValueError  # of what `evaluate` is asked


@dataclass(frozen=True)
class Captured:
    """A traced mask_mod with what its captured tensors were. reads_planes: whether it reads b, and h."""

    traced: Traced
    watched: Watched
    reads_planes: tuple[bool, bool]

    @classmethod
    def of(cls, traced: Traced, mask_mod: Callable[..., Any], device: torch.device) -> Captured:
        """device: of the mask."""
        names = [_name(x, mask_mod) for x in traced.tensors]
        for x, name in zip(traced.tensors, names, strict=True):
            if not is_reachable(x, device):
                raise ValueError(
                    f"mask_mod must capture tensors on the device of the mask, {device}, got {name} on {x.device}"
                )
            if x.requires_grad:
                raise ValueError(
                    "mask_mod must not capture tensors that require a gradient, since none flows through a mask, got "
                    f"{name}: detach it"
                )
        graph = traced.graph
        return cls(traced, Watched(traced.tensors, names), (graph.reads("b"), graph.reads("h")))

    def part(self, traced: Traced) -> Captured:
        """A part of the function, with some of its tensors."""
        return Captured(traced, self.watched.some(traced.tensors), self.reads_planes)

    def check(self) -> None:
        """ValueError where a captured tensor has changed since: a mask is what its mask_mod said when it was made. In
        a graph its op asks."""
        if not torch.compiler.is_compiling():
            self.watched.check()

    @outside_of_graphs
    def __getstate__(self) -> dict[str, Any]:
        self.check()
        return {"traced": self.traced, "names": self.watched.names, "reads_planes": self.reads_planes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copies of tensors count their changes from where they were made."""
        traced = state["traced"]
        watched = Watched(traced.tensors, state["names"])
        vars(self).update(traced=traced, watched=watched, reads_planes=state["reads_planes"])


def is_reachable(x: torch.Tensor, device: torch.device) -> bool:
    """Whether a function on a device may capture a tensor: one number of the host's goes anywhere. A device without an
    index is the current one of its type, which torch knows."""
    is_same = x.device.type == device.type and device.index in (None, x.device.index)
    return is_same or (x.ndim == 0 and x.device.type == "cpu")


def _name(x: torch.Tensor, mask_mod: Callable[..., Any]) -> str:
    """A captured tensor as an error speaks of it."""
    shown = f"a tensor of shape {tuple(x.shape)} and dtype {x.dtype}"
    code = getattr(mask_mod, "__code__", None)
    if code is None:
        return shown
    cells = zip(code.co_freevars, mask_mod.__closure__ or (), strict=True)
    read = {name: mask_mod.__globals__[name] for name in code.co_names if name in mask_mod.__globals__}
    for name, cell in cells:
        try:
            read[name] = cell.cell_contents
        except ValueError:  # empty yet
            continue
    return next((f"{name!r}, {shown}" for name, value in read.items() if value is x), shown)


class Seen(NamedTuple):
    """What a predicate leaves of a mask, plane by plane.

    mask: with planes for what the predicate reads. certain: its pairs that are attended whatever the predicate says.
    rows, keys: bool `(planes, seqlen_q)`, `(planes, seqlen_k)`, which attend, and are attended, at all. holds: whether
    the predicate is true in all certain pairs.
    """

    mask: IntervalMask
    certain: IntervalMask | None
    rows: torch.Tensor
    keys: torch.Tensor
    holds: bool


@dataclass(frozen=True)
class Reading:
    """The pairs that are attended: those of `full`, and those of `intervals` where the predicate holds.

    intervals: all pairs that may be. full: the pairs that are whatever the predicate says, some of `intervals`; None if
    it is nowhere known. predicate: None where all pairs of `intervals` are attended. holds_in_full: whether the
    predicate is true throughout `full`, so that asking there too changes nothing. reason: why there is a predicate.
    """

    intervals: IntervalMask
    full: IntervalMask | None = None
    predicate: Captured | None = None
    holds_in_full: bool = True
    reason: str = ""
    _thin: list[IntervalMask] = field(default_factory=list)  # the mask of `thinned`, once it is known

    def thinned(self, batch: int, heads: int) -> IntervalMask:
        """The intervals with what kernels must know of the predicate, found once: it is asked for all pairs.

        batch, heads: of the block mask.
        """
        if not self._thin:
            self._thin.append(_thinned(self, batch, heads))
        return self._thin[0]

    def restricted(self, seqlen_q: int, seqlen_k: int) -> Reading:
        """The first rows and keys."""
        full = None if self.full is None else _restricted(self.full, seqlen_q, seqlen_k)
        intervals = _restricted(self.intervals, seqlen_q, seqlen_k)
        return Reading(intervals, full, self.predicate, self.holds_in_full, self.reason)

    def to(self, device: torch.device | str | int) -> Reading:
        full = None if self.full is None else self.full.to(device)  # what kernels must know is found there anew
        return Reading(self.intervals.to(device), full, self.predicate, self.holds_in_full, self.reason)


def _restricted(mask: IntervalMask, seqlen_q: int, seqlen_k: int) -> IntervalMask:
    lo, hi = (x[:, :, :seqlen_q] for x in (mask.lo, mask.hi))
    return IntervalMask._united(lo, hi, seqlen_k, mask.heads)


def read_function(
    captured: Captured,
    seqlen_q: int,
    seqlen_k: int,
    batch: int,
    heads: int,
    device: torch.device,
    block: tuple[int, int],
) -> tuple[Reading, BlockGrid | None]:
    """A mask_mod over all pairs. Where it is not intervals its blocks of `block` = (rows, keys) are evaluated, those
    that the intervals which can be read of it meet; they come too."""
    found = recognise(captured.traced, seqlen_q, seqlen_k, batch, heads, device)
    if found.predicate is None:
        return Reading(found.intervals), None
    grid, seen = _evaluated(found.intervals, None, found.predicate, block, batch, heads)
    intervals, full = seen.mask & grid.pairs(grid.listed), grid.pairs(grid.full)
    reading = Reading(intervals, full, captured.part(found.predicate), True, found.reason)
    reading._thin.append(thin(intervals, full, seen.rows, seen.keys, holds=True))
    return reading, grid


def read_lists(captured: Captured, grid: BlockGrid, batch: int, heads: int) -> Reading:
    """A mask_mod in the blocks that are listed."""
    listed, full = grid.pairs(grid.listed), grid.pairs(grid.full)
    found = recognise(captured.traced, grid.seqlen_q, grid.seqlen_k, batch, heads, grid.listed.device, reads_all=False)
    intervals = listed & found.intervals
    has_full = bool((full.lo < full.hi).any())
    if has_full:
        intervals = intervals | full
    if found.predicate is None or intervals.equals(full):
        return Reading(intervals)
    predicate = captured.part(found.predicate)
    return Reading(intervals, full if has_full else None, predicate, not has_full, found.reason)


@outside_of_graphs
def _thinned(reading: Reading, batch: int, heads: int) -> IntervalMask:
    assert reading.predicate is not None
    block = 128, 128
    _, seen = _evaluated(reading.intervals, reading.full, reading.predicate.traced, block, batch, heads)
    return thin(seen.mask, seen.certain, seen.rows, seen.keys, seen.holds)


def _evaluated(
    mask: IntervalMask,
    certain: IntervalMask | None,
    predicate: Traced,
    block: tuple[int, int],
    batch: int,
    heads: int,
) -> tuple[BlockGrid, Seen]:
    """The blocks of a mask thinned by a predicate, as how many pairs of each are attended says, and what is left of
    it."""
    graph = predicate.graph
    batch = max(mask.batch, batch if graph.reads("b") else 1)
    heads = max(mask.heads, heads if graph.reads("h") else 1)
    mask = mask._expanded(batch, heads)
    certain = None if certain is None else certain._expanded(batch, heads)
    rows, columns = -(-mask.seqlen_q // block[0]), -(-mask.seqlen_k // block[1])
    met = BlockGrid.from_mask(mask, block).listed
    states = torch.zeros(batch, heads, rows, columns, dtype=torch.int8, device=mask.device)
    seen_rows, seen_keys = (
        torch.zeros(mask.planes, n, dtype=torch.bool, device=mask.device) for n in (mask.seqlen_q, mask.seqlen_k)
    )
    holds = True
    for plane in range(mask.planes):
        b, h = divmod(plane, heads)
        wraps = may_wrap(graph, (b + 1, h + 1, mask.seqlen_q, mask.seqlen_k), predicate.scalars)
        asked = _Rows(mask, certain, predicate, wraps, plane, b, h, seen_rows[plane], seen_keys[plane])
        for row in range(rows):
            lo, hi = met.lo[plane, :, row], met.hi[plane, :, row]
            at = torch.arange(columns, device=mask.device)[:, None]
            is_met = ((at >= lo) & (at < hi)).any(1)
            keys = is_met.repeat_interleave(min(block[1], mask.seqlen_k))[: mask.seqlen_k].nonzero()[:, 0]
            count, here = _count(asked, row * block[0], block, keys, columns)
            holds &= here
            states[b, h, row] = (count > 0).to(torch.int8) + (count == block[0] * block[1]).to(torch.int8)
    grid = BlockGrid.from_states(states, block, mask.seqlen_q, mask.seqlen_k)
    return grid, Seen(mask, certain, seen_rows, seen_keys, holds)


@dataclass(frozen=True)
class _Rows:
    """The rows of a plane. may_wrap: whether an int32 of the predicate may. seen_rows, seen_keys: of `Seen`, of this
    plane, to be filled."""

    mask: IntervalMask
    certain: IntervalMask | None
    predicate: Traced
    may_wrap: bool
    plane: int
    b: int
    h: int
    seen_rows: torch.Tensor
    seen_keys: torch.Tensor

    def attended(self, begin: int, end: int, keys: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """bool `(rows, keys)` of the rows [begin, end) and some keys, and whether the predicate holds where it is not
        asked."""
        inside = self._inside(self.mask, begin, end, keys)
        if self.certain is None:
            return inside & self._holds(begin, end, keys, inside), True
        certain = self._inside(self.certain, begin, end, keys)
        try:
            said = self._holds(begin, end, keys, inside | certain)
        except _NO_ANSWER:  # in some certain pairs, unless it has none elsewhere either
            return certain | (inside & self._holds(begin, end, keys, inside & ~certain)), False
        return certain | (inside & said), bool((said | ~certain).all())

    def _inside(self, mask: IntervalMask, begin: int, end: int, keys: torch.Tensor) -> torch.Tensor:
        inside = torch.zeros(end - begin, len(keys), dtype=torch.bool, device=keys.device)
        for lo, hi in zip(mask.lo[self.plane], mask.hi[self.plane], strict=True):
            inside |= (keys >= lo[begin:end, None]) & (keys < hi[begin:end, None])
        return inside

    def _holds(self, begin: int, end: int, keys: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        integers = torch.int64 if self.may_wrap else torch.int32
        inputs = {
            "b": torch.tensor(self.b, dtype=integers, device=keys.device),
            "h": torch.tensor(self.h, dtype=integers, device=keys.device),
            "q": torch.arange(begin, end, dtype=integers, device=keys.device)[:, None],
            "kv": keys.to(integers),
        }
        predicate = self.predicate
        inputs = {name: x for name, x in inputs.items() if predicate.graph.reads(name)}
        (holds,) = evaluate(
            predicate.graph,
            inputs,
            predicate.tensors,
            predicate.scalars,
            torch.float32,
            asked,
            "mask_mod",
            refuses_wrapping=self.may_wrap,
        )
        return holds


def _count(
    rows: _Rows, first: int, block: tuple[int, int], keys: torch.Tensor, columns: int
) -> tuple[torch.Tensor, bool]:
    """How many pairs of each block of a block row are attended, `(columns,)`; `keys` are those that may be. And whether
    the predicate holds where it is not asked."""
    count, holds = torch.zeros(columns, dtype=torch.int64, device=keys.device), True
    end = min(first + block[0], rows.mask.seqlen_q)
    height = min(256, end - first)
    width = max(1, _PAIRS // height)
    for begin in range(first, end, height):
        for some in keys.split(width) if len(keys) else ():
            here = slice(begin, min(begin + height, end))
            attended, all_hold = rows.attended(here.start, here.stop, some)
            holds &= all_hold
            rows.seen_rows[here] |= attended.any(1)
            rows.seen_keys[some] |= attended.any(0)
            count.index_add_(0, some // block[1], attended.sum(0))
    return count, holds
