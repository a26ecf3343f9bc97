"""Attention as modules: what MaxText's attention layer offers, on the library's own operation."""

from .attention_op import AttentionOp
from .attention_type import AttentionType
from .masks import ChunkedCausalMask, LoadBalancedCausalMask, StripedMask, balanced_order
from .normalize import normalize_attention, normalize_cudnn_attention
from .quantize import KVQuant, KVTensor

__all__ = [
    "AttentionOp",
    "AttentionType",
    "ChunkedCausalMask",
    "KVQuant",
    "KVTensor",
    "LoadBalancedCausalMask",
    "StripedMask",
    "balanced_order",
    "normalize_attention",
    "normalize_cudnn_attention",
]
