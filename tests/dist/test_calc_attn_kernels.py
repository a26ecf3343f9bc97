"""calc_attn on the kernels, in simulation: on several ranks no less precise than plain PyTorch on one device."""

import pytest
import torch
import torch.distributed as dist
from low_precision import CHUNK, LowPrecision, check_low_precision, on_kernels
from problems import NAMES, config, documents
from ranks import error_of, run_ranks

import cute_attn
from cute_attn import TileSchedule
from cute_attn import mask as masks
from cute_attn.dist import calc_attn, magi_attn_flex_key

DEADLINE = 300.0  # simulating takes some of it


@pytest.mark.slow
def test_two_ranks_are_as_precise_as_plain_attention_on_one_device():
    problem = LowPrecision(masks.causal(250), heads_q=2, heads_k=1, head_dim=64, head_dim_v=64)
    for got in run_ranks(2, on_kernels, problem, config("group_cast", degree=1), deadline=DEADLINE):
        check_low_precision(problem, got)


@pytest.mark.slow
@pytest.mark.parametrize("mover", ["group_cast", "ring", "ulysses"])
def test_documents_with_sinks_and_the_largest_logit_by_every_mover(mover):
    problem = LowPrecision(documents(37, 141, 22), 4, 2, head_dim=64, head_dim_v=64, sinks=2)
    ranks = run_ranks(2, on_kernels, problem, config(mover), {"return_max_logits": True}, deadline=DEADLINE)
    for got in ranks:
        assert got["max_logits"] is not None
        check_low_precision(problem, got)


@pytest.mark.slow
def test_softcap_and_values_of_another_width():
    problem = LowPrecision(masks.sliding_window(190, left=70, right=0), 2, 1, head_dim=64, head_dim_v=40, softcap=2.0)
    for got in run_ranks(2, on_kernels, problem, config("group_cast"), deadline=DEADLINE):
        check_low_precision(problem, got)


@pytest.mark.slow
def test_deterministic_runs_give_the_same_bits():
    problem = LowPrecision(masks.causal(250), heads_q=2, heads_k=1, head_dim=64, head_dim_v=64)
    first, second = (
        run_ranks(2, on_kernels, problem, config("ring"), {"deterministic": True}, deadline=DEADLINE) for _ in range(2)
    )
    for name in NAMES:
        if first[0][name] is not None:
            assert torch.equal(first[0][name], second[0][name]), name


@pytest.mark.slow
@pytest.mark.parametrize("mover", ["group_cast", "ulysses"])
def test_what_padding_holds_reaches_nobody_on_kernels_either(mover):
    assert any(run_ranks(2, _dirty_padding, config(mover), deadline=DEADLINE))


def _dirty_padding(rank, settings):
    key = magi_attn_flex_key(masks.causal(50), None, None, 50, 50, 14, CHUNK, dist.group.WORLD, settings)
    placement = key.manager.placement("q")
    padding = placement.positions(rank) >= placement.length
    torch.manual_seed(rank)
    drawn = [torch.randn(CHUNK, 2, 64).bfloat16() for _ in range(4)]
    clean, dirty = (_with_padding_of(rubbish, padding, drawn, key) for rubbish in (0.0, torch.nan))
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)
        assert not b.isnan().any()
    return bool(padding.any())


def _with_padding_of(rubbish, padding, drawn, key):
    """The results and gradients of calc_attn where tensors and gradients hold rubbish in their padding."""
    q, k, v, dout = (x.masked_fill(padding[:, None, None], rubbish) for x in drawn)
    leaves = [x.requires_grad_() for x in (q, k, v, torch.zeros(1, 2))]
    with cute_attn.backend("sim"):
        out, lse = calc_attn(*leaves[:3], key, leaves[3])
    torch.autograd.backward([out, lse], [dout, dout[..., 0].T.float()])
    return out.detach(), lse.detach(), *(x.grad for x in leaves)


@pytest.mark.parametrize(("dtype", "head_dim"), [(torch.float32, 64), (torch.bfloat16, 20)])
def test_what_the_kernels_do_not_take_is_refused_on_every_rank_before_anything_is_sent(dtype, head_dim):
    first, second = run_ranks(2, _refused, dtype, head_dim)
    assert first == second
    assert first[0] == "NotImplementedError"
    assert f"got {dtype if dtype == torch.float32 else head_dim};" in first[1]


def _refused(rank, dtype, head_dim):
    key = magi_attn_flex_key(masks.causal(64), None, None, 64, 64, 0, CHUNK, dist.group.WORLD, config("group_cast"))
    x = torch.zeros(CHUNK, 2, head_dim, dtype=dtype)
    with cute_attn.backend("sim"):
        return error_of(calc_attn, x, x, x, key)


@pytest.mark.slow
def test_tiles_are_planned_in_the_first_step_only():
    for plans_of_first, plans_of_second in run_ranks(2, _plans_of_two_steps, deadline=DEADLINE):
        assert plans_of_first > 0
        assert plans_of_second == 0


def _plans_of_two_steps(rank):
    key = magi_attn_flex_key(masks.causal(64), None, None, 64, 64, 0, CHUNK, dist.group.WORLD, config("group_cast"))
    x = torch.randn(CHUNK, 1, 64).bfloat16().requires_grad_()
    plans, original = [], TileSchedule.from_mask
    TileSchedule.from_mask = staticmethod(lambda *arguments: plans.append(arguments) or original(*arguments))
    counts = []
    for _ in range(2):
        with cute_attn.backend("sim"):
            out, _ = calc_attn(x, x, x, key)
        out.float().sum().backward()
        counts.append(len(plans))
        plans.clear()
    return counts
