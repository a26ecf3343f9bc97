"""The functions that a kernel of the Hugging Face Hub offers, by the names under which transformers looks for them.

They are those of the library with the sinks called s_aux, as transformers calls them: what it does not find among the
arguments of such a function it leaves out without a word. Therefore dropout_p is here too, to be refused. What follows
the sequences goes by keyword, since FlashAttention 2 and 3 order it differently.
"""

from __future__ import annotations

import torch

from ..checks import check_unsupported
from ..ops import kvcache
from ..ops.sink import Hint, Result, Window, fa3_func_with_sink, fa3_varlen_func_with_sink

__all__ = ["flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache"]

Tensor = torch.Tensor


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
    s_aux: Tensor | None = None,
    return_attn_probs: bool = False,
) -> Result:
    """Attention of q `(b, sq, heads_q, d)`, k `(b, sk, heads_k, d)`, v `(b, sk, heads_k, dv)`.

    q, k, v: bf16, fp16, fp32 or fp64. s_aux: `(heads_q,)` or `(s_sink, heads_q)`, logits without a value that join
    every row. dropout_p: 0. The others, what is returned, and what is raised: as `cute_attn.fa3_func_with_sink`.
    """
    check_unsupported(dropout_p=(dropout_p, 0.0))
    return fa3_func_with_sink(
        q,
        k,
        v,
        s_aux,
        softmax_scale=softmax_scale,
        causal=causal,
        window_size=window_size,
        softcap=softcap,
        deterministic=deterministic,
        return_attn_probs=return_attn_probs,
    )


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: Hint = None,
    max_seqlen_k: Hint = None,
    *,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
    s_aux: Tensor | None = None,
    return_attn_probs: bool = False,
) -> Result:
    """Attention of packed q `(total_q, heads_q, d)`, k `(total_k, heads_k, d)`, v `(total_k, heads_k, dv)`, whose
    documents end where the int `(documents + 1,)` cumulative lengths say; in bf16, fp16, fp32 or fp64.

    s_aux, dropout_p: as `flash_attn_func` has them, the others as `cute_attn.fa3_varlen_func_with_sink`.
    """
    check_unsupported(dropout_p=(dropout_p, 0.0))
    return fa3_varlen_func_with_sink(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        s_aux,
        softmax_scale=softmax_scale,
        causal=causal,
        window_size=window_size,
        softcap=softcap,
        deterministic=deterministic,
        return_attn_probs=return_attn_probs,
    )


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    *,
    cache_seqlens: int | Tensor | None = None,
    page_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    s_aux: Tensor | None = None,
    return_softmax_lse: bool = False,
) -> Result:
    """Attention of new tokens q `(b, t, heads_q, d)` over caches, to which k and v are appended in place.

    s_aux: as `flash_attn_func` has it, the others as `cute_attn.flash_attn_with_kvcache`.
    """
    return kvcache.flash_attn_with_kvcache(
        q,
        k_cache,
        v_cache,
        k,
        v,
        cache_seqlens=cache_seqlens,
        page_table=page_table,
        softmax_scale=softmax_scale,
        causal=causal,
        window_size=window_size,
        softcap=softcap,
        sink=s_aux,
        return_softmax_lse=return_softmax_lse,
    )
