"""What `build`, `inspect`, `autotune` and the self-test ask for is what launches ask for."""

import pytest
import torch
from cases import stacked, with_gaps

from cute_attn import backend, flash_attn_with_kvcache, flex_attention, flex_flash_attn_func, sim
from cute_attn.jit.record import record_specs
from cute_attn.launch.captured import text_of
from cute_attn.launch.decode import decode_spec
from cute_attn.launch.dims import kernel_dims
from cute_attn.launch.prefill import prefill_spec
from cute_attn.launch.shapes import spec_for
from cute_attn.mask import causal, full, sliding_window
from cute_attn.mods.trace import trace
from cute_attn.ops.attention_op import attention
from cute_attn.spec.operation import operation
from cute_attn.spec.score import ScoreForm

MASK, BF16 = causal(256), torch.bfloat16
MASKS = {
    "full": full(256, 128),
    "full, but of a part of a tile": full(200),
    "causal": MASK,
    "window": sliding_window(256, left=9, right=3),
    "two layers": with_gaps(256, 256, 2),
    "many layers": with_gaps(256, 256, 4),
    "of each head": stacked(MASK, full(256), heads=2),
    "of each batch": stacked(MASK, full(256)),
}


BOUNDED = {
    "causal": MASK,
    "window": sliding_window(256, left=9, right=3),
    "only lower bounds": sliding_window(256, left=0, right=256),
    "two layers": with_gaps(256, 256, 2),
    "many layers": with_gaps(256, 256, 4),
}


@pytest.fixture(autouse=True)
def nothing_runs(compiles, monkeypatch):
    monkeypatch.setattr(sim, "run", lambda *arguments, **options: None)


def launched(call, *shapes):
    """The specs that a call on tensors of these shapes, and its backward, ask for."""
    tensors = [torch.zeros(shape, dtype=BF16, requires_grad=True) for shape in shapes]
    with backend("sim"), record_specs() as recorder:
        out = call(*tensors)
        torch.autograd.grad(out, tensors, out)
    return recorder.specs


@pytest.mark.parametrize("op", ["fwd", "bwd"])
def test_masks_lead_to_one_spec_whatever_the_number_and_the_bounds_of_their_intervals(op):
    (spec,) = {spec_for(op, "bf16", 128, 128, mask) for mask in BOUNDED.values()}
    assert spec.mask.is_bounded
    assert not spec_for(op, "bf16", 128, 128, full(256, 128)).mask.is_bounded


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("score", [ScoreForm(), ScoreForm("softcap"), ScoreForm("scaled")], ids=str)
def test_a_mask_leads_both_to_one_spec(name, score):
    mask, cap = MASKS[name], 5.0 * (score.kind == "softcap")
    scale = -1.0 if score.kind == "scaled" else 0.1

    def call(q, k, v):
        return attention(q, k, v, None, mask, scale, cap, True, 0, False)[0]

    rows, keys = (mask.batch, mask.seqlen_q), (mask.batch, mask.seqlen_k)
    found = launched(call, (*rows, 2, 80), (*keys, 1, 80), (*keys, 1, 72))
    wanted = (("fwd", {}), ("bwd", {"deterministic": True}))
    assert found == tuple(spec_for(op, "bf16", 80, 72, mask, score=score, **more) for op, more in wanted)
    assert found[1].planes_by_head == (mask.heads > 1)


def test_ranges_lead_to_the_spec_of_their_mask():
    ranges = torch.tensor([[0, 256]])
    shapes = (256, 2, 64), (256, 1, 64), (256, 1, 64)
    found = launched(lambda *qkv: flex_flash_attn_func(*qkv, ranges, ranges, attn_type_map="causal")[0], *shapes)
    assert found == tuple(spec_for(op, "bf16", 64, 64, MASK) for op in ("fwd", "bwd"))


def test_a_score_mod_leads_to_the_spec_of_its_graph_and_of_its_derivative():
    def score_mod(score, b, h, q, kv):
        return score * (q > kv)

    score = ScoreForm("graph", text_of(trace(score_mod, "score_mod"), (1, 1, 1, 1)))
    shapes = (1, 2, 256, 64), (1, 2, 256, 64), (1, 2, 256, 64)
    found = launched(lambda *qkv: flex_attention(*qkv, score_mod, MASK), *shapes)
    assert found == tuple(spec_for(op, "bf16", 64, 64, MASK, score=score) for op in ("fwd", "bwd"))
    assert spec_for("bwd", "bf16", 64, 64, MASK, score=found[1].score) == found[1]  # as it is


@pytest.mark.parametrize("cap", [0.0, 5.0])
def test_a_call_over_a_cache_leads_to_the_spec_that_is_built_for_it(cap):
    cache = torch.zeros(2, 256, 1, 64, dtype=BF16)
    lengths, eight = torch.tensor([100, 256], dtype=torch.int32), cache.to(torch.int8)

    def specs_of(tokens, k_cache, **arguments):
        q = torch.zeros(2, tokens, 1, 64, dtype=BF16)
        with backend("sim"), record_specs() as recorder:
            options = {"cache_seqlens": lengths, "num_splits": 1, "softmax_scale": 0.1, "softcap": cap}
            flash_attn_with_kvcache(q, k_cache, k_cache, **options, **arguments)
        return recorder.specs

    score = ScoreForm("softcap" if cap else "plain")
    assert specs_of(1, cache) == (spec_for("decode", "bf16", 64, 64, MASK, score=score),)
    by_int8 = spec_for("decode", "bf16", 64, 64, MASK, score=score, cache="int8")
    assert specs_of(1, eight, k_descale=1.0, v_descale=1.0) == (by_int8,)
    assert specs_of(70, cache) == (prefill_spec("bf16", (64, 64), None, score=score),)
    assert specs_of(70, cache) == (spec_for("fwd", "bf16", 64, 64, MASK, score=score, piece=128),)


@pytest.mark.parametrize(("op", "served"), [("fwd", (96, 96)), ("bwd", (96, 96)), ("decode", (128, 128))])
def test_head_dims_are_served_by_the_next_larger_kernel_of_an_operation(op, served):
    assert kernel_dims(op, 80, 72) == served
    spec = spec_for(op, "bf16", 80, 72, MASK)
    assert (spec.head_dim, spec.head_dim_v) == served
    assert all(kernel_dims(op, *dims) == dims for dims in operation(op).head_dims)


def test_a_decode_of_any_head_dims_is_built_as_it_is_launched():
    for dims in ((64, 64), (96, 96), (192, 128), (200, 8)):
        assert spec_for("decode", "bf16", *dims, MASK) == decode_spec("bf16", dims, 8, 64)


def test_a_decode_of_8_bits_is_built_with_the_scores_that_it_has():
    scaled, capped = ScoreForm("scaled"), ScoreForm("softcap")
    assert spec_for("decode", "bf16", 64, 64, MASK, cache="int8").score == scaled
    assert spec_for("decode", "bf16", 64, 64, MASK, score=capped, cache="int8").score == capped


@pytest.mark.parametrize("dims", [(0, 64), (12, 64), (64, 264)])
def test_head_dims_that_no_kernel_holds_are_refused(dims):
    with pytest.raises(ValueError, match=f"multiples of 8 up to 256 for the kernels, got {dims[0]} and {dims[1]}"):
        spec_for("fwd", "bf16", *dims, MASK)
