"""The decode kernel on the whole matrix of shapes, masks and caches: part of `make test-all`."""

import pytest
import torch
from caching import LENGTHS, make
from decode_case import check

pytestmark = pytest.mark.slow

BF16, FP16 = torch.bfloat16, torch.float16
EIGHT = [torch.int8, torch.float8_e4m3fn, torch.float8_e5m2]


def ragged(**changed):
    return make(**{"page_size": 64, "dtype": BF16, "growing": True} | changed)


@pytest.mark.parametrize("page_size", [1, 16, 32, 48, 64, 100, 128, 256, None])
@pytest.mark.parametrize("splits", [1, 2, 7])
def test_every_page_size_and_number_of_parts(page_size, splits, backend):
    check(ragged(page_size=page_size), backend, "random", seed=splits, num_splits=splits)
    check(ragged(page_size=page_size, heads_first=True, tokens=2), backend, "late", num_splits=splits, causal=True)


@pytest.mark.parametrize("heads", [(1, 1), (8, 2), (7, 1), (8, 1), (16, 1)])
@pytest.mark.parametrize("tokens", [1, 2, 5, 16])
def test_query_heads_and_new_tokens_fill_the_rows(heads, tokens, backend):
    check(ragged(heads=heads, tokens=tokens), backend, causal=True)
    check(ragged(heads=heads, tokens=tokens), backend, "late", window_size=(100, 2), num_splits=2)


def test_sixty_four_new_tokens(backend):
    check(ragged(heads=(4, 1), tokens=64, lengths=(30, 64, 300)), backend, causal=True)
    tree = torch.rand(3, 64, 64) < 0.3
    check(ragged(heads=(4, 1), tokens=64, lengths=(30, 64, 300)), backend, mask=tree)


@pytest.mark.parametrize("dims", [(64, 64), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256), (8, 8), (80, 72)])
@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_every_head_dim_and_dtype(dims, dtype, backend):
    check(ragged(dims=dims, dtype=dtype, tokens=4, heads=(8, 1)), backend, "random", causal=True)


@pytest.mark.parametrize("dims", [(96, 96), (192, 192), (40, 256)])
def test_keys_of_every_head_dim_are_gathered(dims, backend):
    check(ragged(dims=dims, page_size=5), backend, "late")


@pytest.mark.parametrize("cached", EIGHT)
@pytest.mark.parametrize("scales", ["none", "scalar", "heads", "tokens"])
def test_every_8_bit_cache_and_kind_of_scales(cached, scales, backend):
    check(ragged(cached=cached, scales=scales, tokens=2), backend, "random", causal=True)


@pytest.mark.parametrize("cached", EIGHT)
@pytest.mark.parametrize("dims", [(64, 64), (128, 128), (192, 128), (256, 256)])
def test_8_bit_caches_of_every_head_dim(cached, dims, backend):
    check(ragged(cached=cached, scales="tokens", dims=dims, tokens=8, heads=(8, 1)), backend, "late", causal=True)
    check(ragged(cached=cached, scales="tokens", dims=dims, page_size=5), backend, num_splits=2)


@pytest.mark.parametrize("cached", [None, torch.int8])
@pytest.mark.parametrize("arguments", [{"softcap": 5.0}, {"softmax_scale": -0.1}, {"softmax_scale": 0.0}])
def test_scores_are_capped_and_scaled(cached, arguments, backend):
    check(ragged(cached=cached, scales="heads" if cached else "none"), backend, **arguments)


@pytest.mark.parametrize("cached", [None, torch.float8_e4m3fn])
@pytest.mark.parametrize("splits", [1, 3])
def test_sinks(cached, splits, backend):
    check(ragged(cached=cached, tokens=2), backend, sink=torch.randn(4), num_splits=splits)


@pytest.mark.parametrize(("mode", "seed"), [("eager", 0), ("late", 0), *(("random", seed) for seed in range(4))])
@pytest.mark.parametrize("cached", [None, torch.int8])
@pytest.mark.parametrize("page_size", [5, 16])
def test_every_schedule_of_warps_and_copies(cached, page_size, mode, seed, backend):
    call = ragged(cached=cached, scales="tokens" if cached else "none", page_size=page_size, dims=(128, 128), tokens=3)
    check(call, backend, mode, seed, num_splits=2, mask=torch.rand(len(LENGTHS), 3, 3) < 0.6)
