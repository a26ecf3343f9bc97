"""The forward kernel: warp-specialised, persistent, for any interval mask.

One producer warpgroup loads by TMA (warp 0: Q and K, warp 1: V), and its other warps say in bits which pairs a mask
leaves (`cute_attn.fwd.words`); two or three consumer warpgroups of 64 rows compute.
An item of work is one query tile of one head; CTAs take items of a list made on the host, longest first, in rounds
that go there and back again. Only the producers read the list and walk the runs of key tiles: partial runs first, then
full ones. The consumers get what an item is, and how many tiles come, in shared memory with its Q, and the first column
of each tile with its K; masks are applied in the partial tiles and in the first. Within a warpgroup the product
S = Q K^T of one tile and the softmax of it overlap O += P V of the tile before; the warpgroups take turns on the tensor
cores.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import cuda.bindings.driver as cuda
import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Float32, Int32, const_expr, range_constexpr
from cutlass.cute.nvgpu import OperandMajorMode, warpgroup

from cute_attn.sm90.barriers import BARRIER_EPILOGUE, Turns
from cute_attn.sm90.dtypes import DTYPES
from cute_attn.sm90.fragments import pack_fragment
from cute_attn.sm90.idle import clear_idle, idle_of_lane, idle_outside
from cute_attn.sm90.keys import KeyTiles, PagedKeyTiles, Pages
from cute_attn.sm90.mask import RowBounds, first_column, mask_scores
from cute_attn.sm90.place import Place
from cute_attn.sm90.ptx import not_before, thread_here
from cute_attn.sm90.score import Score, Where
from cute_attn.sm90.store import store_fragment
from cute_attn.sm90.tiles import gemm, load_atom, partition, store_atom, tiled_mma
from cute_attn.spec.forward import ForwardSpec

from .arguments import Scalars, Schedule, Tensors, TmaTensors
from .config import out_shares_queries
from .epilogue import finish_rows
from .packing import head_view
from .softmax import OnlineSoftmax, clear, rescale
from .storage import ROWS, Layouts, Shared
from .words import WRITERS, RowWords, WordForm, store_words, store_words_of_all
from .work import Arguments, Item, ItemOfConsumers

WARPGROUP = 128  # threads
# After setmaxnreg, by number of consumer warpgroups; together what a launch gets, 168 and 128 a thread.
PRODUCER_REGISTERS = {2: 24, 3: 32}
CONSUMER_REGISTERS = {2: 240, 3: 160}


@dataclass(frozen=True)
class Consumer:
    """What a consumer warpgroup holds from item to item."""

    shared: Shared
    q: Any  # operand descriptors of its rows of Q, of K and of V
    k: Any
    v: Any
    p: list[Any]  # two register sets for P
    out: Any  # fp32 accumulator of O
    op_qk: Any
    op_pv: Any
    scores_shape: Any
    score: Score
    softmax: OnlineSoftmax
    turns: Turns


@dataclass(frozen=True)
class Rows:
    """What a thread knows of its two rows of an item: which pairs are masked, where the first of their scores would be
    in a tile whose first key is the first of all, what a score_mod does to them and which a predicate leaves."""

    mask: Any  # RowBounds or RowWords
    where: Where
    mod: Any  # RowScores, None if the score carries no graph
    predicate: Any  # RowPredicate, None if the mask carries no graph


class ForwardKernel:
    """Compiled by `cute_attn.jit` for a spec; see `arguments` for what it is called with."""

    def __init__(self, spec: ForwardSpec) -> None:
        self.spec, self.tile, self.consumers = spec, spec.tile, spec.tile.consumers
        self.n, self.dim, self.dim_v = spec.tile.n, spec.head_dim, spec.head_dim_v
        self.dtype, self.bf16 = DTYPES[spec.dtype], spec.dtype == "bf16"
        self.out_shares_queries = out_shares_queries(spec)
        packed = spec.packed_heads
        self.rows_of_box = (packed, ROWS // packed) if packed > 1 else ROWS  # heads and positions, or positions

    # ------------------------------------------------------------------ host

    @cute.jit
    def __call__(self, tensors: Tensors, schedule: Schedule, scalars: Scalars, stream: cuda.CUstream):
        packed = self.spec.packed_heads
        heads = tensors.q.shape[2] // scalars.heads if packed > 1 else 1
        q, out = [head_view(t, packed, heads) for t in (tensors.q, tensors.out)]
        k, v = [head_view(t, 1, 1) for t in (tensors.k, tensors.v)]
        layouts = Layouts.of(self.spec)
        tma = TmaTensors(
            *load_atom(q, layouts.q, (self.rows_of_box, self.dim)),
            *load_atom(k, layouts.k, (self.spec.piece or self.n, self.dim)),
            *load_atom(v, layouts.v, (self.spec.piece or self.n, self.dim_v)),
            *((None, None) if self.spec.fp32_out else store_atom(out, layouts.out, (self.rows_of_box, self.dim_v))),
        )
        arguments = Arguments(tma, tensors, schedule, scalars)
        self.kernel(arguments).launch(
            grid=(cutlass.min(scalars.ctas, replace(arguments, spec=self.spec).work()), 1, 1),
            block=(WARPGROUP * (1 + self.consumers), 1, 1),
            stream=stream,
            min_blocks_per_mp=1,  # without it ptxas may ignore setmaxnreg
        )

    # ------------------------------------------------------------------ roles

    @cute.kernel
    def kernel(self, arguments: Arguments):
        arguments = replace(arguments, spec=self.spec)
        warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
        shared = Shared.allocate(self.spec)
        if warp == 0:
            arguments.tma.prefetch()
            with cute.arch.elect_one():
                shared.initialise()
        cute.arch.sync_threads()
        if warp < 4:
            cute.arch.setmaxregister_decrease(PRODUCER_REGISTERS[self.consumers])
            if warp == 0:
                self.load_queries_and_keys(arguments, shared)
            if warp == 1:
                self.load_values(arguments, shared)
            if const_expr(shared.words is not None):
                part = warp - (4 - WRITERS)
                if part >= 0:
                    self.make_words(arguments, shared, part)
        else:
            cute.arch.setmaxregister_increase(CONSUMER_REGISTERS[self.consumers])
            self.consume(arguments, shared, warp % 4, warp // 4 - 1)

    # ------------------------------------------------------------------ producer

    @cute.jit
    def load_queries_and_keys(self, arguments: Arguments, shared: Shared):
        tma = arguments.tma
        tile_count = Int32(0)
        for item_number in cutlass.range(arguments.count(), unroll=1):
            item = arguments.item(arguments.index(item_number))
            q = cute.local_tile(tma.q[None, None, item.group, item.batch], (self.rows_of_box, self.dim), (None, 0))
            to_q, from_q = partition(tma.q_atom, shared.q, q)
            keys = self.key_tiles(arguments, item, tma.k_atom, tma.k, shared.k)
            shared.queries.wait_empty(item_number)
            with cute.arch.elect_one():
                item.hand_over().publish(shared.item)
            barrier = shared.queries.expect(item_number, self.consumers * ROWS * self.dim * self.spec.element_bytes)
            for group in range_constexpr(self.consumers):
                source = from_q[None, item.tile * self.consumers + group]
                cute.copy(tma.q_atom, source, to_q[None, group], tma_bar_ptr=barrier)
            for number in cutlass.range(item.first_run, item.end_run, unroll=1):
                run = arguments.run(item, number)
                for tile in cutlass.range(run.begin, run.end, unroll=1):
                    slot = shared.keys.slot(tile_count)
                    found = keys.find(tile)
                    shared.keys.wait_empty(tile_count)
                    with cute.arch.elect_one():
                        Place(tile * self.n, run.layer_begin, run.layer_end, item.head).publish(shared.places, slot)
                    barrier = shared.keys.expect(tile_count, keys.n_bytes)
                    keys.load(found, barrier, slot)
                    tile_count += 1

    @cute.jit
    def load_values(self, arguments: Arguments, shared: Shared):
        tma, values = arguments.tma, shared.values
        tile_count = Int32(0)
        for item_number in cutlass.range(arguments.count(), unroll=1):
            item = arguments.item(arguments.index(item_number))
            tiles = self.key_tiles(arguments, item, tma.v_atom, tma.v, shared.v)
            for number in cutlass.range(item.first_run, item.end_run, unroll=1):
                run = arguments.run(item, number)
                for tile in cutlass.range(run.begin, run.end, unroll=1):
                    slot = values.slot(tile_count)
                    found = tiles.find(tile)
                    idle, any_idle = Int32(0), Boolean(False)
                    if number < item.full_run:  # the weights of idle keys are zero, but zero times NaN would be NaN
                        idle, any_idle = self.idle_keys(arguments, item, tiles, tile)
                    values.wait_empty(tile_count)
                    barrier = values.expect(tile_count, tiles.n_bytes, any_idle)
                    tiles.load(found, barrier, slot)
                    if any_idle:
                        values.wait_landed()
                        clear_idle(idle, shared.v[None, None, slot])
                        values.hand_over(tile_count)
                    tile_count += 1

    @cute.jit
    def make_words(self, arguments: Arguments, shared: Shared, part):
        """Words of the partial tiles, and of the first one of an item, which is masked too, for the slots of K."""
        keys, tensors = shared.keys, arguments.tensors
        uniform = cute.arch.make_warp_uniform  # what is so waits in uniform registers, others are short
        tile_count = Int32(0)
        for item_number in cutlass.range(uniform(arguments.count()), unroll=1):
            item = arguments.item(arguments.index(item_number))
            bounds = partial(self.bounds, tensors, item.plane)
            position = partial(self.position, arguments, item)
            for number in cutlass.range(uniform(item.first_run), uniform(item.full_run), unroll=1):
                run = arguments.run(item, number)
                for tile in cutlass.range(run.begin, run.end, unroll=1):
                    slot, layers = keys.slot(tile_count), (run.layer_begin, run.layer_end)
                    keys.wait_empty(tile_count)
                    target = shared.words[None, None, None, slot]
                    store_words(self.spec, part, bounds, position, layers, tile * self.n, target)
                    keys.arrive(keys.full + slot)
                    tile_count += 1
            item = arguments.item(arguments.index(not_before(item_number)))  # read anew, kept in no register before
            if item.n_partial == 0 and item.n_full > 0:
                keys.wait_empty(tile_count)
                store_words_of_all(self.spec, part, shared.words[None, None, None, keys.slot(tile_count)])
            for _ in cutlass.range(item.n_full, unroll=1):
                keys.wait_empty(tile_count)
                keys.arrive(keys.full + keys.slot(tile_count))
                tile_count += 1

    def bounds(self, tensors: Any, plane: Int32, layer: Int32, row: Int32) -> list[Int32]:
        """lo and hi. Where a lane has two rows at a time, too few registers are left for their addresses to wait in."""
        here = not_before(plane) if WordForm.of(self.spec).rows == 2 else plane
        return [t[here, layer, row] for t in (tensors.lo, tensors.hi)]

    def position(self, arguments: Arguments, item: Item, row: Int32) -> Int32:
        """Of a row of an item; rows past the end repeat the last one: nothing of them is stored."""
        return arguments.query(item.hand_over(), item.tile * self.tile.m + row).last_position

    def key_tiles(self, arguments: Arguments, item: Item, atom: Any, tensor: Any, shared: Any) -> Any:
        """Where the tiles of K, or of V, of an item come from."""
        if not self.spec.piece:
            return KeyTiles.of(atom, tensor, item.batch, item.head_k, shared)
        reach, k = arguments.reach(item.batch), arguments.tensors.k
        begin, end = reach.around(reach.position)[0], reach.around(reach.length - 1)[1]
        pages = Pages(k.shape[1], k.shape[0], arguments.cache.table, item.batch, begin, end)
        return PagedKeyTiles.of(self.spec.piece, atom, tensor, item.head_k, pages, shared)

    def idle_keys(self, arguments: Arguments, item: Item, tiles: Any, tile: Int32) -> tuple[Int32, Boolean]:
        """Those of a tile, as this lane of a warp clears them, and whether there are any."""
        if not self.spec.piece:
            return idle_of_lane(arguments.schedule.idle_keys, item.plane, tile)
        return idle_outside(tiles.pages.begin, tiles.pages.end, tile * self.n, self.n)

    # ------------------------------------------------------------------ consumer

    @cute.jit
    def consume(self, arguments: Arguments, shared: Shared, warp, group):
        tensors, lane = arguments.tensors, cute.arch.lane_idx()
        mma_qk = tiled_mma(self.dtype, self.n, OperandMajorMode.K)
        mma_pv = tiled_mma(self.dtype, self.dim_v, OperandMajorMode.MN, warpgroup.OperandSource.RMEM)
        qk, pv = mma_qk.get_slice(0), mma_pv.get_slice(0)
        transposed = cute.make_ordered_layout((self.dim_v, self.n, self.tile.stages), order=(1, 0, 2))
        out = cute.make_rmem_tensor(pv.partition_shape_C((ROWS, self.dim_v)), Float32)
        scalars, form = arguments.scalars, self.spec.score
        track_top = self.spec.max_logits or self.spec.max_scores
        softmax = OnlineSoftmax.make(self.n, self.bf16, scalars.exp2_factor, form.no_key, track_top)
        turns = Turns(group, self.consumers, self.tile.ping_pong)
        c = Consumer(
            shared=shared,
            q=qk.make_fragment_A(qk.partition_A(shared.q))[None, None, None, group],
            k=qk.make_fragment_B(qk.partition_B(shared.k)),
            v=pv.make_fragment_B(pv.partition_B(cute.composition(shared.v, transposed))),
            p=[pv.make_fragment_A(pv.partition_shape_A((ROWS, self.n))) for _ in range(2)],
            out=out,
            op_qk=mma_qk.op,
            op_pv=mma_pv.op,
            scores_shape=qk.partition_shape_C((ROWS, self.n)),
            score=Score(form, scalars.score_factor),
            softmax=softmax,
            turns=turns,
        )
        tile_count = Int32(0)
        turns.begin()
        for item_number in cutlass.range(arguments.count(), unroll=1):
            shared.queries.wait_full(item_number)
            item = ItemOfConsumers.read(shared.item)
            row = item.tile * self.tile.m + group * ROWS + warp * 16 + lane // 4  # and row + 8
            rows = self.rows(arguments, shared, item, row, 4 * group + warp, lane)
            clear(out)
            softmax.reset()
            n_tiles = item.n_partial + item.n_full
            if n_tiles > 0:
                last = tile_count + n_tiles
                last_partial = tile_count + cutlass.max(item.n_partial, 1)
                self.first_tile(c, rows, tile_count)
                tile_count = self.tiles(c, rows, tile_count + 1, last_partial, True)
                tile_count = self.tiles(c, rows, tile_count, last, False)
                if const_expr(not self.out_shares_queries):
                    shared.queries.release(item_number)  # Q may be replaced under the last product and the epilogue
                self.last_values(c, tile_count - 1)
            else:
                if const_expr(not self.out_shares_queries):
                    shared.queries.release(item_number)
            thread = Int32(0)
            if const_expr(self.spec.fp32_out):  # no register is left to keep the rows in through the loops
                thread = thread_here() - WARPGROUP
                row = item.tile * self.tile.m + thread // 32 * 16 + thread % 32 // 4
            finish_rows(tensors, item, [arguments.query(item, row, 8 * h) for h in range(2)], softmax, out)
            if const_expr(self.spec.fp32_out):
                column = thread % 4 * 2
                store_fragment(out, tensors.out[item.batch, None, item.head, None], row, column)
            else:
                self.store_out(arguments.tma, item, out, mma_pv, shared.out[None, None, group], warp, lane, group)
            if const_expr(self.out_shares_queries):
                if warp == 0:
                    cute.arch.cp_async_bulk_wait_group(0, read=True)
                shared.queries.release(item_number)
        if warp == 0:
            cute.arch.cp_async_bulk_wait_group(0, read=True)  # shared memory must outlive the stores that read it
        turns.end()

    def rows(self, arguments: Arguments, shared: Shared, item: Any, row: Int32, warp: Int32, lane: Int32) -> Rows:
        """This thread's: `row` and `row + 8`. warp: among those of all consumers."""
        tensors = arguments.tensors
        if self.spec.piece:
            reach = arguments.reach(item.batch)
            around = [reach.around(reach.position + row + 8 * h) for h in range(2)]
            of_rows: Any = RowBounds.of(self.n, self.spec.window, *around)
        elif shared.words is not None:
            of_rows = RowWords.of(self.spec, shared.words, warp, lane)
        else:
            of_rows = RowBounds.dense(self.n, tensors.k.shape[1])
        where = Where(item.batch, item.head, row, first_column())
        return Rows(of_rows, where, *self.graphs(tensors, where))

    @cute.jit
    def first_tile(self, c, rows, tile):
        """S = Q K^T of the first tile, masked (which changes nothing in a full tile), and its exact softmax."""
        scores = cute.make_rmem_tensor(c.scores_shape, Float32)
        c.shared.keys.wait_full(tile)
        gemm(c.op_qk, scores, c.q, c.k[None, None, None, c.shared.keys.slot(tile)], True)
        place = Place.read(c.shared.places, c.shared.keys.slot(tile))
        words = rows.mask.read(c.shared.keys.slot(tile))
        warpgroup.wait_group(0)
        c.shared.keys.release(tile)
        self.change(c, scores, rows, place, False)
        self.mask(scores, rows, place, words)
        c.softmax.first(scores, cute.recast_tensor(c.p[0], Int32))

    @cute.jit
    def tiles(self, c, rows, tile: Int32, end: Int32, masked: cutlass.Constexpr):
        """Tiles [tile, end), with P of the tile before in the first register set at the beginning and at the end.

        The stale softmax writes P of a tile while the product of the one before still reads its own, so two tiles make
        a turn, each with its register set (one set, or a copy, would make ptxas serialise the products); an odd one
        goes first, by the exact softmax, which holds the exponentials back in fp32 until that product is done.
        """
        if const_expr(self.spec.softmax == "stale"):
            if (end - tile) & 1 == 1:
                self.exact_tile(c, rows, tile, masked)
                tile += 1
            for _ in cutlass.range((end - tile) >> 1, unroll=1):
                self.stale_tile(c, rows, tile, masked, c.p[0], c.p[1])
                self.stale_tile(c, rows, tile + 1, masked, c.p[1], c.p[0])
                tile += 2
        else:
            for _ in cutlass.range(end - tile, unroll=1):
                self.exact_tile(c, rows, tile, masked)
                tile += 1
        return tile

    @cute.jit
    def stale_tile(self, c, rows, tile, masked: cutlass.Constexpr, p_before, p_now):
        scores = self.issue_products(c, rows, tile, masked, p_before)
        p = cute.recast_tensor(p_now, Int32)
        correction = cute.make_rmem_tensor(2, Float32)
        correction.fill(1.0)
        sums = c.softmax.exponentials(scores, p)
        moved = c.softmax.overflowed(sums)
        if moved:
            c.softmax.repair(scores, p, sums, correction)
        c.softmax.add(sums)
        self.finish_values(c, tile - 1)
        if moved:
            rescale(c.out, correction)

    @cute.jit
    def exact_tile(self, c, rows, tile, masked: cutlass.Constexpr):
        tile = cute.arch.make_warp_uniform(tile)  # or ptxas computes descriptors in vector registers: 70 slots a tile
        scores = self.issue_products(c, rows, tile, masked, c.p[0])
        correction = cute.make_rmem_tensor(2, Float32)
        correction.fill(1.0)
        largest = c.softmax.row_max(scores)
        moved = c.softmax.grown(largest)
        if moved:
            c.softmax.move(largest, correction)
        c.softmax.exponentials_in_place(scores)
        c.softmax.pin()
        self.finish_values(c, tile - 1)
        pack_fragment(scores, c.p[0], self.bf16)
        if moved:
            rescale(c.out, correction)

    @cute.jit
    def issue_products(self, c, rows, tile, masked: cutlass.Constexpr, p_before):
        """Issues S = Q K^T of `tile` and O += P V of the one before; returns S, masked, while the latter still runs."""
        scores = cute.make_rmem_tensor(c.scores_shape, Float32)
        c.shared.keys.wait_full(tile)
        c.turns.wait()
        gemm(c.op_qk, scores, c.q, c.k[None, None, None, c.shared.keys.slot(tile)], True)
        c.shared.values.wait_full(tile - 1)
        gemm(c.op_pv, c.out, p_before, c.v[None, None, None, c.shared.values.slot(tile - 1)], False)
        c.turns.done()
        place = Place.read(c.shared.places, c.shared.keys.slot(tile))  # before the slot is released
        words: Any = rows.mask.read(c.shared.keys.slot(tile)) if const_expr(masked) else None
        warpgroup.wait_group(1)
        c.shared.keys.release(tile)
        self.change(c, scores, rows, place, not masked)
        if const_expr(masked):
            self.mask(scores, rows, place, words)
        return scores

    def finish_values(self, c, tile) -> None:
        warpgroup.wait_group(0)
        c.shared.values.release(tile)

    @cute.jit
    def last_values(self, c, tile):
        """O += P V of the last tile."""
        c.shared.values.wait_full(tile)
        gemm(c.op_pv, c.out, c.p[0], c.v[None, None, None, c.shared.values.slot(tile)], False)
        self.finish_values(c, tile)

    def graphs(self, tensors: Tensors, where: Where) -> tuple[Any, Any]:
        """The score_mod and the predicate that the spec carries, on a thread's rows."""
        score, predicate = self.spec.score.graph, self.spec.mask.predicate
        if not (score or predicate):
            return None, None
        from cute_attn.mods.device.rows import RowPredicate, RowScores  # other kernels are not made from it

        lengths = tensors.lse.shape[2], tensors.k.shape[1]
        return (
            RowScores.of(score, tensors.captured, tensors.numbers, where, *lengths) if score else None,
            RowPredicate.of(predicate, tensors.asked, tensors.asked_numbers, where, *lengths) if predicate else None,
        )

    @cute.jit
    def change(self, c, scores, rows, place, is_inside: cutlass.Constexpr):
        """What the spec does to scores before they are masked. is_inside: whether the tile ends before the keys do."""
        if const_expr(rows.mod is not None):
            rows.mod.change(scores, rows.where.column + place.first, c.score.factor, is_inside)
        elif const_expr(self.spec.score.is_changed):
            where = rows.where.moved(0, place.first)
            for k in range_constexpr(cute.size(scores)):
                scores[k] = c.score.changed(scores[k], where.moved(8 * ((k >> 1) & 1), 8 * (k >> 2) + (k & 1)))

    def mask(self, scores, rows, place, words) -> None:
        """scores = -inf outside of the mask. words: what was read with the place of the tile."""
        bits = rows.mask.bits(words, place.first)
        mask_scores(scores, *bits, rows.predicate, rows.where.column + place.first)

    # ------------------------------------------------------------------ epilogue

    @cute.jit
    def store_out(self, tma, item, out, mma_pv, mine, warp, lane, group):
        """Writes this warpgroup's 64 rows through shared memory by TMA, which drops what lies outside the tensor."""
        rounded = cute.make_rmem_tensor_like(out, self.dtype)
        pack_fragment(out, rounded, self.bf16)
        matrices = cute.nvgpu.warp.StMatrix8x8x16bOp(transpose=False, num_matrices=4)
        atom = cute.make_copy_atom(matrices, self.dtype)
        copy = cute.make_tiled_copy_C(atom, mma_pv).get_slice(warp * 32 + lane)
        if warp == 0:
            cute.arch.cp_async_bulk_wait_group(0, read=True)  # the store of the item before has left this memory
        cute.arch.barrier(barrier_id=BARRIER_EPILOGUE + group, number_of_threads=WARPGROUP)
        cute.copy(atom, copy.retile(rounded), copy.partition_D(mine))
        cute.arch.fence_view_async_shared()
        cute.arch.barrier(barrier_id=BARRIER_EPILOGUE + group, number_of_threads=WARPGROUP)
        if warp == 0:
            place = (item.tile * self.consumers + group, 0)
            target = cute.local_tile(tma.out[None, None, item.group, item.batch], (self.rows_of_box, self.dim_v), place)
            source, target = partition(tma.out_atom, mine, target)
            cute.copy(tma.out_atom, source, target)
            cute.arch.cp_async_bulk_commit_group()


ForwardKernel.kernel.set_name_prefix("cute_attn_forward", remove_cutlass_symbol=True, keep_mangled_name=False)
