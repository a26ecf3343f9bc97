"""Whatever a public function of context parallelism is given: it works, or says which argument is wrong."""

import inspect
import re

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

import cute_attn.dist as api
from cute_attn import AttnMaskType, AttnRange, AttnRanges
from cute_attn import mask as masks

LENGTH = 8
RUBBISH = {
    "None": None,
    "a word": "abc",
    "a float": 1.5,
    "nan": float("nan"),
    "a negative": -1,
    "2^63": 2**63,
    "10^30": 10**30,
    "10^400": 10**400,
    "True": True,
    "an empty list": [],
    "a dict": {},
    "an object": object(),
    "an array": np.array([3, 1]),
    "an array of words": np.array(["q"]),
    "a tensor": torch.tensor([3, 1]),
    "a 0-d tensor": torch.tensor(1.5),
    "a sparse tensor": torch.eye(8).to_sparse(),
    "a meta tensor": torch.zeros(8, device="meta"),
    "a meta tensor of ints": torch.zeros(3, dtype=torch.int64, device="meta"),
    "a nested tensor": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "a class": api.DistAttnConfig,
}


def good_calls(group):
    """Every public function and class, and arguments that it takes."""
    mask = masks.causal(LENGTH)
    key = api.magi_attn_flex_key(mask, None, None, LENGTH, LENGTH, 0, 4, group)
    placement = api.Placement.contiguous(LENGTH, 4, 1, 2)
    ranges, ends = [[0, 5], [5, 8]], torch.tensor([0, 5, 8])
    make = {"pad_size": 0, "chunk_size": 4, "cp_group_or_mesh": group, "dist_attn_config": api.DistAttnConfig()}
    flex = {
        "q_ranges": ranges, "k_ranges": ranges, "attn_mask_type": "causal",
        "total_seqlen_q": LENGTH, "total_seqlen_k": LENGTH, **make,
        "is_same_source": True, "is_q_permutable": True, "is_k_permutable": True,
    }  # fmt: skip
    varlen = {"cu_seqlens_q": ends, "cu_seqlens_k": ends, **make, "causal": True, "window_size": (-1, -1)}
    again = {"key_for_dispatch": key, "dist_attn_config": None}
    x, qkv = torch.ones(LENGTH, 2), {name: torch.ones(LENGTH, 2, 8) for name in "qkv"}
    plan = {"mask": mask, "query": placement, "key": placement, "rank": 0}
    return {
        "magi_attn_flex_key": flex,
        "magi_attn_flex_dispatch": {"x": x, **flex},
        "magi_attn_varlen_key": varlen,
        "magi_attn_varlen_dispatch": {"x": x, **varlen},
        "make_flex_key_for_new_mask_after_dispatch": {
            "q_ranges": ranges, "k_ranges": ranges, "attn_mask_type": [0, 1], **again,
        },
        "make_varlen_key_for_new_mask_after_dispatch": {
            "cu_seqlens_q": ends, "cu_seqlens_k": ends, "causal": False, "window_size": (1, 0), **again,
        },
        "dispatch": {"x": x, "key": key, "side": "q", "pad_value": 1.0},
        "undispatch": {"x": x, "key": key, "side": "k", "is_partial_grad": True},
        "get_position_ids": {"key": key, "side": "q"},
        "roll": {"x": x, "shift": 1, "dim": 0, "key": key, "side": "q"},
        "calc_attn": {
            **qkv, "key": key, "sink": torch.zeros(1, 2), "softmax_scale": 1.0, "softcap": 0.0, "deterministic": False,
            "return_max_logits": True,
        },
        "place": {
            "mask": mask, "world": 2, "chunk_size": 2, "pad_size": 0, "config": api.DispatchConfig(),
            "cost": api.CostModel(), "ulysses_size": 1, "is_same_source": True, "is_q_permutable": True,
            "is_k_permutable": True,
        },
        "plan_group_cast": {**plan, "overlap": api.OverlapConfig(), "cost": api.CostModel()},
        "plan_ring": {**plan, "ulysses_size": 1},
        "ulysses_heads": {"heads_q": 4, "heads_k": 2, "ulysses_size": 2},
        "Placement": {"length": LENGTH, "chunk_size": 4, "chunks": torch.tensor([[0], [1]])},
        "compute_pad_size": {"total_seqlen_q": 3, "cp_size": 2, "chunk_size": 4},
        "pad_at_dim": {"x": x, "dim": 0, "pad_size": 1, "value": 0.0, "side": "left"},
        "unpad_at_dim": {"x": x, "dim": 0, "pad_size": 1},
        "apply_padding": {
            "q_ranges": AttnRanges(ranges), "k_ranges": AttnRanges(ranges),
            "attn_mask_type": [AttnMaskType.FULL] * 2, "total_seqlen": 8, "pad_size": 4,
        },
        "infer_varlen_mask_from_batch": {"batch_size": 2, "seq_len": 3, "device": "cpu"},
        "squash_batch_dim": {"x": x},
        "infer_attn_mask_from_sliding_window": {
            "q_range": AttnRange(0, 8), "k_range": AttnRange(0, 8), "window_size": (1, 0),
        },
        "infer_attn_mask_from_cu_seqlens": {
            "cu_seqlens_q": ends, "cu_seqlens_k": ends, "causal": False, "window_size": (1, 0), "global_window_size": 1,
        },
        "DistAttnConfig": {
            "dispatch_config": api.DispatchConfig(), "overlap_config": api.OverlapConfig(), "mover": "ring",
            "check_ranks": True, "cost": api.CostModel(),
        },
        "DispatchConfig": {"alg": api.MinHeapDispatchAlg(), "chunk_size": 4},
        "LocalityDispatchAlg": {"epsilon": 0.1},
        "OverlapConfig": {
            "enable": True, "mode": api.AttnOverlapMode.STATIC, "degree": 2, "min_chunk_size": 1, "max_num_chunks": 2,
            "alg": api.OverlapAlgType.GREEDY, "sm_margin": 0,
        },
        "CostModel": {
            "heads_q": 4, "heads_k": 2, "head_dim": 8, "head_dim_v": 8, "element_size": 2, "flops": 1.0,
            "bandwidth": 1.0, "latency": 0.0, "overlap": 0.5, "ranks_per_node": 2, "node_bandwidth": 1.0,
        },
        "get_most_recent_key": {"cp_group_or_mesh": group},
        "clear_cache": {"cp_group_or_mesh": group},  # the last one: no key is known behind it
    }  # fmt: skip


UNCALLED = {
    "AttnOverlapMode", "OverlapAlgType",  # enums
    "AutoDispatchAlg", "ContiguousDispatchAlg", "MinHeapDispatchAlg", "ZigzagDispatchAlg",  # take nothing
    "CastPlan", "CastStage", "RingPlan", "RingStep", "UlyssesHeads", "DistAttnRuntimeKey",  # others make them
}  # fmt: skip


@pytest.fixture(scope="module")
def found():
    (found,) = run_ranks(1, _try_all)
    return found


def _try_all(rank):
    """`(function, argument, rubbish, type and text of the error or None)` of every call."""
    found = []
    for name, arguments in good_calls(dist.group.WORLD).items():
        function = getattr(api, name)
        function(**arguments)
        for argument in arguments:
            for what, value in RUBBISH.items():
                try:
                    function(**{**arguments, argument: value})
                except Exception as error:
                    found.append((name, argument, what, (type(error).__name__, str(error))))
                else:
                    found.append((name, argument, what, None))
    return found


def test_every_public_function_is_tried_with_every_argument():
    run_ranks(1, _complete)


def _complete(rank):
    calls = good_calls(dist.group.WORLD)
    assert set(calls) | UNCALLED == set(api.__all__)
    for name, arguments in calls.items():
        assert set(arguments) == set(inspect.signature(getattr(api, name)).parameters), name


def test_rubbish_raises_nothing_but_the_errors_of_arguments(found):
    leaks = [case for case in found if case[3] and case[3][0] not in ("TypeError", "ValueError", "NotImplementedError")]
    assert not leaks


def test_an_error_names_the_argument(found):
    nameless = [case for case in found if not is_named(*case)]
    assert not nameless


def is_named(function, argument, _, error):
    """Whether an error names the argument, or another that it does not fit."""
    names = [argument, *inspect.signature(getattr(api, function)).parameters]
    return error is None or any(re.search(rf"\b{name}\b", error[1]) for name in names)
