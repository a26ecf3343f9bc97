"""What the results must be: attention over a dense mask in fp64, differentiated by autograd."""

import torch


def dense_attention(q, k, v, mask, sink=None, sink_layout="sh", softmax_scale=None, softcap=0.0):
    """out `(b, sq, heads_q, dv)`, lse `(b, heads_q, sq)` and max_logits `(heads_q,)` of q, k, v `(b, s, heads, d)`.

    mask: bool `(b or 1, sq, sk)`. sink: "sh" `(n, heads_q)` or "ssh" `([b,] sq, n, heads_q)`. Everything in fp64.
    """
    q, k, v = (x.double() for x in (q, k, v))
    batch, rows, heads, head_dim = q.shape
    ratio = heads // k.shape[2]
    k, v = (x.repeat_interleave(ratio, dim=2) for x in (k, v))
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) * (head_dim**-0.5 if softmax_scale is None else softmax_scale)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits.masked_fill(~mask[:, None], -torch.inf)
    n_keys = k.shape[1]
    max_logits = torch.cat([logits, logits.new_full((batch, heads, rows, 1), -torch.inf)], 3).amax((0, 2, 3))
    if sink is not None:
        sink = sink.double()
        if sink_layout == "sh":
            extra = sink.T[None, :, None]
        else:
            extra = (sink if sink.ndim == 4 else sink[None]).permute(0, 3, 1, 2)
        logits = torch.cat([logits, extra.expand(batch, heads, rows, extra.shape[3])], 3)
    empty = (logits == -torch.inf).all(3)
    safe = logits.masked_fill(empty[..., None], 0.0)
    lse = safe.logsumexp(3).masked_fill(empty, -torch.inf)
    weights = safe.softmax(3).masked_fill(empty[..., None], 0.0)[..., :n_keys]
    return torch.einsum("bhqk,bkhd->bqhd", weights, v), lse, max_logits


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
