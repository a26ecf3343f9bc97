"""Through the public functions too, on every backend: padding and unused caches may hold anything."""

import pytest
import torch
from poison import MASKS, idle, poisoned, zeroed

import cute_attn
from cute_attn import fa3_func_with_sink, flex_flash_attn_func, sim


def results(mask, fill, inputs, options=None):
    """out, lse and gradients with what `fill` puts where nobody looks."""
    rows, keys = idle(mask)
    q, k, v, dout, dlse = inputs
    q, dout, k, v = (fill(x[None], at)[0] for x, at in ((q, rows), (dout, rows), (k, keys), (v, keys)))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out, lse = flex_flash_attn_func(*leaves, mask, **(options or {}))
    torch.autograd.backward([out, lse], [dout, fill(dlse[None], rows, dim=2)[0]])
    return out.detach(), lse.detach(), *(x.grad for x in leaves)


def inputs_for(mask, dim=64):
    q, dout = torch.randn(2, mask.seqlen_q, 2, dim).bfloat16()
    k, v = torch.randn(2, mask.seqlen_k, 1, dim).bfloat16()
    return q, k, v, dout, torch.randn(2, mask.seqlen_q)


@pytest.mark.parametrize("backend", ["reference", pytest.param("sim", marks=pytest.mark.slow)])
def test_idle_rows_and_keys_of_a_call_may_hold_anything(backend):
    mask = MASKS["padding at the end"]
    inputs = inputs_for(mask)
    with cute_attn.backend(backend):
        clean, dirty = (results(mask, fill, inputs, {"softcap": 2.0}) for fill in (zeroed, poisoned))
    for got, wanted in zip(dirty, clean, strict=True):
        assert torch.equal(got, wanted)
        assert not got.isnan().any()


@pytest.mark.slow
def test_every_schedule_of_the_simulator_cleans_them():
    mask = MASKS["holes"]
    inputs = inputs_for(mask)
    kept = []

    def call(*tensors):
        kept.append(results(mask, poisoned, tensors, {"deterministic": True}))
        return kept[-1]

    torch.manual_seed(0)
    with cute_attn.backend("sim"):
        sim.strict(call, *inputs, deterministic=True)
    assert all(x.isfinite().all() for x in kept[0][2:])


@pytest.mark.parametrize("backend", ["reference", pytest.param("sim", marks=pytest.mark.slow)])
def test_a_row_without_keys_gives_its_sinks_the_gradient_of_its_lse_and_nothing_else(backend):
    q, k, v, sink = torch.randn(1, 40, 2, 64), torch.randn(1, 30, 1, 64), torch.randn(1, 30, 1, 64), torch.randn(1, 2)
    dout, dlse = torch.randn(1, 40, 2, 64).bfloat16(), torch.randn(1, 2, 40)

    def gradients(fill):
        leaves = [x.clone().requires_grad_() for x in (*(x.bfloat16() for x in (q, k, v)), sink)]
        with cute_attn.backend(backend):
            out, lse = fa3_func_with_sink(*leaves, causal=True, return_attn_probs=True)
        empty = torch.arange(40)[None] < 10
        torch.autograd.backward([out, lse], [fill(dout, empty), dlse])
        return lse.detach(), *(x.grad for x in leaves)

    (lse, *clean), (_, *dirty) = gradients(zeroed), gradients(poisoned)
    for got, wanted in zip(dirty, clean, strict=True):
        assert torch.equal(got, wanted)
        assert got.isfinite().all()
    assert torch.allclose(lse[0, :, :10], sink[0, :, None].expand(2, 10))
