"""Ulysses: ranks exchange heads for rows, so that each holds all rows of its group for a part of the heads."""

from __future__ import annotations

import torch
import torch.distributed as dist

from ..comm import heads_to_rows, rows_to_heads
from ..plans.heads import UlyssesHeads

__all__ = ["HeadExchange"]


class HeadExchange:
    """The way in and out of the layout in which a rank attends `heads.query` query heads of its group's rows.

    heads: which heads go where. heads_k: key heads in all. key_index: None, or the permutation that puts the keys of
    the group's ranks into ascending order. group: the ranks that exchange.
    """

    def __init__(
        self, heads: UlyssesHeads, heads_k: int, key_index: torch.Tensor | None, group: dist.ProcessGroup
    ) -> None:
        self._group, self._key_index, self._heads_k = group, key_index, heads_k
        self._copies = heads.key_heads.flatten().tolist()
        self._own = slice(group.rank() * heads.query, (group.rank() + 1) * heads.query)

    @property
    def is_replicated(self) -> bool:
        """Whether some key head goes to more than one rank, or more than once."""
        return len(self._copies) > self._heads_k

    @property
    def own_heads(self) -> slice:
        """The query heads that this rank attends."""
        return self._own

    def enter(self, q: torch.Tensor, kv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Own rows of all heads to all rows of own heads; both `(rows, heads, dim)`."""
        keys = heads_to_rows(kv[:, self._copies] if self.is_replicated else kv, self._group)
        queries = heads_to_rows(q, self._group)
        gathered = keys.wait()
        return queries.wait(), gathered if self._key_index is None else gathered[self._key_index]

    def leave(self, out: torch.Tensor, lse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """out `(rows, heads, dim)` and lse `(heads, rows)` of all rows and own heads back to own rows of all heads."""
        whole = rows_to_heads(out, self._group)
        return whole, rows_to_heads(lse.T[..., None], self._group)[..., 0].T.contiguous()

    def enter_gradients(self, dout: torch.Tensor, dlse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of what `leave` returned, as gradients of what it took."""
        out = heads_to_rows(dout, self._group)
        lse = heads_to_rows(dlse.T[..., None], self._group)
        return out.wait(), lse.wait()[..., 0].T

    def leave_query_gradient(self, dq: torch.Tensor) -> torch.Tensor:
        return rows_to_heads(dq, self._group)

    def leave_key_gradient(self, dkv: torch.Tensor) -> torch.Tensor:
        """The gradient of own keys; copies of a head add up in the order of `heads.key_heads`."""
        if self._key_index is not None:
            dkv = torch.empty_like(dkv).index_copy_(0, self._key_index, dkv)
        parts = rows_to_heads(dkv, self._group)
        if not self.is_replicated:
            return parts
        total = parts.new_zeros(parts.shape[0], self._heads_k, parts.shape[2])
        for copy, head in enumerate(self._copies):
            total[:, head] += parts[:, copy]
        return total
