"""Which keys a layer of a kind sees, and in which mode it runs."""

from __future__ import annotations

import enum

from ..mask.checks import check_number, shown
from ..mask.layer import Reach

__all__ = ["AUTOREGRESSIVE", "PREFILL", "TRAIN", "AttentionType", "check_mode", "check_type", "reach_of"]

TRAIN, PREFILL, AUTOREGRESSIVE = "train", "prefill", "autoregressive"


class AttentionType(enum.Enum):
    """The kinds of attention of `AttentionOp`; each may be given by its value, a string."""

    GLOBAL = "global"  # all that came before
    FULL = "full"  # everything
    LOCAL_SLIDING = "local_sliding"  # the last sliding_window_size keys
    CHUNK = "chunk"  # what came before in the same chunk of chunk_attn_window_size keys
    MLA = "mla"  # global, with values of another head_dim


def check_type(attention_type: object) -> AttentionType:
    if isinstance(attention_type, AttentionType):
        return attention_type
    allowed = ", ".join(repr(kind.value) for kind in AttentionType)
    if not isinstance(attention_type, str):
        raise TypeError(f"attention_type must be an AttentionType or one of {allowed}, got {shown(attention_type)}")
    for kind in AttentionType:
        if kind.value == attention_type:
            return kind
    raise ValueError(f"attention_type must be an AttentionType or one of {allowed}, got {attention_type!r}")


def check_mode(model_mode: object) -> None:
    if not isinstance(model_mode, str):
        raise TypeError(f"model_mode must be 'train', 'prefill' or 'autoregressive', got {shown(model_mode)}")
    if model_mode not in (TRAIN, PREFILL, AUTOREGRESSIVE):
        raise ValueError(f"model_mode must be 'train', 'prefill' or 'autoregressive', got {model_mode!r}")


def reach_of(kind: AttentionType, sliding_window_size: object, chunk_attn_window_size: object) -> Reach:
    """How far a row sees; sizes of other kinds are not looked at."""
    if kind == AttentionType.FULL:
        return Reach(-1, -1, 0)
    if kind == AttentionType.LOCAL_SLIDING:
        if sliding_window_size is None:
            raise ValueError("sliding_window_size must be set for attention_type 'local_sliding', got None")
        return Reach(check_number("sliding_window_size", sliding_window_size, 1) - 1, 0, 0)
    if kind == AttentionType.CHUNK:
        if chunk_attn_window_size is None:
            raise ValueError("chunk_attn_window_size must be set for attention_type 'chunk', got None")
        chunk = check_number("chunk_attn_window_size", chunk_attn_window_size)
        if chunk <= 0:
            raise ValueError(f"chunk_attn_window_size: chunk_size must be positive, got {chunk}")
        return Reach(-1, 0, chunk)
    return Reach(-1, 0, 0)
