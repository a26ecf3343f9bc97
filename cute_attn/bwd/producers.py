"""The warps of the main kernel that move tiles between global and shared memory."""

from dataclasses import dataclass
from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Int32

from cute_attn.sm90.bulk import load_bulk, reduce_add_bulk
from cute_attn.sm90.idle import clear_idle, idle_of_lane
from cute_attn.sm90.keys import KeyTiles
from cute_attn.sm90.place import Place
from cute_attn.sm90.ptx import not_before
from cute_attn.sm90.tiles import partition

from .products import WARPGROUP, Products
from .storage import Shared
from .turns import DqTurns
from .walk import kinds, walk
from .words import store_words
from .work import Arguments

__all__ = ["Producers", "dq_empty", "dq_full"]

# Named barriers, one a consumer warpgroup each.
BARRIER_DQ_EMPTY, BARRIER_DQ_FULL = 3, 5


@dataclass(frozen=True)
class Handover:
    """A named barrier at which a consumer warpgroup and the warp that adds its dQ meet."""

    number: Any

    def sync(self) -> None:
        cute.arch.barrier(barrier_id=self.number, number_of_threads=WARPGROUP + 32)

    def arrive(self) -> None:
        cute.arch.barrier_arrive(barrier_id=self.number, number_of_threads=WARPGROUP + 32)


def dq_empty(group: Any) -> Handover:
    """The memory for dQ of a consumer warpgroup may be written."""
    return Handover(BARRIER_DQ_EMPTY + group)


def dq_full(group: Any) -> Handover:
    """It has been written."""
    return Handover(BARRIER_DQ_FULL + group)


class Producers:
    """One method for each warp. Loads have room for the tile before they start: see `cute_attn.sm90.barriers`."""

    def __init__(self, products: Products) -> None:
        spec = products.spec
        self.products, self.spec, self.tile = products, spec, spec.tile
        self.m, self.n, self.dim, self.dim_v = spec.tile.m, spec.tile.n, spec.head_dim, spec.head_dim_v

    # ------------------------------------------------------------------ K, V, Q

    @cute.jit
    def load_queries(self, arguments: Arguments, shared: Shared):
        """K and V of each item, then its tiles of Q with what the math needs of their rows."""
        use = Int32(0)
        tma, ring = arguments.tma, shared.keys_values
        first, then = kinds(self.spec)
        for item_number in cutlass.range(arguments.count(), unroll=1):
            item = arguments.item(arguments.index(item_number))
            keys = KeyTiles.of(tma.k_atom, tma.k, item.batch, item.head_k, shared.k)
            values = KeyTiles.of(tma.v_atom, tma.v, item.batch, item.head_k, shared.v)
            idle, any_idle = idle_of_lane(arguments.schedule.idle_keys, item.key_plane, item.tile)
            ring.wait_empty(item_number)
            barrier = ring.expect(item_number, keys.n_bytes + values.n_bytes, any_idle)
            keys.load(item.tile, barrier)
            values.load(item.tile, barrier)
            if any_idle:
                ring.wait_landed()
                clear_idle(idle, shared.k, shared.v)
                ring.hand_over(item_number)
            item = arguments.item(arguments.index(not_before(item_number)))  # read anew, kept in no register before
            use = self.load_query_tiles(arguments, item, shared, use, first)
            use = self.load_query_tiles(arguments, item, shared, use, then)

    def load_query_tiles(self, arguments, item, shared, use: Int32, masked: bool):
        """The partial or the full tiles of all heads: Q, -lse."""
        tma, tensors, schedule, ring = arguments.tma, arguments.tensors, arguments.schedule, shared.queries

        def of_head(head):
            plane = arguments.plane_of(item, head)
            q = cute.local_tile(tma.q[None, None, head, item.batch], (self.m, self.dim), (None, 0))
            to_q, of_q = partition(tma.q_atom, shared.q, q)

            def load(run, tile, use):
                slot = ring.slot(use)
                idle, any_idle = self.idle_rows(schedule, plane, tile, masked)
                ring.wait_empty(use)
                with cute.arch.elect_one():
                    Place(tile * self.m, run.layer_begin, run.layer_end, head).publish(shared.places, slot)
                    if shared.sums is not None and self.spec.dq:
                        shape = tensors.dq_sum.shape
                        shared.sums[slot] = (item.batch * shape[1] + head) * shape[2] + tile
                barrier = ring.expect(use, self.m * (self.dim * self.spec.element_bytes + 4), any_idle)
                cute.copy(tma.q_atom, of_q[None, tile], to_q[None, slot], tma_bar_ptr=barrier)
                with cute.arch.elect_one():
                    shift = tensors.statistics[item.batch, head, tile, 0, None]
                    load_bulk(shift.iterator, shared.shift[None, slot].iterator, 4 * self.m, barrier)
                self.edit(idle, any_idle, shared.q[None, None, slot], ring, use)

            return load

        return walk(arguments, item, masked, of_head, use)

    # ------------------------------------------------------------------ dO

    @cute.jit
    def load_grads(self, arguments: Arguments, shared: Shared):
        """Tiles of dO with their delta and, where bounds are tested, words of bits, in the order of the tiles of Q."""
        use = Int32(0)
        first, then = kinds(self.spec)
        for item_number in cutlass.range(arguments.count(), unroll=1):
            item = arguments.item(arguments.index(item_number))
            use = self.load_grad_tiles(arguments, item, shared, use, first)
            use = self.load_grad_tiles(arguments, item, shared, use, then)

    def load_grad_tiles(self, arguments, item, shared, use: Int32, masked: bool):
        """The partial or the full tiles of all heads."""
        tma, tensors, schedule, ring = arguments.tma, arguments.tensors, arguments.schedule, shared.grads

        def of_head(head):
            plane = arguments.plane_of(item, head)
            do = cute.local_tile(tma.dout[None, None, head, item.batch], (self.m, self.dim_v), (None, 0))
            to_do, of_do = partition(tma.dout_atom, shared.do, do)

            def load(run, tile, use):
                slot = ring.slot(use)
                idle, any_idle = self.idle_rows(schedule, plane, tile, masked)
                ring.wait_empty(use)
                has_words = masked and shared.words is not None
                n_bytes = self.m * (self.dim_v * self.spec.element_bytes + 4)
                barrier = (ring.announce if has_words else ring.expect)(use, n_bytes, any_idle)
                cute.copy(tma.dout_atom, of_do[None, tile], to_do[None, slot], tma_bar_ptr=barrier)
                with cute.arch.elect_one():
                    delta = tensors.statistics[item.batch, head, tile, 1, None]
                    load_bulk(delta.iterator, shared.delta[None, slot].iterator, 4 * self.m, barrier)
                if has_words:  # made while dO comes
                    self.store_words(tensors, item, plane, run, tile, shared.words[None, None, slot])
                    ring.arrive(barrier)
                self.edit(idle, any_idle, shared.do[None, None, slot], ring, use)

            return load

        return walk(arguments, item, masked, of_head, use)

    def store_words(self, tensors, item, plane, run, tile, target):
        """Those of a partial tile, of each kind."""
        bounds = tensors.bounds[plane, tile, None, None, None]
        bounds = cute.make_tensor(bounds.iterator, cute.select(bounds.layout, mode=[2, 1, 0]))
        layers = run.layer_begin, run.layer_end
        for kind in range(self.products.word_kinds):
            of_kind, first_key = target[None, kind], item.tile * self.n
            store_words(self.spec.mask, self.n, bounds, layers, first_key, kind == 1, of_kind)

    # ------------------------------------------------------------------ rows without keys

    def idle_rows(self, schedule, plane, tile, masked):
        """The idle rows of a query tile, as of `idle_of_lane`; full tiles have none."""
        return idle_of_lane(schedule.idle_rows, plane, tile) if masked else (Int32(0), False)

    @cute.jit
    def edit(self, idle, any_idle, tile, ring, use):
        """Zeroes the idle rows of a tile of Q or dO when it has landed."""
        if any_idle:
            ring.wait_landed()
            clear_idle(idle, tile)
            ring.hand_over(use)

    # ------------------------------------------------------------------ dQ

    @cute.jit
    def add_dq(self, arguments: Arguments, shared: Shared, group: cutlass.Constexpr):
        """Adds what consumer warpgroup `group` leaves of each tile's dQ to the sums in global memory."""
        first, then = kinds(self.spec)
        for item_number in cutlass.range(arguments.count(), unroll=1):
            item = arguments.item(arguments.index(item_number))
            self.add_dq_tiles(arguments, item, shared, group, first)
            self.add_dq_tiles(arguments, item, shared, group, then)
        with cute.arch.elect_one():
            cute.arch.cp_async_bulk_wait_group(0)

    def add_dq_tiles(self, arguments, item, shared, group: int, masked: bool):
        """Those of the partial or the full runs of all heads."""
        tensors = arguments.tensors
        turns: Any = DqTurns(arguments, item, group) if self.spec.deterministic else None
        if not self.products.stage_dq:
            walk(arguments, item, masked, lambda head: self.give_turns(turns, group, head), Int32(0))
            return
        chunks, size = self.tile.dq_chunks, self.products.dq_group_size // self.tile.dq_chunks
        source = shared.dq[None, None, None, group].iterator

        def of_head(head):
            def add(_run, tile, _use):
                sums = tensors.dq_sum[item.batch, head, tile, None].iterator
                for chunk in range(chunks):
                    dq_empty(group).arrive()
                    dq_full(group).sync()
                    if turns is not None and chunk == 0:
                        turns.wait(head, tile)
                    with cute.arch.elect_one():
                        reduce_add_bulk(source, sums + (group * chunks + chunk) * size, 4 * size)
                        cute.arch.cp_async_bulk_commit_group()
                        cute.arch.cp_async_bulk_wait_group(0, read=True)
                    cute.arch.sync_warp()
                if turns is not None:
                    turns.done(head, tile)

            return add

        walk(arguments, item, masked, of_head, Int32(0))

    def give_turns(self, turns: DqTurns, group: int, head: Any) -> Any:
        """Lets the consumer warpgroup, which adds from registers, go when it is its turn, and the next when it has."""

        def give(_run, tile, _use):
            turns.wait(head, tile)
            dq_empty(group).arrive()
            dq_full(group).sync()
            turns.done(head, tile)

        return give
