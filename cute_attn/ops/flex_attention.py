"""Attention with a score_mod and a block_mask, with the signature of torch.nn.attention.flex_attention."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..backend import resolve
from ..backends.find import find
from ..checks import check_flag, check_heads_first, check_scale
from ..mask import IntervalMask
from ..mask.checks import shown
from ..mask.source import MaskSource
from ..mods.arguments import check_mod
from ..mods.block_mask import as_block_mask
from ..mods.blockwise import Thinned
from ..mods.reading import is_reachable
from ..mods.softcap import softcap_of
from ..mods.trace import Traced, trace
from .attention_op import attention
from .kernel_options import backend_with
from .mods_op import attention_with_mods

__all__ = ["AuxOutput", "AuxRequest", "flex_attention"]

Tensor = torch.Tensor


class AuxRequest(NamedTuple):
    """What flex_attention returns beside out."""

    lse: bool = False
    max_scores: bool = False


class AuxOutput(NamedTuple):
    """What was asked for with AuxRequest, `(batch, heads_q, tokens_q)` each; None where it was not."""

    lse: Tensor | None = None
    max_scores: Tensor | None = None


def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Any = None,
    block_mask: Any = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    kernel_options: dict[str, Any] | None = None,
    *,
    return_aux: Any = None,
) -> Any:
    """Exact attention whose scores a Python function changes and whose mask another one is.

    A score is `scale * query . key`; then score_mod; then the mask; then softmax.

    Args:
        query: `(batch, heads_q, tokens_q, head_dim)`, bf16, fp16, fp32 or fp64, any strides.
        key: `(batch, heads_k, tokens_kv, head_dim)`, value: `(batch, heads_k, tokens_kv, head_dim_v)`; a batch of 1
            goes with any.
        score_mod: None, or `score_mod(score, b, h, q_idx, kv_idx) -> score`, called once a call with scalars that have
            no value: score is fp32 (fp64 with fp64 inputs), h the query head, the others int32. Which operators it may
            use is listed in docs/flex_attention.md. Gradients flow to the tensors that it captures, which it reads at
            indices: at attended pairs these must be in range, negative ones count from the end.
        block_mask: None for all pairs; a BlockMask, ours or torch's; or an IntervalMask. Its batch and heads are 1 or
            those of query.
        scale: None means `1 / sqrt(head_dim)`.
        enable_gqa: allows fewer key heads than query heads: query head h uses key head `h // (heads_q / heads_k)`.
        return_lse: returns `(out, lse)`.
        kernel_options: None, or a dict of what tunes our kernels and changes no result: `tile` and `backward_tile`, a
            TileConfig and a BackwardTile of `cute_attn.spec.tiles` or dicts of their fields; `softmax`, "stale" or
            "exact", as `cute_attn.backend` takes it.
        return_aux: an AuxRequest, ours or torch's: returns `(out, AuxOutput)`.

    Returns:
        out `(batch, heads_q, tokens_q, head_dim_v)` in query's dtype. lse, natural logarithm, and max_scores, the
        largest attended score after score_mod, are `(batch, heads_q, tokens_q)`, fp32 (fp64 with fp64 inputs).
        Gradients flow through out and lse. A row that attends nothing has out 0, lse and max_scores -inf.

    Raises TypeError or ValueError naming the argument; IndexError where score_mod reads outside of a captured tensor,
    on the reference (kernels read the nearest element); NotImplementedError where the backend has no kernels for
    score_mod or block_mask, naming the one that serves them.
    """
    check_flag("enable_gqa", enable_gqa)
    check_flag("return_lse", return_lse)
    check_heads_first(query, key, value, enable_gqa)
    softmax_scale = check_scale(scale, query.shape[3], "scale")
    wanted = _aux_request(return_lse, return_aux)
    backend = backend_with(resolve(query.device), kernel_options)
    mask, thinned = _mask_argument(block_mask, query, key, backend)
    score = None if score_mod is None else _traced(score_mod, query.device)
    batch = query.shape[0]
    q, k, v = (x.transpose(1, 2) for x in (query, key.expand(batch, -1, -1, -1), value.expand(batch, -1, -1, -1)))
    cap = 0.0 if score is None else softcap_of(score)
    if cap is not None and thinned is None and not wanted.max_scores:
        out, lse, max_scores = attention(
            q, k, v, None, mask, softmax_scale, cap, _is_deterministic(), 0, False, backend
        )
    else:
        if not torch.compiler.is_compiling():
            served = find(backend)  # before anything is planned
            served.check_served(q.dtype, (q.shape[3], v.shape[3]), q.device)
            captured = [] if score is None else score.tensors
            wants = [torch.is_grad_enabled() and x.requires_grad for x in captured]
            served.check_mods(score, wants, _is_deterministic())
        arguments = thinned, score, softmax_scale, _is_deterministic(), wanted.max_scores, backend
        out, lse, max_scores = attention_with_mods(q, k, v, mask, *arguments)
    out = out.transpose(1, 2)
    if return_aux is not None:
        return out, AuxOutput(lse if wanted.lse else None, max_scores if wanted.max_scores else None)
    return (out, lse) if return_lse else out


def _is_deterministic() -> bool:
    return torch.are_deterministic_algorithms_enabled()


def _aux_request(return_lse: bool, return_aux: Any) -> AuxRequest:
    if return_aux is None:
        return AuxRequest(lse=return_lse)
    if return_lse:
        raise ValueError(
            "return_lse must be False where return_aux is given, got True: AuxRequest(lse=True) asks for it"
        )
    try:
        wanted = AuxRequest(return_aux.lse, return_aux.max_scores)
    except AttributeError:
        raise TypeError(f"return_aux must be None or an AuxRequest, got {shown(return_aux)}") from None
    check_flag("return_aux.lse", wanted.lse)
    check_flag("return_aux.max_scores", wanted.max_scores)
    return wanted


def _traced(score_mod: Any, device: torch.device) -> Traced:
    if not torch.compiler.is_compiling():
        check_mod("score_mod", score_mod, 5, or_none=True)
    traced = trace(score_mod, "score_mod", device)
    _check_captured("score_mod", traced, device)
    return traced


def _check_captured(name: str, function: Traced, device: torch.device) -> None:
    for x in function.tensors:
        if not is_reachable(x, device):
            raise ValueError(
                f"{name} must capture tensors on the device of query, {device}, got one of shape {tuple(x.shape)} "
                f"on {x.device}"
            )


def _mask_argument(
    block_mask: Any, query: Tensor, key: Tensor, backend: str
) -> tuple[IntervalMask | MaskSource, Thinned | None]:
    """The pairs that may be attended, and what thins them; kernels must know more of these pairs than the reference."""
    if block_mask is None:
        return MaskSource("window"), None
    planes: tuple[int, ...]
    if isinstance(block_mask, IntervalMask):
        planes = block_mask.batch, block_mask.heads
        mask, thinned = block_mask, None
    else:
        blocks = as_block_mask(block_mask)
        planes = (1, 1, *blocks.shape[:-2])[-2:]
        reading = blocks.reading()
        mask, thinned = reading.intervals, None
        if reading.predicate is not None:
            thinned = Thinned(reading.predicate.traced, reading.full, reading.predicate.watched.ticket)
            _check_captured("mask_mod", thinned.predicate, query.device)
        _check_shared(blocks.reads_planes(), planes, query)
    _check_mask(mask, planes, query, key)
    if thinned is not None and backend != "reference":
        mask = reading.thinned(planes[0], planes[1])
    return mask, thinned


def _check_shared(reads: tuple[bool, bool], planes: tuple[int, ...], query: Tensor) -> None:
    """A mask that all heads share is the first one's, which is wrong for others where its function tells them apart."""
    said = ("B", "batch elements", "b"), ("H", "heads", "h")
    for (argument, name, read), is_read, made, size in zip(said, reads, planes, query.shape[:2], strict=True):
        if is_read and made == 1 and size > 1:
            raise ValueError(
                f"block_mask must be made for the {size} {name} of query, since its mask_mod reads {read}, got one "
                f"that all {name} share: create_block_mask takes {argument}={size}"
            )


def _check_mask(mask: IntervalMask, planes: tuple[int, ...], query: Tensor, key: Tensor) -> None:
    """planes: batch and heads, as the mask was made; what its function does not read is 1 in the intervals."""
    rows, keys = query.shape[2], key.shape[2]
    if (mask.seqlen_q, mask.seqlen_k) != (rows, keys):
        raise ValueError(
            f"block_mask must be one of {rows} queries and {keys} keys, as query and key are, got one of "
            f"{mask.seqlen_q} and {mask.seqlen_k}: block_mask._adjust({rows}, {keys}) makes a shorter one of a longer"
        )
    for name, size, allowed in zip(("batch", "heads"), planes, query.shape[:2], strict=True):
        if size not in (1, allowed):
            raise ValueError(f"block_mask must have the {name} of query, {allowed}, or 1, got {size}")
    if mask.device != query.device:
        raise ValueError(f"block_mask must be on the device of query, {query.device}, got {mask.device}")
