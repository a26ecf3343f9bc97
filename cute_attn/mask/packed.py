"""Masks made from what the tokens are: documents of a packed sequence, images inside text.

Row i stands at key position `i + seqlen_k - seqlen_q`, as in builders.py.
"""

from __future__ import annotations

import torch

from .builders import Device, causal
from .checks import Integers, check_cumulative, check_flag, check_integers, check_lengths, device_of
from .intervals import IntervalMask
from .ranges import RangesLike, ranges_tensor
from .union import stack_layers

__all__ = ["bidirectional_runs", "causal_documents", "documents"]


def documents(
    seqlen_q: int,
    seqlen_k: int | None = None,
    *,
    cu_seqlens: Integers | None = None,
    cu_seqlens_k: Integers | None = None,
    segment_ids: Integers | None = None,
    segment_ids_k: Integers | None = None,
    device: Device = None,
) -> IntervalMask:
    """Each row attends its own document.

    cu_seqlens: cumulative lengths `[0, n0, n0 + n1, ...]`, `(documents + 1,)` or one row a batch element, `(batch,
        documents + 1)`: rows `[cu_seqlens[d], cu_seqlens[d + 1])` attend keys `[cu_seqlens_k[d], cu_seqlens_k[d + 1])`.
        Rows and keys past the last document are padding and attend nothing.
    segment_ids: `(seqlen_q,)` or `(batch, seqlen_q)`: a row attends the keys whose segment_ids_k equals its own id,
        wherever they are; an id that comes back after others makes another layer for each run of it.
    cu_seqlens_k, segment_ids_k: the same for the keys; those of the rows by default.

    Raises ValueError unless exactly one of cu_seqlens and segment_ids is given; for cumulative lengths that do not
    begin at 0, fall, or pass the sequence; for ids that do not fit the lengths.
    """
    return _documents(seqlen_q, seqlen_k, cu_seqlens, cu_seqlens_k, segment_ids, segment_ids_k, device, is_causal=False)


def causal_documents(
    seqlen_q: int,
    seqlen_k: int | None = None,
    *,
    cu_seqlens: Integers | None = None,
    cu_seqlens_k: Integers | None = None,
    segment_ids: Integers | None = None,
    segment_ids_k: Integers | None = None,
    device: Device = None,
) -> IntervalMask:
    """Each row attends its own document causally; arguments and errors as for `documents`.

    With cu_seqlens each document is causal by itself, its last row at its last key: row i of document d attends
    `[cu_seqlens_k[d], cu_seqlens_k[d + 1] - (cu_seqlens[d + 1] - 1 - i))`. With segment_ids: `documents & causal`.
    """
    return _documents(seqlen_q, seqlen_k, cu_seqlens, cu_seqlens_k, segment_ids, segment_ids_k, device, is_causal=True)


def bidirectional_runs(
    seqlen_q: int,
    seqlen_k: int | None = None,
    *,
    bidirectional_mask: Integers | None = None,
    runs: RangesLike | None = None,
    segment_ids: Integers | None = None,
    causal_outside: bool = True,
    device: Device = None,
) -> IntervalMask:
    """Causal attention in which some runs of tokens (images in text) attend all of themselves.

    bidirectional_mask: `(seqlen_k,)` or `(batch, seqlen_k)` of zeros and ones (or bools): each run of ones is one run.
    runs: instead of it, disjoint ranges of keys `(n, 2)`; ranges that touch stay apart.
    segment_ids: `(seqlen_k,)` or `(batch, seqlen_k)`: only equal ids attend, and a run is cut where the id changes.
    causal_outside: False leaves the runs alone, to be OR-ed to another mask than the causal one.

    A row at position p in the run [s, e) attends `[s, e)` besides `[0, p + 1)`. seqlen_q must not exceed seqlen_k.
    """
    seqlen_q, seqlen_k = check_lengths(seqlen_q, seqlen_k)
    if seqlen_q > seqlen_k:
        raise ValueError(f"bidirectional_runs needs seqlen_q <= seqlen_k, got {seqlen_q} and {seqlen_k}")
    check_flag("causal_outside", causal_outside)
    if (bidirectional_mask is None) == (runs is None):
        raise ValueError("bidirectional_runs takes exactly one of bidirectional_mask and runs")
    device = device_of(device, bidirectional_mask, runs, segment_ids)
    ids = None if segment_ids is None else _per_token("segment_ids", segment_ids, seqlen_k, device)
    if runs is not None:
        member = _run_of_each_key(runs, seqlen_k, device)
    else:
        member = _per_token("bidirectional_mask", bidirectional_mask, seqlen_k, device, takes_bools=True)
        if bool(((member != 0) & (member != 1)).any()):
            raise ValueError("bidirectional_mask must hold zeros and ones")
    changes = torch.zeros_like(member, dtype=torch.bool)
    changes[:, 1:] = member[:, 1:] != member[:, :-1]
    if ids is not None:
        member, changes, ids = (x.contiguous() for x in torch.broadcast_tensors(member, changes, ids))
        changes[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    key = torch.arange(seqlen_k, device=device).expand_as(member)
    start = torch.where(changes, key, 0).cummax(1).values
    ends_here = torch.cat([changes[:, 1:], changes.new_ones(len(changes), min(1, seqlen_k))], 1)
    end = torch.where(ends_here, key + 1, seqlen_k).flip(1).cummin(1).values.flip(1)
    lo, hi = ((x * (member > 0))[:, None, seqlen_k - seqlen_q :] for x in (start, end))
    inside = IntervalMask.from_intervals(lo, hi, seqlen_k)
    if not causal_outside:
        return inside
    if ids is None:
        return causal(seqlen_q, seqlen_k, device=device) | inside
    rows = ids[:, seqlen_k - seqlen_q :]
    return causal_documents(seqlen_q, seqlen_k, segment_ids=rows, segment_ids_k=ids) | inside


def _documents(
    seqlen_q: int,
    seqlen_k: int | None,
    cu_seqlens: Integers | None,
    cu_seqlens_k: Integers | None,
    segment_ids: Integers | None,
    segment_ids_k: Integers | None,
    device: Device,
    *,
    is_causal: bool,
) -> IntervalMask:
    seqlen_q, seqlen_k = check_lengths(seqlen_q, seqlen_k)
    if (cu_seqlens is None) == (segment_ids is None):
        raise ValueError("documents are given by exactly one of cu_seqlens and segment_ids")
    if cu_seqlens is not None:
        if segment_ids_k is not None:
            raise ValueError("segment_ids_k goes with segment_ids, not with cu_seqlens")
        device = device_of(device, cu_seqlens)
        cu_q = _cumulative("cu_seqlens", cu_seqlens, seqlen_q, device)
        cu_k = _cumulative(
            "cu_seqlens_k" if cu_seqlens_k is not None else "cu_seqlens",
            cu_seqlens if cu_seqlens_k is None else cu_seqlens_k,
            seqlen_k,
            device,
        )
        if cu_q.shape != cu_k.shape:
            raise ValueError(
                f"cu_seqlens and cu_seqlens_k must have one shape, got {tuple(cu_q.shape)} and {tuple(cu_k.shape)}"
            )
        return _by_cumulative(cu_q, cu_k, seqlen_q, seqlen_k, is_causal)
    if cu_seqlens_k is not None:
        raise ValueError("cu_seqlens_k goes with cu_seqlens, not with segment_ids")
    device = device_of(device, segment_ids)
    rows = _per_token("segment_ids", segment_ids, seqlen_q, device)
    if segment_ids_k is None and seqlen_k != seqlen_q:
        raise ValueError(f"segment_ids_k is needed where seqlen_k = {seqlen_k} differs from seqlen_q = {seqlen_q}")
    keys = rows if segment_ids_k is None else _per_token("segment_ids_k", segment_ids_k, seqlen_k, device)
    if len(rows) != len(keys) and 1 not in (len(rows), len(keys)):
        raise ValueError(f"segment_ids and segment_ids_k must have one batch, got {len(rows)} and {len(keys)}")
    mask = _by_ids(rows, keys)
    return mask & causal(seqlen_q, seqlen_k, device=device) if is_causal else mask


def _cumulative(name: str, value: Integers, seqlen: int, device: torch.device) -> torch.Tensor:
    """Checked cumulative lengths, int64 `(batch, documents + 1)`."""
    cu = check_integers(name, value, device)
    if cu.ndim == 1:
        cu = cu[None]
    if cu.ndim != 2 or 0 in cu.shape:
        raise ValueError(f"{name} must have shape (documents + 1,) or (batch, documents + 1), got {tuple(cu.shape)}")
    check_cumulative(name, cu, seqlen, may_end_before=True)
    return cu.contiguous()


def _per_token(
    name: str, value: object, seqlen: int, device: torch.device, *, takes_bools: bool = False
) -> torch.Tensor:
    """Checked numbers for each token, int64 `(batch, seqlen)`."""
    ids = check_integers(name, value, device, takes_bools=takes_bools)
    if ids.ndim not in (1, 2) or ids.shape[-1] != seqlen or (ids.ndim == 2 and len(ids) == 0):
        raise ValueError(f"{name} must have shape ({seqlen},) or (batch, {seqlen}), got {tuple(ids.shape)}")
    return ids.reshape(-1, seqlen) if seqlen else ids.reshape(max(1, len(ids)), 0)


def _by_cumulative(
    cu_q: torch.Tensor, cu_k: torch.Tensor, seqlen_q: int, seqlen_k: int, is_causal: bool
) -> IntervalMask:
    batch, count = len(cu_q), cu_q.shape[1] - 1
    row = torch.arange(seqlen_q, device=cu_q.device).expand(batch, -1).contiguous()
    document = torch.searchsorted(cu_q, row, right=True) - 1  # the last one that begins here, as empty ones hold no row
    used = document < count
    following = (document + 1).clamp(max=count)
    lo, hi = cu_k.gather(1, document), cu_k.gather(1, following)
    if is_causal:
        hi = hi - (cu_q.gather(1, following) - 1 - row)
    return IntervalMask.from_intervals((lo * used)[:, None], (hi * used)[:, None], seqlen_k)


def _by_ids(rows: torch.Tensor, keys: torch.Tensor) -> IntervalMask:
    """Runs of equal ids among the keys, sorted by (batch, id, start); each row takes those of its own id."""
    batch = max(len(rows), len(keys))
    rows, keys = rows.expand(batch, -1), keys.expand(batch, -1)
    seqlen_q, seqlen_k = rows.shape[1], keys.shape[1]
    values, place = torch.cat([rows.reshape(-1), keys.reshape(-1)]).unique(return_inverse=True)
    owner = torch.arange(batch, device=rows.device)[:, None] * max(1, len(values))
    row_group = owner + place[: rows.numel()].view(batch, seqlen_q)
    key_group = owner + place[rows.numel() :].view(batch, seqlen_k)
    begins = torch.ones_like(key_group, dtype=torch.bool)
    begins[:, 1:] = key_group[:, 1:] != key_group[:, :-1]
    index = begins.view(-1).nonzero().squeeze(1)
    length = torch.diff(index, append=index.new_tensor([begins.numel()]))
    group, order = key_group.reshape(-1)[index].sort(stable=True)
    start, length = (index % max(1, seqlen_k))[order], length[order]
    begin, end = (torch.searchsorted(group, row_group.view(-1), right=right) for right in (False, True))
    count = end - begin
    row = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
    which = torch.arange(len(row), device=row.device) + (begin - (count.cumsum(0) - count))[row]
    lo, hi = stack_layers(row, start[which], (start + length)[which], rows=batch * seqlen_q)
    lo, hi = (x.view(len(x), batch, seqlen_q).transpose(0, 1).contiguous() for x in (lo, hi))
    return IntervalMask._made(lo, hi, seqlen_k)


def _run_of_each_key(runs: RangesLike, seqlen_k: int, device: torch.device) -> torch.Tensor:
    """int64 `(1, seqlen_k)`: the number of the run that holds a key, from 1; 0 for none."""
    ranges = ranges_tensor("runs", runs, device)
    ranges = ranges[ranges[:, 0].argsort(stable=True)]
    start, end = ranges[:, 0].contiguous(), ranges[:, 1]
    if not bool(((start >= 0) & (start < end) & (end <= seqlen_k)).all() & (start[1:] >= end[:-1]).all()):
        raise ValueError(f"runs must be disjoint, non-empty ranges in [0, {seqlen_k}), got {ranges.tolist()}")
    key = torch.arange(seqlen_k, device=device)
    run = torch.searchsorted(start, key, right=True)
    inside = (run > 0) & (key < torch.cat([end.new_zeros(1), end])[run])
    return (run * inside)[None]
