"""PyTorch's functions on the kernels: as near to fp64 as bf16 on PyTorch is, within a factor of two."""

import itertools

import pytest
import torch
from torch.nn import attention
from torch.nn.attention.varlen import varlen_attn

import cute_attn
from cute_attn.integrations.torch import register, registration

pytestmark = pytest.mark.slow
ENDS = [0, 70, 70, 200]


def by_document(q, k, v):
    outs = []
    for begin, end in itertools.pairwise(ENDS):
        here = (x[begin:end].transpose(0, 1)[None] for x in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(*here, is_causal=True, enable_gqa=True)
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)


def test_documents_train_on_kernels(backend, monkeypatch):
    device = "cuda" if backend == "sm90" else "cpu"
    monkeypatch.setattr(registration, "DISPATCH_KEY", device.upper())
    heads = 4, 2, 2
    given = [torch.randn(ENDS[-1], h, 64, dtype=torch.bfloat16, device=device, requires_grad=True) for h in heads]
    weights = torch.randn(ENDS[-1], 4, 64, dtype=torch.bfloat16, device=device)
    ends = torch.tensor(ENDS, dtype=torch.int32, device=device)

    def results(out, inputs, weights):
        return [x.double() for x in (out.detach(), *torch.autograd.grad(out, inputs, weights))]

    exactly = [x.detach().double().requires_grad_() for x in given]
    exact = results(by_document(*exactly), exactly, weights.double())
    plain = results(by_document(*given), given, weights)
    with register(), cute_attn.backend(backend):
        attention.activate_flash_attention_impl("cute_attn")
        out = varlen_attn(*given, ends, ends, 130, 130, window_size=(-1, 0), enable_gqa=True)
        found = results(out, given, weights)
    for x, near, true in zip(found, plain, exact, strict=True):
        assert (x - true).abs().max() <= 2 * (near - true).abs().max()
