"""In the reference, numbers that are not finite reach what attends them, what that attends backwards, and no other."""

import pytest
import torch
from poison import MASKS, VALUES, idle, poisoned, zeroed

from cute_attn.mask import causal_documents
from cute_attn.reference import attention_backward, attention_forward


def inputs_for(mask, batch=None, sinks=0):
    batch = batch or mask.batch
    q, dout = torch.randn(2, batch, mask.seqlen_q, 4, 16)
    k, v = torch.randn(2, batch, mask.seqlen_k, 2, 16)
    sink = torch.randn(1, 1, sinks, 4) if sinks else None
    return {"q": q, "k": k, "v": v, "dout": dout, "dlse": torch.randn(batch, 4, mask.seqlen_q), "sink": sink}


def attend(mask, inputs, softcap, edit_out=lambda out: out):
    """out, lse, max_logits and the four gradients; `edit_out` sees the output before the backward does."""
    q, k, v, dout, dlse, sink = inputs.values()
    out, lse, largest = attention_forward(q, k, v, mask.lo, mask.hi, sink, 0.3, softcap)
    saved = edit_out(out)
    grads = attention_backward(dout, dlse, q, k, v, saved, lse, mask.lo, mask.hi, sink, 0.3, softcap)
    return {"out": out, "lse": lse, "max_logits": largest} | grads._asdict()


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("sinks", [0, 3])
def test_idle_rows_and_keys_may_hold_anything(name, softcap, sinks):
    mask = MASKS[name]
    rows, keys = idle(mask)
    inputs = inputs_for(mask, sinks=sinks)

    def edited(fill):
        of_rows = {x: fill(inputs[x], rows) for x in ("q", "dout")}
        of_keys = {x: fill(inputs[x], keys) for x in ("k", "v")}
        dlse = inputs["dlse"] if sinks else fill(inputs["dlse"], rows, dim=2)  # that of a sink is no one else's
        return attend(mask, inputs | of_rows | of_keys | {"dlse": dlse}, softcap, lambda out: fill(out, rows))

    clean, dirty = edited(zeroed), edited(poisoned)
    for x, wanted in clean.items():
        assert wanted is None or torch.equal(dirty[x], wanted), x
        assert wanted is None or x == "lse" or wanted.isfinite().all(), x
    for x, places in (("out", rows), ("q", rows), ("k", keys), ("v", keys)):
        assert (dirty[x][places] == 0).all(), x


@pytest.mark.parametrize("which", ["q", "k", "v", "dout", "dlse"])
@pytest.mark.parametrize("value", VALUES.tolist())
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_a_document_leaves_every_bit_of_the_others(which, value, softcap):
    mask = causal_documents(300, cu_seqlens=[0, 100, 130, 300])
    inputs = inputs_for(mask, batch=2)
    dirty = inputs | {which: inputs[which].clone()}
    dirty[which].movedim(2 if which == "dlse" else 1, 0)[110] = value
    before, after = attend(mask, inputs, softcap), attend(mask, dirty, softcap)
    second = slice(100, 130)
    seen = False
    for x in ("out", "lse", "q", "k", "v"):
        a, b = (t[x].movedim(2 if x == "lse" else 1, 0) for t in (before, after))
        others = torch.ones(300, dtype=torch.bool)
        others[second] = False
        assert torch.equal(a[others], b[others]), x
        seen |= not b[second].isfinite().all()
    assert seen


def test_what_attends_them_is_not_finite():
    mask = causal_documents(300, cu_seqlens=[0, 100, 300])
    inputs = inputs_for(mask)
    inputs["v"][:, 150] = torch.nan
    result = attend(mask, inputs, 0.0)
    attends = mask.to_dense()[0, :, 150]
    assert torch.equal(result["out"].isnan().all(3).all(2)[0], attends)
    assert result["lse"].isfinite().all()
    assert torch.equal(result["q"].isnan().all(3).all(2)[0], attends)
