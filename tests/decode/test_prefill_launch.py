"""What a call with many new tokens leads to. Nothing is compiled."""

import pytest
import torch

from cute_attn.caches import KVCache
from cute_attn.launch import prefill as module
from cute_attn.launch.decode import limited
from cute_attn.launch.prefill import is_prefill, piece_of, prefill, prefill_spec

BF16 = torch.bfloat16


def cache_of(page_size=None, dtype=BF16, device="cpu"):
    pool = torch.empty(6, page_size or 1024, 2, 64, dtype=dtype, device=device)
    table = None if page_size is None else torch.zeros(6, 4, dtype=torch.int32, device=device)
    return KVCache(pool, pool, torch.zeros(6, dtype=torch.int32, device=device), table=table)


def test_which_calls_are_a_prefill():
    def is_one(tokens, **cache):
        return is_prefill(torch.empty(6, tokens, 2, 64), cache_of(**cache))

    assert [is_one(tokens) for tokens in (1, 64, 65, 4096)] == [False, False, True, True]
    assert [is_one(65, page_size=size) for size in (1, 7, 8, 12, 16, 256)] == [False, False, True, False, True, True]
    assert not is_one(65, dtype=torch.int8)


def test_a_piece_divides_pages_and_tiles():
    assert [piece_of(size, 128) for size in (8, 24, 48, 64, 96, 128, 256, 640)] == [8, 8, 16, 64, 32, 128, 128, 128]
    assert [piece_of(size, n) for size in (16, 64, 256) for n in (112, 80)] == [16] * 6
    pieces = {
        (dims, size): prefill_spec("bf16", dims, size).piece for dims in ((64, 64), (200, 8)) for size in (None, 32)
    }
    assert list(pieces.values()) == [128, 32, 80, 16]


@pytest.mark.parametrize("window", [(-1, -1), (2**31 - 1, 2**31 - 1), (20, 0)])
def test_no_end_of_a_window_overflows(window):
    left, right = limited(window, 4000)
    assert -4000 - left >= -(2**31)
    assert right <= 4000
    assert (left, right) == (20, 0) or left >= 2**31 - 1 - 4000


def test_lengths_and_pages_are_never_read_by_the_host(monkeypatch):
    """Tensors of no device have nothing to read; they are handed on as they are."""
    launched = []
    monkeypatch.setattr(module, "run", lambda spec, arguments, *rest: launched.append((spec, arguments)))
    q, cache = torch.empty(6, 300, 4, 64, dtype=BF16, device="meta"), cache_of(16, device="meta")
    prefill(q, cache, None, softmax_scale=0.1, softcap=0.0, window=(20, 0), sm_margin=12)
    ((spec, (tensors, schedule, scalars)),) = launched
    assert (spec.piece, spec.window) == (16, True)
    assert tensors[-1] == (cache.table, cache.lengths, 20, 0)
    assert schedule == (None, None, None)
    assert scalars[2:] == (6, 4, 1, 120)
