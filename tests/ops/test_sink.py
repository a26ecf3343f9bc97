"""The nine functions with sinks: windows, documents and packings, with gradients packed as the inputs were."""

import inspect

import pytest
import torch
from oracle import assert_close, dense_attention

import cute_attn
from cute_attn import (
    fa2_func_with_sink,
    fa2_kvpacked_func_with_sink,
    fa2_qkvpacked_func_with_sink,
    fa2_varlen_func_with_sink,
    fa2_varlen_kvpacked_func_with_sink,
    fa2_varlen_qkvpacked_func_with_sink,
    fa3_func_with_sink,
    fa3_qkvpacked_func_with_sink,
    fa3_varlen_func_with_sink,
)
from cute_attn.mask import source
from cute_attn.ops import mask_cache

EXACT = 1e-10
DOUBLE = {"dtype": torch.float64, "requires_grad": True}

FA2 = (
    "sink=None sink_layout='sh' dropout_p=0.0 softmax_scale=None causal=False window_size=(-1,-1) softcap=0.0 "
    "alibi_slopes=None deterministic=False return_attn_probs=False"
)
FA3 = (
    "softmax_scale=None causal=False qv=None q_descale=None k_descale=None v_descale=None window_size=(-1,-1) "
    "attention_chunk=0 softcap=0.0 num_splits=1 pack_gqa=None deterministic=False sm_margin=0 return_attn_probs=False"
)
LENGTHS = "cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k"
SIGNATURES = {
    "fa3_func_with_sink": f"q k v sink=None sink_layout='sh' {FA3}",
    "fa3_varlen_func_with_sink": f"q k v {LENGTHS} sink=None sink_layout='sh' seqused_q=None seqused_k=None {FA3}",
    "fa3_qkvpacked_func_with_sink": (
        "qkv sink=None sink_layout='sh' softmax_scale=None causal=False q_descale=None k_descale=None v_descale=None "
        "window_size=(-1,-1) attention_chunk=0 softcap=0.0 deterministic=False num_heads_q=None sm_margin=0 "
        "return_attn_probs=False"
    ),
    "fa2_func_with_sink": f"q k v {FA2}",
    "fa2_qkvpacked_func_with_sink": f"qkv {FA2}",
    "fa2_kvpacked_func_with_sink": f"q kv {FA2}",
    "fa2_varlen_func_with_sink": f"q k v {LENGTHS} {FA2} block_table=None",
    "fa2_varlen_qkvpacked_func_with_sink": f"qkv cu_seqlens max_seqlen {FA2}",
    "fa2_varlen_kvpacked_func_with_sink": f"q kv {LENGTHS} {FA2}",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_those_of_the_specification(name):
    parameters = inspect.signature(getattr(cute_attn, name)).parameters.values()
    shown = [p.name if p.default is p.empty else f"{p.name}={p.default!r}".replace(", ", ",") for p in parameters]
    assert " ".join(shown) == SIGNATURES[name]


def window_mask(ends_q, ends_k, causal=False, window_size=(-1, -1)):
    """FlashAttention's mask by its definition, a pair at a time: bool `(1, rows, keys)`."""
    left, right = window_size
    mask = torch.zeros(1, ends_q[-1], ends_k[-1], dtype=torch.bool)
    for d in range(len(ends_q) - 1):
        n_q, n_k = ends_q[d + 1] - ends_q[d], ends_k[d + 1] - ends_k[d]
        for i in range(n_q):
            for j in range(n_k):
                ahead = j - (i + n_k - n_q)
                allowed = (left < 0 or ahead >= -left) and (right < 0 or ahead <= right) and not (causal and ahead > 0)
                mask[0, ends_q[d] + i, ends_k[d] + j] = allowed
    return mask


def make_sink(layout, rows, heads, batch=()):
    if layout is None:
        return None
    return torch.randn((2, heads) if layout == "sh" else (*batch, rows, 2, heads), **DOUBLE)


def check(function, inputs, unpack, mask, sink, layout, packed=False, **arguments):
    """The function's out, lse and gradients against the dense formula on what `unpack` makes of the inputs."""
    known = {"softcap": 1.7, "softmax_scale": 0.6}
    out, lse = function(*inputs, sink=sink, sink_layout=layout or "sh", return_attn_probs=True, **known, **arguments)
    q, k, v = unpack(*inputs[:3])
    if packed:
        q, k, v = q[None], k[None], v[None]
    wanted, wanted_lse, _ = dense_attention(q, k, v, mask, sink, layout or "sh", **known)
    if packed:
        wanted, wanted_lse = wanted[0], wanted_lse[0]
    assert_close("out", out, wanted, EXACT)
    assert_close("lse", lse, wanted_lse, EXACT)
    leaves = [x for x in (*inputs, sink) if isinstance(x, torch.Tensor) and x.requires_grad]
    finite = wanted_lse > -torch.inf
    dout, dlse = torch.randn_like(out), torch.randn_like(lse) * finite
    grads = torch.autograd.grad((out, lse), leaves, (dout, dlse))
    loss = (wanted * dout).sum() + (wanted_lse[finite] * dlse[finite]).sum()
    for i, (got, want) in enumerate(zip(grads, torch.autograd.grad(loss, leaves), strict=True)):
        assert_close(f"gradient {i}", got, want, EXACT)
    alone = function(*inputs, sink=sink, sink_layout=layout or "sh", **known, **arguments)
    assert torch.equal(alone, out)


def same(q, k, v):
    return q, k, v


LAYOUTS = pytest.mark.parametrize("layout", [None, "sh", "ssh"])
WINDOWS = pytest.mark.parametrize(
    ("causal", "window_size"),
    [
        (False, (-1, -1)),
        (True, (-1, -1)),
        (False, (3, 2)),
        (True, (4, -1)),
        (True, (2, 5)),
        (False, (-1, 0)),
        (False, (0, 0)),
    ],
)


@LAYOUTS
@WINDOWS
@pytest.mark.parametrize("lengths", [(9, 9), (6, 11), (11, 6)])
@pytest.mark.parametrize("function", [fa2_func_with_sink, fa3_func_with_sink])
def test_windows_are_inclusive_and_aligned_to_the_last_query_and_key(function, lengths, causal, window_size, layout):
    rows, keys = lengths
    inputs = [torch.randn(2, n, h, d, **DOUBLE) for n, h, d in ((rows, 4, 8), (keys, 2, 8), (keys, 2, 5))]
    mask = window_mask([0, rows], [0, keys], causal, window_size)
    sink = make_sink(layout, rows, 4, batch=(2,))
    check(function, inputs, same, mask, sink, layout, causal=causal, window_size=window_size)


@pytest.mark.parametrize("huge", [1 << 40, (1 << 63) - 1, 1 << 70])
def test_a_window_wider_than_any_sequence_is_unlimited(huge):
    q, k, v = (torch.randn(1, n, 2, 8, dtype=torch.float64) for n in (5, 9, 9))
    for window_size, same in (((huge, huge), (-1, -1)), ((huge, 0), (-1, 0)), ((1, huge), (1, -1))):
        assert torch.equal(
            fa3_func_with_sink(q, k, v, window_size=window_size), fa3_func_with_sink(q, k, v, window_size=same)
        )


def test_a_batch_may_share_its_ssh_sinks():
    inputs = [torch.randn(2, 5, 4, 8, **DOUBLE) for _ in range(3)]
    check(fa3_func_with_sink, inputs, same, window_mask([0, 5], [0, 5]), make_sink("ssh", 5, 4), "ssh")


ENDS_Q, ENDS_K = [0, 4, 4, 11, 12], [0, 6, 9, 12, 20]  # an empty document, one longer and one shorter than its keys


@LAYOUTS
@WINDOWS
@pytest.mark.parametrize("function", [fa2_varlen_func_with_sink, fa3_varlen_func_with_sink])
def test_varlen_documents_keep_to_themselves(function, causal, window_size, layout):
    inputs = [torch.randn(n, h, d, **DOUBLE) for n, h, d in ((12, 4, 8), (20, 2, 8), (20, 2, 5))]
    lengths = [torch.tensor(ends, dtype=torch.int32) for ends in (ENDS_Q, ENDS_K)]
    mask = window_mask(ENDS_Q, ENDS_K, causal, window_size)
    check(
        function, [*inputs, *lengths, 7, 8], same, mask, make_sink(layout, 12, 4), layout,
        packed=True, causal=causal, window_size=window_size,
    )  # fmt: skip


@LAYOUTS
def test_packed_inputs_get_packed_gradients(layout):
    causal = window_mask([0, 7], [0, 7], causal=True)
    qkv = torch.randn(2, 7, 3, 2, 8, **DOUBLE)
    sink = make_sink(layout, 7, 2, batch=(2,))
    check(fa2_qkvpacked_func_with_sink, [qkv], lambda x: x.unbind(2), causal, sink, layout, causal=True)

    q, kv = torch.randn(2, 7, 4, 8, **DOUBLE), torch.randn(2, 7, 2, 2, 8, **DOUBLE)
    sink = make_sink(layout, 7, 4, batch=(2,))
    check(fa2_kvpacked_func_with_sink, [q, kv], lambda q, kv: (q, *kv.unbind(2)), causal, sink, layout, causal=True)

    qkv = torch.randn(2, 7, 4 + 2 * 2, 8, **DOUBLE)
    check(
        fa3_qkvpacked_func_with_sink, [qkv], lambda x: x.split((4, 2, 2), 2), causal, sink, layout,
        causal=True, num_heads_q=4,
    )  # fmt: skip
    qkv = torch.randn(2, 7, 3 * 4, 8, **DOUBLE)
    check(fa3_qkvpacked_func_with_sink, [qkv], lambda x: x.split((4, 4, 4), 2), causal, sink, layout, causal=True)


@LAYOUTS
def test_packed_varlen_inputs_get_packed_gradients(layout):
    ends = torch.tensor([0, 3, 12])
    mask = window_mask(ends.tolist(), ends.tolist(), window_size=(2, 1))
    qkv = torch.randn(12, 3, 4, 8, **DOUBLE)
    sink = make_sink(layout, 12, 4)
    check(
        fa2_varlen_qkvpacked_func_with_sink, [qkv, ends, 9], lambda x, *_: x.unbind(1), mask, sink, layout,
        packed=True, window_size=(2, 1),
    )  # fmt: skip
    q, kv = torch.randn(12, 4, 8, **DOUBLE), torch.randn(12, 2, 2, 8, **DOUBLE)
    check(
        fa2_varlen_kvpacked_func_with_sink, [q, kv, ends, ends, 9, 9], lambda q, kv, _: (q, *kv.unbind(1)), mask, sink,
        layout, packed=True, window_size=(2, 1),
    )  # fmt: skip


def test_rows_without_keys_return_the_lse_of_their_sinks():
    q, k, v = (torch.randn(1, n, 2, 8, dtype=torch.float64) for n in (6, 2, 2))
    sink = torch.randn(3, 2, dtype=torch.float64)
    sink[0] = -torch.inf
    out, lse = fa3_func_with_sink(q, k, v, sink, causal=True, return_attn_probs=True)  # the first four rows see nothing
    assert (out[:, :4] == 0).all()
    assert_close("lse", lse[0, :, :4], sink.logsumexp(0)[:, None].expand(2, 4), EXACT)
    _, lse = fa3_func_with_sink(q, k, v, torch.full_like(sink, -torch.inf), causal=True, return_attn_probs=True)
    assert (lse[:, :, :4] == -torch.inf).all()
    assert lse[:, :, 4:].isfinite().all()


def test_the_gradient_of_fp32_sinks_is_summed_over_rows_in_fp32():
    q, k, v = (torch.randn(1, 300, 2, 64, dtype=torch.bfloat16) for _ in range(3))
    sink = torch.randn(1, 2, requires_grad=True)
    out, lse = fa3_func_with_sink(q, k, v, sink, causal=True, return_attn_probs=True)
    dout, dlse = torch.randn_like(out), torch.randn_like(lse)
    torch.autograd.backward((out, lse), (dout, dlse))
    delta = (out.double() * dout.double()).sum(3).transpose(1, 2) - dlse.double()
    wanted = -((sink.T[None].double() - lse.double()).exp() * delta).sum((0, 2))[None]
    assert sink.grad.dtype == torch.float32
    assert_close("dsink", sink.grad, wanted, 1e-4)


def test_repeated_calls_plan_nothing(monkeypatch):
    mask_cache.clear_masks()
    made = []
    windowed = source.windowed_documents
    monkeypatch.setattr(source, "windowed_documents", lambda *args: made.append(args) or windowed(*args))
    x = torch.randn(1, 8, 2, 8)
    ends = torch.tensor([0, 3, 8])
    for _ in range(3):
        fa2_func_with_sink(x, x, x, causal=True)
        fa2_varlen_func_with_sink(x[0], x[0], x[0], ends, ends.clone(), 5, 5)
    assert len(made) == 2
    ends[1] = 4
    fa2_varlen_func_with_sink(x[0], x[0], x[0], ends, ends, 5, 5)
    assert len(made) == 3
