"""The forward kernel under masks with planes: of each query head, each batch element, each of both."""

import pytest
import torch
from planes import SHARES, check, dense, inputs, mask_of

import cute_attn
from cute_attn.ops.attention_op import attention


@pytest.mark.slow
@pytest.mark.parametrize("share", [pytest.param(x, marks=pytest.mark.slow) if x != "both" else x for x in SHARES])
def test_every_plane_is_attended_by_its_own_rows(share, backend):
    with cute_attn.backend(backend):
        check(mask_of(share, 2, 6, 150, 300), 2, (6, 2), sink=share == "both", grads=False)


@pytest.mark.slow
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("heads", [(1, 1), (6, 2), (8, 8)], ids=str)
@pytest.mark.parametrize(("mode", "seed"), [("late", 0), ("random", 1)])
def test_planes_in_every_order_of_warps_and_copies(share, heads, mode, seed):
    with cute_attn.backend("sim", mode=mode, seed=seed):
        check(mask_of(share, 2, heads[0], 150, 300, first=seed), 2, heads, softcap=3.0 * seed, grads=False)


@pytest.mark.slow
def test_heads_of_two_layers_and_of_one(backend):
    mask = mask_of("heads", 1, 6, 150, 300)
    two = mask & ~mask_of("heads", 1, 6, 150, 300, first=1)
    with cute_attn.backend(backend):
        check(two, 1, (6, 3), softcap=2.0, grads=False)


@pytest.mark.slow
def test_keys_that_a_head_leaves_out_hold_anything_as_far_as_it_is_concerned(backend):
    mask = mask_of("heads", 1, 4, 150, 300, first=1)  # the third has no keys, the first leaves out a hundred
    q, k, v, *_ = inputs(mask, 1, (4, 2), 64, torch.bfloat16)
    idle = ~dense(mask)[0, 0].any(0)
    assert idle.any()
    with cute_attn.backend(backend):
        wanted, wanted_lse, _ = attention(q, k, v, None, mask, 0.1, 0.0, False, 0, False)
        for x in (k, v):
            x[:, idle, 0] = torch.nan
        out, lse, _ = attention(q, k, v, None, mask, 0.1, 0.0, False, 0, False)
    for head in (0, 2, 3):  # the second attends them
        assert torch.equal(out[:, :, head], wanted[:, :, head])
        assert torch.equal(lse[:, head], wanted_lse[:, head])
