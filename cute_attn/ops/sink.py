"""FlashAttention's functions with learnable sinks, as MagiAttention's extensions name and order their arguments.

What all nine share:
    q, k, v: bf16, fp16, fp32 or fp64; heads_q is a multiple of heads_k; the head_dim of v may differ.
    sink: bf16, fp16, fp32 or fp64 extra logits of every row, unscaled, uncapped, unmasked and without a value, taken to
        fp32 (fp64 with fp64 inputs); `(s_sink, heads_q)` or, for one, `(heads_q,)` for sink_layout "sh", `([batch,]
        seqlen_q, s_sink, heads_q)` for "ssh" (no batch in the varlen functions). None means none. Its gradient is
        rounded to its dtype once.
    softmax_scale: None means `1 / sqrt(head_dim)`. softcap: c > 0 makes every score `c * tanh(score / c)`.
    causal, window_size: aligned to the last query and the last key. With n_q queries and n_k keys, query i sees keys j
        with `i + n_k - n_q - left <= j <= i + n_k - n_q + right`; below 0 or None is unlimited, causal makes right 0.
    deterministic: gradients bitwise equal from run to run.
    max_seqlen_*, pack_gqa: hints that change nothing. A max_seqlen_* that is shorter than a document is refused where
        both are on the host; nothing is read off a GPU.
    sm_margin: streaming multiprocessors left free for others.
    dropout_p, alibi_slopes, block_table, qv, the descales, attention_chunk: not supported, they only complete the
        signature; anything but their defaults raises ValueError that names what serves it. So do, by keyword, all that
        the other versions of these functions take. num_splits may be 0 or 1, seqused_* the full lengths, on the host.

They return out, like q with the head_dim of v; with return_attn_probs `(out, lse)`, lse the natural logarithm with the
sinks in it, fp32 (fp64 with fp64 inputs), `(batch, heads_q, seqlen_q)` or `(heads_q, total_q)`. Both are
differentiable. A row without keys has out 0 and lse = logsumexp(sinks). Bad arguments raise TypeError or ValueError
naming them, tensors that no backend serves NotImplementedError.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..checks import (
    check_count,
    check_cu_seqlens,
    check_ends,
    check_flag,
    check_max_seqlen,
    check_packed,
    check_qkv,
    check_scale,
    check_seqused,
    check_sink,
    check_softcap,
    check_unsupported,
    check_window,
    takes_keywords_of,
)
from ..elsewhere import KEYWORDS
from ..mask.checks import Integers, shown
from ..mask.source import MaskSource
from .attention_op import attention

__all__ = [
    "fa2_func_with_sink",
    "fa2_kvpacked_func_with_sink",
    "fa2_qkvpacked_func_with_sink",
    "fa2_varlen_func_with_sink",
    "fa2_varlen_kvpacked_func_with_sink",
    "fa2_varlen_qkvpacked_func_with_sink",
    "fa3_func_with_sink",
    "fa3_qkvpacked_func_with_sink",
    "fa3_varlen_func_with_sink",
]

Tensor = torch.Tensor
Result = Tensor | tuple[Tensor, Tensor]
Window = Sequence[int | None] | Tensor | None
Hint = int | Tensor | None


@takes_keywords_of(KEYWORDS)
def fa3_func_with_sink(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None = None,
    sink_layout: str = "sh",
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: Window = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Result:
    """Attention of q `(b, sq, heads_q, d)`, k `(b, sk, heads_k, d)`, v `(b, sk, heads_k, dv)`."""
    _check_places(sink, sink_layout)
    check_unsupported(qv=(qv, None), q_descale=(q_descale, None), k_descale=(k_descale, None))
    check_unsupported(v_descale=(v_descale, None), attention_chunk=(attention_chunk, 0), num_splits=(num_splits, 1, 0))
    if pack_gqa is not None:
        check_flag("pack_gqa", pack_gqa)
    mask = _window_mask(window_size, causal)
    return _attend(
        q, k, v, sink, sink_layout, softmax_scale, softcap, mask, deterministic, sm_margin, return_attn_probs
    )


@takes_keywords_of(KEYWORDS)
def fa3_varlen_func_with_sink(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: Hint,
    max_seqlen_k: Hint,
    sink: Tensor | None = None,
    sink_layout: str = "sh",
    seqused_q: Integers | None = None,
    seqused_k: Integers | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: Window = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Result:
    """Attention of packed q `(total_q, heads_q, d)`, k `(total_k, heads_k, d)`, v `(total_k, heads_k, dv)`, whose
    documents end where the int `(documents + 1,)` cumulative lengths say."""
    _check_places(sink, sink_layout)
    check_unsupported(qv=(qv, None), q_descale=(q_descale, None), k_descale=(k_descale, None))
    check_unsupported(v_descale=(v_descale, None), attention_chunk=(attention_chunk, 0), num_splits=(num_splits, 1, 0))
    if pack_gqa is not None:
        check_flag("pack_gqa", pack_gqa)
    mask = _document_mask(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, window_size, causal)
    check_seqused("seqused_q", seqused_q, cu_seqlens_q)
    check_seqused("seqused_k", seqused_k, cu_seqlens_k)
    return _attend(
        q, k, v, sink, sink_layout, softmax_scale, softcap, mask, deterministic, sm_margin, return_attn_probs
    )


@takes_keywords_of(KEYWORDS)
def fa3_qkvpacked_func_with_sink(
    qkv: Tensor,
    sink: Tensor | None = None,
    sink_layout: str = "sh",
    softmax_scale: float | None = None,
    causal: bool = False,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: Window = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    deterministic: bool = False,
    num_heads_q: int | None = None,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Result:
    """Attention of qkv `(b, s, heads_q + 2 * heads_k, d)`: the heads of q, then of k, then of v.

    num_heads_q: heads_q; None means as many as k and v have. Anything that leaves k and v no equal share raises
    ValueError.
    """
    _check_places(sink, sink_layout)
    check_unsupported(q_descale=(q_descale, None), k_descale=(k_descale, None), v_descale=(v_descale, None))
    check_unsupported(attention_chunk=(attention_chunk, 0))
    check_packed("qkv", qkv, "(b, s, heads_q + 2 * heads_k, d)")
    heads = qkv.shape[2]
    heads_q = heads // 3 if num_heads_q is None else check_count("num_heads_q", num_heads_q)
    heads_k = (heads - heads_q) // 2
    if heads_k < 1 or heads_q + 2 * heads_k != heads or (num_heads_q is None and heads_q != heads_k):
        raise ValueError(f"num_heads_q must leave k and v an equal share of qkv's {heads} heads, got {num_heads_q}")
    q, k, v = qkv.split((heads_q, heads_k, heads_k), dim=2)
    mask = _window_mask(window_size, causal)
    return _attend(
        q, k, v, sink, sink_layout, softmax_scale, softcap, mask, deterministic, sm_margin, return_attn_probs
    )


@takes_keywords_of(KEYWORDS)
def fa2_func_with_sink(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None = None,
    sink_layout: str = "sh",
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """Attention of q `(b, sq, heads_q, d)`, k `(b, sk, heads_k, d)`, v `(b, sk, heads_k, dv)`."""
    _check_places(sink, sink_layout)
    check_unsupported(dropout_p=(dropout_p, 0.0), alibi_slopes=(alibi_slopes, None))
    mask = _window_mask(window_size, causal)
    return _attend(q, k, v, sink, sink_layout, softmax_scale, softcap, mask, deterministic, 0, return_attn_probs)


@takes_keywords_of(KEYWORDS)
def fa2_qkvpacked_func_with_sink(
    qkv: Tensor,
    sink: Tensor | None = None,
    sink_layout: str = "sh",
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """Attention of qkv `(b, s, 3, heads, d)`."""
    _check_places(sink, sink_layout)
    check_unsupported(dropout_p=(dropout_p, 0.0), alibi_slopes=(alibi_slopes, None))
    check_packed("qkv", qkv, "(b, s, 3, heads, d)", size=3)
    q, k, v = qkv.unbind(2)
    mask = _window_mask(window_size, causal)
    return _attend(q, k, v, sink, sink_layout, softmax_scale, softcap, mask, deterministic, 0, return_attn_probs)


@takes_keywords_of(KEYWORDS)
def fa2_kvpacked_func_with_sink(
    q: Tensor,
    kv: Tensor,
    sink: Tensor | None = None,
    sink_layout: str = "sh",
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """Attention of q `(b, sq, heads_q, d)` and kv `(b, sk, 2, heads_k, d)`."""
    _check_places(sink, sink_layout)
    check_unsupported(dropout_p=(dropout_p, 0.0), alibi_slopes=(alibi_slopes, None))
    check_packed("kv", kv, "(b, sk, 2, heads_k, d)", size=2)
    k, v = kv.unbind(2)
    mask = _window_mask(window_size, causal)
    return _attend(q, k, v, sink, sink_layout, softmax_scale, softcap, mask, deterministic, 0, return_attn_probs)


@takes_keywords_of(KEYWORDS)
def fa2_varlen_func_with_sink(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: Hint,
    max_seqlen_k: Hint,
    sink: Tensor | None = None,
    sink_layout: str = "sh",
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Result:
    """Attention of packed q `(total_q, heads_q, d)`, k `(total_k, heads_k, d)`, v `(total_k, heads_k, dv)`, whose
    documents end where the int `(documents + 1,)` cumulative lengths say."""
    _check_places(sink, sink_layout)
    check_unsupported(dropout_p=(dropout_p, 0.0), alibi_slopes=(alibi_slopes, None), block_table=(block_table, None))
    mask = _document_mask(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, window_size, causal)
    return _attend(q, k, v, sink, sink_layout, softmax_scale, softcap, mask, deterministic, 0, return_attn_probs)


@takes_keywords_of(KEYWORDS)
def fa2_varlen_qkvpacked_func_with_sink(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: Hint,
    sink: Tensor | None = None,
    sink_layout: str = "sh",
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """Attention of packed qkv `(total, 3, heads, d)`, whose documents end where the int `(documents + 1,)` cumulative
    lengths say."""
    _check_places(sink, sink_layout)
    check_unsupported(dropout_p=(dropout_p, 0.0), alibi_slopes=(alibi_slopes, None))
    check_packed("qkv", qkv, "(total, 3, heads, d)", size=3)
    check_ends("cu_seqlens", cu_seqlens)
    check_max_seqlen("max_seqlen", max_seqlen, cu_seqlens)
    q, k, v = qkv.unbind(1)
    mask = _document_mask(cu_seqlens, cu_seqlens, None, None, window_size, causal)
    return _attend(q, k, v, sink, sink_layout, softmax_scale, softcap, mask, deterministic, 0, return_attn_probs)


@takes_keywords_of(KEYWORDS)
def fa2_varlen_kvpacked_func_with_sink(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: Hint,
    max_seqlen_k: Hint,
    sink: Tensor | None = None,
    sink_layout: str = "sh",
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """Attention of packed q `(total_q, heads_q, d)` and kv `(total_k, 2, heads_k, d)`, whose documents end where the
    int `(documents + 1,)` cumulative lengths say."""
    _check_places(sink, sink_layout)
    check_unsupported(dropout_p=(dropout_p, 0.0), alibi_slopes=(alibi_slopes, None))
    check_packed("kv", kv, "(total_k, 2, heads_k, d)", size=2)
    k, v = kv.unbind(1)
    mask = _document_mask(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, window_size, causal)
    return _attend(q, k, v, sink, sink_layout, softmax_scale, softcap, mask, deterministic, 0, return_attn_probs)


def _check_places(sink: object, sink_layout: object) -> None:
    """Positional arguments in FlashAttention's order land on the sinks: say where they belong."""
    if not (sink is None or isinstance(sink, Tensor)) or not isinstance(sink_layout, str):
        raise TypeError(
            f"sink must be None or a torch.Tensor and sink_layout 'sh' or 'ssh', got {shown(sink)} and "
            f"{shown(sink_layout)}; they stand where FlashAttention has dropout_p, softmax_scale or causal: "
            "pass what follows the sequences by keyword"
        )


def _window_mask(window_size: Window, causal: bool) -> MaskSource:
    left, right = check_window(window_size, causal)
    return MaskSource("window", window_left=left, window_right=right)


def _document_mask(
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: Hint,
    max_seqlen_k: Hint,
    window_size: Window,
    causal: bool,
) -> MaskSource:
    check_cu_seqlens(cu_seqlens_q, cu_seqlens_k)
    check_max_seqlen("max_seqlen_q", max_seqlen_q, cu_seqlens_q)
    check_max_seqlen("max_seqlen_k", max_seqlen_k, cu_seqlens_k)
    left, right = check_window(window_size, causal)
    return MaskSource("documents", cu_seqlens_q, cu_seqlens_k, window_left=left, window_right=right)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None,
    sink_layout: str,
    softmax_scale: float | None,
    softcap: float,
    mask: MaskSource,
    deterministic: bool,
    sm_margin: int,
    return_attn_probs: bool,
) -> Result:
    """What the nine have in common once their mask is known; packed documents are one batch element."""
    packed = mask.kind == "documents"
    check_qkv(q, k, v, "(total, heads, head_dim)" if packed else "(batch, seqlen, heads, head_dim)")
    scale, cap = check_scale(softmax_scale, q.shape[-1]), check_softcap(softcap)
    check_flag("deterministic", deterministic)
    check_flag("return_attn_probs", return_attn_probs)
    margin = check_count("sm_margin", sm_margin)
    sinks = check_sink(sink, sink_layout, q)
    if packed:
        q, k, v = q[None], k[None], v[None]
    out, lse, _ = attention(q, k, v, sinks, mask, scale, cap, deterministic, margin, return_max_logits=False)
    if packed:
        out, lse = out[0], lse[0]
    return (out, lse) if return_attn_probs else out
