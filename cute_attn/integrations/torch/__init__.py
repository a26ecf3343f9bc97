"""cute_attn where code calls PyTorch's attention: a `scaled_dot_product_attention` that takes masks of ours, and
`register()`, after which `activate_flash_attention_impl("cute_attn")` of PyTorch puts us behind PyTorch's own."""

from __future__ import annotations

from ..registration import Registration
from .registration import register
from .scaled_dot_product import scaled_dot_product_attention

__all__ = ["Registration", "register", "scaled_dot_product_attention"]
