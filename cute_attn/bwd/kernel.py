"""The main kernel of the backward: one key tile of one key head at a time, for any interval mask.

Warps of the first warpgroup: 0 loads K, V, and Q tiles with their -lse; 1 loads dO tiles with their delta, and words of
bits that say which pairs are attended (`cute_attn.bwd.words`); 2 and 3 add the dQ that the two consumer warpgroups
leave in shared memory to the sums in global memory, or say whose turn it is where these add it from registers. K and V
stay in shared memory, dK and dV in registers, while the CTA walks the runs of query tiles, of all query heads that
share its key head: so no copy of K, V, dK or dV per query head exists, and dK and dV have one order of summation. Full
runs carry no mask code; `cute_attn.bwd.walk` says in which order tiles come. A tile is

    S^T = K Q^T,  P^T = exp2(c S^T - lse),  dP^T = V dO^T,  dS^T = P^T (dP^T - delta),
    dV += P^T dO,  dK += dS^T Q,  dQ = dS K

and its products run under the arithmetic: dP under P, dV under dS and its exchange, dK under the way of dQ out of
registers.
"""

from dataclasses import dataclass, replace
from typing import Any

import cuda.bindings.driver as cuda
import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Int64, Uint32, const_expr, range_constexpr
from cutlass.cute.nvgpu import warpgroup

from cute_attn.sm90.dtypes import DTYPES
from cute_attn.sm90.fragments import pack_fragment, row_address, write_fragment, write_rows
from cute_attn.sm90.place import Place
from cute_attn.sm90.ptx import add_vector, not_before, thread_here, wide_address
from cute_attn.sm90.score import Score, Where
from cute_attn.sm90.store import store_fragment
from cute_attn.sm90.tiles import gemm, load_atom, partition, store_atom
from cute_attn.spec.backward import BackwardSpec

from .arguments import Scalars, Schedule, Tensors, TmaTensors
from .producers import Producers, dq_empty, dq_full
from .products import GROUPS, KEYS, WARPGROUP, Products
from .storage import Shared
from .tile_math import TileMath
from .walk import kinds
from .work import Arguments

# Of producers and consumers after setmaxnreg, by keys of a tile; together the 168 a thread that a launch gets.
REGISTERS = {128: (24, 240), 64: (40, 232)}
BARRIER_CONSUMERS = 1  # named barrier of both consumer warpgroups; 3 to 6 are those of `producers`


@dataclass(frozen=True)
class Consumer:
    """What a consumer warpgroup holds from tile to tile: operands (A, B), accumulators, packed fragments.

    Until `of_part`, what differs between the parts of a tile is a list: B of the first four products, A of dK, its mma.
    """

    s_operands: tuple[Any, Any]
    dp_operands: tuple[Any, Any]
    dv_operands: tuple[Any, Any]
    dk_operands: tuple[Any, Any]
    dq_operands: tuple[Any, Any]
    scores: cute.Tensor
    dk: cute.Tensor
    dv: cute.Tensor
    p_packed: cute.Tensor
    ds_packed: cute.Tensor
    mma_s: cute.TiledMma
    mma_dk: Any
    mma_dv: cute.TiledMma
    mma_dq: cute.TiledMma
    math: TileMath
    graphs: Any  # of the spec, on this thread's keys; None without
    p_address: Any  # where this thread writes P^T, dS^T
    ds_address: Any
    where: Where  # the first of this thread's scores would be in a tile of the first queries
    dq_sums: Any  # where dQ is added from registers, the address of what this thread adds to of the first sum
    shared: Shared
    group: Int32
    thread: Int32

    def of_part(self, part: int) -> "Consumer":
        """For one part of the queries of a tile: see Products."""
        keys, values = (self.s_operands[0], self.dp_operands[0]) if part == 0 else self.keys_here()
        first = replace(
            self,
            s_operands=(keys, self.s_operands[1][part]),
            dp_operands=(values, self.dp_operands[1][part]),
            dv_operands=(self.dv_operands[0], self.dv_operands[1][part]),
            dk_operands=(self.dk_operands[0][part], self.dk_operands[1][part]),
            mma_dk=self.mma_dk[part],
        )
        if part == 0:
            return first
        rows = part * self.math.queries
        return replace(
            first,
            math=replace(self.math, first=self.math.first + rows // 16),
            where=self.where._replace(row=self.where.row + rows),
            ds_address=self.ds_address ^ 2 * rows,  # see `write_rows`
        )

    def keys_here(self) -> tuple[Any, Any]:
        """The operands K and V with addresses computed here: those of the part before would wait in registers."""
        mma, group = self.mma_s.get_slice(0), cute.arch.make_warp_uniform(thread_here() // WARPGROUP - 1)
        tiles = (self.shared.k, self.shared.v)
        mine = [cute.local_tile(x, (KEYS, cute.size(x, mode=[1])), (group, 0)) for x in tiles]
        return tuple(mma.make_fragment_A(mma.partition_A(x)) for x in mine)


class MainKernel:
    """Called from `cute_attn.bwd.backward` for a spec."""

    def __init__(self, spec: BackwardSpec) -> None:
        self.spec, self.tile = spec, spec.tile
        self.m, self.n, self.dim, self.dim_v = spec.tile.m, spec.tile.n, spec.head_dim, spec.head_dim_v
        self.dtype, self.bf16 = DTYPES[spec.dtype], spec.dtype == "bf16"
        self.products = Products(spec, self.dtype)
        self.producers = Producers(self.products)

    # ------------------------------------------------------------------ host

    @cute.jit
    def launch(self, tensors: Tensors, schedule: Schedule, scalars: Scalars, stream: cuda.CUstream):
        def reordered(t):
            return cute.make_tensor(t.iterator, cute.select(t.layout, mode=[1, 3, 2, 0]))  # (seq, dim, head, batch)

        p = self.products
        store_k, store_v = (None, None), (None, None)
        if const_expr(self.spec.dk and not self.spec.fp32_gradients):
            store_k = store_atom(reordered(tensors.dk), p.layout_k(), (self.n, self.dim))
        if const_expr(self.spec.dv and not self.spec.fp32_gradients):
            store_v = store_atom(reordered(tensors.dv), p.layout_v(), (self.n, self.dim_v))
        tma = TmaTensors(
            *load_atom(reordered(tensors.q), p.layout_q(), (self.m, self.dim)),
            *load_atom(reordered(tensors.k), p.layout_k(), (self.n, self.dim)),
            *load_atom(reordered(tensors.v), p.layout_v(), (self.n, self.dim_v)),
            *load_atom(reordered(tensors.dout), p.layout_do(), (self.m, self.dim_v)),
            *store_k,
            *store_v,
        )
        arguments = Arguments(self.spec, tma, tensors, schedule, scalars)
        self.kernel(arguments).launch(
            grid=(cutlass.min(scalars.ctas, arguments.work()), 1, 1),
            block=(WARPGROUP * (1 + GROUPS), 1, 1),
            stream=stream,
            min_blocks_per_mp=1,  # without it ptxas may ignore setmaxnreg
            # a CTA with several items may wait for any other's: all must be resident, which CUDA then sees to
            cooperative=scalars.ctas < arguments.work() if const_expr(self.spec.deterministic) else False,
        )

    # ------------------------------------------------------------------ roles

    @cute.kernel
    def kernel(self, arguments: Arguments):
        warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
        shared = Shared.allocate(self.products)
        if warp == 0:
            arguments.tma.prefetch()
            with cute.arch.elect_one():
                shared.initialise()
        cute.arch.sync_threads()
        if warp < 4:
            cute.arch.setmaxregister_decrease(REGISTERS[self.n][0])
            if warp == 0:
                self.producers.load_queries(arguments, shared)
            if warp == 1:
                self.producers.load_grads(arguments, shared)
            if const_expr(self.spec.dq and (self.products.stage_dq or self.spec.deterministic)):
                for group in range_constexpr(GROUPS):
                    if warp == 2 + group:
                        self.producers.add_dq(arguments, shared, group)
        else:
            cute.arch.setmaxregister_increase(REGISTERS[self.n][1])
            self.consume(arguments, shared, warp % 4, warp // 4 - 1)

    # ------------------------------------------------------------------ consumers

    @cute.jit
    def consume(self, arguments: Arguments, shared: Shared, warp, group):
        first = Int32(0)
        partial, then_partial = kinds(self.spec)
        for item_number in cutlass.range(arguments.count(), unroll=1):
            item = arguments.item(arguments.index(item_number))
            c = self.consumer(arguments, item, shared, warp, group)
            c.dk.fill(0.0)
            c.dv.fill(0.0)
            middle = first + item.count(partial)
            last = middle + item.count(then_partial)
            shared.keys_values.wait_full(item_number)
            for use in cutlass.range(first, middle, unroll=1):
                self.tile_step(c, cute.arch.make_warp_uniform(use), partial)
            for use in cutlass.range(middle, last, unroll=1):
                self.tile_step(c, cute.arch.make_warp_uniform(use), then_partial)
            if const_expr(self.spec.fp32_gradients):
                self.store_unrounded(arguments, item, c)
            else:
                self.store(arguments, item, c, shared, warp, group)
            shared.keys_values.release(item_number)
            first = last

    def consumer(self, arguments: Arguments, item, shared: Shared, warp, group) -> Consumer:
        tensors, scalars, p, tile = arguments.tensors, arguments.scalars, self.products, self.tile
        thread = not_before(warp * 32 + cute.arch.lane_idx())
        mma_s, mma_dv, mma_dq = p.scores(), p.values_gradient(), p.queries_gradient()
        mma_dk = [p.keys_gradient(part) for part in range(p.parts)]
        s, dk, dv, dq = (mma.get_slice(0) for mma in (mma_s, mma_dk[0], mma_dv, mma_dq))

        def transposed(x, columns, rows, stages=None):
            """(columns, rows[, stages]) of a tile with stages."""
            if stages is None:
                return cute.composition(x, cute.make_ordered_layout((columns, rows), order=(1, 0)))
            return cute.composition(x, cute.make_ordered_layout((columns, rows, stages), order=(1, 0, 2)))

        # This warpgroup's share of each operand: see Products.
        keys = group if p.split_keys else 0
        others = 0 if p.split_keys else group
        k = cute.local_tile(shared.k, (KEYS, self.dim), (keys, 0))
        v = cute.local_tile(shared.v, (KEYS, self.dim_v), (keys, 0))
        rows = [(part if p.split_keys else group, 0, 0) for part in range(p.parts)]
        q = [cute.local_tile(shared.q, (p.queries, self.dim, tile.q_stages), at) for at in rows]
        do = [cute.local_tile(shared.do, (p.queries, self.dim_v, tile.do_stages), at) for at in rows]
        depth, columns = self.m // p.parts, [(others, part, 0) for part in range(p.parts)]
        q_t = transposed(shared.q, self.dim, self.m, tile.q_stages)
        q_t = [cute.local_tile(q_t, (p.columns_k, depth, tile.q_stages), at) for at in columns]
        do_t = transposed(shared.do, self.dim_v, self.m, tile.do_stages)
        do_t = [cute.local_tile(do_t, (p.columns_v, depth, tile.do_stages), at) for at in columns]
        k_t = cute.local_tile(transposed(shared.k, self.dim, self.n), (p.columns_q, self.n), (group, 0))
        ds_rows = transposed(shared.ds, self.m, self.n, self.products.ds_stages)

        p_packed, ds_packed = (cute.make_rmem_tensor(KEYS * p.queries // WARPGROUP, self.dtype) for _ in range(2))
        p_operand = None
        if p.split_keys:
            p_packed, ds_packed = (x.make_fragment_A(x.partition_shape_A((KEYS, p.queries))) for x in (dv, dk))
            p_operand = p_packed
        elif self.products.share_p:
            p_operand = dv.make_fragment_A(dv.partition_A(shared.p))
        ds_operands = [ds_packed] * p.parts
        for part in range(p.parts):
            if p.shares_ds_of_dk(part):
                ds = cute.local_tile(shared.ds, (KEYS, depth, p.ds_stages), (keys, part, 0))
                mma = mma_dk[part].get_slice(0)
                ds_operands[part] = mma.make_fragment_A(mma.partition_A(ds))
        # A table of distances leaves no register for what depends on the opaque thread; the lane may be read again.
        lane = cute.arch.lane_idx() if "load_tabled" in self.spec.score.graph else thread
        place = (keys * KEYS, others * p.queries)  # of S^T in the tile
        dq_sums: Any = None
        if self.spec.dq and not p.stage_dq:
            sums: Any = tensors.dq_sum
            dq_sums = wide_address(sums.iterator + (group * p.dq_group_size + thread * 4))
        first_key = item.tile * self.n + keys * KEYS + thread // 32 * 16 + thread % 32 // 4
        return Consumer(
            s_operands=(s.make_fragment_A(s.partition_A(k)), [s.make_fragment_B(s.partition_B(x)) for x in q]),
            dp_operands=(s.make_fragment_A(s.partition_A(v)), [s.make_fragment_B(s.partition_B(x)) for x in do]),
            dv_operands=(p_operand, [dv.make_fragment_B(dv.partition_B(x)) for x in do_t]),
            dk_operands=(ds_operands, [dk.make_fragment_B(dk.partition_B(x)) for x in q_t]),
            dq_operands=(dq.make_fragment_A(dq.partition_A(ds_rows)), dq.make_fragment_B(dq.partition_B(k_t))),
            scores=cute.make_rmem_tensor(s.partition_shape_C((KEYS, p.queries)), Float32),
            dk=cute.make_rmem_tensor(dk.partition_shape_C((KEYS, p.columns_k)), Float32),
            dv=cute.make_rmem_tensor(dv.partition_shape_C((KEYS, p.columns_v)), Float32),
            p_packed=p_packed,
            ds_packed=ds_packed,
            mma_s=mma_s,
            mma_dk=mma_dk,
            mma_dv=mma_dv,
            mma_dq=mma_dq,
            math=self.math_of_spec()(
                spec=self.spec,
                queries=p.queries,
                first=others * (p.queries // 16),
                keys=(first_key, first_key + 8),
                seqlen_k=tensors.k.shape[1],
                score=Score(self.spec.score, scalars.score_factor),
                exp2_factor=scalars.exp2_factor,
            ),
            graphs=self.graphs(tensors, item, (first_key, first_key + 8), group),
            p_address=row_address(shared.p_data, *place, thread) if p.share_p else None,
            ds_address=row_address(shared.ds_data, *place, thread),
            where=Where(item.batch, Int32(0), others * p.queries + lane % 4 * 2, first_key),
            dq_sums=dq_sums,
            shared=shared,
            group=group,
            thread=thread,
        )

    @property
    def has_graph(self) -> bool:
        return bool(self.spec.score.graph or self.spec.mask.predicate)

    def math_of_spec(self) -> Any:
        if not self.has_graph:
            return TileMath
        from .graph_math import GraphMath  # other kernels are not made from it

        return GraphMath

    def graphs(self, tensors, item, keys, group) -> Any:
        if not self.has_graph:
            return None
        from .graph_math import Graphs

        part = 0 if self.products.split_keys else group
        return Graphs.of(self.spec, tensors, item.batch, keys, part)

    @cute.jit
    def tile_step(self, c, use, masked: cutlass.Constexpr):
        q_slot, do_slot, ds_slot = (
            c.shared.queries.slot(use),
            c.shared.grads.slot(use),
            use & (self.products.ds_stages - 1),
        )
        for part in range_constexpr(self.products.parts):
            self.part_step(c.of_part(part), use, (q_slot, do_slot, ds_slot), masked, part)
        warpgroup.wait_group(0)
        if const_expr(self.products.share_p and not self.products.needs_ds):
            self.sync_consumers()  # before P is replaced
        with cute.arch.elect_one():
            cute.arch.mbarrier_arrive(c.shared.queries.empty + q_slot)
            if const_expr(not self.products.retire_dv_early):
                cute.arch.mbarrier_arrive(c.shared.grads.empty + do_slot)

    @cute.jit
    def part_step(self, c, use, slots, masked: cutlass.Constexpr, part: cutlass.Constexpr):
        """All products of one part of a tile, and with the last one dQ of the tile."""
        q_slot, do_slot, ds_slot = slots
        if const_expr(part == 0):
            c.shared.queries.wait_full(use)
        k, q = c.s_operands
        gemm(c.mma_s.op, c.scores, k, q[None, None, None, q_slot], True)
        if const_expr(part == 0):
            c.shared.grads.wait_full(use)
        dp: Any = None
        if const_expr(self.products.needs_dp):
            dp = cute.make_rmem_tensor_like(c.scores)
            v, do = c.dp_operands
            gemm(c.mma_s.op, dp, v, do[None, None, None, do_slot], True)
        fused = bool(self.spec.score.graph) or (masked and self.has_graph)
        if const_expr(fused):
            self.ask_graphs(c, dp, (q_slot, do_slot), masked, part)
        else:
            warpgroup.wait_group(1 if const_expr(self.products.needs_dp) else 0)
            place = Place.read(c.shared.places, q_slot)
            where = c.where._replace(head=place.head, row=c.where.row + place.first)
            word = [*self.words(c, do_slot, masked, part), None][0]
            c.math.probabilities(c.scores, c.p_packed, c.shared.shift[None, q_slot], word, where, masked)
        if const_expr(self.products.share_p):
            write_rows(c.p_address, c.p_packed)
            cute.arch.fence_view_async_shared()
            self.sync_consumers()
        if const_expr(self.spec.dv):
            p, do_t = c.dv_operands
            p = p[None, None, None, 0] if const_expr(self.products.share_p) else p
            gemm(c.mma_dv.op, c.dv, p, do_t[None, None, None, do_slot], False)
        if const_expr(self.products.needs_ds):
            if const_expr(not fused):
                warpgroup.wait_group(1 if const_expr(self.spec.dv) else 0)
                c.math.score_gradients(dp, c.scores, c.ds_packed, c.shared.delta[None, do_slot])
            self.accumulate_dk_dq(c, use, q_slot, ds_slot, part)

    def ask_graphs(self, c, dp, slots, masked, part) -> None:
        """P and dS of a tile in which graphs have a say, when both products are there."""
        q_slot, do_slot = slots
        place = Place.read(c.shared.places, q_slot)
        where = c.where._replace(head=place.head, row=c.where.row + place.first)
        graphs = c.graphs.in_tile(where, masked)  # what it loads comes under the products
        early = c.math.asked_early(graphs[1])
        warpgroup.wait_group(0)
        statistics = c.shared.shift[None, q_slot], c.shared.delta[None, do_slot]
        packed = c.p_packed, c.ds_packed
        words = self.words(c, do_slot, masked, part)
        c.math.gradients(c.scores, dp, packed, statistics, words, graphs, where, masked, early)

    @cute.jit
    def accumulate_dk_dq(self, c, use, q_slot, ds_slot, part: cutlass.Constexpr):
        """dK += dS^T Q, and with the last part dQ = dS K of the tile; dQ leaves while dK is computed."""
        is_last = const_expr(part == self.products.parts - 1)
        if const_expr(self.products.share_ds):
            write_rows(c.ds_address + ds_slot * (self.n * self.m * self.spec.element_bytes), c.ds_packed)
        if const_expr(self.products.retire_dv_early and is_last):
            warpgroup.wait_group(0)
            c.shared.grads.release(use)
        if const_expr(self.products.share_ds and is_last):
            cute.arch.fence_view_async_shared()
            self.sync_consumers()
        if const_expr(self.spec.dq and is_last):
            shape = c.mma_dq.get_slice(0).partition_shape_C((self.m, self.products.columns_q))
            dq = cute.make_rmem_tensor(shape, Float32)
            ds_rows, k_t = c.dq_operands
            gemm(c.mma_dq.op, dq, ds_rows[None, None, None, ds_slot], k_t, True)
        if const_expr(self.spec.dk):
            ds, q_t = c.dk_operands
            ds = ds[None, None, None, ds_slot] if const_expr(self.products.shares_ds_of_dk(part)) else ds
            gemm(c.mma_dk.op, c.dk, ds, q_t[None, None, None, q_slot], False)
        if const_expr(self.spec.dq and is_last):
            warpgroup.wait_group(1 if const_expr(self.spec.dk) else 0)
            if const_expr(self.products.stage_dq):
                self.hand_over_dq(c, dq)
            else:
                self.add_from_registers(c, dq, q_slot)

    def words(self, c, slot, masked, part) -> list[Any]:
        """This thread's of one part of a tile, one of each kind; none where no bounds are tested."""
        kinds = range(self.products.word_kinds if masked else 0)
        words = [Uint32(c.shared.words[WARPGROUP * c.group + c.thread, kind, slot]) for kind in kinds]
        return [word >> part * cute.size(c.scores) for word in words] if part else words

    @cute.jit
    def add_from_registers(self, c, dq, slot):
        """Adds dQ of a tile to its sum, in its turn if there are turns."""
        if const_expr(self.spec.deterministic):
            dq_empty(c.group).sync()
        sums: Any = c.shared.sums
        target = c.dq_sums + Int64(sums[slot]) * (4 * self.m * self.dim)
        for j in range_constexpr(self.products.dq_vectors):
            add_vector(target + j * 16 * WARPGROUP, [dq[4 * j + i] for i in range(4)])
        if const_expr(self.spec.deterministic):
            dq_full(c.group).arrive()

    @cute.jit
    def hand_over_dq(self, c, dq):
        """Leaves dQ of a tile, a chunk at a time, to the warp that adds it to the sums."""
        vectors = self.products.dq_vectors // self.tile.dq_chunks
        source = cute.make_tensor(dq.iterator, cute.make_ordered_layout((4, vectors, self.tile.dq_chunks), (0, 1, 2)))
        for chunk in range_constexpr(self.tile.dq_chunks):
            dq_empty(c.group).sync()
            for j in range_constexpr(vectors):
                cute.autovec_copy(source[None, j, chunk], c.shared.dq[None, c.thread, j, c.group])
            cute.arch.fence_view_async_shared()
            dq_full(c.group).arrive()

    # ------------------------------------------------------------------ epilogue

    @cute.jit
    def store(self, arguments: Arguments, item, c, shared, warp, group):
        """Writes dK and dV through the memory of K and V by TMA, which drops what lies outside the tensors."""
        p, tma, scalars = self.products, arguments.tma, arguments.scalars
        keys, dims = (group, 0) if const_expr(p.split_keys) else (0, group)
        self.sync_consumers()  # nothing reads K and V any more
        thread = not_before(c.thread)
        if const_expr(self.spec.dk):
            c.dk.store(c.dk.load() * scalars.scale)
            self.round(c.dk, c.mma_dk[0], cute.local_tile(shared.k, (KEYS, p.columns_k), (keys, dims)), thread)
        if const_expr(self.spec.dv):
            self.round(c.dv, c.mma_dv, cute.local_tile(shared.v, (KEYS, p.columns_v), (keys, dims)), thread)
        cute.arch.fence_view_async_shared()
        self.sync_consumers()
        if warp == 0 and group == 0:
            self.store_tile(tma.dk_atom, tma.dk, shared.k, item, (self.n, self.dim))
        if warp == 0 and group == 1:
            self.store_tile(tma.dv_atom, tma.dv, shared.v, item, (self.n, self.dim_v))

    @cute.jit
    def store_unrounded(self, arguments: Arguments, item, c):
        """Writes dK and dV from registers."""
        p, scalars = self.products, arguments.scalars
        tensors: Any = arguments.tensors
        keys, dims = (c.group, 0) if const_expr(p.split_keys) else (0, c.group)
        thread = not_before(c.thread)
        row = item.tile * self.n + keys * KEYS + thread // 32 * 16 + thread % 32 // 4
        column = thread % 4 * 2
        if const_expr(self.spec.dk):
            c.dk.store(c.dk.load() * scalars.scale)
            store_fragment(c.dk, tensors.dk[item.batch, None, item.head_k, None], row, dims * p.columns_k + column)
        if const_expr(self.spec.dv):
            store_fragment(c.dv, tensors.dv[item.batch, None, item.head_k, None], row, dims * p.columns_v + column)

    @cute.jit
    def round(self, sums, mma, tile, thread):
        packed = cute.make_rmem_tensor_like(sums, self.dtype)
        pack_fragment(sums, packed, self.bf16)
        write_fragment(mma, packed, tile, thread)

    def sync_consumers(self) -> None:
        cute.arch.barrier(barrier_id=BARRIER_CONSUMERS, number_of_threads=GROUPS * WARPGROUP)

    @cute.jit
    def store_tile(self, atom, gradient, tile, item, shape):
        if const_expr(gradient is not None):
            target = cute.local_tile(gradient[None, None, item.head_k, item.batch], shape, (item.tile, 0))
            source, target = partition(atom, tile, target)
            cute.copy(atom, source, target)
            cute.arch.cp_async_bulk_commit_group()
            cute.arch.cp_async_bulk_wait_group(0, read=True)  # shared memory must outlive the stores that read it
