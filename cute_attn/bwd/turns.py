"""Turns of the key tiles at the sums of dQ: with them, every sum has one order.

A key tile adds to the dQ of a query tile when all key tiles that attend the query tile and were started before it have
done so. So, with an item each, no CTA waits for one that was started after it, and some CTA can always go on. (Thread
blocks start in the order of their index: CUDA does not promise it, but GPUs do so.) With several items a CTA, as
sm_margin makes them, all CTAs must be resident together: then the launch is cooperative, which CUDA begins when there
is room for all of them, or refuses. `cute_attn.launch.order` makes that order such that turns are easily counted: they
ascend but for the last key tile of a query tile, or are the other way round, last key tile first.
"""

from dataclasses import dataclass
from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Int32, const_expr

from cute_attn.columns import TurnRow
from cute_attn.sm90.ptx import not_before
from cute_attn.sm90.runs import read_run

from .walk import is_downward
from .work import Arguments, Item

__all__ = ["DqTurns"]


@dataclass(frozen=True)
class DqTurns:
    """Those of one warp, which adds the dQ of consumer warpgroup `group`."""

    arguments: Arguments
    item: Item
    group: int

    @cute.jit
    def wait(self, head, tile):
        """Until the key tiles before this one have been added to query tile `tile`."""
        tile = not_before(tile)  # addresses are computed here: the warp has few registers to keep them in
        before = self.key_tiles_before(head, tile)
        counter = self.counter(head, tile)
        added = cute.arch.load(counter, Int32, sem="acquire", scope="gpu")
        while added < before:
            added = cute.arch.load(counter, Int32, sem="acquire", scope="gpu")
        cute.arch.sync_warp()  # lanes may leave the loop one by one, and a named barrier wants all of a warp
        if const_expr(self.arguments.spec.tile.dq_chunks > 0):
            cute.arch.fence_proxy("async.global")

    @cute.jit
    def done(self, head, tile):
        """Lets the next one go, when what this warp added has arrived."""
        tile = not_before(tile)
        with cute.arch.elect_one():
            if const_expr(self.arguments.spec.tile.dq_chunks > 0):
                cute.arch.cp_async_bulk_wait_group(0)
                cute.arch.fence_proxy("async.global")
            cute.arch.red(self.counter(head, tile), Int32(1), op="add", dtype=Int32, sem="release", scope="gpu")
        cute.arch.sync_warp()

    def counter(self, head, tile) -> cute.Pointer:
        turns: Any = self.arguments.tensors.turns
        return turns.iterator + cute.crd2idx((self.item.batch, head, tile, self.group), turns.layout)

    @cute.jit
    def key_tiles_before(self, head, tile):
        """How many key tiles whose turn is before this one's the query tile of a head attends."""
        schedule: Any = self.arguments.schedule
        plane = self.arguments.plane_of(self.item, head)
        row = TurnRow(*(schedule.query_turns[plane, tile, i] for i in range(len(TurnRow._fields))))
        count = Int32(0)
        for number in cutlass.range(row.begin, row.end, unroll=1):
            run = read_run(schedule.key_runs, number)
            if const_expr(is_downward(self.arguments.spec)):
                count += cutlass.max(cutlass.min(run.end, self.item.tile) - run.begin, 0)
            else:
                count += cutlass.max(run.end - cutlass.max(run.begin, self.item.tile + 1), 0)
        if const_expr(is_downward(self.arguments.spec)):
            if count == row.others:
                count = row.before_last
            elif count >= row.before_last:
                count += 1
        return count
