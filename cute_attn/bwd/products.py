"""How the two consumer warpgroups share a tile: the shapes of their five products, and the builders of these.

With 128 keys a warpgroup takes 64 of them and all queries: P and dS stay in its registers as the A operands of dV and
dK; where dK and dV leave few registers, it takes the queries in two parts, one after the other, and dS of the last one
comes to dK from shared memory: dQ needs its registers. With 64 keys (large head_dim: the registers hold no more of dK
and dV) it takes half of the queries of S and dP, and half of the dims of dK and dV: P and dS go through shared memory.

S and dP are computed transposed, keys by queries. dQ is one product over all keys of the tile, of which a warpgroup
takes half of the dims. Main kernel and postprocess build it here, and agree on its fragments thereby.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cutlass.cute as cute
from cutlass import Uint16, Uint32
from cutlass.cute.nvgpu import OperandMajorMode, warpgroup

from cute_attn.sm90.tiles import tile_layout, tiled_mma
from cute_attn.spec.backward import BackwardSpec

__all__ = ["GROUPS", "KEYS", "WARPGROUP", "Products"]

GROUPS = 2  # consumer warpgroups
WARPGROUP = 128  # threads
KEYS = 64  # keys of a product that a warpgroup accumulates


@dataclass(frozen=True)
class Products:
    """The products of a spec's tile. dtype: the DSL's type of the operands."""

    spec: BackwardSpec
    dtype: Any

    @property
    def split_keys(self) -> bool:
        return self.spec.tile.n == GROUPS * KEYS

    @property
    def parts(self) -> int:
        """How many parts of its queries a warpgroup takes, one after the other."""
        return 2 if self.split_keys and self.spec.head_dim + self.spec.head_dim_v > 256 else 1

    @property
    def queries(self) -> int:
        """Columns of S^T and dP^T of a warpgroup at a time."""
        return self.spec.tile.m // (self.parts if self.split_keys else GROUPS)

    @property
    def columns_k(self) -> int:
        """Columns of dK of a warpgroup."""
        return self.spec.head_dim if self.split_keys else self.spec.head_dim // GROUPS

    @property
    def columns_v(self) -> int:
        return self.spec.head_dim_v if self.split_keys else self.spec.head_dim_v // GROUPS

    @property
    def columns_q(self) -> int:
        """Columns of dQ of a warpgroup."""
        return self.spec.head_dim // GROUPS

    # ------------------------------------------------------------------ what is computed, and what is shared

    @property
    def needs_ds(self) -> bool:
        return self.spec.dq or self.spec.dk

    @property
    def needs_dp(self) -> bool:
        """Whether dP is computed: also where nothing but captured tensors have gradients."""
        return self.needs_ds or "scatter" in self.spec.score.graph

    @property
    def share_p(self) -> bool:
        """Whether P goes through shared memory."""
        return self.spec.dv and not self.split_keys

    @property
    def share_ds(self) -> bool:
        return self.spec.dq or (self.spec.dk and not self.split_keys)

    def shares_ds_of_dk(self, part: int) -> bool:
        """Whether dK of a part takes dS from shared memory."""
        return self.share_ds and (not self.split_keys or (self.parts > 1 and part == self.parts - 1))

    @property
    def ds_stages(self) -> int:
        """Where P is shared too, its barrier lies between the last reads of dS and the next writes: one serves."""
        return 1 if self.share_p else 2

    @property
    def retire_dv_early(self) -> bool:
        """Whether dV is waited for before dS is shared, so that dO and P in shared memory may be replaced, and P in
        registers makes room for dQ."""
        return self.needs_ds and (self.spec.tile.do_stages == 1 or not self.split_keys or self.parts > 1)

    @property
    def word_kinds(self) -> int:
        """Kinds of words that come with a partial tile: of the pairs in intervals, and of those in marked ones."""
        return self.spec.mask.is_bounded + self.spec.mask.has_certain

    @property
    def word(self) -> Any:
        """The type of one: a bit for every score that a thread has."""
        return Uint32 if self.split_keys else Uint16

    # ------------------------------------------------------------------ products

    def scores(self) -> cute.TiledMma:
        """S^T = K Q^T, and dP^T = V dO^T."""
        return tiled_mma(self.dtype, self.queries, OperandMajorMode.K)

    def keys_gradient(self, part: int = 0) -> cute.TiledMma:
        """dK += dS^T Q."""
        shared = self.shares_ds_of_dk(part)
        source = warpgroup.OperandSource.SMEM if shared else warpgroup.OperandSource.RMEM
        return tiled_mma(self.dtype, self.columns_k, OperandMajorMode.MN, source)

    def values_gradient(self) -> cute.TiledMma:
        """dV += P^T dO."""
        source = warpgroup.OperandSource.RMEM if self.split_keys else warpgroup.OperandSource.SMEM
        return tiled_mma(self.dtype, self.columns_v, OperandMajorMode.MN, source)

    def queries_gradient(self) -> cute.TiledMma:
        """dQ = dS K of one tile."""
        return tiled_mma(self.dtype, self.columns_q, OperandMajorMode.MN, a_major=OperandMajorMode.MN)

    # ------------------------------------------------------------------ shared memory

    def layout_q(self) -> cute.ComposedLayout:
        return tile_layout(self.dtype, self.spec.tile.m, self.spec.head_dim, self.spec.tile.q_stages, self.columns_k)

    def layout_do(self) -> cute.ComposedLayout:
        return tile_layout(self.dtype, self.spec.tile.m, self.spec.head_dim_v, self.spec.tile.do_stages, self.columns_v)

    def layout_k(self) -> cute.ComposedLayout:
        """Of K and, in the end, dK."""
        return tile_layout(self.dtype, self.spec.tile.n, self.spec.head_dim, 1, min(self.columns_k, self.columns_q))

    def layout_v(self) -> cute.ComposedLayout:
        """Of V and, in the end, dV."""
        return tile_layout(self.dtype, self.spec.tile.n, self.spec.head_dim_v, 1, self.columns_v)

    def layout_p(self) -> cute.ComposedLayout:
        """Of P^T: keys by queries."""
        return tile_layout(self.dtype, self.spec.tile.n, self.spec.tile.m, 1)

    def layout_ds(self) -> cute.ComposedLayout:
        """Of dS^T: keys by queries."""
        return tile_layout(self.dtype, self.spec.tile.n, self.spec.tile.m, self.ds_stages)

    def layout_dq(self) -> cute.ComposedLayout:
        """Of the dQ of a tile in its dtype, in the postprocess."""
        return tile_layout(self.dtype, self.spec.tile.m, self.spec.head_dim, 1, self.columns_q)

    # ------------------------------------------------------------------ sums of dQ

    @property
    def stage_dq(self) -> bool:
        """Whether dQ goes through shared memory on its way to the sums."""
        return self.spec.tile.dq_chunks > 0

    @property
    def dq_vectors(self) -> int:
        """Vectors of four fp32 that a thread has of the dQ of a tile."""
        return self.columns_q // 8

    @property
    def dq_group_size(self) -> int:
        """Elements of the dQ of a tile that a warpgroup computes: `[vector][thread][4]` in memory."""
        return KEYS * self.columns_q
