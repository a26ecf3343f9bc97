"""The backward kernels under masks with planes: of each query head, each batch element, each of both."""

import pytest
import torch
from cases import stacked
from planes import SHARES, check, dense, gaps, inputs, mask_of, plane

import cute_attn
from cute_attn.mask import causal, sliding_window
from cute_attn.ops.attention_op import attention


@pytest.mark.slow
@pytest.mark.parametrize("share", [pytest.param(x, marks=pytest.mark.slow) if x != "both" else x for x in SHARES])
def test_every_plane_has_its_own_gradients(share, backend):
    with cute_attn.backend(backend):
        check(mask_of(share, 2, 6, 150, 300), 2, (6, 2), sink=share == "both", deterministic=share == "heads")


@pytest.mark.slow
def test_heads_of_one_layer_have_bounds_of_their_own(backend):
    masks = [causal(200), sliding_window(200, left=30, right=0), causal(200), sliding_window(200, left=-1, right=70)]
    with cute_attn.backend(backend):
        check(stacked(*masks, heads=4), 1, (4, 2), deterministic=True)


@pytest.mark.slow
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("heads", [(1, 1), (6, 2), (8, 8), (3, 1)], ids=str)
@pytest.mark.parametrize(("mode", "seed"), [("late", 0), ("random", 1)])
@pytest.mark.parametrize("deterministic", [False, True], ids=["any-order", "deterministic"])
def test_planes_in_every_order_of_warps_and_copies(share, heads, mode, seed, deterministic):
    with cute_attn.backend("sim", mode=mode, seed=seed):
        mask = mask_of(share, 2, heads[0], 150, 300, first=seed)
        check(mask, 2, heads, softcap=3.0 * seed, sink=seed == 0, deterministic=deterministic)


@pytest.mark.slow
def test_planes_at_the_largest_head_dim():
    with cute_attn.backend("sim"):
        check(mask_of("heads", 1, 4, 150, 300), 1, (4, 2), dim=256)


def gradients(mask, leaves, dout, deterministic=False):
    leaves = [x.detach().requires_grad_() for x in leaves]
    out, _, _ = attention(*leaves, None, mask, 0.1, 0.0, deterministic, 0, False)
    return torch.autograd.grad(out, leaves, dout)


@pytest.mark.slow
def test_deterministic_gradients_of_heads_have_the_same_bits_in_every_schedule():
    mask = mask_of("both", 2, 4, 200, 300)
    q, k, v, dout, *_ = inputs(mask, 2, (4, 2), 64, torch.bfloat16)
    runs = []
    for mode, seed in (("eager", 0), ("late", 0), ("random", 1)):
        with cute_attn.backend("sim", mode=mode, seed=seed):
            runs.append(gradients(mask, (q, k, v), dout, deterministic=True))
    for again in runs[1:]:
        assert all(map(torch.equal, again, runs[0]))


@pytest.mark.slow
def test_what_no_head_of_a_key_head_attends_may_hold_anything(backend):
    """And rows without keys in one head alone."""
    mask = stacked(gaps(150, 300, 3), gaps(150, 300, 2), plane(3, 150, 300), causal(150, 300), heads=4)
    q, k, v, dout, *_ = inputs(mask, 1, (4, 2), 64, torch.bfloat16)
    pairs = dense(mask)[0]
    idle_keys = ~pairs.view(2, 2, 150, 300).any(1).any(1)  # of each key head
    assert idle_keys[0].any()
    with cute_attn.backend(backend):
        wanted = gradients(mask, (q, k, v), dout)
        for head in range(4):
            rows = ~pairs[head].any(1)
            q[:, rows, head] = dout[:, rows, head] = torch.nan
        for head in range(2):
            k[:, idle_keys[head], head] = v[:, idle_keys[head], head] = torch.inf
        got = gradients(mask, (q, k, v), dout)
    for name, mine, theirs in zip(("dq", "dk", "dv"), got, wanted, strict=True):
        assert torch.equal(mine, theirs), name


@pytest.mark.slow
def test_a_key_that_one_head_alone_attends_keeps_its_values_for_it(backend):
    """The other head of the key head has it idle, and K and V are loaded once for both."""
    mask = stacked(gaps(150, 300, 3), causal(150, 300), heads=2)
    idle = ~dense(mask)[0, 0].any(0)
    assert dense(mask)[0, 1][:, idle].any()
    with cute_attn.backend(backend):
        check(mask, 1, (2, 1))
