"""Keys: equal content, equal key; and whatever is wrong is refused on every rank alike, before anything is sent."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from oracle import assert_close
from problems import EXACT, Problem, check, config, documents, results
from ranks import error_of, run_ranks

from cute_attn import AttnMaskType, AttnRanges, IntervalMask
from cute_attn import mask as masks
from cute_attn.dist import (
    AutoDispatchAlg,
    DispatchConfig,
    DistAttnConfig,
    MinHeapDispatchAlg,
    OverlapConfig,
    ZigzagDispatchAlg,
    calc_attn,
    clear_cache,
    compute_pad_size,
    dispatch,
    get_most_recent_key,
    get_position_ids,
    magi_attn_flex_dispatch,
    magi_attn_flex_key,
    magi_attn_varlen_dispatch,
    magi_attn_varlen_key,
    make_flex_key_for_new_mask_after_dispatch,
    make_varlen_key_for_new_mask_after_dispatch,
    undispatch,
)
from cute_attn.dist.registry import Registry

LENGTH, CHUNK = 40, 4
Q, K = [[0, 15], [15, 40]], [[0, 15], [15, 40]]


def make_key(q=Q, k=K, types="causal", total_q=LENGTH, total_k=LENGTH, pad_size=None, chunk_size=CHUNK, **keywords):
    if pad_size is None:
        pad_size = compute_pad_size(LENGTH, dist.get_world_size(), CHUNK)
    return magi_attn_flex_key(q, k, types, total_q, total_k, pad_size, chunk_size, dist.group.WORLD, **keywords)


# ---------------------------------------------------------------- content


def test_equal_content_gives_one_key_and_plans_once():
    run_ranks(2, _one_key)


def _one_key(rank):
    key = make_key()
    assert repr(key).startswith("DistAttnRuntimeKey(40 x 40 tokens in chunks of 4, Groups(2 ranks), mask ")
    assert len(repr(key)) < 100
    for same in (
        make_key(torch.tensor(Q), torch.tensor(K, dtype=torch.int32), ["causal", AttnMaskType.CAUSAL]),
        make_key(AttnRanges.from_ranges(Q), AttnRanges.from_ranges(K), torch.tensor([1, 1])),
        make_key(dist_attn_config=DistAttnConfig(DispatchConfig(AutoDispatchAlg()), OverlapConfig(degree=1))),
        make_key(np.array(Q), AttnRanges.from_ranges(K), np.array([1, 1])),
        magi_attn_varlen_key(torch.tensor([0, 15, 40]), torch.tensor([0, 15, 40]), 0, CHUNK, dist.group.WORLD, True),
        magi_attn_varlen_key([0, 15, 40], np.array([0, 15, 40]), 0, np.int64(CHUNK), dist.group.WORLD, True),
    ):
        assert same == key
        assert hash(same) == hash(key)
        assert same.manager is key.manager


def test_different_content_gives_different_keys():
    run_ranks(2, _different_keys)


def _different_keys(rank):
    keys = [
        make_key(),
        make_key(types="full"),
        make_key(types=["causal", "full"]),
        make_key([[0, 16], [16, 40]]),
        make_key(pad_size=8),
        make_key(chunk_size=2),
        make_key(is_same_source=False),
        make_key(is_same_source=False, is_k_permutable=False),
        make_key(is_q_permutable=False, is_k_permutable=False),
        make_key(dist_attn_config=DistAttnConfig(DispatchConfig(MinHeapDispatchAlg()))),
        make_key(dist_attn_config=DistAttnConfig(DispatchConfig(ZigzagDispatchAlg()))),
        make_key(dist_attn_config=DistAttnConfig(overlap_config=OverlapConfig(degree=2))),
        make_key(dist_attn_config=DistAttnConfig(mover="ring")),
        magi_attn_flex_key(Q, K, "causal", LENGTH, LENGTH, 0, CHUNK, dist.new_group([0, 1])),
    ]
    assert len(set(keys)) == len(keys)


def test_a_range_tensor_changed_in_place_gives_a_new_key():
    run_ranks(1, _changed_in_place)


def _changed_in_place(rank):
    ranges = torch.tensor(Q)
    key = make_key(ranges, ranges)
    ranges[0, 1], ranges[1, 0] = 10, 10
    assert make_key(ranges, ranges) != key


def test_the_most_recent_key_is_the_one_asked_for_last():
    run_ranks(1, _most_recent)


def _most_recent(rank):
    with pytest.raises(ValueError, match="no most recent key"):
        get_most_recent_key()
    first, second = make_key(), make_key(types="full")
    assert get_most_recent_key() == second
    make_key()
    assert get_most_recent_key() == first


def test_a_group_has_its_own_most_recent_key_and_is_cleared_alone():
    run_ranks(1, _groups_apart)


def _groups_apart(rank):
    other = dist.new_group([0])
    with pytest.raises(ValueError, match="no most recent key"):
        get_most_recent_key(other)
    first = make_key()
    second = magi_attn_flex_key(Q, K, "causal", LENGTH, LENGTH, 0, CHUNK, other)
    make_key(types="full")
    assert make_key() == get_most_recent_key(dist.group.WORLD) == get_most_recent_key() == first
    assert get_most_recent_key(other) == second
    clear_cache(other)
    dispatch(torch.zeros(LENGTH), first)
    with pytest.raises(ValueError, match="key is unknown"):
        dispatch(torch.zeros(LENGTH), second)
    with pytest.raises(ValueError, match="no most recent key"):
        get_most_recent_key(other)
    assert get_most_recent_key() == first
    clear_cache(dist.group.WORLD)
    with pytest.raises(ValueError, match="no most recent key"):
        get_most_recent_key()


def test_the_registry_keeps_the_last_few_and_old_keys_go_on_working(monkeypatch):
    run_ranks(2, _eviction)


def _eviction(rank):
    registry = Registry(capacity=2)
    keys = [make_key(types=name) for name in ("full", "causal", "inv_causal")]
    contents = [replace(key, manager=None) for key in keys]
    made = []

    def ask(i):
        return registry.key(contents[i], lambda: made.append(i) or keys[i].manager)

    first = ask(0)
    for i in (1, 0, 2, 0, 1):  # 2 drops 1, the last 1 drops 2
        ask(i)
    assert made == [0, 1, 2, 1]
    assert registry.manager(first) is keys[0].manager
    ask(2)
    assert made == [0, 1, 2, 1, 2]
    assert registry.manager(first) is keys[0].manager  # no longer kept, still held


# ---------------------------------------------------------------- what a key is not told


def test_a_key_that_is_told_no_chunk_size_has_eight_chunks_a_rank_at_least():
    run_ranks(2, _untold)


def _untold(rank):
    def key(total=LENGTH, **arguments):
        return magi_attn_flex_key(
            [[0, total]], [[0, total]], "causal", total, total, cp_group_or_mesh=WORLD, **arguments
        )

    WORLD = dist.group.WORLD
    for total, chunk_size, pad_size in ((40, 3, 2), (160, 10, 0), (161, 11, 15), (3, 1, 1), (0, 1, 0)):
        assert (key(total).chunk_size, key(total).pad_size) == (chunk_size, pad_size)
        assert key(total) == key(total, pad_size=pad_size, chunk_size=chunk_size)
    for told, chunk_size in ((2, 2), (3, 3), (512, 3)):
        settings = DistAttnConfig(DispatchConfig(MinHeapDispatchAlg(), chunk_size=told))
        plain = DistAttnConfig(DispatchConfig(MinHeapDispatchAlg()))
        assert key(dist_attn_config=settings) == key(chunk_size=chunk_size, dist_attn_config=plain)
        assert key(chunk_size=told, dist_attn_config=settings).chunk_size == told
        new = make_flex_key_for_new_mask_after_dispatch(Q, K, "full", key(), settings)
        assert new == make_flex_key_for_new_mask_after_dispatch(Q, K, "full", key(), plain)
    with pytest.raises(ValueError, match="chunk_size must be that of the DispatchConfig, 512, got 4"):
        key(chunk_size=4, dist_attn_config=settings)


def test_padding_that_is_not_asked_for_is_as_little_as_makes_equal_chunks():
    run_ranks(2, _padded_by_itself, Problem(documents(13, 28)))


def _padded_by_itself(rank, problem):
    lengths = torch.tensor([0, 13, 41])
    key = magi_attn_varlen_key(lengths, lengths, cp_group_or_mesh=dist.group.WORLD, causal=True, chunk_size=CHUNK)
    assert key.pad_size == compute_pad_size(41, 2, CHUNK) == 7
    assert get_position_ids(key).shape == (24,)

    def attention(q, k, v, sink):
        out, lse, most = calc_attn(*(dispatch(x, key) for x in (q, k, v)), key, sink, return_max_logits=True)
        return undispatch(out, key), undispatch(lse.T, key).T, most

    check("padded", results(problem.inputs, problem.gradients, attention), problem.wanted)


def test_documents_may_have_a_window():
    run_ranks(2, _windows)


def _windows(rank):
    first, ends = make_key(), [0, 15, 40]
    both = masks.documents(LENGTH, cu_seqlens=ends)
    for window in ((6, 0), [3, 2], torch.tensor([-1, 4]), np.array([0, -1])):
        left, right = (int(x) for x in window)
        mask = both & masks.sliding_window(LENGTH, left=left, right=right)
        of_group = {"chunk_size": CHUNK, "cp_group_or_mesh": dist.group.WORLD}
        key = magi_attn_varlen_key(ends, ends, **of_group, window_size=window)
        assert key.manager.placed.mask.equals(mask)
        again = make_varlen_key_for_new_mask_after_dispatch(ends, ends, first, window_size=window)
        assert again.manager.placed.mask.equals(mask)
        x = torch.randn(LENGTH, 2)
        local, same = magi_attn_varlen_dispatch(x, ends, ends, **of_group, window_size=window)
        assert same == key
        assert torch.equal(local, dispatch(x, key))
    with pytest.raises(ValueError, match=r"causal must be False with a window, .* as in \(6, 0\)"):
        magi_attn_varlen_key(ends, ends, **of_group, causal=True, window_size=(6, 0))


# ---------------------------------------------------------------- masks on one placement


@pytest.mark.parametrize("mover", ["group_cast", "ring", "ulysses"])
def test_several_masks_on_one_placement(mover):
    problems = {
        "documents": Problem(documents(15, 25)),
        "window": Problem(masks.sliding_window(LENGTH, left=6, right=0)),
    }
    run_ranks(2, _several_masks, problems, mover)


def _several_masks(rank, problems, mover):
    first = make_key(dist_attn_config=config("group_cast"))
    keys = {
        "documents": make_varlen_key_for_new_mask_after_dispatch(
            torch.tensor([0, 15, 40]), torch.tensor([0, 15, 40]), first, True, config(mover)
        ),
        "window": make_flex_key_for_new_mask_after_dispatch(problems["window"].mask, None, None, first, config(mover)),
    }
    for name, key in keys.items():
        assert key != first
        assert torch.equal(get_position_ids(key), get_position_ids(first))

        def attention(q, k, v, sink, key=key):
            local = [dispatch(x, first) for x in (q, k, v)]
            out, lse, max_logits = calc_attn(*local, key, sink, return_max_logits=True)
            return undispatch(out, first), undispatch(lse.T, first).T, max_logits

        check(name, results(problems[name].inputs, problems[name].gradients, attention), problems[name].wanted)
    assert (
        make_flex_key_for_new_mask_after_dispatch(problems["window"].mask, None, None, keys["documents"], config(mover))
        == keys["window"]
    ), "the placement is that of the first key, however it was reached"


def test_the_dispatching_forms_return_local_rows_and_the_key():
    run_ranks(2, _dispatching_forms)


def _dispatching_forms(rank):
    x = torch.randn(LENGTH, 3)
    local, key = magi_attn_flex_dispatch(x, Q, K, "causal", LENGTH, LENGTH, 0, CHUNK, dist.group.WORLD)
    assert key == make_key()
    assert_close("local", local, dispatch(x, key), 0.0)
    cu_seqlens = torch.tensor([0, 15, 40])
    local, key = magi_attn_varlen_dispatch(x, cu_seqlens, cu_seqlens, 0, CHUNK, dist.group.WORLD, causal=True)
    assert key == make_key()
    assert_close("local", local, dispatch(x, key), EXACT)


# ---------------------------------------------------------------- errors


def bad_keys():
    """What is wrong, the arguments of make_key, and the error."""
    wrong = {
        "k_ranges": ({"k": None}, ValueError),
        "attn_mask_type": ({"types": ["causal"]}, ValueError),
        "unknown name": ({"types": "diagonal"}, ValueError),
        "q_ranges": ({"q": [[0, 15], [15, 41]]}, ValueError),
        "q_ranges and k_ranges must have": ({"k": [[0, 15]], "types": "causal"}, ValueError),
        "total_seqlen_q": ({"total_q": 40.0}, TypeError),
        "equally long": ({"total_k": 41}, ValueError),
        "pad_size": ({"pad_size": 3}, ValueError),
        "pad_size must be an int": ({"pad_size": "4"}, TypeError),
        "chunk_size": ({"chunk_size": 0}, ValueError),
        "is_q_permutable and is_k_permutable must be equal": ({"is_k_permutable": False}, ValueError),
        "is_same_source": ({"is_same_source": 1}, TypeError),
        "dist_attn_config": ({"dist_attn_config": "ring"}, TypeError),
        "2-D DeviceMesh": ({"dist_attn_config": DistAttnConfig(mover="ulysses_ring")}, ValueError),
        "must be None where q_ranges is an IntervalMask": ({"q": masks.causal(LENGTH)}, ValueError),
        "must be those of the mask": ({"q": masks.causal(39), "k": None, "types": None}, ValueError),
    }
    return wrong


def test_bad_arguments_of_a_key_raise_the_same_error_on_every_rank():
    errors = run_ranks(2, _bad_keys)
    assert errors[0] == errors[1]
    for (words, (_, kind)), error in zip(bad_keys().items(), errors[0], strict=True):
        assert error is not None, words
        assert error[0] == kind.__name__, (words, error)
        assert words in error[1]


def _bad_keys(rank):
    errors = [error_of(make_key, **arguments) for arguments, _ in bad_keys().values()]
    undispatch(dispatch(torch.randn(LENGTH), make_key()), make_key())  # the ranks still agree
    return errors


def test_bad_arguments_of_calc_attn_raise_the_same_error_on_every_rank():
    errors = run_ranks(2, _bad_calls)
    assert errors[0] == errors[1]
    for (words, kind), error in errors[0].items():
        assert error is not None, words
        assert error[0] == kind, (words, error)
        assert words in error[1]


def _bad_calls(rank):
    key, ulysses = make_key(), make_key(dist_attn_config=DistAttnConfig(mover="ulysses"))
    rows = LENGTH // 2
    q, k, v = torch.randn(rows, 3, 8), torch.randn(rows, 1, 8), torch.randn(rows, 1, 8)
    unknown = replace(key, manager=None)
    errors = {
        ("q must have 20 rows", "ValueError"): error_of(calc_attn, q[1:], k, v, key),
        ("k and v must have 20 rows", "ValueError"): error_of(calc_attn, q, k[1:], v[1:], key),
        ("k and v must have one length", "ValueError"): error_of(calc_attn, q, k, v[1:], key),
        ("heads_q = 3 and heads_k = 2", "ValueError"): error_of(
            calc_attn, q, k.repeat(1, 2, 1), v.repeat(1, 2, 1), key
        ),
        ("one dtype", "TypeError"): error_of(calc_attn, q, k.double(), v, key),
        ("sink", "ValueError"): error_of(calc_attn, q, k, v, key, torch.zeros(1, 2)),
        ("sink must be bfloat16", "TypeError"): error_of(calc_attn, q, k, v, key, torch.zeros(1, 3, dtype=torch.int32)),
        ("softcap", "ValueError"): error_of(calc_attn, q, k, v, key, softcap=-1.0),
        ("softmax_scale", "ValueError"): error_of(calc_attn, q, k, v, key, softmax_scale=torch.inf),
        ("deterministic", "TypeError"): error_of(calc_attn, q, k, v, key, deterministic=1),
        ("heads_q = 3 and a group of 2", "ValueError"): error_of(calc_attn, q, k, v, ulysses),
        ("key must be a DistAttnRuntimeKey", "TypeError"): error_of(calc_attn, q, k, v, None),
        ("key is unknown", "ValueError"): error_of(calc_attn, q, k, v, unknown),
        ("x must have 40 rows", "ValueError"): error_of(dispatch, q, key),
        ("x must have 20 rows", "ValueError"): error_of(undispatch, q[1:], key),
        ("side must be 'q' or 'k'", "ValueError"): error_of(dispatch, torch.randn(LENGTH), key, "v"),
        ("pad_value must be an integer", "ValueError"): error_of(
            dispatch, torch.zeros(LENGTH, dtype=torch.int64), key, pad_value=0.5
        ),
        ("is_partial_grad", "TypeError"): error_of(undispatch, q, key, is_partial_grad=None),
    }
    calc_attn(q, k, v, key)  # the ranks still agree
    return errors


def test_after_clear_cache_every_rank_refuses_old_keys_before_it_communicates():
    for errors in run_ranks(2, _cleared):
        assert len(errors) == 5
        for error in errors:
            assert error is not None
            assert error[0] == "ValueError"
            assert "is unknown" in error[1]


def _cleared(rank):
    key = make_key()
    local = dispatch(torch.randn(LENGTH, 1, 8), key)
    clear_cache()
    return [
        error_of(dispatch, torch.randn(LENGTH), key),
        error_of(undispatch, local, key),
        error_of(calc_attn, local, local, local, key),
        error_of(get_position_ids, key),
        error_of(make_flex_key_for_new_mask_after_dispatch, Q, K, "full", key),
    ]


def test_ulysses_names_what_works_where_it_cannot_split_the_heads():
    errors = run_ranks(3, _indivisible_heads)
    assert errors[0] == errors[1] == errors[2]
    assert errors[0][0] == "ValueError"
    assert "heads_q = 8 and a group of 3" in errors[0][1]
    assert "1, 2, 4, 8" in errors[0][1]


def _indivisible_heads(rank):
    key = make_key(dist_attn_config=DistAttnConfig(mover="ulysses"))
    local = dispatch(torch.randn(LENGTH, 8, 8), key)
    return error_of(calc_attn, local, local, local, key)


def test_something_that_is_no_group_is_refused():
    for arguments, got in (
        ((0, CHUNK, None), "NoneType$"),
        ((), "NoneType$"),
        ((8, 2, 128), "int: pass num_heads_q, "),
    ):
        with pytest.raises(TypeError, match=f"cp_group_or_mesh must be a ProcessGroup .* got {got}"):
            magi_attn_flex_key(Q, K, "full", LENGTH, LENGTH, *arguments)


def test_cumulative_lengths_must_start_at_zero_and_never_fall():
    run_ranks(1, _bad_cumulative_lengths)


def _bad_cumulative_lengths(rank):
    for bad in ([1, 40], [0, 30, 20]):
        with pytest.raises(ValueError, match=f"cu_seqlens_q must go from 0 to {bad[-1]} and never fall"):
            magi_attn_varlen_key(torch.tensor(bad), torch.tensor(bad), 0, CHUNK, dist.group.WORLD)


def test_a_mask_of_several_batch_elements_is_refused():
    run_ranks(1, _batched)


def _batched(rank):
    two = IntervalMask(
        torch.zeros(2, 1, LENGTH, dtype=torch.int32), torch.ones(2, 1, LENGTH, dtype=torch.int32), LENGTH
    )
    with pytest.raises(ValueError, match="batch 1"):
        make_key(two, None, None)
