"""Ranks that were given different things: every rank raises, and its error names the field and the ranks."""

import pytest
import torch
import torch.distributed as dist
from oracle import assert_close
from problems import EXACT, Problem, check, config, documents, results
from ranks import error_of, run_ranks

from cute_attn import mask as masks
from cute_attn.dist import (
    ContiguousDispatchAlg,
    DispatchConfig,
    DistAttnConfig,
    OverlapConfig,
    calc_attn,
    compute_pad_size,
    dispatch,
    magi_attn_flex_key,
    magi_attn_varlen_key,
    make_flex_key_for_new_mask_after_dispatch,
    roll,
    undispatch,
)
from cute_attn.dist.groups import host_group

LENGTH, CHUNK = 48, 4
ODD = 1  # the rank that is given something else


def make_key(mask=None, chunk_size=CHUNK, settings=None, **flags):
    mask = masks.causal(LENGTH) if mask is None else mask
    pad_size = compute_pad_size(LENGTH, dist.get_world_size(), chunk_size)
    settings = DistAttnConfig() if settings is None else settings
    return magi_attn_flex_key(
        mask, None, None, LENGTH, LENGTH, pad_size, chunk_size, dist.group.WORLD, settings, **flags
    )


def local_qkv(key, heads_q=4, heads_k=2, **options):
    rows = key.manager.placement("q").rows_per_rank
    return [torch.ones(rows, heads, 8, **options) for heads in (heads_q, heads_k, heads_k)]


def either(rank, usual, odd):
    return odd if rank == ODD else usual


def assert_all_raise(errors, *words, kind="ValueError"):
    """Every rank raised one and the same error, with these words."""
    assert len(set(errors)) == 1, errors
    assert errors[0] is not None
    assert errors[0][0] == kind, errors[0]
    for word in words:
        assert word in errors[0][1], (word, errors[0][1])


# ---------------------------------------------------------------- keys


def test_ranks_with_different_masks_raise_when_the_key_is_made():
    errors = run_ranks(3, _different_masks)
    assert_all_raise(errors, "mask is ", "on ranks 0 and 2", "on rank 1")


def _different_masks(rank):
    return error_of(make_key, either(rank, masks.full(LENGTH), ~masks.sliding_window(LENGTH, left=0, right=0)))


def different_keys(rank):
    """What differs, and the arguments of make_key on a rank."""
    return {
        "chunk_size is 4 on rank 0; 8 on rank 1": {"chunk_size": either(rank, 4, 8)},
        "is_same_source is True on rank 0; False on rank 1": {"is_same_source": either(rank, True, False)},
        "dist_attn_config.mover is 'auto' on rank 0; 'ring' on rank 1": {
            "settings": DistAttnConfig(mover=either(rank, "auto", "ring"))
        },
        "dist_attn_config.overlap_config.degree is 1 on rank 0; 2 on rank 1": {
            "settings": DistAttnConfig(overlap_config=OverlapConfig(degree=either(rank, 1, 2)))
        },
        "dist_attn_config.dispatch_config.alg is AutoDispatchAlg() on rank 0; ContiguousDispatchAlg() on rank 1": {
            "settings": either(rank, DistAttnConfig(), DistAttnConfig(DispatchConfig(ContiguousDispatchAlg())))
        },
        "dist_attn_config.check_ranks is True on rank 0; False on rank 1": {
            "settings": DistAttnConfig(check_ranks=rank != ODD)
        },
    }


def test_every_field_of_a_key_is_compared_and_the_ranks_go_on_after_it():
    errors = run_ranks(2, _different_keys)
    for words, own, other in zip(different_keys(0), *errors, strict=True):
        assert_all_raise([own, other], words)


def _different_keys(rank):
    errors = [error_of(make_key, **arguments) for arguments in different_keys(rank).values()]
    make_key()
    return errors


def test_a_key_that_one_rank_finds_again_is_compared_too():
    assert_all_raise(run_ranks(2, _found_again), "mask is ")


def _found_again(rank):
    make_key()
    return error_of(make_key, either(rank, masks.causal(LENGTH), masks.full(LENGTH)))


def test_keys_of_other_forms_are_compared():
    for words, errors in zip(
        ("total_seqlen_q is 48 on rank 0; 40 on rank 1", "mask is", "key_for_dispatch is"),
        zip(*run_ranks(2, _other_forms), strict=True),
        strict=True,
    ):
        assert_all_raise(errors, words)


def _other_forms(rank):
    ends = torch.tensor([0, 16, either(rank, 48, 40)])
    pad_size = either(rank, 0, 8)
    full, causal = make_key(masks.full(LENGTH)), make_key()
    window = masks.sliding_window(LENGTH, left=either(rank, 5, 6), right=0)
    return [
        error_of(magi_attn_varlen_key, ends, ends, pad_size, CHUNK, dist.group.WORLD),
        error_of(make_flex_key_for_new_mask_after_dispatch, window, None, None, full),
        error_of(make_flex_key_for_new_mask_after_dispatch, full.manager.mask, None, None, either(rank, full, causal)),
    ]


def test_a_rank_that_refuses_its_arguments_tells_the_others():
    of_calls = zip(*run_ranks(3, _refused), strict=True)
    messages = (
        "making a key: rank 1 refused its arguments: TypeError: chunk_size must be an int",
        "calc_attn: rank 1 refused its arguments: ValueError: softcap must be >= 0",
        "dispatch: rank 1 refused its arguments: ValueError: x must have 48 rows",
    )
    for message, errors in zip(messages, of_calls, strict=True):
        assert errors[ODD][1].startswith(message.rsplit(": ", 1)[1]), "its own error"
        assert_all_raise([errors[0], errors[2]], message)


def _refused(rank):
    of_key = error_of(make_key, chunk_size=4) if rank != ODD else error_of(_key_of_bad_chunks)
    key = make_key()
    of_call = error_of(calc_attn, *local_qkv(key), key, softcap=either(rank, 1.0, -1.0))
    at_the_next_call = error_of(
        *either(rank, (calc_attn, *local_qkv(key), key), (dispatch, torch.zeros(LENGTH + 1), key))
    )
    calc_attn(*local_qkv(key), key)
    return of_key, of_call, at_the_next_call


def _key_of_bad_chunks():
    return magi_attn_flex_key(masks.causal(LENGTH), None, None, LENGTH, LENGTH, 0, 4.0, dist.group.WORLD)


# ---------------------------------------------------------------- calls


def different_calls(rank):
    """What differs, and a call."""
    full, causal = make_key(masks.full(LENGTH)), make_key()
    ring = make_key(settings=config("ring"))
    qkv = local_qkv(full)
    one = {"sink": torch.zeros(1, 4)}
    return {
        "key is": (qkv, either(rank, full, causal), {}),
        "softcap is 0.0 on rank 0; 30.0 on rank 1": (qkv, full, {"softcap": either(rank, 0.0, 30.0)}),
        "softmax_scale is 0.5 on rank 0; 0.25 on rank 1": (qkv, full, {"softmax_scale": either(rank, 0.5, 0.25)}),
        "deterministic is False on rank 0; True on rank 1": (qkv, full, {"deterministic": rank == ODD}),
        "return_max_logits is False on rank 0; True on rank 1": (qkv, full, {"return_max_logits": rank == ODD}),
        "the shape of sink is (1, 4) on rank 0; None on rank 1": (qkv, full, either(rank, one, {})),
        "the shape of sink is (1, 4) on rank 0; (2, 4) on rank 1": (
            qkv, full, {"sink": torch.zeros(either(rank, 1, 2), 4)},
        ),
        "the shape of q is (24, 4, 8) on rank 0; (24, 8, 8) on rank 1": (local_qkv(ring, either(rank, 4, 8)), ring, {}),
        "dtype is torch.float32 on rank 0; torch.float64 on rank 1": (
            local_qkv(ring, dtype=either(rank, torch.float32, torch.float64)), ring, {},
        ),
        "requires_grad is (False, False, False, False) on rank 0; (True, True, True, False) on rank 1": (
            local_qkv(ring, requires_grad=rank == ODD), ring, {},
        ),
    }  # fmt: skip


def test_every_argument_of_calc_attn_is_compared_and_the_ranks_go_on_after_it():
    results = run_ranks(2, _different_calls)
    for words in results[0]:
        assert_all_raise([result[words] for result in results], "calc_attn", words)


def _different_calls(rank):
    errors = {
        words: error_of(calc_attn, *qkv, key, **keywords)
        for words, (qkv, key, keywords) in different_calls(rank).items()
    }
    solve_again()
    return errors


def solve_again():
    """The ranks still agree: a whole problem, forward and backward."""
    problem = Problem(documents(15, 33))
    key = make_key(problem.mask, settings=config("group_cast"))

    def attention(q, k, v, sink):
        out, lse, most = calc_attn(*(dispatch(x, key) for x in (q, k, v)), key, sink, return_max_logits=True)
        return undispatch(out, key), undispatch(lse.T, key).T, most

    check("again", results(problem.inputs, problem.gradients, attention), problem.wanted)


def test_rows_are_compared_before_they_travel():
    results = run_ranks(3, _different_rows)
    for words in results[0]:
        assert_all_raise([result[words] for result in results], words)


def _different_rows(rank):
    key = make_key()
    rows = key.manager.placement("q").rows_per_rank
    x = torch.ones(rows, 3)
    errors = {
        "undispatch: the ranks of the group disagree: the shape of x is": error_of(
            undispatch, torch.ones(rows, either(rank, 3, 2)), key
        ),
        "dtype is torch.float32 on ranks 0 and 2; torch.int32 on rank 1": error_of(
            undispatch, x.to(either(rank, torch.float32, torch.int32)), key
        ),
        "is_partial_grad is False on ranks 0 and 2; True on rank 1": error_of(
            undispatch, x, key, is_partial_grad=rank == ODD
        ),
        "roll: the ranks of the group disagree: shift is 1 on ranks 0 and 2; 2 on rank 1": error_of(
            roll, x, either(rank, 1, 2), 0, key
        ),
        "at different calls: undispatch on ranks 0 and 2; roll on rank 1": error_of(
            *either(rank, (undispatch, x, key), (roll, x, 1, 0, key))
        ),
    }
    solve_again()
    return errors


def test_a_backward_that_one_rank_skips_meets_the_next_call_of_that_rank():
    errors = run_ranks(2, _skipped_backward)
    assert_all_raise(errors, "at different calls: the backward of calc_attn on rank 0; calc_attn on rank 1")


def _skipped_backward(rank):
    key = make_key()
    qkv = local_qkv(key, requires_grad=True)
    out, _ = calc_attn(*qkv, key)
    if rank == ODD:
        return error_of(calc_attn, *qkv, key)  # its loss does not read `out`
    return error_of(out.sum().backward)


def test_backwards_of_different_calls_do_not_mix():
    errors = run_ranks(2, _mixed_backwards)
    assert_all_raise(errors, "the number of the call is 1 on rank 0; 2 on rank 1")


def _mixed_backwards(rank):
    key = make_key()
    outs = [calc_attn(*local_qkv(key, requires_grad=True), key)[0] for _ in range(2)]
    return error_of(outs[rank].sum().backward)


def test_a_gradient_that_is_zero_on_one_rank_alone_is_no_disagreement():
    run_ranks(2, _unread_out)


def _unread_out(rank):
    """A loss that reads nothing of a rank's rows must still run through them, such as by a factor of zero."""
    key = make_key()
    qkv = local_qkv(key, dtype=torch.float64, requires_grad=True)
    out, _ = calc_attn(*qkv, key)
    (out.sum() * (rank == 0)).backward()
    grads = [x.grad for x in qkv]
    whole = [undispatch(x.detach(), key).requires_grad_() for x in qkv]
    local = [dispatch(x, key) for x in whole]
    again, _ = calc_attn(*local, key)
    mask = torch.zeros(LENGTH, 1, 1, dtype=torch.float64)
    mask[key.manager.placement("q").positions(0)] = 1
    (undispatch(again, key) * mask).sum().backward()
    for name, grad, x in zip("qkv", grads, whole, strict=True):
        assert_close(f"d{name}", grad, dispatch(x.grad, key), EXACT)


@pytest.mark.parametrize("check_ranks", [True, False])
def test_check_ranks_decides_whether_digests_travel_and_changes_no_result(check_ranks):
    run_ranks(2, _digests_or_none, Problem(documents(15, 33)), check_ranks)


def _digests_or_none(rank, problem, check_ranks):
    settings = DistAttnConfig(overlap_config=OverlapConfig(min_chunk_size=8), mover="ring", check_ranks=check_ranks)
    key = make_key(problem.mask, settings=settings)
    sent = recorded_dtypes()

    def attention(q, k, v, sink):
        out, lse, most = calc_attn(*(dispatch(x, key) for x in (q, k, v)), key, sink, return_max_logits=True)
        return undispatch(out, key), undispatch(lse.T, key).T, most

    check("ring", results(problem.inputs, problem.gradients, attention), problem.wanted)
    assert torch.float64 in sent
    assert (torch.uint8 in sent) == check_ranks, "digests are the only bytes that travel"


def recorded_dtypes():
    """The dtypes of everything that this rank sends from now on, in a list that grows."""
    sent, original = [], dist.all_to_all_single

    def all_to_all_single(received, rows, *arguments, **keywords):
        sent.append(rows.dtype)
        return original(received, rows, *arguments, **keywords)

    dist.all_to_all_single = all_to_all_single
    return sent


def test_digests_of_a_group_without_the_cpu_travel_over_a_group_of_its_own():
    errors = run_ranks(2, _no_cpu)
    assert_all_raise(errors, "softcap is 0.0 on rank 0; 30.0 on rank 1")


def _no_cpu(rank):
    """As if WORLD were NCCL alone."""
    original, world = dist.get_backend_config, dist.group.WORLD
    dist.get_backend_config = lambda group: "cuda:nccl" if group is world else original(group)
    key = make_key()
    companion = host_group(world)
    assert companion is not world
    assert companion is host_group(world)
    assert dist.get_process_group_ranks(companion) == [0, 1]
    return error_of(calc_attn, *local_qkv(key), key, softcap=either(rank, 0.0, 30.0))
