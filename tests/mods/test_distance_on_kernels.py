"""Biases of the distance in the forward kernel, in simulation: one kernel for all of them."""

import pytest
import torch
from mods_case import dense_flex
from torch._dynamo.testing import CompileCounterWithBackend

from cute_attn import backend, flex_attention, record_specs
from cute_attn.mask import causal

ROWS, KEYS, HEADS = 100, 150, 2
SLOPES = torch.tensor([0.5, 0.0625])
LEARNED = torch.randn(HEADS, KEYS, generator=torch.Generator().manual_seed(0))
BY_DISTANCE = torch.randn(2 * KEYS, generator=torch.Generator().manual_seed(1))
BIASES = {
    "alibi": lambda s, b, h, q, k: s + SLOPES[h] * (k - q),
    "learned, of attended distances alone": lambda s, b, h, q, k: s + LEARNED[h, q + (KEYS - ROWS) - k],
    "of all heads, with a remainder": lambda s, b, h, q, k: s + BY_DISTANCE[q - k] % 0.7,
}
SHIFTED = causal(ROWS, KEYS)  # a query attends up to the key with its place from the end


@pytest.mark.slow
def test_every_bias_of_the_distance_is_one_kernel_and_right():
    numbers = torch.Generator().manual_seed(2)
    shapes = (1, HEADS, ROWS, 64), (1, 1, KEYS, 64), (1, 1, KEYS, 64)
    qkv = [torch.randn(shape, generator=numbers).bfloat16() for shape in shapes]
    with record_specs() as recorder, backend("sim"):
        results = [flex_attention(*qkv, bias, SHIFTED, enable_gqa=True, return_lse=True) for bias in BIASES.values()]
    assert len(recorder.specs) == 1
    for name, (out, lse) in zip(BIASES, results, strict=True):
        # dense code indexes everywhere
        bias = BIASES[name] if not name.startswith("learned") else clamped
        wanted, wanted_lse, _ = dense_flex(*qkv, bias, SHIFTED.to_dense())
        assert (out - wanted).abs().max() <= allowed(qkv, bias, wanted), name
        assert torch.allclose(lse.double(), wanted_lse, rtol=0.0, atol=1e-5), name


def clamped(score, b, h, q, k):
    return score + LEARNED[h, (q + (KEYS - ROWS) - k).clamp(min=0)]


def allowed(qkv, bias, wanted):
    """Twice the error of dense attention in bf16."""
    rough, _, _ = dense_flex(*qkv, lambda *at: bias(*at).bfloat16(), SHIFTED.to_dense(), dtype=torch.bfloat16)
    return 2 * (rough - wanted).abs().max()


@pytest.mark.slow
def test_a_compiled_function_of_four_lengths_has_at_most_two_graphs_and_the_kernel_of_eager_code():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def attend(*qkv, slopes, mask):
        return flex_attention(*qkv, lambda s, b, h, q, k: s + slopes.exp()[h] * (k - q), mask)

    compiled = torch.compile(attend, fullgraph=True, backend=counter)
    with record_specs() as recorder, backend("sim"):
        for length in (KEYS, 90, 33, 200):
            qkv = [torch.randn(1, HEADS, length, 64).bfloat16() for _ in range(3)]
            found, wanted = (f(*qkv, slopes=SLOPES, mask=causal(length)) for f in (compiled, attend))
            assert torch.equal(found, wanted)
    assert counter.frame_count <= 2
    assert len(recorder.specs) == 1
