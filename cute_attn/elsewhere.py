"""Names and keywords that users of other libraries look for here, and what there is instead."""

from __future__ import annotations

__all__ = [
    "ATTRIBUTES_OF_KEYS",
    "HINTS_OF_KEYS",
    "HINTS_OF_OVERLAP",
    "INSTEAD",
    "INSTEAD_IN_DIST",
    "KEYWORDS",
    "KEYWORDS_IN_DIST",
    "Keywords",
]

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
_CHOSEN = (
    "calc_attn knows nothing of keys that an indexer chose; on one device they are the indexer_mask of AttentionOp"
)
_KEPT = "get_most_recent_key and clear_cache reach the keys that are kept"
_PACKAGE = "it is in cute_attn itself"

INSTEAD_IN_DIST = {
    "roll_simple": "roll does the same, with less moved",
    "GrpCollConfig": "what brings keys is the mover of DistAttnConfig",
    "DispatchAlg": "it has no name here; AutoDispatchAlg, MinHeapDispatchAlg and others are what DispatchConfig takes",
    "SequentialDispatchAlg": "ContiguousDispatchAlg gives every rank consecutive chunks",
    "UniformOverlapAlg": "the alg of OverlapConfig is OverlapAlgType.UNIFORM",
    "GreedyOverlapAlg": "the alg of OverlapConfig is OverlapAlgType.GREEDY",
    "OverlapAlg": "the alg of OverlapConfig is one of OverlapAlgType",
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
    **dict.fromkeys(("DistAttnRuntimeDictManager", "dist_attn_runtime_dict", "dist_attn_runtime_dict_mgr"), _KEPT),
    **dict.fromkeys(("DsaOverlapConfig", "DsaPackedMeta", "MagiDSAInput", "MagiDSARuntimeMgr", "calc_dsa"), _CHOSEN),
    **dict.fromkeys(("AttnMaskType", "AttnRange", "AttnRanges", "flex_flash_attn_func"), _PACKAGE),
}

Keywords = dict[str, tuple[tuple[object, ...], str]]  # name -> the values that ask for nothing, what serves the others

_NONE, _FALSE = (None,), (False,)

# What attention functions elsewhere take.
KEYWORDS: Keywords = {
    "alibi_slopes": (
        _NONE,
        "ALiBi is a score_mod of cute_attn.flex_attention: score - slopes[h] * abs(q_idx - kv_idx)",
    ),
    "attention_chunk": ((0,), "cute_attn.mask.chunked_causal makes such a mask, for flex_flash_attn_func"),
    "block_table": (_NONE, "flash_attn_with_kvcache takes pages, as page_table"),
    "causal": (_FALSE, "attn_type_map says it, or an IntervalMask, such as cute_attn.mask.causal makes"),
    "dropout_p": ((0.0,), "no kernel drops probabilities"),
    "num_splits": ((1, 0), "flash_attn_with_kvcache divides keys"),
    "out": (_NONE, "it is made anew by every call, and returned"),
    "pack_gqa": ((None, False, True), "it is a hint"),
    "q_descale": (_NONE, "queries have 16 bits or more; flash_attn_with_kvcache takes k_descale and v_descale"),
    "qv": (_NONE, "concatenate qv to q and v to k, along head_dim"),
    "rotary_interleaved": ((True, False), "it is a hint"),
    "scheduler_metadata": (_NONE, "plans are made from the mask, and kept: leave it out"),
    "sm_margin": ((0,), "the fa3 functions take it"),
    "window_size": ((None, (-1, -1)), "an IntervalMask says it, such as cute_attn.mask.sliding_window makes"),
    **dict.fromkeys(
        ("aux_tensors", "block_sparse_tensors", "mask_mod", "score_mod"),
        (_NONE, "cute_attn.flex_attention takes score_mods and block masks"),
    ),
    **dict.fromkeys(("cache_batch_idx", "cache_seqlens", "page_table"), (_NONE, "flash_attn_with_kvcache takes it")),
    **dict.fromkeys(
        ("cache_leftpad", "leftpad_k"),
        (_NONE, "a page_table of flash_attn_with_kvcache, with pages of one token, says where a sequence begins"),
    ),
    **dict.fromkeys(
        ("cu_seqlens_k", "cu_seqlens_k_new", "cu_seqlens_q", "max_seqlen_k", "max_seqlen_q"),
        (_NONE, "fa3_varlen_func_with_sink takes packed documents"),
    ),
    **dict.fromkeys(("k_descale", "v_descale"), (_NONE, "flash_attn_with_kvcache takes it, for caches of 8 bits")),
    **dict.fromkeys(("learnable_sink", "s_aux", "sinks"), (_NONE, "the argument is named sink")),
    **dict.fromkeys(
        ("return_attn_probs", "return_lse", "return_softmax_lse"),
        (_FALSE, "lse comes with return_softmax_lse=True of flash_attn_with_kvcache, return_attn_probs=True of others"),
    ),
    **dict.fromkeys(("rotary_cos", "rotary_seqlens", "rotary_sin"), (_NONE, "rotate q and k before the call")),
    **dict.fromkeys(
        ("seqused_k", "seqused_q"),
        (_NONE, "flash_attn_with_kvcache takes lengths, as cache_seqlens; fa3_varlen_func_with_sink the full ones"),
    ),
}

# What keys, configs and what works on them take elsewhere; of hints no value is looked at.
KEYWORDS_IN_DIST: Keywords = {
    "chunk_size": (_NONE, "it is an argument of magi_attn_flex_key and its sisters"),
    "cp_group": (_NONE, "the argument is named cp_group_or_mesh"),
    "deterministic": (_FALSE, "it is an argument of calc_attn"),
    "grpcoll_config": (_NONE, "what brings keys is the mover of DistAttnConfig"),
    "high_bandwith_domain_size": ((1,), "a 2-D mesh says which ranks are near"),
    "pad_value": ((0,), "it is an argument of dispatch, by keyword"),
    "uneven_shard": (_FALSE, "every rank holds equally many rows: compute_pad_size says how many to add"),
    "window_size": (
        (None, (-1, -1)),
        "magi_attn_varlen_key takes it, and infer_attn_mask_from_cu_seqlens makes slices of it",
    ),
}
# What keys have elsewhere.
ATTRIBUTES_OF_KEYS = dict.fromkeys(
    ("attn_mask_type", "k_ranges", "q_ranges"), "only a digest of its mask: keep what it was made of"
) | {
    "cp_group": "its process group is groups.whole",
    "cp_mesh": "the process groups of its mesh are groups.ring and groups.ulysses",
    "uneven_shard": "every rank holds equally many rows",
    **dict.fromkeys(("head_dim", "head_dim_v", "num_heads_kv", "num_heads_q"), "calc_attn reads it of q, k and v"),
}
HINTS_OF_KEYS = ("head_dim", "head_dim_v", "num_heads_kv", "num_heads_q")
HINTS_OF_OVERLAP = ("calc_cost_factor", "comm_cost_factor", "dynamic_max_degree")

# What MaxText's attention operation is made with, and AttentionOp is not.
KEYWORDS_OF_LAYERS: Keywords = {
    "attention_kernel": (_NONE, "cute_attn.backend chooses"),
    "config": (_NONE, "of it AttentionOp takes moba_chunk_size and moba_topk"),
    "rngs": (_NONE, "nothing is drawn, and there are no parameters"),
    **dict.fromkeys(("float32_logits", "float32_qk_product"), ((True, False), "scores are fp32 at least")),
    **dict.fromkeys(
        ("dtype", "max_prefill_predict_length", "max_target_length", "quant"), (_NONE, "tensors say it: leave it out")
    ),
    **dict.fromkeys(
        (
            "flash_axis_names_kv",
            "flash_axis_names_kv_ep",
            "flash_axis_names_q",
            "flash_axis_names_q_ep",
            "flash_axis_names_splash_kernel",
            "flash_axis_names_splash_kernel_ep",
            "mesh",
            "ragged_lengths_names",
            "ragged_qkv_axis_names",
        ),
        (_NONE, "context parallelism is that of cute_attn.dist, over process groups"),
    ),
    **dict.fromkeys(
        (
            "cache_logical_axis_names",
            "cache_scale_logical_axis_names",
            "compute_axis_order",
            "key_axis_order",
            "prefill_cache_logical_axis_names",
            "reshape_q",
        ),
        (_NONE, "tensors lie as they lie: leave it out"),
    ),
}
