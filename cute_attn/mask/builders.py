"""Masks by formula: each builder writes `lo` and `hi` of every row down directly.

Throughout, row i stands at key position `p(i) = i + seqlen_k - seqlen_q` (last row at last key, "bottom right").
seqlen_k defaults to seqlen_q; every bound is clipped to [0, seqlen_k]. `device` defaults to that of the tensors given,
else the CPU. Masks made from what the tokens are (documents, images) are in packed.py.
"""

from __future__ import annotations

import numpy as np
import torch

from ..kinds import is_int
from .checks import Integers, check_integers, check_lengths, check_number, device_of, shown
from .intervals import IntervalMask

__all__ = [
    "block_causal",
    "block_diffusion",
    "causal",
    "chunked_causal",
    "full",
    "global_tokens",
    "prefix_lm",
    "shared_prefix",
    "sliding_window",
]

Device = torch.device | str | int | None


def full(seqlen_q: int, seqlen_k: int | None = None, *, device: Device = None) -> IntervalMask:
    """Every row attends every key: `[0, seqlen_k)`."""
    seqlen_q, seqlen_k = check_lengths(seqlen_q, seqlen_k)
    rows = torch.zeros(seqlen_q, dtype=torch.int64, device=device_of(device))
    return IntervalMask.from_intervals(rows, rows + seqlen_k, seqlen_k)


def causal(
    seqlen_q: int, seqlen_k: int | None = None, *, align: str = "bottom_right", offset: int = 0, device: Device = None
) -> IntervalMask:
    """Row i attends `[0, p + 1)` with `p = i + seqlen_k - seqlen_q + offset`, or `p = i + offset` for align "top_left".

    offset moves the diagonal to the right (more keys), or to the left if negative; top_left with the number of keys
    before the first row as offset is chunked prefill. ValueError for another align.
    """
    position, seqlen_k = _positions(seqlen_q, seqlen_k, align, offset, device)
    return IntervalMask.from_intervals(torch.zeros_like(position), position + 1, seqlen_k)


def sliding_window(
    seqlen_q: int,
    seqlen_k: int | None = None,
    *,
    left: int | None = None,
    right: int | None = None,
    window_size: int | None = None,
    align: str = "bottom_right",
    offset: int = 0,
    device: Device = None,
) -> IntervalMask:
    """A window around each row's position p (as in `causal`), in one of two conventions.

    FlashAttention's, inclusive on both sides: `left=l, right=r` attends `[p - l, p + r + 1)`, so that l + 1 keys are
    kept when r is 0; -1 means unlimited. MaxText's, the number of keys kept: `window_size=w` attends
    `[p - w + 1, p + 1)`. ValueError unless exactly one convention is used, and for left or right below -1 or
    window_size below 1.
    """
    if (window_size is None) == (left is None and right is None) or (left is None) != (right is None):
        raise ValueError(
            "sliding_window takes either left and right (FlashAttention: inclusive, -1 unlimited) or window_size "
            f"(MaxText: keys kept), got left={left!r}, right={right!r}, window_size={window_size!r}"
        )
    if window_size is not None:
        left, right = check_number("window_size", window_size, 1) - 1, 0
    left, right = check_number("left", left, -1), check_number("right", right, -1)
    position, seqlen_k = _positions(seqlen_q, seqlen_k, align, offset, device)
    lo = torch.zeros_like(position) if left < 0 else position - left
    hi = torch.full_like(position, seqlen_k) if right < 0 else position + right + 1
    return IntervalMask.from_intervals(lo, hi, seqlen_k)


def chunked_causal(
    seqlen_q: int,
    seqlen_k: int | None = None,
    *,
    chunk_size: int,
    align: str = "bottom_right",
    offset: int = 0,
    device: Device = None,
) -> IntervalMask:
    """Causal within chunks of the keys: `[c * floor(p / c), p + 1)` for chunk size c and p as in `causal`.

    ValueError "chunk_size must be positive" for c < 1.
    """
    chunk_size = check_number("chunk_size", chunk_size, 1)
    position, seqlen_k = _positions(seqlen_q, seqlen_k, align, offset, device)
    return IntervalMask.from_intervals(_floor(position, chunk_size), position + 1, seqlen_k)


def block_causal(seqlen_q: int, seqlen_k: int | None = None, *, block_size: int, device: Device = None) -> IntervalMask:
    """Row i attends its own block and all blocks before it: `[0, b * (floor(p / b) + 1))` for block size b."""
    block_size = check_number("block_size", block_size, 1)
    position, seqlen_k = _positions(seqlen_q, seqlen_k, "bottom_right", 0, device)
    return IntervalMask.from_intervals(torch.zeros_like(position), _floor(position, block_size) + block_size, seqlen_k)


def prefix_lm(
    seqlen_q: int, seqlen_k: int | None = None, *, prefix_length: int | Integers, device: Device = None
) -> IntervalMask:
    """Every row attends the prefix, and the rest causally: `[0, max(prefix_length, p + 1))`.

    prefix_length: number of keys, or one a batch element as a list or 1-D tensor.
    """
    if is_int(prefix_length, np.integer):
        prefix_length = [int(prefix_length)]
    prefix = check_integers("prefix_length", prefix_length, device_of(device, prefix_length))
    if prefix.ndim != 1 or prefix.numel() < 1 or bool((prefix < 0).any()):
        raise ValueError(f"prefix_length must be an int >= 0 or one a batch element, got {shown(prefix_length)}")
    position, seqlen_k = _positions(seqlen_q, seqlen_k, "bottom_right", 0, prefix.device)
    hi = torch.maximum(prefix[:, None, None], position + 1)
    return IntervalMask.from_intervals(torch.zeros_like(hi), hi, seqlen_k)


def shared_prefix(
    seqlen_q: int, seqlen_k: int | None = None, *, prefix_length: int, lengths: Integers, device: Device = None
) -> IntervalMask:
    """One prompt followed by n answers to it, packed; no answer sees another.

    prefix_length: P, tokens of the prompt. lengths: 1-D, tokens of each answer. A row of the prompt attends
    `[0, i + 1)`; a row of the answer that begins at s attends `[0, P)` and `[s, i + 1)`. Rows past the last answer
    are padding: they attend nothing. ValueError if the lengths add up to more than seqlen_q, or seqlen_k differs.
    """
    seqlen_q, seqlen_k = check_lengths(seqlen_q, seqlen_k, equal_for="shared_prefix")
    prefix_length = check_number("prefix_length", prefix_length, 0)
    lengths = check_integers("lengths", lengths, device_of(device, lengths))
    if lengths.ndim != 1 or bool((lengths < 0).any()):
        raise ValueError(f"lengths must be 1-D and >= 0, got {lengths.tolist()}")
    if bool((lengths > seqlen_q).any()):  # one alone; also keeps the sum from wrapping around
        raise ValueError(f"lengths must not be more than seqlen_q = {seqlen_q}, got {int(lengths.max())}")
    ends = torch.cat([lengths.new_tensor([prefix_length]), lengths]).cumsum(0)  # end of the prompt, of each answer
    if int(ends[-1]) > seqlen_q:
        raise ValueError(f"prefix_length and lengths add up to {int(ends[-1])} tokens, more than seqlen_q = {seqlen_q}")
    row = torch.arange(seqlen_q, device=lengths.device)
    part = torch.searchsorted(ends, row, right=True)  # 0: the prompt; ends: padding
    start = torch.cat([ends.new_zeros(1), ends])[part]
    used, answers = row < ends[-1], part > 0
    prompt_hi = torch.where(used & answers, prefix_length, 0)
    return IntervalMask.from_intervals(
        torch.stack([torch.zeros_like(row), start]), torch.stack([prompt_hi, (row + 1) * used]), seqlen_k
    )


def block_diffusion(
    seqlen_q: int, seqlen_k: int | None = None, *, block_size: int, device: Device = None
) -> IntervalMask:
    """The training mask of block diffusion (BD3-LM): n noisy tokens, then the same n tokens clean; `seqlen_q = 2 n`.

    For a row at place t of its half, in the block from `s = b * floor(t / b)` to `e = min(s + b, n)`:
    a noisy row attends its own noisy block `[s, e)` and the clean blocks before it `[n, n + s)`; a clean row attends
    the clean blocks up to its own, `[n, n + e)`. ValueError for an odd seqlen_q or a different seqlen_k.
    """
    seqlen_q, seqlen_k = check_lengths(seqlen_q, seqlen_k, equal_for="block_diffusion")
    block_size = check_number("block_size", block_size, 1)
    if seqlen_q % 2:
        raise ValueError(f"seqlen_q must be even (noisy half, clean half), got {seqlen_q}")
    n = seqlen_q // 2
    start = _floor(torch.arange(n, device=device_of(device)), block_size)
    end = (start + block_size).clamp(max=n)
    zero = torch.zeros_like(start)
    noisy = torch.stack([start, zero + n]), torch.stack([end, start + n])
    clean = torch.stack([zero + n, zero]), torch.stack([end + n, zero])
    lo, hi = (torch.cat(pair, 1) for pair in zip(noisy, clean, strict=True))
    return IntervalMask.from_intervals(lo, hi, seqlen_k)


def global_tokens(
    seqlen_q: int,
    seqlen_k: int | None = None,
    *,
    positions: Integers,
    left: int,
    right: int,
    device: Device = None,
) -> IntervalMask:
    """A window for most, everything for a few (Longformer, BigBird).

    positions: 1-D, the global tokens, as keys. Every row attends them and the window `[p - left, p + right + 1)`
    (inclusive, -1 unlimited); a row that stands at one of them attends all keys. One layer for each run of global
    tokens and one for the window. `& causal(...)` makes it a decoder's. ValueError for positions outside [0, seqlen_k).
    """
    tokens = check_integers("positions", positions, device_of(device, positions))
    window = sliding_window(seqlen_q, seqlen_k, left=left, right=right, device=tokens.device)
    if tokens.ndim != 1 or (tokens.numel() and not bool(((tokens >= 0) & (tokens < window.seqlen_k)).all())):
        raise ValueError(f"positions must be 1-D keys in [0, {window.seqlen_k}), got {tokens.tolist()}")
    row = torch.arange(window.seqlen_q, device=tokens.device) + window.seqlen_k - window.seqlen_q
    is_global = torch.isin(row, tokens)
    own_lo = window.lo[0].masked_fill(is_global, 0)
    own_hi = window.hi[0].masked_fill(is_global, window.seqlen_k)
    lo, hi = (
        torch.cat([own, columns[:, None].expand(-1, len(row))])
        for own, columns in zip((own_lo, own_hi), _runs(tokens.unique()), strict=True)
    )
    return IntervalMask.from_intervals(lo, hi, window.seqlen_k)


def _positions(
    seqlen_q: int, seqlen_k: int | None, align: str, offset: int, device: Device
) -> tuple[torch.Tensor, int]:
    """int64 `(seqlen_q,)`: the key position at which each row stands; and seqlen_k."""
    seqlen_q, seqlen_k = check_lengths(seqlen_q, seqlen_k)
    shift = {"bottom_right": seqlen_k - seqlen_q, "top_left": 0}
    if not isinstance(align, str) or align not in shift:
        raise ValueError(f"align must be 'bottom_right' or 'top_left', got {align!r}")
    first = shift[align] + check_number("offset", offset)
    return torch.arange(first, first + seqlen_q, device=device_of(device)), seqlen_k


def _floor(x: torch.Tensor, multiple: int) -> torch.Tensor:
    return torch.div(x, multiple, rounding_mode="floor") * multiple


def _runs(ascending: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs of consecutive numbers, as their starts and ends."""
    begins = torch.ones_like(ascending, dtype=torch.bool)
    begins[1:] = ascending[1:] != ascending[:-1] + 1
    return ascending[begins], ascending[begins.roll(-1)] + 1
