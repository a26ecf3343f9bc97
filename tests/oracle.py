"""What the results must be: attention over a dense mask, in fp64 or as plainly as any dtype gives it, for autograd."""

import torch


def dense_attention(q, k, v, mask, sink=None, sink_layout="sh", softmax_scale=None, softcap=0.0):
    """`plain_attention` in fp64, with max_logits `(heads_q,)`.

    sink: "sh" `(n, heads_q)` or "ssh" `([b,] sq, n, heads_q)`.
    """
    q, k, v = (x.double() for x in (q, k, v))
    if sink is not None:
        sink = sink[None, None] if sink_layout == "sh" else sink if sink.ndim == 4 else sink[None]
    scale = q.shape[3] ** -0.5 if softmax_scale is None else softmax_scale
    out, lse, max_logits = plain_attention(q, k, v, mask, sink, scale, softcap)
    return out, lse, max_logits.amax(0)


def plain_attention(q, k, v, mask, sink, softmax_scale, softcap):
    """out `(b, sq, heads_q, dv)`, lse `(b, heads_q, sq)` and max_logits `(b, heads_q)` of q, k, v `(b, s, heads, d)`.

    mask: bool `(b or 1[, heads_q or 1], sq, sk)`. sink: `(1 or b, 1 or sq, n, heads_q)`. Every tensor in the dtype
    of q, but for lse, which is fp32 at least.
    """
    logits = plain_logits(q, k, mask, softmax_scale, softcap)
    max_logits = torch.cat([logits, logits.new_full((*logits.shape[:3], 1), -torch.inf)], 3).amax((2, 3)).detach()
    if sink is not None:
        extra = sink.to(q.dtype).permute(0, 3, 1, 2)
        logits = torch.cat([logits, extra.expand(*logits.shape[:3], sink.shape[2])], 3)
    empty = (logits == -torch.inf).all(3)
    safe = logits.masked_fill(empty[..., None], 0.0)
    wide = safe.to(torch.promote_types(q.dtype, torch.float32))
    lse = wide.logsumexp(3).masked_fill(empty, -torch.inf)
    weights = safe.softmax(3).masked_fill(empty[..., None], 0.0)[..., : k.shape[1]]
    v = v.repeat_interleave(q.shape[2] // v.shape[2], 2)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v), lse, max_logits


def plain_logits(q, k, mask, softmax_scale, softcap):
    """`(b, heads_q, sq, sk)`, -inf where the mask leaves a pair out."""
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k.repeat_interleave(q.shape[2] // k.shape[2], 2)) * softmax_scale
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.masked_fill(~(mask if mask.ndim == 4 else mask[:, None]), -torch.inf)


def results(attend, leaves, dout, dlse):
    """out, lse and, where leaves ask for them, their gradients, of `attend(*leaves)`; of rows whose lse is finite."""
    out, lse = attend(*leaves)
    if not leaves[0].requires_grad:
        return [out, lse]
    seen = lse > -torch.inf
    loss = (out * dout.to(out.dtype)).sum() + (lse[seen] * dlse.to(lse.dtype)[seen]).sum()
    return [out.detach(), lse.detach(), *torch.autograd.grad(loss, leaves)]


def assert_no_worse(names, got, exact, rough, lse_error=0.0):
    """Each result is at most twice as far from the exact one as that of plain PyTorch in the inputs' dtype; lse, which
    is kept in fp32, as far as sums in fp32 are, and lse_error."""
    for name, mine, wanted, low in zip(names, got, exact, rough, strict=False):
        tolerance = allowed_error(wanted, low)
        if name == "lse":
            tolerance = 1e-5 * max(1.0, wanted[wanted.isfinite()].abs().max().item()) + lse_error
        assert_close(name, mine, wanted, tolerance)


def allowed_error(exact, plain):
    """The rule for everything that is computed: twice the error of plain PyTorch in the inputs' dtype."""
    return 2 * (plain.double() - exact).masked_fill(exact.isinf(), 0.0).abs().max().item() + 1e-6


def assert_close(name, got, wanted, tolerance):
    """Same shape, infinite at the same places, and elsewhere no further apart than tolerance; NaN fails."""
    assert got.shape == wanted.shape, f"{name}: shape {tuple(got.shape)}, wanted {tuple(wanted.shape)}"
    got, wanted = got.detach().double(), wanted.detach().double()
    assert not got.isnan().any(), f"{name} has NaN"
    infinite = wanted.isinf()
    assert torch.equal(got[infinite], wanted[infinite]), f"{name} differs where {infinite.sum()} infinities belong"
    if not infinite.all():
        error = (got - wanted)[~infinite].abs().max().item()
        assert error <= tolerance, f"{name} is off by {error:.3e}, allowed {tolerance:.1e}"


def random_slices(n, seqlen_q, seqlen_k, generator=None):
    """n slices of all four types that overlap in every way and leave rows empty: q_ranges, k_ranges, attn_type_map."""
    ranges = [torch.randint(0, s + 1, (n, 2), generator=generator).sort(1).values for s in (seqlen_q, seqlen_k)]
    return (*ranges, torch.randint(0, 4, (n,), generator=generator))
