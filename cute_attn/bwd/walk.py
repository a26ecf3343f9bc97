"""The order in which the warps of a CTA walk the query tiles of an item: one for all of them.

The partial runs of all query heads of the key head, then the full ones, both upwards, head after head: a tile's
addresses change little. Where sums of dQ have turns it is the other way round, full runs first, downwards, with the
heads of a tile one after another: then every item goes down the sequence at the same pace, and those that find each
other in step remain so although one has fewer tiles. Heads with planes of their own have runs of their own, and are not
walked together: they keep the first order (see `cute_attn.launch.order`).
"""

from collections.abc import Callable
from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Int32, const_expr

from cute_attn.sm90.runs import read_run
from cute_attn.spec.backward import BackwardSpec

from .work import Arguments, Item

__all__ = ["is_downward", "kinds", "walk"]


def is_downward(spec: BackwardSpec) -> bool:
    """Whether query tiles are walked from the last to the first."""
    return spec.deterministic and not spec.planes_by_head


def kinds(spec: BackwardSpec) -> tuple[bool, bool]:
    """Whether the tiles that come first are partial, and whether those that come then are."""
    return (False, True) if is_downward(spec) else (True, False)


@cute.jit
def walk(arguments: Arguments, item: Item, masked: cutlass.Constexpr, of_head: Callable[[Any], Any], use: Int32):
    """Visits the partial or the full tiles of all heads: `of_head(head)(run, tile, use)`, with the number of the tile
    for the CTA; returns that of the next one."""
    first_head, end_head = item.query_heads
    if const_expr(is_downward(arguments.spec)):
        begin, end = arguments.runs_of(item, first_head, masked)
        for number in cutlass.range(begin, end, unroll=1):
            run = read_run(arguments.schedule.runs, begin + end - 1 - number)
            for place in cutlass.range(run.begin, run.end, unroll=1):
                tile = run.begin + run.end - 1 - place
                for head in cutlass.range(first_head, end_head, unroll=1):
                    of_head(head)(run, tile, use)
                    use += 1
    else:
        for head in cutlass.range(first_head, end_head, unroll=1):
            begin, end = arguments.runs_of(item, head, masked)
            visit = of_head(head)
            for number in cutlass.range(begin, end, unroll=1):
                run = read_run(arguments.schedule.runs, number)
                for tile in cutlass.range(run.begin, run.end, unroll=1):
                    visit(run, tile, use)
                    use += 1
    return use
