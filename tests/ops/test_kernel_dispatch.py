"""The public functions on the kernels, in simulation and on a GPU: same results as the reference, or a refusal."""

import pytest
import torch

import cute_attn
from cute_attn import flex_flash_attn_func


def on(backend, *tensors):
    return [x.to("cuda" if backend == "sm90" else "cpu") for x in tensors]


def test_slices_run_on_the_kernels(backend):
    q, k, v = on(backend, torch.randn(300, 2, 128).bfloat16(), *torch.randn(2, 300, 1, 128).bfloat16())
    slices = [[0, 300]], [[0, 300]]
    with cute_attn.backend(backend):
        out, lse = flex_flash_attn_func(q, k, v, *slices, attn_type_map=["causal"])
    with cute_attn.backend("reference"):
        wanted, wanted_lse = flex_flash_attn_func(q, k, v, *slices, attn_type_map=["causal"])
    assert (out.dtype, out.shape, lse.shape) == (wanted.dtype, wanted.shape, wanted_lse.shape)
    assert (out - wanted).abs().max() <= 2e-2
    assert (lse - wanted_lse).abs().max() <= 1e-4


@pytest.mark.slow
def test_sinks_run_on_the_kernels(backend):
    q, k, v = on(backend, *torch.randn(3, 2, 200, 4, 64).half())
    (sink,) = on(backend, torch.randn(3, 4))
    arguments = {"sink": sink, "causal": True, "return_attn_probs": True}
    with cute_attn.backend(backend):
        out, lse = cute_attn.fa3_func_with_sink(q, k, v, **arguments)
    with cute_attn.backend("reference"):
        wanted, wanted_lse = cute_attn.fa3_func_with_sink(q, k, v, **arguments)
    assert (out - wanted).abs().max() <= 2e-3
    assert (lse - wanted_lse).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("q", "message"),
    [
        (torch.zeros(4, 1, 64), "'sim' has kernels for bfloat16 and float16, got torch.float32"),
        (torch.zeros(4, 1, 20).half(), "a head_dim that is a multiple of 8 up to 256, got 20"),
        (torch.zeros(4, 1, 264).half(), "a head_dim that is a multiple of 8 up to 256, got 264"),
    ],
)
def test_what_the_kernels_do_not_take_is_refused_before_compiling(q, message):
    from cute_attn.jit.compile import compile_count

    before = compile_count()
    with cute_attn.backend("sim"), pytest.raises(NotImplementedError, match=message):
        flex_flash_attn_func(q, q, q, [[0, 4]], [[0, 4]])
    assert compile_count() == before


@pytest.mark.parametrize(("options", "softmax"), [({}, "stale"), ({"softmax": "exact"}, "exact")])
def test_the_backend_says_how_the_softmax_keeps_its_maximum(monkeypatch, options, softmax):
    class Asked(Exception):
        pass

    def kernel(spec, backend):
        raise Asked(spec.softmax)

    monkeypatch.setattr("cute_attn.launch.run.kernel", kernel)
    q = torch.randn(4, 1, 64).half()
    with cute_attn.backend("sim", **options), pytest.raises(Asked, match=softmax):
        flex_flash_attn_func(q, q, q, [[0, 4]], [[0, 4]])


def test_no_queries_and_no_keys_are_valid(backend):
    some, none = on(backend, torch.randn(3, 1, 64).half(), torch.randn(0, 1, 64).half())
    with cute_attn.backend(backend):
        out, lse = flex_flash_attn_func(none, some, some, [[0, 0]], [[0, 3]])
        assert (out.shape, lse.shape) == ((0, 1, 64), (1, 0))
        out, lse = flex_flash_attn_func(some, none, none, [[0, 3]], [[0, 0]])
        assert (out == 0).all()
        assert (lse == -torch.inf).all()
