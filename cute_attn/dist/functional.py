"""Helpers around context parallelism: padding, batches as packed sequences, sliding windows as slices."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from ..mask import AttnMaskType, AttnRange, AttnRanges
from ..mask.checks import Integers, check_cumulative, check_device, check_flag, check_integers
from ..mask.ranges import RangesLike, ranges_tensor
from .checks import END, as_list, check_fill, check_int, check_kind, check_tensor

__all__ = [
    "apply_padding",
    "compute_pad_size",
    "infer_attn_mask_from_cu_seqlens",
    "infer_attn_mask_from_sliding_window",
    "infer_varlen_mask_from_batch",
    "pad_at_dim",
    "squash_batch_dim",
    "unpad_at_dim",
]


def compute_pad_size(total_seqlen_q: int, cp_size: int, chunk_size: int) -> int:
    """Tokens to append so that every one of `cp_size` ranks gets the same number of chunks of `chunk_size` tokens.

    ValueError unless `total_seqlen_q >= 0`, `cp_size >= 1` and `chunk_size >= 1`.
    """
    total_seqlen_q = check_int("total_seqlen_q", total_seqlen_q, 0)
    cp_size, chunk_size = check_int("cp_size", cp_size, 1), check_int("chunk_size", chunk_size, 1)
    return -total_seqlen_q % (cp_size * chunk_size)


def pad_at_dim(x: torch.Tensor, dim: int, pad_size: int, value: float = 0, side: str = "right") -> torch.Tensor:
    """x with `pad_size` entries of `value` before ("left") or after ("right") dimension `dim`; differentiable."""
    dim = _checked_dim(x, dim)
    pad_size = check_int("pad_size", pad_size, 0, END)
    if not isinstance(side, str) or side not in ("left", "right"):
        raise ValueError(f"side must be 'left' or 'right', got {side!r}")
    value = check_fill("value", value, x.dtype)
    shape = list(x.shape)
    shape[dim] = pad_size
    padding = x.new_full(shape, value)
    return torch.cat([x, padding] if side == "right" else [padding, x], dim)


def unpad_at_dim(x: torch.Tensor, dim: int, pad_size: int) -> torch.Tensor:
    """x without the last `pad_size` entries of dimension `dim`: a view."""
    dim = _checked_dim(x, dim)
    pad_size = check_int("pad_size", pad_size, 0)
    if pad_size > x.shape[dim]:
        raise ValueError(f"pad_size must be at most {x.shape[dim]}, the size of dimension {dim}, got {pad_size}")
    return x.narrow(dim, 0, x.shape[dim] - pad_size)


def apply_padding(
    q_ranges: RangesLike,
    k_ranges: RangesLike,
    attn_mask_type: Sequence[AttnMaskType | str | int] | torch.Tensor,
    total_seqlen: int,
    pad_size: int,
) -> tuple[AttnRanges, AttnRanges, list[AttnMaskType]]:
    """The slices and one more for the padding rows `[total_seqlen, total_seqlen + pad_size)`, which attends nothing.

    The added slice has the empty key range [0, 0) and type FULL. The arguments are not changed.
    """
    total_seqlen = check_int("total_seqlen", total_seqlen, 0, END)
    pad_size = check_int("pad_size", pad_size, 0, END - total_seqlen)
    q, k = ranges_tensor("q_ranges", q_ranges, "cpu").tolist(), ranges_tensor("k_ranges", k_ranges, "cpu").tolist()
    types = [_parsed(f"attn_mask_type[{i}]", kind) for i, kind in enumerate(as_list("attn_mask_type", attn_mask_type))]
    if not len(q) == len(k) == len(types):
        raise ValueError(
            f"q_ranges, k_ranges and attn_mask_type must be equally many, got {len(q)}, {len(k)} and {len(types)}"
        )
    return (
        AttnRanges([*q, AttnRange(total_seqlen, total_seqlen + pad_size)]),
        AttnRanges([*k, AttnRange(0, 0)]),
        [*types, AttnMaskType.FULL],
    )


def infer_varlen_mask_from_batch(
    batch_size: int, seq_len: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(cu_seqlens_q, cu_seqlens_k)`, int32 `(batch_size + 1,)` each: a batch of equal lengths as a packed sequence.

    ValueError unless `batch_size`, `seq_len` and their product, the total length, are in [0, 2^31).
    """
    batch_size, seq_len = check_int("batch_size", batch_size, 0, END), check_int("seq_len", seq_len, 0, END)
    if batch_size * seq_len >= END:
        raise ValueError(f"batch_size * seq_len must be below 2^31, got {batch_size} * {seq_len}")
    cu_seqlens = torch.arange(batch_size + 1, dtype=torch.int32, device=check_device(device)) * seq_len
    return cu_seqlens, cu_seqlens.clone()


def squash_batch_dim(x: torch.Tensor) -> torch.Tensor:
    """`(batch, seq, ...)` to `(batch * seq, ...)`."""
    check_tensor("x", x)
    if x.ndim < 2:
        raise ValueError(f"x must have shape (batch, seq, ...), got {tuple(x.shape)}")
    return x.flatten(0, 1)


def infer_attn_mask_from_sliding_window(
    q_range: AttnRange, k_range: AttnRange, window_size: Sequence[int]
) -> tuple[AttnRanges, AttnRanges, list[AttnMaskType]]:
    """A sliding window as slices of the four types.

    Args:
        q_range, k_range: rows and keys of the window's rectangle, aligned at its bottom right corner: row i stands at
            key `c(i) = k_range.end - (q_range.end - i)`.
        window_size: `(left, right)`, both inclusive: row i attends keys `[c(i) - left, c(i) + right]` inside k_range;
            -1 is unlimited.

    Returns `(q_ranges, k_ranges, types)`, rows ascending. Rows whose window misses k_range (early rows, where there
    are more queries than keys) are in no slice.
    """
    q_range, k_range = _range("q_range", q_range), _range("k_range", k_range)
    left, right = _window(window_size)
    shift = k_range.end - q_range.end  # row i stands at key i + shift
    # Row from which the window's left edge is inside the keys, and first row whose right edge passes their end.
    opens = q_range.end if left == -1 else k_range.start + left - shift
    closes = q_range.start if right == -1 else k_range.end - right - shift
    # Rows whose window meets the keys at all; the left edge never passes the end, as c(i) is inside or before.
    first = q_range.start if right == -1 else max(q_range.start, k_range.start - right - shift)
    q_ranges, k_ranges, types = AttnRanges(), AttnRanges(), []
    cuts = sorted({min(max(x, first), q_range.end) for x in (first, opens, closes, q_range.end)})
    for begin, end in pairwise(cuts):
        low_moves, high_moves = begin >= opens, begin < closes
        low = begin + shift - left if low_moves else k_range.start
        high = end - 1 + shift + right + 1 if high_moves else k_range.end
        if low >= high:
            continue
        q_ranges.append(AttnRange(begin, end))
        k_ranges.append(AttnRange(low, high))
        types.append(AttnMaskType.from_int_type(2 * low_moves + high_moves))
    return q_ranges, k_ranges, types


def infer_attn_mask_from_cu_seqlens(
    cu_seqlens_q: Integers,
    cu_seqlens_k: Integers,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    global_window_size: int = 0,
) -> tuple[AttnRanges, AttnRanges, list[AttnMaskType], int, int]:
    """Packed documents as slices, each with a window if there is one.

    Args:
        cu_seqlens_q, cu_seqlens_k: cumulative lengths `(documents + 1,)`.
        causal: aligned bottom right; with the window (-1, -1) alone.
        window_size: of each document, as `infer_attn_mask_from_sliding_window` takes it.
        global_window_size: the first keys of each document that all its rows see besides their window, but no key
            further ahead than the window sees. Without a window it changes nothing; otherwise queries and keys must
            have the same documents.

    Returns `(q_ranges, k_ranges, types, total_seqlen_q, total_seqlen_k)`. Slices may overlap: a pair counts once.
    Raises TypeError or ValueError naming the argument.
    """
    check_flag("causal", causal)
    leading = check_int("global_window_size", global_window_size, 0, END)
    documents_q = _documents("cu_seqlens_q", cu_seqlens_q)
    documents_k = _documents("cu_seqlens_k", cu_seqlens_k)
    if len(documents_q) != len(documents_k):
        raise ValueError(
            f"cu_seqlens_q and cu_seqlens_k must have one length, got {len(documents_q) + 1} and {len(documents_k) + 1}"
        )
    left, right = _window(window_size)
    totals = documents_q.end, documents_k.end
    if (left, right) == (-1, -1):
        kind = AttnMaskType.CAUSAL if causal else AttnMaskType.FULL
        return documents_q, documents_k, [kind] * len(documents_q), *totals
    if causal:
        raise ValueError(f"causal must be False with a window, whose right bound says it, as in ({left}, 0); got True")
    if leading and documents_q != documents_k:
        raise ValueError(
            "global_window_size must be 0 where cu_seqlens_q and cu_seqlens_k differ, got "
            f"{leading}: give the mask as mask.documents(...) & (mask.sliding_window(...) | ...)"
        )
    q_ranges, k_ranges, types = AttnRanges(), AttnRanges(), []
    for rows, keys in zip(documents_q, documents_k, strict=True):
        slices = list(zip(*infer_attn_mask_from_sliding_window(rows, keys, (left, right)), strict=True))
        for q_range, k_range, kind in slices + _leading_keys(rows, leading, right):
            q_ranges.append(q_range)
            k_ranges.append(k_range)
            types.append(kind)
    return q_ranges, k_ranges, types, *totals


def _range(name: str, value: AttnRange) -> AttnRange:
    """Also of MagiAttention's."""
    if not (hasattr(value, "start") and hasattr(value, "end")):
        check_kind(name, value, AttnRange)
    try:
        return AttnRange.from_range(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None


def _window(window_size: Sequence[int]) -> tuple[int, int]:
    window = as_list("window_size", window_size)
    if len(window) != 2:
        raise ValueError(f"window_size must be (left, right), got {window}")
    left, right = window
    return check_int("window_size (left)", left, -1), check_int("window_size (right)", right, -1)


def _documents(name: str, cu_seqlens: Integers) -> AttnRanges:
    ends = check_integers(name, cu_seqlens)
    if ends.ndim != 1 or len(ends) < 1:
        raise ValueError(f"{name} must have shape (documents + 1,), got {tuple(ends.shape)}")
    check_cumulative(name, ends, int(ends[-1]))
    return AttnRanges.from_cu_seqlens(ends)


def _leading_keys(document: AttnRange, leading: int, right: int) -> list[tuple[AttnRange, AttnRange, AttnMaskType]]:
    """Slices by which all rows see the first keys of their document, up to `right` after their own (-1: all)."""
    leading = min(leading, document.seqlen)
    if not leading:
        return []
    start, end = document
    rising = 0 if right == -1 else min(max(0, leading - right - 1), document.seqlen)  # rows that do not see all of them
    parts = [
        (AttnRange(start, start + rising), AttnRange(start, start + rising + max(0, right)), AttnMaskType.CAUSAL),
        (AttnRange(start + rising, end), AttnRange(start, start + leading), AttnMaskType.FULL),
    ]
    return [part for part in parts if not part[0].is_empty()]


def _checked_dim(x: torch.Tensor, dim: int) -> int:
    check_tensor("x", x)
    if x.ndim == 0:
        raise ValueError("x must have at least one dimension, got shape ()")
    dim = check_int("dim", dim)
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"dim must be in [{-x.ndim}, {x.ndim}), got {dim}")
    return dim % x.ndim


def _parsed(name: str, kind: object) -> AttnMaskType:
    try:
        return AttnMaskType.parse(kind)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None
