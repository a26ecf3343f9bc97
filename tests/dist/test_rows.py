"""dispatch, undispatch, position ids and roll: rows and their gradients between global and local tensors."""

import pytest
import torch
import torch.distributed as dist
from problems import config, documents, slices
from ranks import run_ranks

from cute_attn.dist import (
    DistAttnConfig,
    calc_attn,
    compute_pad_size,
    dispatch,
    get_position_ids,
    magi_attn_flex_key,
    roll,
    undispatch,
)

LENGTH = 57  # no number of ranks divides it
WORLDS = [1, 3]


def make_key(mask, chunk_size=3, mover="group_cast", **flags):
    world = dist.get_world_size()
    pad_size = compute_pad_size(mask.seqlen_q, world, chunk_size)
    return magi_attn_flex_key(
        mask, None, None, mask.seqlen_q, mask.seqlen_k, pad_size, chunk_size, dist.group.WORLD, config(mover), **flags
    )


def self_attention_key():
    return make_key(documents(20, 37))


def cross_attention_key():
    """57 queries, 41 keys, both permuted, differently."""
    return make_key(slices(5, LENGTH, 41), is_same_source=False)


@pytest.mark.parametrize("world", WORLDS)
def test_undispatch_inverts_dispatch_for_any_shape_and_dtype(world):
    run_ranks(world, _there_and_back)


def _there_and_back(rank):
    key, cross = self_attention_key(), cross_attention_key()
    for x in (
        torch.randn(LENGTH, 3, 2).bfloat16(),
        torch.randn(LENGTH).double(),
        torch.randn(LENGTH, 5).T.contiguous().T,
    ):
        assert torch.equal(undispatch(dispatch(x, key), key), x)
    for dtype in (torch.int64, torch.int32, torch.uint8, torch.bool):
        x = torch.randint(0, 2, (LENGTH, 4)).to(dtype)
        assert torch.equal(undispatch(dispatch(x, key), key), x)
    for dtype in (torch.int16, torch.int8, torch.complex128, torch.float8_e4m3fn):  # some backend carries them not
        for shape in ((LENGTH,), (LENGTH, 4), (LENGTH, 0)):
            x = torch.randint(0, 2, shape).to(dtype)
            whole = undispatch(dispatch(x, key), key)
            assert whole.dtype == dtype
            assert torch.equal(whole.to(torch.complex128), x.to(torch.complex128))
    x = torch.randn(41, 2)
    assert torch.equal(undispatch(dispatch(x, cross, side="k"), cross, side="k"), x)


@pytest.mark.parametrize("world", WORLDS)
def test_position_ids_say_where_local_rows_come_from(world):
    run_ranks(world, _positions)


def _positions(rank):
    for key, length, side in ((self_attention_key(), LENGTH, "q"), (cross_attention_key(), 41, "k")):
        x = torch.randn(length, 2)
        ids, local = get_position_ids(key, side), dispatch(x, key, side)
        assert ids.dtype == torch.int64
        real = (local != 0).any(1)
        assert torch.equal(x[ids][real], local[real])
        assert (ids[~real] == length - 1).all()


@pytest.mark.parametrize("world", WORLDS)
def test_dispatch_gives_every_rank_the_complete_gradient(world):
    run_ranks(world, _dispatch_gradient)


def _dispatch_gradient(rank):
    key = self_attention_key()
    x, weights = torch.randn(LENGTH, 2, requires_grad=True), torch.randn(LENGTH, 2)
    (dispatch(x, key) * dispatch(weights, key)).sum().backward()  # each rank's part of sum(x * weights)
    assert torch.equal(x.grad, weights)


@pytest.mark.parametrize("world", WORLDS)
def test_undispatch_takes_a_gradient_that_all_ranks_hold_or_sums_parts_of_it(world):
    run_ranks(world, _undispatch_gradient)


def _undispatch_gradient(rank):
    key, world = self_attention_key(), dist.get_world_size()
    x, weights = torch.randn(LENGTH, 2).double(), torch.randn(LENGTH, 2).double()
    whole = dispatch(x, key).requires_grad_()
    (undispatch(whole, key) * weights).sum().backward()  # every rank the same loss
    assert torch.equal(whole.grad, dispatch(weights, key))
    parts = dispatch(x, key).requires_grad_()
    mine = torch.arange(LENGTH) % world == rank  # each rank a share of the loss
    (undispatch(parts, key, is_partial_grad=True) * weights)[mine].sum().backward()
    assert torch.equal(parts.grad, dispatch(weights, key))


@pytest.mark.parametrize("world", WORLDS)
def test_partial_gradients_of_low_precision_add_up_in_fp32(world):
    run_ranks(world, _bf16_sum)


def _bf16_sum(rank):
    """256 + 1 + ... + 1 stays 256 where bf16 adds one by one."""
    key, world = self_attention_key(), dist.get_world_size()
    x = torch.zeros(LENGTH, 1, dtype=torch.bfloat16)
    local = dispatch(x, key).requires_grad_()
    (undispatch(local, key, is_partial_grad=True) * (256.0 if rank == 0 else 1.0)).sum().backward()
    wanted = dispatch(torch.full_like(x, 256.0 + world - 1), key)
    assert torch.equal(local.grad, wanted)


@pytest.mark.parametrize("world", WORLDS)
def test_roll_rolls_the_global_tensor_and_its_gradient_back(world):
    run_ranks(world, _roll)


def _roll(rank):
    x = torch.randn(LENGTH, 2, 3).double()
    own, cross = self_attention_key(), cross_attention_key()
    for key, side, length, shift in ((own, "q", LENGTH, 1), (own, "q", LENGTH, -LENGTH - 13), (cross, "k", 41, 3)):
        local = dispatch(x[:length], key, side).requires_grad_()
        rolled = roll(local, shift, 0, key, side)
        assert torch.equal(undispatch(rolled, key, side), x[:length].roll(shift, 0))
        rolled.backward(dispatch(x[:length], key, side))
        assert torch.equal(undispatch(local.grad, key, side), x[:length].roll(-shift, 0))
    along_the_last = roll(dispatch(x, own).movedim(0, 2), 2, -1, own)
    assert torch.equal(undispatch(along_the_last.movedim(2, 0), own), x.roll(2, 0))


def test_padding_stays_zero_and_reaches_nothing():
    run_ranks(2, _padding)


def _padding(rank):
    key = self_attention_key()
    x = torch.randn(LENGTH, 2, requires_grad=True)
    local = dispatch(x, key)
    padding = dispatch(torch.ones(LENGTH), key) == 0
    assert (local[padding] == 0).all()
    (local * padding[:, None] * 7.0).sum().backward()
    assert (x.grad == 0).all()


@pytest.mark.parametrize("mover", ["group_cast", "ring", "ulysses"])
def test_a_sequence_without_tokens_needs_no_padding(mover):
    run_ranks(2, _no_tokens, mover)


def _no_tokens(rank, mover):
    group = dist.group.WORLD
    pad = compute_pad_size(0, group.size(), 16)
    key = magi_attn_flex_key([], [], None, 0, 0, pad, 16, group, DistAttnConfig(mover=mover))
    x = torch.randn(0, 4, 8, requires_grad=True)
    local = dispatch(x, key)
    out, lse = calc_attn(local, local, local, key)
    assert out.shape == (0, 4, 8)
    assert lse.shape == (4, 0)
    undispatch(out, key).sum().backward()
    assert x.grad.shape == x.shape
