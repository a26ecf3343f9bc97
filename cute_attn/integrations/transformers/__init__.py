"""cute_attn as an attention implementation of Hugging Face transformers: `register()`, then
`attn_implementation="cute_attn"`."""

from __future__ import annotations

try:
    from transformers import AttentionInterface, AttentionMaskInterface  # noqa: F401  (both, or it is too old)
except ImportError as error:
    raise ImportError(
        "cute_attn.integrations.transformers needs transformers 5.24 or newer, whose import failed: "
        f'{error}; pip install "cute-attn[transformers]" brings it'
    ) from error

from ..registration import Registration
from .layer_mask import as_attention_mask
from .registration import register

__all__ = ["Registration", "as_attention_mask", "register"]
