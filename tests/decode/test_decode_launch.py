"""What a call over a cache leads to: its spec, its number of parts, and what no kernel serves. Nothing is compiled."""

import pytest
import torch
from caching import make

from cute_attn import backend, flash_attn_with_kvcache
from cute_attn.launch.decode import choose_splits, decode_spec
from cute_attn.spec.score import ScoreForm

BF16 = torch.bfloat16


def call(**changed):
    return make(**{"lengths": (3, 70), "page_size": 64, "dtype": BF16} | changed)


def refused(problem, error, words, **arguments):
    with backend("sim"), pytest.raises(error, match=words):
        flash_attn_with_kvcache(problem.q, **problem.cache, **arguments)


def test_what_no_kernel_serves_is_refused_before_anything_is_written():
    other = "with cute_attn.backend\\('reference'\\) it runs in plain PyTorch"
    refused(call(dtype=torch.float32), NotImplementedError, f"'sim' has kernels for bfloat16 and float16, .*; {other}")
    refused(call(dims=(64, 12)), NotImplementedError, "head_dim of v that is a multiple of 8 up to 256, got 12")
    refused(call(dims=(264, 64)), NotImplementedError, "head_dim that is a multiple of 8 up to 256, got 264")
    refused(
        call(dims=(24, 64), cached=torch.int8), NotImplementedError, "of 8-bit caches that is a multiple of 16, got 24"
    )
    tree = torch.ones(65, 65, dtype=torch.bool)
    refused(call(tokens=65), NotImplementedError, "kernels for a mask of up to 64 new tokens, got 65", mask=tree)
    many = make(lengths=(0,), page_size=64, dtype=BF16)
    many.cache["page_table"], many.cache["cache_seqlens"] = (
        many.cache[name].expand(65536, *shape) for name, shape in (("page_table", (-1,)), ("cache_seqlens", ()))
    )
    refused(many.with_q(many.q.expand(65536, 1, 4, 64)), NotImplementedError, "for up to 65535 sequences, got 65536")
    problem = call(cached=torch.int8, scales="tokens", spare=4)
    problem.cache["v_descale"] = torch.ones(2, 2)
    before = problem.cache["k_cache"].clone()
    new = {name: torch.ones(2, 1, 2, 64, dtype=BF16) for name in "kv"}
    refused(problem, NotImplementedError, "scales of each head together with scales of each token", **new)
    assert torch.equal(before, problem.cache["k_cache"])
    problem.cache["v_descale"] = problem.cache["k_descale"].double()
    refused(problem, NotImplementedError, "scales of each token in float32, got float64")


@pytest.mark.parametrize("name", ["k_cache", "v_cache"])
def test_a_cache_that_does_not_fit_is_refused_naming_its_strides(name):
    problem = call()
    pool = problem.cache[name]
    problem.cache[name] = torch.empty(*pool.shape[:3], 68, dtype=BF16)[..., :64]
    refused(problem, ValueError, f"{name} must have the last stride 1 and others that are multiples of 8 elements")
    problem.cache[name] = torch.empty(*pool.shape[:3], 128, dtype=BF16)[..., ::2]
    refused(problem, ValueError, f"{name} must have the last stride 1 .*got strides")
    problem.cache[name] = torch.empty(pool.numel() + 1, dtype=BF16)[1:].view(pool.shape)
    refused(problem, ValueError, f"{name} must begin at a multiple of 16 bytes")


def test_the_spec_of_a_call():
    def spec(rows=8, page_size=64, dims=(128, 128), **variant):
        return decode_spec("bf16", dims, rows, page_size, **variant)

    assert [spec(rows).tile.rows for rows in (1, 8, 9, 17, 33, 64, 500)] == [8, 8, 16, 32, 64, 64, 64]
    assert spec(500, dims=(192, 192)).tile.rows == 32
    pieces = {1: 0, 8: 0, 16: 16, 48: 16, 32: 32, 96: 32, 64: 64, 256: 64, 100: 0, None: 64}
    assert {size: spec(page_size=size).piece for size in pieces} == pieces
    assert [spec(dims=dims).head_dim for dims in ((8, 8), (72, 64), (96, 96), (136, 128), (200, 8))] == [
        64,
        128,
        128,
        192,
        256,
    ]
    eight = {"cache": "int8", "score": ScoreForm("scaled")}
    assert [spec(dims=dims, **eight).head_dim for dims in ((64, 64), (128, 128), (192, 128))] == [128, 128, 256]


def test_parts_fill_the_slots_once_and_have_some_tiles_each():
    assert choose_splits(ctas=8, capacity=1 << 20, slots=396, keys=64) == 49
    assert choose_splits(ctas=500, capacity=1 << 20, slots=396, keys=64) == 1
    assert choose_splits(ctas=1, capacity=1000, slots=396, keys=64) == 3
    assert choose_splits(ctas=1, capacity=1, slots=396, keys=64) == 1


def test_empty_calls_launch_nothing():
    with backend("sim"):
        for lengths, tokens in (((3,), 0), ((0, 0), 2)):
            problem = make(lengths=lengths, tokens=tokens, page_size=16, dtype=BF16)
            problem.cache["page_table"] = (
                problem.cache["page_table"][:, :0] if not any(lengths) else problem.cache["page_table"]
            )
            out, lse = flash_attn_with_kvcache(problem.q, **problem.cache, return_softmax_lse=True)
            assert not out.any()
            assert bool((lse == -torch.inf).all())
