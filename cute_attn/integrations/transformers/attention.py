"""The attention of transformers' layers."""

from __future__ import annotations

from typing import Any

import torch

from ...checks import check_mask, check_qkv, check_scale, check_sink, check_softcap
from ...mask import IntervalMask
from ...mask.checks import check_number, shown
from ...mask.source import MaskSource
from ...mods.block_mask import BlockMask
from ...ops.attention_op import attention
from ...ops.flex_attention import flex_attention
from ...ops.ready import wants_gradients
from .layer_mask import LayerMask, TokenKeys, TorchBlockMask
from .refused import refuse_unsupported
from .token import attend_keys

__all__ = ["attention_forward"]

Tensor = torch.Tensor


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    s_aux: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The entry of transformers' AttentionInterface.

    Args:
        query: `(batch, heads_q, rows, head_dim)`; key, value: `(batch, heads_k, keys, head_dim)`, heads_q a multiple of
            heads_k.
        attention_mask: what `layer_mask` made; a BlockMask, ours or PyTorch's; bool `(batch, 1 or heads_q, rows,
            keys)`, whose runs are found at every call; or None for what is_causal and sliding_window say.
        scaling: None means `1 / sqrt(head_dim)`. softcap: None for none.
        sliding_window: how many keys a row attends, its own among them; read only where attention_mask is None.
        is_causal: None asks the module.
        s_aux: `(heads_q,)`, a logit without a value that joins every row of a head.

    Returns out `(batch, rows, heads_q, head_dim)` like query, and None in the place of the probabilities. A row that
    attends nothing, as padding may, has out 0. Raises ValueError for what there is none of here: dropout,
    output_attentions, a position_bias, paged caches of continuous batching.
    """
    refuse_unsupported(dropout, options)
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    check_qkv(q, k, v, "(batch, rows, heads, head_dim)")
    scale = check_scale(scaling, q.shape[3], "scaling")
    cap = 0.0 if softcap is None else check_softcap(softcap)
    if attention_mask is None:
        mask: Any = _without_mask(module, q, k, sliding_window, is_causal)
    else:
        mask = _mask_argument(attention_mask)
    if isinstance(mask, TokenKeys):
        if not wants_gradients(q, k, v, s_aux):
            return attend_keys(q, key, value, mask, scale, cap, s_aux), None
        mask = mask.intervals()
    if isinstance(mask, (IntervalMask, MaskSource)):
        if isinstance(mask, IntervalMask):
            check_mask("attention_mask", mask, q, k)
        sinks = check_sink(s_aux, "sh", q)
        deterministic = torch.are_deterministic_algorithms_enabled()
        return attention(q, k, v, sinks, mask, scale, cap, deterministic, 0, False)[0], None
    if s_aux is not None:
        raise NotImplementedError("s_aux: sinks go with masks that are intervals, and this one is not")
    score_mod = None if not cap else lambda score, b, h, q_idx, kv_idx: cap * torch.tanh(score / cap)
    out = flex_attention(query, key, value, score_mod, mask, scale, enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None


def _without_mask(
    module: torch.nn.Module, q: Tensor, k: Tensor, sliding_window: int | None, is_causal: bool | None
) -> MaskSource:
    """A layer that got no mask: of an encoder, or one that attends causally by itself."""
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    rows, keys = q.shape[1], k.shape[1]
    left = -1 if sliding_window is None else check_number("sliding_window", sliding_window, 1) - 1
    if not is_causal:
        if sliding_window is not None:
            raise ValueError(
                "attention_mask must say which keys a layer attends that is not causal and has a sliding_window, since "
                f"models differ in what such a window is, got None and sliding_window={sliding_window}"
            )
        return MaskSource("window")
    if rows not in (1, keys):
        raise ValueError(
            f"attention_mask must say which keys a causal layer attends where there are {rows} queries and {keys} "
            "keys, got None"
        )
    return MaskSource("window", window_left=left, window_right=0)


def _mask_argument(mask: Any) -> IntervalMask | TokenKeys | BlockMask | TorchBlockMask:
    if isinstance(mask, LayerMask):
        return mask.attended
    if isinstance(mask, (IntervalMask, BlockMask, TorchBlockMask)):
        return mask
    if isinstance(mask, Tensor) and mask.ndim == 4 and mask.dtype == torch.bool:
        return IntervalMask.from_dense(mask)
    raise TypeError(
        "attention_mask must be bool, (batch, 1, rows, keys), True where a key is attended, an IntervalMask or a "
        f"BlockMask where it is no padding mask (batch, keys), got {shown(mask)}"
    )
