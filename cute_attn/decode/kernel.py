"""The decode kernel: a few new tokens over the keys of their sequence, with keys as rows of the products.

One CTA a (part of the keys, key head, sequence): a producer warp and one consumer warpgroup. The rows of a CTA are
pairs of a new token and a query head of the group that shares the key head, so that each key is read once for all of
them. With few rows it is cheapest to have them as columns: S^T = K Q^T and O^T = V^T P^T, M = 64 keys or dims.

Lengths and pages are read here, never by the host. K's rubbish beyond a length is masked, V's is made zero, since
0 * NaN is NaN in a product. With more than one part, a second kernel merges them in their order.
"""

from dataclasses import dataclass
from typing import Any

import cuda.bindings.driver as cuda
import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, const_expr, range_constexpr
from cutlass.cute.nvgpu import OperandMajorMode, warp, warpgroup

from cute_attn.sm90.dtypes import DTYPES
from cute_attn.sm90.fragments import pack_fragment
from cute_attn.sm90.ptx import exp2, tanh
from cute_attn.sm90.tiles import gemm, load_atom, tiled_mma
from cute_attn.spec.decode import DecodeSpec
from cute_attn.spec.score import LN_2, LOG2_E

from .arguments import Arguments, Scalars, Tensors, Tma
from .config import ctas_per_multiprocessor
from .eight import column_of, load_keys, load_values
from .merge import merge
from .producer import gather_keys_and_values, load_keys_and_values
from .scales import EXPONENT, LARGEST, ONE, SMALLEST, TokenScales, inverse_bits
from .storage import WARPS, Layouts, Shared
from .work import Work

THREADS = 32 * WARPS  # of the consumers
BARRIER = 1  # named, of all consumer threads


@dataclass(frozen=True)
class Consumer:
    """What the consumer warpgroup holds from tile to tile.

    A thread's columns of an accumulator are the rows `rows` of the CTA; of element e it is number `number(e)` of them.
    """

    shared: Shared
    work: Work
    scalars: Scalars
    thread: Int32
    q: Any  # operand descriptors
    k: Any
    v: Any
    p: Any
    mma_s: Any
    mma_o: Any
    out: Any  # fp32 accumulator of O^T
    scores: Any  # and of S^T
    scales: Any  # of tokens; None where they have none
    top: Any  # of each row: the maximum, its exponentials' sum in this thread, and what O is multiplied with
    total: Any
    correction: Any
    factors: Any  # of 8-bit caches: what each row's scores are multiplied with
    weights: Any  # and each of the thread's two keys, where tokens have scales
    largest: Any  # the bits of a power of two: the largest scale of values so far, which O is divided by
    rows: Any


class DecodeKernel:
    """Compiled by `cute_attn.jit` for a spec; see `arguments` for what it is called with."""

    def __init__(self, spec: DecodeSpec) -> None:
        self.spec, self.rows, self.keys = spec, spec.tile.rows, spec.tile.n
        self.dim, self.dim_v = spec.head_dim, spec.head_dim_v
        self.dtype = cutlass.Float16 if spec.eight else DTYPES[spec.dtype]  # of the operands
        self.bf16 = spec.dtype == "bf16" and not spec.eight
        self.no_key = spec.score.no_key

    # ------------------------------------------------------------------ host

    @cute.jit
    def __call__(self, tensors: Tensors, scalars: Scalars, stream: cuda.CUstream):
        spec = self.spec
        tma = Tma(None, None, None, None)
        if const_expr(spec.piece):
            layouts = Layouts.of(spec)
            pools = [
                cute.make_tensor(x.iterator, cute.select(x.layout, mode=[1, 3, 2, 0]))  # (token, dim, head, page)
                for x in (tensors.k, tensors.v)
            ]
            tma = Tma(
                *load_atom(pools[0], layouts.k, (spec.piece, self.dim)),
                *load_atom(pools[1], layouts.v, (spec.piece, self.dim_v)),
            )
        batch, tokens, heads_q, _ = tensors.q.shape
        heads_k, splits = tensors.k.shape[2], Int32(1)
        if const_expr(spec.split):
            splits = tensors.parts.shape[0]
        blocks = cute.ceil_div(tokens * (heads_q // heads_k), self.rows)
        self.kernel(Arguments(tma, tensors, scalars)).launch(
            grid=(splits * blocks, heads_k, batch),
            block=(THREADS + 32, 1, 1),
            stream=stream,
            min_blocks_per_mp=ctas_per_multiprocessor(spec),
            preferred_smem_carveout=100,  # percent; left open, the compiler would ask a GPU
        )
        if const_expr(spec.split):
            merge(tensors).launch(grid=(cute.ceil_div(tokens * heads_q, 4), batch, 1), block=(128, 1, 1), stream=stream)

    # ------------------------------------------------------------------ roles

    @cute.kernel
    def kernel(self, arguments: Arguments):
        spec = self.spec
        index = cute.arch.make_warp_uniform(cute.arch.warp_idx())
        shared = Shared.allocate(spec)
        if index == 0:
            with cute.arch.elect_one():
                shared.initialise()
        cute.arch.sync_threads()
        work = Work.of_this_cta(spec, arguments)
        if index == WARPS:
            if const_expr(spec.piece):
                load_keys_and_values(spec, arguments, shared, work)
            else:
                gather_keys_and_values(spec, arguments, shared, work)
        else:
            self.consume(arguments, shared, work, cute.arch.thread_idx()[0])

    # ------------------------------------------------------------------ consumers

    @cute.jit
    def consume(self, arguments: Arguments, shared: Shared, work: Work, thread: Int32):
        c = self.consumer(arguments, shared, work, thread)
        self.load_bounds(arguments, c)
        self.load_queries(arguments, c)
        self.meet(shared=True)
        if const_expr(self.spec.eight):
            for i in range_constexpr(self.rows // 4):
                c.factors[i] = shared.factors[c.rows[i]]
        if const_expr(self.spec.token_scales):
            c.scales.start(arguments.tensors, work)
        # The first key that some row does not attend any more, and the first that every row may attend.
        first_end = work.reach.position if const_expr(self.spec.tree) else shared.bounds[0, 1]
        last_begin = shared.bounds[self.rows - 1, 0]
        for tile in cutlass.range(work.first, work.last, unroll=1):
            use = cute.arch.make_warp_uniform(tile - work.first)
            if const_expr(self.spec.token_scales):
                c.scales.advance(arguments.tensors, work, tile)
            self.multiply_keys(c, use)
            self.transform(c)
            if (tile + 1) * self.keys > first_end or tile * self.keys < last_begin:
                self.mask(c, tile)
            self.exponentials(c)
            self.store_weights(c)
            shared.values.wait_full(use)
            if (tile + 1) * self.keys > work.length or tile * self.keys < work.lo:
                self.clean(c, shared.v[None, None, shared.values.slot(use)], tile)
            self.meet(shared=True)
            self.multiply_values(c, use)
        self.finish(arguments.tensors, c)

    def consumer(self, arguments: Arguments, shared: Shared, work: Work, thread: Int32) -> Consumer:
        spec, columns, lane = self.spec, self.rows // 4, thread % 32
        if spec.eight:  # K and V^T in registers
            mma_s = mma_o = tiled_mma(self.dtype, self.rows, OperandMajorMode.K, warpgroup.OperandSource.RMEM)
            ms = mo = mma_s.get_slice(0)
            k = ms.make_fragment_A(ms.partition_shape_A((self.keys, self.dim)))
            v = mo.make_fragment_A(mo.partition_shape_A((self.dim_v, self.keys)))
        else:
            mma_s = tiled_mma(self.dtype, self.rows, OperandMajorMode.K)
            mma_o = tiled_mma(self.dtype, self.rows, OperandMajorMode.K, a_major=OperandMajorMode.MN)
            ms, mo = mma_s.get_slice(0), mma_o.get_slice(0)
            transposed = cute.make_ordered_layout((self.dim_v, self.keys, spec.tile.stages), order=(1, 0, 2))
            k = ms.make_fragment_A(ms.partition_A(shared.k))
            v = mo.make_fragment_A(mo.partition_A(cute.composition(shared.v, transposed)))
        c = Consumer(
            shared=shared,
            work=work,
            scalars=arguments.scalars,
            thread=thread,
            q=ms.make_fragment_B(ms.partition_B(shared.q))[None, None, None, 0],
            k=k,
            v=v,
            p=mo.make_fragment_B(mo.partition_B(shared.p))[None, None, None, 0],
            mma_s=mma_s,
            mma_o=mma_o,
            out=cute.make_rmem_tensor(mo.partition_shape_C((self.dim_v, self.rows)), Float32),
            scores=cute.make_rmem_tensor(ms.partition_shape_C((self.keys, self.rows)), Float32),
            scales=TokenScales.make(self.keys, thread // 32 * 16 + lane // 4) if spec.token_scales else None,
            top=cute.make_rmem_tensor(columns, Float32),
            total=cute.make_rmem_tensor(columns, Float32),
            correction=cute.make_rmem_tensor(columns, Float32),
            factors=cute.make_rmem_tensor(columns, Float32) if spec.eight else None,
            weights=cute.make_rmem_tensor(2, Float32) if spec.token_scales else None,
            largest=cute.make_rmem_tensor(2, Int32) if spec.token_scales else None,
            rows=[i // 2 * 8 + lane % 4 * 2 + i % 2 for i in range(columns)],
        )
        c.out.fill(0.0)
        c.top.fill(self.no_key)
        c.total.fill(0.0)
        if spec.token_scales:
            c.largest.fill(SMALLEST)
        return c

    def number(self, e: int) -> int:
        """Which of a thread's rows element e of an accumulator belongs to."""
        return e % (self.rows // 2) // 4 * 2 + e % 2

    def key_of(self, c: Consumer, e: int) -> Int32:
        """The key within a tile that element e of the scores belongs to."""
        return e // 2 % 2 * 8 + c.thread // 32 * 16 + c.thread % 32 // 4

    def meet(self, shared: bool = False) -> None:
        """All consumer threads; what they wrote to shared memory may be read by products."""
        if shared:
            cute.arch.fence_view_async_shared()
        cute.arch.barrier(barrier_id=BARRIER, number_of_threads=THREADS)

    # ------------------------------------------------------------------ before the first tile

    @cute.jit
    def load_bounds(self, arguments: Arguments, c: Consumer):
        """The keys of each row, and the bits of the tree."""
        if c.thread < self.rows:
            token = cutlass.min(c.work.token(c.thread), c.work.tokens - 1)
            position = c.work.reach.position + token
            lo, hi = c.work.reach.around(position)
            if const_expr(self.spec.tree):
                hi = hi if position >= 0 else Int32(0)
            c.shared.bounds[c.thread, 0] = lo
            c.shared.bounds[c.thread, 1] = hi
            if const_expr(self.spec.tree):
                tree = arguments.tensors.tree
                plane = c.work.batch if tree.shape[0] > 1 else Int32(0)
                for word in range_constexpr(2):
                    c.shared.words[c.thread, word] = tree[plane, token, word]

    @cute.jit
    def load_queries(self, arguments: Arguments, c: Consumer):
        """Plain loads, 16 bytes a thread: any group and any number of tokens with one kernel; other rows are zero."""
        q = arguments.tensors.q[c.work.batch, None, None, None]
        line = self.dim // 8  # chunks of a row
        if const_expr(self.spec.eight):  # neighbours find the largest of a row: it takes lanes by a power of two
            line = 1 << (line - 1).bit_length()
        for step in range_constexpr(-(-self.rows * line // THREADS)):
            place = c.thread + step * THREADS
            row, chunk = place // line, place % line
            if row < self.rows:
                value = cute.make_rmem_tensor(8, q.element_type)
                value.fill(0.0)
                if c.work.is_there(row) and chunk * 8 < q.shape[2]:
                    source = q[c.work.token(row), c.work.query_head(row), None]
                    cute.autovec_copy(cute.logical_divide(source, cute.make_layout(8))[None, chunk], value)
                if const_expr(self.spec.eight):
                    self.store_scaled(arguments, c, row, chunk, value)
                else:
                    target = cute.logical_divide(c.shared.q[row, None, 0], cute.make_layout(8))
                    cute.autovec_copy(value, target[None, chunk])

    @cute.jit
    def store_scaled(self, arguments: Arguments, c: Consumer, row, chunk, value):
        """8 elements of a row of Q as fp16; a power of two goes from the row, of wider range, to its factor."""
        largest = cute.make_rmem_tensor(1, Float32)
        largest[0] = 0.0
        for i in range_constexpr(8):
            x = value[i].to(Float32)
            largest[0] = cute.arch.fmax(largest[0], cute.arch.fmax(x, -x))
        for offset in (1, 2, 4, 8, 16)[: (self.dim // 8 - 1).bit_length()]:  # neighbours have the row's other chunks
            largest[0] = cute.arch.fmax(largest[0], cute.arch.shuffle_sync_bfly(largest[0], offset=offset))
        power = cute.recast_tensor(largest, Int32)
        bits = cutlass.max(cutlass.min(power[0] & EXPONENT, LARGEST), SMALLEST)
        power[0] = inverse_bits(bits)
        if const_expr(self.dim % 128 and self.dim > 64):
            if chunk < self.dim // 8:
                self.store_chunk(c, row, chunk, value, largest[0])
        else:
            self.store_chunk(c, row, chunk, value, largest[0])
        power[0] = bits
        if chunk == 0:
            factor = largest[0] * c.scalars.score_factor
            if const_expr(not self.spec.token_scales):
                factor = factor * arguments.tensors.k_scales[c.work.batch, c.work.head]
            c.shared.factors[row] = factor

    def store_chunk(self, c: Consumer, row, chunk, value, inverse) -> None:
        for i in range(8):
            c.shared.q[row, column_of(chunk, i, self.dim), 0] = (value[i].to(Float32) * inverse).to(cutlass.Float16)

    # ------------------------------------------------------------------ a tile

    @cute.jit
    def multiply_keys(self, c: Consumer, use):
        """S^T = K Q^T."""
        ring = c.shared.keys
        ring.wait_full(use)
        if const_expr(self.spec.eight):
            load_keys(c.shared.k[None, None, ring.slot(use)], c.k, c.thread, self.spec.cache)
            cute.arch.sync_warp()  # all lanes have read
            ring.release(use)
            gemm(c.mma_s.op, c.scores, c.k, c.q, True)
            warpgroup.wait_group(0)
        else:
            gemm(c.mma_s.op, c.scores, c.k[None, None, None, ring.slot(use)], c.q, True)
            warpgroup.wait_group(0)
            ring.release(use)

    @cute.jit
    def multiply_values(self, c: Consumer, use):
        """O^T = V^T P^T, added to what O^T was, rescaled."""
        ring = c.shared.values
        if const_expr(self.spec.eight):
            values = c.shared.v[None, None, ring.slot(use)].iterator.toint()
            load_values(values, c.v, c.thread, self.dim_v, self.keys, self.spec.cache)
            cute.arch.sync_warp()
            ring.release(use)
        for e in range_constexpr(cute.size(c.out)):  # here: sooner, and the compiler would move it past the fence
            c.out[e] = c.out[e] * c.correction[self.number(e)]
        if const_expr(self.spec.eight):
            gemm(c.mma_o.op, c.out, c.v, c.p, False)
            warpgroup.wait_group(0)
        else:
            gemm(c.mma_o.op, c.out, c.v[None, None, None, ring.slot(use)], c.p, False)
            warpgroup.wait_group(0)
            ring.release(use)

    @cute.jit
    def transform(self, c: Consumer):
        """What the spec does to scores before they are masked."""
        if const_expr(self.spec.score.is_changed):
            for e in range_constexpr(cute.size(c.scores)):
                if const_expr(self.spec.eight):
                    c.scores[e] = c.scores[e] * c.factors[self.number(e)]
                    if const_expr(self.spec.token_scales):
                        c.scores[e] = c.scores[e] * c.scales.k[e // 2 % 2]
                else:
                    c.scores[e] = c.scores[e] * c.scalars.score_factor
                if const_expr(self.spec.score.kind == "softcap"):
                    c.scores[e] = tanh(c.scores[e])

    @cute.jit
    def mask(self, c: Consumer, tile: Int32):
        """-inf where a row does not attend a key."""
        bounds = c.shared.bounds
        for e in range_constexpr(cute.size(c.scores)):
            row, key = c.rows[self.number(e)], tile * self.keys + self.key_of(c, e)
            keep = key >= bounds[row, 0] and key < bounds[row, 1]
            if const_expr(self.spec.tree):
                bit = key - c.work.reach.position
                word = c.shared.words[row, 0] if bit < 32 else c.shared.words[row, 1]
                keep = keep and (bit < 0 or (word >> (bit & 31)) & 1 == 1)
            if not keep:
                c.scores[e] = -Float32.inf

    @cute.jit
    def exponentials(self, c: Consumer):
        """P = exp2(S - top), its sums, and what O must be multiplied with since the maximum moved."""
        factor, columns = c.scalars.exp2_factor, self.rows // 4
        for i in range_constexpr(columns):
            c.correction[i] = c.top[i]
        for e in range_constexpr(cute.size(c.scores)):
            c.top[self.number(e)] = cute.arch.fmax(c.top[self.number(e)], c.scores[e])
        for i in range_constexpr(columns):
            for offset in (4, 8, 16):
                c.top[i] = cute.arch.fmax(c.top[i], cute.arch.shuffle_sync_bfly(c.top[i], offset=offset))
        if const_expr(self.spec.token_scales):
            self.largest_of_warp(c)
        self.exchange(c, c.top)
        for i in range_constexpr(columns):
            for other in range_constexpr(WARPS):
                c.top[i] = cute.arch.fmax(c.top[i], c.shared.tops[other, c.rows[i]])
            c.correction[i] = exp2((c.correction[i] - c.top[i]) * factor)
            c.total[i] = c.total[i] * c.correction[i]
        for e in range_constexpr(cute.size(c.scores)):
            i = self.number(e)
            c.scores[e] = exp2(c.scores[e] * factor - c.top[i] * factor)
            c.total[i] = c.total[i] + c.scores[e]
        if const_expr(self.spec.token_scales):
            self.weigh(c)

    @cute.jit
    def largest_of_warp(self, c: Consumer):
        """The power of two below the largest scale of values of this warp's keys, published by the next meeting."""
        pair = cute.recast_tensor(c.scales.v, Int32)
        largest = cutlass.max(pair[0] & EXPONENT, pair[1] & EXPONENT)
        for offset in (4, 8, 16):
            largest = cutlass.max(largest, cute.arch.shuffle_sync_bfly(largest, offset=offset))
        if c.thread % 32 == 0:
            c.shared.largest[c.thread // 32] = cutlass.min(largest, LARGEST)

    @cute.jit
    def weigh(self, c: Consumer):
        """P of each key times its scale of values, over the largest so far: O is what it is over that, too."""
        c.largest[1] = c.largest[0]
        for other in range_constexpr(WARPS):
            c.largest[0] = cutlass.max(c.largest[0], c.shared.largest[other])
        c.largest[1] = c.largest[1] + inverse_bits(c.largest[0]) - ONE  # bits of the ratio of two powers
        c.largest[1] = cutlass.max(c.largest[1], 0)
        ratio = cute.recast_tensor(c.largest, Float32)[1]
        inverse = cute.make_rmem_tensor(1, Int32)
        inverse[0] = inverse_bits(c.largest[0])
        for h in range_constexpr(2):
            c.weights[h] = c.scales.v[h] * cute.recast_tensor(inverse, Float32)[0]
        for e in range_constexpr(cute.size(c.scores)):
            c.scores[e] = c.scores[e] * c.weights[e // 2 % 2]
        for i in range_constexpr(self.rows // 4):
            c.correction[i] = c.correction[i] * ratio

    @cute.jit
    def exchange(self, c: Consumer, values):
        """Each warp's number of each row, for all warps to read; there is a meeting before the next of these."""
        if c.thread % 32 < 4:
            for i in range_constexpr(self.rows // 4):
                c.shared.tops[c.thread // 32, c.rows[i]] = values[i]
        self.meet()

    @cute.jit
    def store_weights(self, c: Consumer):
        """P to shared memory, a row of queries a row."""
        packed = cute.make_rmem_tensor_like(c.scores, self.dtype)
        pack_fragment(c.scores, packed, self.bf16)
        matrices = warp.StMatrix8x8x16bOp(transpose=True, num_matrices=4 if self.rows > 8 else 2)
        atom = cute.make_copy_atom(matrices, self.dtype)
        copy = cute.make_tiled_copy_C(atom, c.mma_s).get_slice(c.thread)
        p = c.shared.p[None, None, 0]
        p_t = cute.composition(p, cute.make_ordered_layout((self.keys, self.rows), order=(1, 0)))
        cute.copy(atom, copy.retile(packed), copy.partition_D(p_t))

    @cute.jit
    def clean(self, c: Consumer, values, tile: Int32):
        """Zeroes the values of keys that no row attends: before the first, and past the length."""
        length = 16 // (values.element_type.width // 8)
        line = self.dim_v // length  # chunks of a key
        zero = cute.make_rmem_tensor(length, values.element_type)
        zero.fill(0)
        for place in cutlass.range(c.thread, self.keys * line, THREADS, unroll=1):
            key = tile * self.keys + place // line
            if key < c.work.lo or key >= c.work.length:
                row = cute.logical_divide(values[place // line, None], cute.make_layout(length))
                cute.autovec_copy(zero, row[None, place % line])

    # ------------------------------------------------------------------ the end

    @cute.jit
    def finish(self, tensors: Tensors, c: Consumer):
        """Divides by the sums, and writes the rows and their lse: results, or parts of them."""
        for i in range_constexpr(self.rows // 4):
            for offset in (4, 8, 16):
                c.total[i] = c.total[i] + cute.arch.shuffle_sync_bfly(c.total[i], offset=offset)
        self.exchange(c, c.total)
        for i in range_constexpr(self.rows // 4):
            total = Float32(0.0)
            for other in range_constexpr(WARPS):
                total = total + c.shared.tops[other, c.rows[i]]
            if c.work.is_there(c.rows[i]):
                self.write_row(tensors, c, i, total)

    @cute.jit
    def write_row(self, tensors: Tensors, c: Consumer, i: cutlass.Constexpr, total):
        token, head = c.work.token(c.rows[i]), c.work.query_head(c.rows[i])
        weight = Float32(0.0)
        log2_sum = -Float32.inf
        if total != 0.0:  # so is NaN, which goes on
            weight = self.value_scale(tensors, c) / total
            log2_sum = c.top[i] * c.scalars.exp2_factor + cute.math.log2(total, fastmath=True)
        if const_expr(self.spec.sink and not self.spec.split):
            sink = tensors.sink[head] * LOG2_E
            largest = cute.arch.fmax(log2_sum, sink)
            if largest > -Float32.inf:
                joined = largest + cute.math.log2(exp2(log2_sum - largest) + exp2(sink - largest), fastmath=True)
                weight = weight * exp2(log2_sum - joined)
                log2_sum = joined
        if const_expr(self.spec.split):
            if c.thread < 4:
                tensors.logs[c.work.split, c.work.batch, head, token] = log2_sum * LN_2
            if total != 0.0:  # a part without keys is not read
                self.write_dims(c, i, weight, total, tensors.parts[c.work.split, c.work.batch, token, head, None])
        else:
            if c.thread < 4:
                tensors.lse[c.work.batch, head, token] = log2_sum * LN_2
            self.write_dims(c, i, weight, total, tensors.out[c.work.batch, token, head, None])

    def value_scale(self, tensors: Tensors, c: Consumer) -> Any:
        """What the output is still to be multiplied with."""
        if self.spec.token_scales:
            return cute.recast_tensor(c.largest, Float32)[0]
        return tensors.v_scales[c.work.batch, c.work.head] if self.spec.eight else 1.0

    @cute.jit
    def write_dims(self, c: Consumer, i: cutlass.Constexpr, weight, total, row):
        """This thread's dims of its row number i; a row without keys has zeros, whatever others made of theirs."""
        for block in range_constexpr(self.dim_v // 64):
            for h in range_constexpr(2):
                e = block * (self.rows // 2) + i // 2 * 4 + 2 * h + i % 2
                within = c.thread % 32 // 4 * 2 + h if self.spec.eight else 8 * h + c.thread % 32 // 4
                dim = 64 * block + c.thread // 32 * 16 + within
                value = Float32(0.0)
                if total != 0.0:
                    value = c.out[e] * weight
                if dim < row.shape[0]:
                    row[dim] = value.to(row.element_type)


DecodeKernel.kernel.set_name_prefix("cute_attn_decode", remove_cutlass_symbol=True, keep_mangled_name=False)
