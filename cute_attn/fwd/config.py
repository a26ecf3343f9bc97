"""Tiles of the forward kernel: what fits a multiprocessor, and the default for every kind of problem."""

from __future__ import annotations

from cute_attn.spec.forward import ForwardSpec
from cute_attn.spec.tiles import SHARED_MEMORY, TileConfig

__all__ = ["check", "default_tile", "graph_tile", "has_words", "out_shares_queries", "shared_memory_bytes"]

ALIGNMENT = 1024  # of each tile in shared memory
# fp32 and packed registers of a thread that S, O and P may take together, by number of consumer warpgroups: what
# setmaxnreg leaves (240, 160) less about 32 for everything else.
FRAGMENT_REGISTERS = {2: 208, 3: 128}


def _tiles(spec: ForwardSpec, rows: int, columns: int) -> int:
    return -(-rows * columns * spec.element_bytes // ALIGNMENT) * ALIGNMENT


def has_words(spec: ForwardSpec) -> bool:
    """Whether masks come to the consumers in bits, see `words`: if rows have bounds of their own, but for those of a
    cache, which follow from lengths."""
    return spec.mask.is_bounded and not spec.piece


def _head(spec: ForwardSpec) -> int:
    """Barriers, what is told of items and tiles, and words of bits."""
    tile = spec.tile
    words = tile.stages * (tile.m * tile.n // 8) * (1 + spec.mask.has_certain) if has_words(spec) else 0
    return -(-(96 + 48 * tile.stages + words) // ALIGNMENT) * ALIGNMENT


def _bytes(spec: ForwardSpec, share: bool) -> int:
    tile = spec.tile
    q, out = _tiles(spec, tile.m, spec.head_dim), 0 if spec.fp32_out else _tiles(spec, tile.m, spec.head_dim_v)
    rings = sum(_tiles(spec, tile.n * tile.stages, dim) for dim in (spec.head_dim, spec.head_dim_v))
    return _head(spec) + rings + (max(q, out) if share else q + out)


def out_shares_queries(spec: ForwardSpec) -> bool:
    """Whether the output leaves through the memory of Q: no other place is left at large head_dim. The next Q is then
    loaded only after the output has left."""
    return _bytes(spec, share=False) > SHARED_MEMORY


def shared_memory_bytes(spec: ForwardSpec) -> int:
    """Dynamic shared memory of a CTA: barriers, words of bits, Q, output, and the rings of K and V."""
    return _bytes(spec, out_shares_queries(spec))


def fragment_registers(spec: ForwardSpec) -> int:
    """Registers of a consumer thread that hold S, O and P."""
    p = spec.tile.n * spec.element_bytes // 8
    return spec.tile.n // 2 + spec.head_dim_v // 2 + (2 * p if spec.softmax == "stale" else p)


def check(spec: ForwardSpec) -> None:
    """Raises ValueError if no multiprocessor holds the spec's tile: compiled, it would spill or not launch."""
    have = FRAGMENT_REGISTERS[spec.tile.consumers]
    if (need := fragment_registers(spec)) > have:
        raise ValueError(
            f"TileConfig.n = {spec.tile.n} with head_dim_v {spec.head_dim_v} and softmax {spec.softmax!r} needs {need} "
            f"registers for S, O and P; {spec.tile.consumers} consumer warpgroups have {have}"
        )
    if (need := shared_memory_bytes(spec)) > SHARED_MEMORY:
        raise ValueError(
            f"tile {spec.tile} at head_dim {spec.head_dim}/{spec.head_dim_v} needs {need} bytes of shared memory; "
            f"a CTA has {SHARED_MEMORY}"
        )


# Rows are 128 throughout: two consumer warpgroups of 240 registers hold two register sets for P, three of 160 do not.
# Keys are 128 where registers (S + O + 2 P at most 208) and shared memory allow: smaller tiles waste less at mask edges
# and the interval mask of 128 columns is one word a row. At head_dim 64 the exponentials bind, not the products, and
# wider tiles would save 4 % of the issue slots. Two stages each: more fit at small head_dim only, and their
# slot arithmetic leaves the uniform datapath (130 issue slots more a pass).
_DEFAULTS = {
    (64, 64): TileConfig(128, 128),
    (96, 96): TileConfig(128, 128),
    (128, 128): TileConfig(128, 128),  # 192 registers, 193 KB
    (192, 128): TileConfig(128, 128),  # 192 registers, 209 KB: the output leaves through the memory of Q
    (192, 192): TileConfig(128, 112),  # 208 registers, 217 KB, likewise
    (256, 256): TileConfig(128, 80),  # 208 registers, 225 KB, likewise
}


def default_tile(head_dim: int, head_dim_v: int) -> TileConfig:
    """The tile that a kernel of these head dims, as in HEAD_DIMS, gets unless told otherwise."""
    return _DEFAULTS[head_dim, head_dim_v]


def graph_tile(head_dim: int, head_dim_v: int) -> TileConfig:
    """The same for a kernel whose spec carries a graph, whose values take registers too: S + O + 2 P at most 160."""
    return TileConfig(128, _KEYS_OF_GRAPHS[head_dim, head_dim_v])


_KEYS_OF_GRAPHS = {(64, 64): 128, (96, 96): 96, (128, 128): 96, (192, 128): 96, (192, 192): 48, (256, 256): 32}
