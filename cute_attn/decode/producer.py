"""The warp that loads K and V from their pages, tile by tile: by TMA, or gathered key by key."""

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Int64, range_constexpr

from cute_attn.sm90.tiles import partition

from .arguments import Arguments
from .ptx import copy_16_bytes
from .storage import Shared
from .work import Work

__all__ = ["gather_keys_and_values", "load_keys_and_values"]


@cute.jit
def load_keys_and_values(spec: cutlass.Constexpr, arguments: Arguments, shared: Shared, work: Work):
    """By TMA: lane p looks up the page of piece p of a tile, one load for all.

    A piece past the length is a box of a page that is not in the pool: it lies outside of the tensor, so that zeros
    come without any traffic, and the number of bytes to wait for is the same for every tile.
    """
    tma, tensors, keys = arguments.tma, arguments.tensors, spec.tile.n
    pieces, lane, page_size = keys // spec.piece, cute.arch.lane_idx(), tensors.k.shape[1]
    k_to, k_from = _boxes(spec.piece, spec.head_dim, tma.k_atom, tma.k, shared.k, work)
    v_to, v_from = _boxes(spec.piece, spec.head_dim_v, tma.v_atom, tma.v, shared.v, work)
    for tile in cutlass.range(work.first, work.last, unroll=1):
        use, token = tile - work.first, tile * keys + lane * spec.piece
        page = tensors.k.shape[0]
        if lane < pieces and token < work.length:
            page = tensors.table[work.batch, token // page_size]
        box = token % page_size // spec.piece
        k_bytes, v_bytes = (keys * dim * spec.cache_bytes for dim in (spec.head_dim, spec.head_dim_v))
        for ring, n_bytes, atom, to, boxes in (
            (shared.keys, k_bytes, tma.k_atom, k_to, k_from),
            (shared.values, v_bytes, tma.v_atom, v_to, v_from),
        ):
            _load_tile(ring, use, n_bytes, pieces, box, page, atom, to, boxes)


def _boxes(piece, dim, atom, pool, tile, work):
    """The pieces of a tile in shared memory, and those of the pool: by their number within a page, and by page."""
    boxes = cute.local_tile(pool[None, None, work.head, None], (piece, dim), (None, 0, None))
    return partition(atom, cute.local_tile(tile, (piece, dim), (None, 0, None)), boxes)


@cute.jit
def _load_tile(ring, use, n_bytes, pieces: cutlass.Constexpr, box, page, atom, to, boxes):
    """box, page: of piece p in lane p."""
    ring.wait_empty(use)
    barrier = ring.expect(use, n_bytes)
    for p in range_constexpr(pieces):
        piece = boxes[None, cute.arch.shuffle_sync(box, p), cute.arch.shuffle_sync(page, p)]
        cute.copy(atom, piece, to[None, p, ring.slot(use)], tma_bar_ptr=barrier)


@cute.jit
def gather_keys_and_values(spec: cutlass.Constexpr, arguments: Arguments, shared: Shared, work: Work):
    """Key by key, 16 bytes a lane, for pages that hold no whole piece; keys past the length are zeros.

    A tile is handed over when the next one is on its way.
    """
    for tile in cutlass.range(work.first, work.last, unroll=1):
        use = tile - work.first
        for which in range_constexpr(2):
            (shared.keys, shared.values)[which].wait_empty(use)
            _gather(spec, arguments, shared, work, tile, which)
            cute.arch.cp_async_commit_group()
        if use > 0:
            _hand_over(shared, use - 1, 2)
    if work.last > work.first:
        _hand_over(shared, work.last - work.first - 1, 0)


@cute.jit
def _gather(spec: cutlass.Constexpr, arguments: Arguments, shared: Shared, work: Work, tile, which: cutlass.Constexpr):
    tensors, keys, lane = arguments.tensors, spec.tile.n, cute.arch.lane_idx()
    pool, target, ring = ((tensors.k, shared.k, shared.keys), (tensors.v, shared.v, shared.values))[which]
    width = spec.cache_bytes
    line = (spec.head_dim, spec.head_dim_v)[which] * width // 16  # chunks of a key
    page_size, chunk_bytes = pool.shape[1], 16 // width
    # Where the keys of this lane lie, in elements; -1 for one that is not there.
    offsets = []
    for half in range_constexpr(keys // 32):
        token = tile * keys + 32 * half + lane
        page = Int32(-1)
        if token < work.length:
            page = tensors.table[work.batch, token // page_size]
            if page >= pool.shape[0]:
                page = Int32(-1)
        offsets.append((page, token % page_size))
    slot = ring.slot(tile - work.first)
    base = target.iterator.toint() + slot * (keys * line * 16)
    for step in range_constexpr(keys * line // 32):
        row, chunk = (step * 32 + lane) // line, (step * 32 + lane) % line
        half = step // line  # 32 keys take as many steps as a key has chunks
        page = cute.arch.shuffle_sync(offsets[half][0], row % 32)
        within = cute.arch.shuffle_sync(offsets[half][1], row % 32)
        there = page >= 0 and chunk * chunk_bytes < pool.shape[3]
        size = Int32(0)
        at = Int64(0)
        if there:
            size = Int32(16)
            at = cute.crd2idx((page, within, work.head, chunk * chunk_bytes), pool.layout)
        address = base + chunk // 8 * (keys * 128) + row * 128 + ((chunk % 8) ^ (row % 8)) * 16
        copy_16_bytes((pool.iterator + at).toint(), address, size)


@cute.jit
def _hand_over(shared: Shared, use, younger: cutlass.Constexpr):
    """Lets the readers have a tile, when no more than so many groups of copies that are younger are under way."""
    cute.arch.cp_async_wait_group(younger)
    cute.arch.fence_view_async_shared()
    cute.arch.sync_warp()
    for ring in (shared.keys, shared.values):
        with cute.arch.elect_one():
            cute.arch.mbarrier_arrive(ring.full + ring.slot(use))
