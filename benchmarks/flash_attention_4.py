"""flash-attn-4 for the model: its kernels compiled and read, and how it lays a problem on the chip (4.0.0b36, read in
its sources: `interface.py` for the tiles, `tile_scheduler.py` for the orders)."""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch

from cute_attn.mask import from_spec
from cute_attn.predict.call import Call
from cute_attn.predict.kernel import Code, read

__all__ = ["VERSION", "Row", "call_of", "compiled"]

VERSION = "4.0.0b36"
BATCH = 2  # of every row of the table
L2_SECTION = 50 << 20  # bytes of heads that its schedulers keep together
FORWARD = {64: (192, 128), 128: (128, 128), 192: (128, 128)}
BACKWARD = {(64, "causal_window"): (128, 128), (128, "causal"): (64, 128), (128, "full"): (80, 128)}
BACKWARD |= {(192, mask): (64, 96) for mask in ("causal", "full")}


@dataclass(frozen=True)
class Row:
    """A problem and what it took. mask: causal, full or causal_window; keys: that a row of the latter sees, or 0."""

    heads_q: int
    heads_k: int
    head_dim: int
    head_dim_v: int
    mask: str
    keys: int
    seqlen: int
    backend: str
    backward: bool
    deterministic: bool
    ms: float

    @property
    def kernel(self) -> str:
        return f"{self.head_dim}/{self.head_dim_v} {self.mask} {'backward' if self.backward else 'forward'}"

    @property
    def mask_spec(self) -> str:
        return f"sliding_window:left={self.keys - 1},right=0" if self.keys else self.mask

    @property
    def flop(self) -> float:
        """Of the pairs that the mask attends."""
        n = self.seqlen
        keys = {"causal": n, "full": 0}.get(self.mask, self.keys)
        pairs = n * n if self.mask == "full" else keys * (keys + 1) / 2 + keys * (n - keys)
        depth = 3 * self.head_dim + 2 * self.head_dim_v if self.backward else self.head_dim + self.head_dim_v
        return 2.0 * BATCH * self.heads_q * pairs * depth


def compiled(row: Row, **options: object) -> Code:
    """The kernel with the products for a row, compiled without a GPU and without tensors. options: of its forward."""
    os.environ.setdefault("CUTE_DSL_ARCH", "sm_90a")
    os.environ.setdefault("FLASH_ATTENTION_ARCH", "sm_90")
    os.environ.setdefault("FLASH_ATTENTION_NUM_SMS", "132")
    from flash_attn.cute import interface
    from torch._subclasses.fake_tensor import FakeTensorMode

    found: dict[str, bytes] = {}
    real = interface.cute.compile

    def keeping(kernel: object, *arguments: object, options: str = "", **more: object) -> object:
        with tempfile.TemporaryDirectory() as folder:
            function = real(kernel, *arguments, options=f"{options} --keep-cubin --dump-dir {folder}", **more)
            found[type(kernel).__name__] = bytes(function.__cubin__)
            return function

    def tensor(heads: int, dim: int) -> torch.Tensor:
        return torch.empty(BATCH, row.seqlen, heads, dim, dtype=torch.bfloat16, device="cuda")

    window = {"window_size_left": row.keys - 1, "window_size_right": 0} if row.keys else {}
    mask = {"causal": row.mask == "causal", **window}
    kernels = (interface._flash_attn_fwd, interface._flash_attn_bwd)
    with contextlib.ExitStack() as stack:
        stack.enter_context(FakeTensorMode())
        stack.enter_context(mock.patch.object(interface.cute, "compile", keeping))
        for kernel in kernels:  # what this process compiled before is not kept
            stack.enter_context(mock.patch.object(kernel, "compile_cache", {}))
        q, k, v, out = (
            tensor(heads, dim)
            for heads, dim in (
                (row.heads_q, row.head_dim),
                (row.heads_k, row.head_dim),
                (row.heads_k, row.head_dim_v),
                (row.heads_q, row.head_dim_v),
            )
        )
        if row.backward:
            lse = torch.empty(BATCH, row.heads_q, row.seqlen, device="cuda")
            interface._flash_attn_bwd(q, k, v, out, out, lse, **mask)
        else:
            interface._flash_attn_fwd(q, k, v, return_lse=True, **mask, **options)
    name = "FlashAttentionBackwardSm90" if row.backward else "FlashAttentionForwardSm90"
    return read(found[name])


def call_of(row: Row, code: Code, tile: tuple[int, int] | None = None) -> Call:
    """tile: of the forward, if it is not the one that flash-attn-4 chooses."""
    return _backward(row, code) if row.backward else _forward(row, code, tile or FORWARD[row.head_dim])


def _forward(row: Row, code: Code, tile: tuple[int, int]) -> Call:
    """The query heads of a key head are packed into a tile's rows."""
    m, n = tile
    group = row.heads_q // row.heads_k
    partial, full, _ = _counts(row, (m // group, n))
    d, dv = row.head_dim, row.head_dim_v
    order = _sections(len(full), row.heads_k * BATCH, row.seqlen * (d + dv) * 2, row.mask != "full")
    tokens = BATCH * row.seqlen
    return Call(
        code,
        warpgroups=m // 64,
        tiles_in_pass=1,
        partial=partial[order],
        full=full[order],
        dealt=False,
        loaded=2.0 * n * (d + dv),
        flop=row.flop,
        moved=2.0 * tokens * (row.heads_q + row.heads_k) * (d + dv),
    )


def _backward(row: Row, code: Code) -> Call:
    """An item is a key tile of a query head; a preprocess and a postprocess of each fp32 sum go with it."""
    m, n = BACKWARD[row.head_dim, row.mask]
    d, dv, tokens, grouped = row.head_dim, row.head_dim_v, BATCH * row.seqlen, row.heads_q > row.heads_k
    partial, full, runs = _counts(row, (m, n), backward=True)
    heads, blocks = row.heads_q * BATCH, len(full)
    descending = row.deterministic and row.mask != "full"
    one_head = row.seqlen * (2 * (d + dv) + 4 * d)
    order = _sections(blocks, heads, one_head if row.deterministic else 0, descending)
    sums = []
    if row.deterministic:
        q_tiles = -(-row.seqlen // m)
        head_of = _sections(blocks, heads, one_head, descending, heads_not_blocks=True)
        sums = [runs[block] + head * q_tiles for block, head in zip(order.tolist(), head_of.tolist(), strict=True)]
    queries, keys = tokens * row.heads_q, tokens * row.heads_k
    return Call(
        code,
        warpgroups=2,
        tiles_in_pass=1,
        partial=partial[order],
        full=full[order],
        dealt=False,
        loaded=2.0 * m * (d + dv),
        sent=4.0 * m * d,
        item_bytes=4.0 * n * (d + dv) * grouped,
        flop=row.flop,
        moved=2.0 * (queries + 2 * keys) * (d + dv) + 4.0 * queries * d,
        # O and dO are read, the sum of dQ is cleared; it is read and dQ written; likewise dK and dV.
        besides=queries * (4.0 * dv + 4 * d + 6 * d) + keys * 10.0 * (d + dv) * grouped,
        kernels=5 if grouped else 3,
        sums=sums,
    )


def _counts(row: Row, tile: tuple[int, int], backward: bool = False) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Partial and full tiles of each tile of the walked side, in ascending order; of the backward the tiles too."""
    schedule = from_spec(row.mask_spec, row.seqlen).schedule(tile)
    table = schedule.backward if backward else schedule.forward
    items = table.items.numpy()[table.columns.tile.argsort().numpy()]
    lists = []
    if backward:
        for _, _, begin, _, end, *_ in items.tolist():
            walked = [tile for first, last, *_ in table.runs[begin:end].tolist() for tile in range(first, last)]
            lists.append(np.array(sorted(walked), dtype=np.int64))
    return items[:, 5].astype(np.int64), items[:, 6].astype(np.int64), lists


def _sections(blocks: int, heads: int, head_bytes: int, descending: bool, heads_not_blocks: bool = False) -> np.ndarray:
    """The block, or the head, of each item in the order of starts: sections of as many heads as L2 holds, in each all
    heads of a block before the next block. head_bytes 0: one head after another."""
    section = 1 << max(0, (L2_SECTION // head_bytes).bit_length() - 1) if head_bytes else 1
    walked = np.arange(blocks)[::-1] if descending else np.arange(blocks)
    parts = []
    for first in range(0, heads, section):
        together = np.arange(first, min(first + section, heads))
        parts.append(np.tile(together, blocks) if heads_not_blocks else np.repeat(walked, len(together)))
    return np.concatenate(parts)
