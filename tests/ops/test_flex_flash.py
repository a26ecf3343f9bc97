"""flex_flash_attn_func: any union of slices, exact and differentiable, planned once."""

import inspect

import numpy as np
import pytest
import torch
from oracle import assert_close, dense_attention, random_slices
from torch.utils.checkpoint import checkpoint

import cute_attn
from cute_attn import AttnMaskType, AttnRanges, IntervalMask, flex_flash_attn_func, reference
from cute_attn.ops import mask_cache

EXACT = 1e-10


@pytest.fixture(autouse=True)
def _no_plans_from_other_tests():
    mask_cache.clear_masks()


@pytest.fixture
def plans(monkeypatch):
    """A list that grows with every mask planned from slices."""
    made = []
    of_slices = IntervalMask._of_slices
    monkeypatch.setattr(IntervalMask, "_of_slices", lambda *args: made.append(args) or of_slices(*args))
    return made


def make_inputs(rows, keys, heads_k=2, ratio=2, head_dim=8, head_dim_v=8, dtype=torch.float64):
    q = torch.randn(rows, heads_k * ratio, head_dim, dtype=dtype, requires_grad=True)
    k = torch.randn(keys, heads_k, head_dim, dtype=dtype, requires_grad=True)
    v = torch.randn(keys, heads_k, head_dim_v, dtype=dtype, requires_grad=True)
    return q, k, v


def dense(q, k, v, q_ranges, k_ranges, types, **arguments):
    mask = IntervalMask.from_slices(q_ranges, k_ranges, types, q.shape[0], k.shape[0]).to_dense()
    out, lse, max_logits = dense_attention(q[None], k[None], v[None], mask, **arguments)
    return out[0], lse[0], max_logits


def assert_same_gradients(results, wanted, leaves):
    """Gradients of out and lse, for random dout and dlse, where lse is finite."""
    finite = wanted[1] > -torch.inf
    dout, dlse = torch.randn_like(results[0]), torch.randn_like(results[1]) * finite
    grads = torch.autograd.grad(results[:2], leaves, (dout, dlse))
    loss = (wanted[0] * dout).sum() + (wanted[1][finite] * dlse[finite]).sum()
    for i, (got, want) in enumerate(zip(grads, torch.autograd.grad(loss, leaves), strict=True)):
        assert_close(f"gradient {i}", got, want, EXACT)


def test_the_signature_is_that_of_the_specification():
    wanted = (
        "q, k, v, q_ranges, k_ranges=None, max_seqlen_q=None, max_seqlen_k=None, attn_type_map=None, "
        "softmax_scale=None, softcap=0.0, deterministic=False, sm_margin=0, disable_fwd_atomic_reduction=False, "
        "auto_range_merge=False, *, sink=None, sink_layout='sh', return_max_logits=False"
    )
    signature = inspect.signature(flex_flash_attn_func)
    plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    assert str(signature.replace(parameters=plain, return_annotation=signature.empty)) == f"({wanted})"


@pytest.mark.parametrize("layout", [None, "sh", "ssh"])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("ratio", [1, 3, 8])
def test_equals_the_dense_formula(ratio, softcap, layout):
    q, k, v = make_inputs(129, 257, 2, ratio, head_dim_v=5)
    heads = 2 * ratio
    sink = None
    if layout is not None:
        sink = torch.randn((3, heads) if layout == "sh" else (129, 3, heads), dtype=torch.float64, requires_grad=True)
    slices = random_slices(7, 129, 257)
    arguments = {"sink": sink, "sink_layout": layout or "sh", "softcap": softcap, "softmax_scale": 0.4}
    q_ranges, k_ranges, types = slices
    got = flex_flash_attn_func(q, k, v, q_ranges, k_ranges, attn_type_map=types, return_max_logits=True, **arguments)
    wanted = dense(q, k, v, *slices, **arguments)
    for name, a, b in zip(("out", "lse", "max_logits"), got, wanted, strict=True):
        assert_close(name, a, b, EXACT)
    assert_same_gradients(got, wanted, [q, k, v, *([] if sink is None else [sink])])


def test_every_form_of_a_mask_means_the_same():
    q, k, v = make_inputs(20, 30)
    pairs_q, pairs_k = [[0, 12], [8, 20]], [[0, 30], [4, 25]]
    tensors = [torch.tensor(pairs, dtype=torch.int32) for pairs in (pairs_q, pairs_k)]
    types = torch.tensor([1, 3])
    wanted, wanted_lse = flex_flash_attn_func(q, k, v, *tensors, attn_type_map=types)
    mask = IntervalMask.from_slices(pairs_q, pairs_k, [1, 3], 20, 30)
    forms = [
        ((pairs_q, pairs_k), ["causal", "bi_causal"]),
        ((AttnRanges(pairs_q), AttnRanges(pairs_k)), [AttnMaskType.CAUSAL, AttnMaskType.BICAUSAL]),
        ([t.long() for t in tensors], [1, 3]),
        ([t.repeat_interleave(2, 0)[::2] for t in tensors], types.to(torch.uint8)),
        ((mask,), None),
    ]
    for ranges, form_types in forms:
        out, lse = flex_flash_attn_func(q, k, v, *ranges, attn_type_map=form_types)
        assert torch.equal(out, wanted)
        assert torch.equal(lse, wanted_lse)


def test_a_pair_that_several_slices_cover_counts_once():
    q, k, v = make_inputs(10, 10)
    once = flex_flash_attn_func(q, k, v, [[0, 10]], [[0, 10]])
    often = flex_flash_attn_func(q, k, v, [[0, 10], [0, 10], [2, 5]], [[0, 10], [0, 6], [1, 9]])
    assert torch.equal(once[0], often[0])
    assert torch.equal(once[1], often[1])


def test_hints_change_nothing():
    q, k, v = make_inputs(10, 10)
    plain = flex_flash_attn_func(q, k, v, [[0, 10]], [[0, 10]])
    hints = {"max_seqlen_q": 10, "max_seqlen_k": 99, "disable_fwd_atomic_reduction": True, "auto_range_merge": True}
    hinted = flex_flash_attn_func(q, k, v, [[0, 10]], [[0, 10]], sm_margin=4, deterministic=True, **hints)
    assert torch.equal(plain[0], hinted[0])
    assert torch.equal(plain[1], hinted[1])


def test_no_slices_and_no_tokens_are_valid():
    q, k, v = make_inputs(4, 6)
    out, lse = flex_flash_attn_func(q, k, v, [], [])
    assert (out == 0).all()
    assert (lse == -torch.inf).all()
    for rows, keys in ((0, 6), (4, 0), (0, 0)):
        q, k, v = make_inputs(rows, keys)
        out, lse = flex_flash_attn_func(q, k, v, [[0, rows]], [[0, keys]])
        assert (out.shape, lse.shape) == ((rows, 4, 8), (4, rows))
        (out.sum() + lse.masked_fill(lse == -torch.inf, 0).sum()).backward()
        assert (q.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_results_have_the_dtypes_of_the_specification(dtype):
    q, k, v = make_inputs(5, 5, dtype=dtype)
    out, lse, max_logits = flex_flash_attn_func(q, k, v, [[0, 5]], [[0, 5]], return_max_logits=True)
    assert (out.dtype, lse.dtype, max_logits.dtype) == (dtype, torch.float32, torch.float32)
    out.sum().backward()
    assert q.grad.dtype == k.grad.dtype == v.grad.dtype == dtype


def test_lse_is_differentiable_alone_and_max_logits_is_not():
    q, k, v = make_inputs(6, 7)
    _, lse, max_logits = flex_flash_attn_func(q, k, v, [[0, 6]], [[0, 7]], return_max_logits=True)
    assert not max_logits.requires_grad
    dq, dk, dv = torch.autograd.grad(lse.sum(), (q, k, v))
    wanted = torch.autograd.grad(dense(q, k, v, [[0, 6]], [[0, 7]], 0)[1].sum(), (q, k))
    assert_close("dq", dq, wanted[0], EXACT)
    assert_close("dk", dk, wanted[1], EXACT)
    assert (dv == 0).all()


def test_only_the_gradients_that_are_needed_are_computed(monkeypatch):
    asked = []
    backward = reference.attention_backward

    def asking(*args, **more):
        asked.append(args[-1])
        return backward(*args, **more)

    monkeypatch.setattr(reference, "attention_backward", asking)
    q, k, v = make_inputs(6, 6)
    flex_flash_attn_func(q.detach(), k, v.detach(), [[0, 6]], [[0, 6]])[0].sum().backward()
    assert [list(needs) for needs in asked] == [[False, True, False, False]]
    assert k.grad is not None


def test_a_second_derivative_is_refused():
    q, k, v = make_inputs(3, 3)
    out, _ = flex_flash_attn_func(q, k, v, [[0, 3]], [[0, 3]])
    (dq,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        dq.sum().backward()


def test_vmap_maps_and_the_transforms_that_differentiate_are_refused():
    q, k, v = (x.detach() for x in make_inputs(5, 5))
    several = torch.randn(3, *q.shape, dtype=q.dtype)

    def attend(q):
        return flex_flash_attn_func(q, k, v, [[0, 5]], [[0, 5]], attn_type_map="causal")[0]

    assert torch.equal(torch.func.vmap(attend)(several), torch.stack([attend(x) for x in several]))
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda q: attend(q).sum())(q)
    with pytest.raises((RuntimeError, NotImplementedError), match=r"functorch transforms|forward mode AD"):
        torch.func.jvp(attend, (q,), (q,))


def test_checkpointing_gives_the_same_gradients():
    q, k, v = make_inputs(9, 9)
    flex_flash_attn_func(q, k, v, [[0, 9]], [[0, 9]], attn_type_map="causal")[0].square().sum().backward()
    plain = [x.grad.clone() for x in (q, k, v)]
    for x in (q, k, v):
        x.grad = None
    out, _ = checkpoint(
        lambda *x: flex_flash_attn_func(*x, [[0, 9]], [[0, 9]], attn_type_map="causal"), q, k, v, use_reentrant=False
    )
    out.square().sum().backward()
    for x, want in zip((q, k, v), plain, strict=True):
        assert torch.equal(x.grad, want)


def test_inference_mode_works():
    with torch.inference_mode():
        q, k, v = (x.detach() for x in make_inputs(4, 4))
        ranges = torch.tensor([[0, 4]])
        first, _ = flex_flash_attn_func(q, k, v, ranges, ranges)
        ranges[0, 1] = 2  # tensors made here count no edits: their content must tell
        second, _ = flex_flash_attn_func(q, k, v, ranges, ranges)
    assert not torch.equal(first, second)
    assert (second[2:] == 0).all()


# ------------------------------------------------------------------- planning


def test_a_repeated_call_plans_nothing(plans):
    q, k, v = make_inputs(8, 8)
    ranges = torch.tensor([[0, 8]])
    for _ in range(3):
        flex_flash_attn_func(q, k, v, ranges, ranges, attn_type_map=1)[0].sum().backward()
        flex_flash_attn_func(q, k, v, [[0, 8]], [[0, 8]], attn_type_map="causal")
        flex_flash_attn_func(q, k, v, ranges.clone(), ranges.int(), attn_type_map=torch.tensor([1]))
    assert len(plans) == 1


@pytest.mark.parametrize("edit", [lambda r: r.__setitem__((0, 1), 3), lambda r: setattr(r, "data", r.clamp(max=3))])
def test_an_edit_in_place_is_seen(edit):
    q, k, v = make_inputs(8, 8)
    rows, keys = torch.tensor([[0, 8]]), torch.tensor([[0, 8]])
    flex_flash_attn_func(q, k, v, rows, keys)
    edit(keys)
    out, _ = flex_flash_attn_func(q, k, v, rows, keys)
    assert_close("out", out, dense(q, k, v, [[0, 8]], [[0, 3]], 0)[0], EXACT)


def test_a_new_tensor_at_an_old_address_is_not_taken_for_the_old_one():
    q, k, v = (x.detach() for x in make_inputs(8, 8))
    memory, seen, repeated = np.zeros((1, 2), dtype=np.int64), set(), 0
    for end in torch.randint(1, 9, (72,)).tolist():
        memory[0, 1] = end
        ranges = torch.from_numpy(memory)  # new, though at one address, of one version, and often of one id
        repeated += id(ranges) in seen
        seen.add(id(ranges))
        lse = flex_flash_attn_func(q, k, v, ranges, ranges)[1]
        assert int((lse[0] > -torch.inf).sum()) == end
        del ranges
    assert repeated > 0


def test_the_number_of_plans_kept_is_bounded(plans):
    q, k, v = make_inputs(100, 1)
    for repeat in range(2):
        for end in range(mask_cache.CAPACITY + 1):
            flex_flash_attn_func(q, k, v, [[0, end]], [[0, 1]])
        assert len(plans) == (repeat + 1) * (mask_cache.CAPACITY + 1)
    assert len(mask_cache._recent._entries) == mask_cache.CAPACITY


def test_public_names_are_complete():
    for name in cute_attn.__all__:
        assert getattr(cute_attn, name) is not None
