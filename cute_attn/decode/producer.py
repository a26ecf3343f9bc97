"""The warp that loads K and V from their pages, tile by tile: by TMA, or gathered key by key."""

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Int64, range_constexpr

from cute_attn.sm90.keys import PagedKeyTiles, Pages

from .arguments import Arguments
from .eight import line_of, swizzle_of
from .ptx import copy_16_bytes
from .storage import Shared
from .work import Work

__all__ = ["gather_keys_and_values", "load_keys_and_values"]


@cute.jit
def load_keys_and_values(spec: cutlass.Constexpr, arguments: Arguments, shared: Shared, work: Work):
    """By TMA: K and V of a tile lie in the same pieces of the same pages, which are looked up once."""
    tma, tensors = arguments.tma, arguments.tensors
    pages = Pages(tensors.k.shape[1], tensors.k.shape[0], tensors.table, work.batch, None, work.length)
    keys = PagedKeyTiles.of(spec.piece, tma.k_atom, tma.k, work.head, pages, shared.k)
    values = PagedKeyTiles.of(spec.piece, tma.v_atom, tma.v, work.head, pages, shared.v)
    for tile in cutlass.range(work.first, work.last, unroll=1):
        use, found = tile - work.first, keys.find(tile)
        for ring, tiles in ((shared.keys, keys), (shared.values, values)):
            ring.wait_empty(use)
            tiles.load(found, ring.expect(use, tiles.n_bytes), ring.slot(use))


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
    width, dim = spec.cache_bytes, (spec.head_dim, spec.head_dim_v)[which]
    line = dim * width // 16  # chunks of a key
    swizzled = line_of(dim * width)  # bytes
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
        within = swizzled // 16
        address = base + chunk // within * (keys * swizzled) + row * swizzled
        address = address + ((chunk % within) ^ swizzle_of(row, swizzled)) * 16
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
