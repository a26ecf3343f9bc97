"""What an attention layer lets its rows see: what came before, a window or a chunk of it, segments, runs of tokens that
see all of themselves, and what two caches hold.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .intervals import IntervalMask
from .packed import bidirectional_runs, documents

__all__ = ["Reach", "cache_mask", "token_mask"]

ACTIVE = 1  # the segment id of what a cache holds


class Reach(NamedTuple):
    """How far a row sees that stands at position p, in positions of keys: from `p - left`, or from the first if left is
    negative, and from the beginning of its chunk, if chunk is not 0; to `p + right`, or to the last if right is
    negative."""

    left: int
    right: int
    chunk: int

    def ends(self, position: torch.Tensor, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The interval of each row, half-open; of keys that end at `end`."""
        lo = torch.zeros_like(position) if self.left < 0 else position - self.left
        if self.chunk:
            lo = torch.maximum(lo, torch.div(position, self.chunk, rounding_mode="floor") * self.chunk)
        hi = torch.full_like(position, end) if self.right < 0 else position + self.right + 1
        return lo.clamp(min=0), hi


def token_mask(
    segment_ids: torch.Tensor | None,
    bidirectional_mask: torch.Tensor | None,
    seqlen_q: int,
    seqlen_k: int,
    first: int,
    reach: Reach,
    device: torch.device,
    *,
    is_active: bool,
) -> IntervalMask:
    """Row i stands at key `first + i` and sees as far as reach says.

    Args:
        segment_ids: None or `(batch, seqlen_k)`: a row sees the keys of its own id, or where is_active, those of id 1.
        bidirectional_mask: None or `(batch, seqlen_k)` of zeros and ones: each run of ones, cut where the id changes,
            sees all of itself, whatever else it sees.

    Raises ValueError for other numbers in bidirectional_mask.
    """
    position = torch.arange(first, first + seqlen_q, device=device)
    mask = IntervalMask.from_intervals(*reach.ends(position, seqlen_k), seqlen_k)
    if segment_ids is not None:
        own = torch.full_like(position[None], ACTIVE) if is_active else segment_ids[:, first : first + seqlen_q]
        mask = mask & documents(seqlen_q, seqlen_k, segment_ids=own, segment_ids_k=segment_ids)
    if bidirectional_mask is not None:
        runs = bidirectional_runs(
            seqlen_k, bidirectional_mask=bidirectional_mask, segment_ids=segment_ids, causal_outside=False
        )
        mask = mask | runs[first : first + seqlen_q]
    return mask


def cache_mask(
    prefill_ids: torch.Tensor | None,
    decode_ids: torch.Tensor | None,
    lengths: torch.Tensor | None,
    seqlen_q: int,
    seqlen_k: int,
    other_seqlen_k: int,
    reach: Reach,
    device: torch.device,
    *,
    is_decode: bool,
) -> IntervalMask:
    """What the last rows see of one of two caches, whose keys stand one after another: prefill key j at position j,
    decoded key j at `n_active + j`, and the last row at `n_active + lengths - 1`.

    Args:
        prefill_ids, decode_ids: None or `(batch, length)` of each cache; keys of id 1 are there, all where None.
            n_active is how many of them there are.
        lengths: `(batch,)`, decoded keys; None for those of id 1.
        seqlen_k, other_seqlen_k: lengths of this cache and of the other one.
        is_decode: which of them this is.

    Raises ValueError where ids that say how many keys there are do not begin with all ones that they have, and for
    lengths beyond the cache.
    """
    lengths_of_caches = (other_seqlen_k, seqlen_k) if is_decode else (seqlen_k, other_seqlen_k)
    active = _filled("cached_values[0]", prefill_ids, lengths_of_caches[0], device)
    if lengths is None:
        decoded = _filled("cached_values[1], without lengths,", decode_ids, lengths_of_caches[1], device)
    else:
        decoded = lengths
        if bool(((decoded < 0) | (decoded > lengths_of_caches[1])).any()):
            raise ValueError(
                f"lengths must be in [0, {lengths_of_caches[1]}], as long as the cache is, got {decoded.tolist()}"
            )
    row = torch.arange(seqlen_q, device=device)
    position = (active + decoded - seqlen_q)[:, None] + row  # (batch, seqlen_q)
    lo, hi = reach.ends(position, sum(lengths_of_caches))
    before, here = (active, decoded) if is_decode else (torch.zeros_like(active), active)
    lo, hi = lo - before[:, None], torch.minimum(hi - before[:, None], here[:, None])
    mask = IntervalMask.from_intervals(lo[:, None], hi[:, None], seqlen_k)
    if is_decode and decode_ids is not None and lengths is not None:
        ones = torch.full_like(row[None], ACTIVE)
        mask = mask & documents(seqlen_q, seqlen_k, segment_ids=ones, segment_ids_k=decode_ids)
    return mask


def _filled(name: str, ids: torch.Tensor | None, length: int, device: torch.device) -> torch.Tensor:
    """How many keys a cache holds, `(batch or 1,)`: those of id 1, which come first."""
    if ids is None:
        return torch.tensor([length], device=device)
    is_active = ids == ACTIVE
    if bool((is_active[:, 1:] & ~is_active[:, :-1]).any()):
        raise ValueError(f"segment ids of {name} must begin with all their ones, which say how many keys there are")
    return is_active.sum(1)
