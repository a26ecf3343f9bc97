"""Partial results of attention over parts of the keys, and how they become one.

Two partial results of the same rows merge exactly: `lse = logaddexp(lse_a, lse_b)`, and each output weighs
`exp(lse_x - lse)`. Rows without keys are normal here (lse -inf, out 0): their weight is 0, never NaN.
"""

from __future__ import annotations

import torch

__all__ = ["Merger"]


class Merger:
    """The running result of some query rows, as parts of the keys are attended.

    out: `(rows, heads_q, head_dim_v)`, lse: `(heads_q, rows)`, max_logits: `(heads_q,)`, all in the compute dtype: what
    has been added so far; no keys yet is out 0 and the other two -inf.
    """

    def __init__(self, rows: int, heads: int, head_dim_v: int, dtype: torch.dtype, device: torch.device) -> None:
        self.out = torch.zeros(rows, heads, head_dim_v, dtype=dtype, device=device)
        self.lse = torch.full((heads, rows), -torch.inf, dtype=dtype, device=device)
        self.max_logits = torch.full((heads,), -torch.inf, dtype=dtype, device=device)

    def add(self, out: torch.Tensor, lse: torch.Tensor, max_logits: torch.Tensor | None) -> None:
        """Adds the result over other keys; tensors as above. Without max_logits that of this object stays."""
        mine, theirs = self._join(lse)
        self.out.mul_(mine).addcmul_(out, theirs)
        if max_logits is not None:
            self.max_logits = torch.maximum(self.max_logits, max_logits)

    def add_rows(self, rows: torch.Tensor, out: torch.Tensor, lse: torch.Tensor) -> None:
        """Adds the result of some rows over other keys. rows: int64 `(n,)`, distinct; out, lse: of these rows."""
        joint, mine, theirs = _joined(self.lse[:, rows], lse)
        self.out[rows] = (self.out[rows] * mine).addcmul_(out, theirs)
        self.lse[:, rows] = joint

    def add_sinks(self, sink: torch.Tensor) -> None:
        """Adds logits `(sinks, heads_q)` whose value is zero, once for every row. max_logits leaves them out."""
        mine, _ = self._join(sink.logsumexp(0)[:, None].expand_as(self.lse))
        self.out.mul_(mine)

    def _join(self, lse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes up another LSE; returns the weights of the result so far and of the other, `(rows, heads_q, 1)`."""
        self.lse, mine, theirs = _joined(self.lse, lse)
        return mine, theirs


def _joined(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The LSE over both, and the weights of either, `(rows, heads_q, 1)`."""
    joint = torch.logaddexp(a, b)
    finite = joint.masked_fill(joint == -torch.inf, 0.0)
    weights = [(x - finite).exp().T[..., None] for x in (a, b)]
    return joint, weights[0], weights[1]
