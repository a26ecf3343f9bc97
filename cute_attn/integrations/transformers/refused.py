"""What transformers may ask an attention layer for, and there is not here."""

from __future__ import annotations

from typing import Any

__all__ = ["refuse_unsupported"]

_REASONS = {
    "output_attentions": "the probabilities are never in memory; attn_implementation='eager' returns them",
    "position_bias": "a bias is a score_mod of cute_attn.flex_attention; attn_implementation='eager' adds it",
    "block_table": "continuous batching has paged caches of its own; generate() has others",
    "cu_seq_lens_q": "documents are read off position_ids, which begin at 0 in each: leave it and attention_mask out",
}


def refuse_unsupported(dropout: float, options: dict[str, Any]) -> None:
    """Raises ValueError for dropout and for options that would change the result."""
    if dropout:
        raise ValueError(f"dropout must be 0, got {dropout}: set attention_dropout=0.0 in the model's config")
    for name, reason in _REASONS.items():
        value = options.get(name)
        if value is not None and value is not False:
            raise ValueError(f"{name} is not supported by attn_implementation='cute_attn': {reason}")
