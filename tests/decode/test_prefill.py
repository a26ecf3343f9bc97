"""Many new tokens over a cache, by the forward kernel."""

import pytest
import torch
from caching import make
from decode_case import bytes_read, check, only, run

from cute_attn import flash_attn_with_kvcache, sim
from cute_attn.jit.record import record_specs

pytestmark = pytest.mark.slow
BF16 = torch.bfloat16
LENGTHS = (0, 1, 63, 64, 65, 300)
CAUSAL = {"window_size": (1000, 0)}  # by the kernel that windows have


def ragged(tokens=70, **changed):
    """Lengths around those of pages and tiles, fewer keys than tokens among them; NaN wherever nothing was written."""
    settings = {"lengths": LENGTHS, "page_size": 64, "heads": (2, 1), "dtype": BF16, "growing": True}
    return make(tokens=tokens, **settings | changed)


def test_ragged_lengths_in_shuffled_pages(backend):
    with record_specs() as recorder:
        check(ragged(), backend, "random", **CAUSAL)
        check(ragged(130, lengths=(0, 100, 300), heads=(1, 1)), backend, "late", window_size=(100, 9))
        check(ragged(65, page_size=192, heads=(4, 2)), backend, window_size=(20, 3))
    (spec,) = recorder.specs  # lengths, pages and windows are no part of the machine code
    assert (spec.op, spec.piece) == ("fwd", 64)


@pytest.mark.parametrize(("mode", "seed"), [("eager", 0), ("late", 0), ("random", 1), ("starve", 0)])
def test_every_schedule_of_warps_and_copies(mode, seed):
    check(ragged(lengths=(65, 200), heads=(1, 1)), "sim", mode, seed, window_size=(90, 0))


def test_a_contiguous_cache_is_one_page_a_sequence(backend):
    call = ragged(page_size=None, heads_first=True, heads=(4, 2))
    check(call, backend, "random", sink=torch.randn(2, 4), causal=True)


def test_no_schedule_changes_a_bit():
    call = ragged(lengths=(65, 200), heads=(1, 1))

    def function(q, k_cache, v_cache):
        cache = {**call.cache, "k_cache": k_cache, "v_cache": v_cache}
        return flash_attn_with_kvcache(q, **cache, **CAUSAL, return_softmax_lse=True)

    sim.strict(function, call.q, call.cache["k_cache"], call.cache["v_cache"], deterministic=True)


def test_a_sequence_has_the_same_bits_whatever_shares_the_batch(backend):
    call = ragged()
    out, lse = run(call, backend, **CAUSAL)
    alone = run(only(call, 5), backend, **CAUSAL)
    assert torch.equal(alone[0][0], out[5])
    assert torch.equal(alone[1][0], lse[5])


def test_numbers_that_are_not_finite_reach_their_own_sequence_and_no_others(backend):
    call = ragged(lengths=(65, 70, 0, 130), heads=(1, 1))
    call.cache["cache_seqlens"][1] += 1  # of the rubbish behind the length, one row
    out, lse = run(call, backend, **CAUSAL)
    assert out[1, -1].isnan().all()
    assert out[[0, 2, 3]].isfinite().all()
    assert not lse[[0, 2, 3]].isnan().any()


@pytest.mark.parametrize(("left", "first"), [(1000, 0), (20, 64)])
def test_of_pages_outside_of_what_is_attended_nothing_is_read(left, first):
    lengths = (0, 1, 64, 200)
    with bytes_read() as read:
        run(ragged(lengths=lengths, heads=(1, 1)), window_size=(left, 0))
    keys = sum(-(-n // 64) * 64 - (first if n == 200 else 0) for n in lengths)
    queries = 70 * len(lengths)
    assert sum(read) == (2 * keys + queries) * 64 * 2  # head_dim, bytes
