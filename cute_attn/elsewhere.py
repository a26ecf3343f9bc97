"""Names that users of other libraries look for here, and what there is instead."""

from __future__ import annotations

__all__ = ["INSTEAD", "INSTEAD_IN_DIST"]

_SINK = "has FlashAttention's arguments, with sink and sink_layout after the sequences: pass what follows by keyword"
_DIST = "it is in cute_attn.dist"

INSTEAD = {
    "flash_attn_func": f"fa3_func_with_sink {_SINK}",
    "flash_attn_qkvpacked_func": f"fa2_qkvpacked_func_with_sink {_SINK}",
    "flash_attn_kvpacked_func": f"fa2_kvpacked_func_with_sink {_SINK}",
    "flash_attn_varlen_func": f"fa3_varlen_func_with_sink {_SINK}",
    "flash_attn_varlen_qkvpacked_func": f"fa2_varlen_qkvpacked_func_with_sink {_SINK}",
    "flash_attn_varlen_kvpacked_func": f"fa2_varlen_kvpacked_func_with_sink {_SINK}",
    "fa4_func_with_sink": "fa3_func_with_sink takes the same tensors; kernels here are for Hopper",
    "fa4_varlen_func_with_sink": "fa3_varlen_func_with_sink takes the same tensors; kernels here are for Hopper",
    "fa4_qkvpacked_func_with_sink": "fa3_qkvpacked_func_with_sink takes the same tensors; kernels here are for Hopper",
    "scaled_dot_product_attention": "it is in cute_attn.integrations.torch, and takes an IntervalMask",
    "varlen_attn": "fa3_varlen_func_with_sink takes packed documents; or see cute_attn.integrations.torch.register",
    "dsa_attn_func": "keys that an indexer chose are the indexer_mask of a call of AttentionOp",
    "AttnForwardMeta": "flex_flash_attn_func returns a tuple, (out, lse) or (out, lse, max_logits)",
    "GeneralAttnMaskType": "types of slices are AttnMaskType, their names or 0 to 3",
    "AttnMask": "a mask is an IntervalMask; IntervalMask.from_dense makes one of booleans, from_slices of ranges",
    "create_nested_block_mask": "create_block_mask with a mask_mod that compares the documents of q_idx and kv_idx",
} | dict.fromkeys(
    (
        "calc_attn",
        "dispatch",
        "infer_attn_mask_from_cu_seqlens",
        "infer_attn_mask_from_sliding_window",
        "infer_varlen_mask_from_batch",
        "magi_attn_flex_key",
        "magi_attn_varlen_key",
        "roll",
        "squash_batch_dim",
        "undispatch",
    ),
    _DIST,
)

_BALANCED = "MinHeapDispatchAlg balances work over ranks, and AutoDispatchAlg chooses among all ways"
_STAGES = "OverlapAlgType says how remote keys are cut into stages"
_PACKAGE = "it is in cute_attn itself"

INSTEAD_IN_DIST = {
    "roll_simple": "roll does the same, with less moved",
    "GrpCollConfig": "what brings keys is the mover of DistAttnConfig",
    "DispatchAlg": "it has no name here; AutoDispatchAlg, MinHeapDispatchAlg and others are what DispatchConfig takes",
    "SequentialDispatchAlg": "ContiguousDispatchAlg gives every rank consecutive chunks",
    "dist_attn_runtime_dict": "get_most_recent_key and clear_cache reach the keys that are kept",
    "dist_attn_runtime_dict_mgr": "get_most_recent_key and clear_cache reach the keys that are kept",
    "AttnForwardMeta": "calc_attn returns a tuple, (out, lse) or (out, lse, max_logits)",
    **dict.fromkeys(
        (
            "BSDispatchAlg",
            "BTPDispatchAlg",
            "DPDispatchAlg",
            "LBDispatchAlg",
            "SortedSequentialSelectAlg",
            "ToppHeapDispatchAlg",
        ),
        _BALANCED,
    ),
    **dict.fromkeys(("GreedyOverlapAlg", "OverlapAlg", "UniformOverlapAlg"), _STAGES),
    **dict.fromkeys(("AttnMaskType", "AttnRange", "AttnRanges", "flex_flash_attn_func"), _PACKAGE),
}
