"""mask_mods as intervals: exact for whatever is read, and what is not read remains."""

import time

import pytest
import torch
from random_masks import BATCH, HEADS, LENGTHS, dense_of, random_mask, thinned

from cute_attn import IntervalMask
from cute_attn.mods import recognise as recognise_module
from cute_attn.mods.recognise import recognise
from cute_attn.mods.trace import trace

CPU = torch.device("cpu")


def read(mask_mod, rows, keys, batch=1, heads=1, **options):
    return recognise(trace(mask_mod, "mask_mod"), rows, keys, batch, heads, CPU, **options)


def holds(mask_mod, rows, keys, batch=1, heads=1):
    """What is read of a mask_mod; asserts that it is right."""
    found = read(mask_mod, rows, keys, batch, heads)
    mask = found.intervals
    IntervalMask(mask.lo, mask.hi, keys, heads=mask.heads)  # whose check is the invariant
    assert torch.equal(thinned(mask, found.predicate, batch, heads), dense_of(mask_mod, batch, heads, rows, keys))
    assert (found.predicate is None) == (found.reason == "")
    return found


DOCUMENTS = torch.arange(400) // 37
AGAIN = torch.where(torch.arange(400) < 250, DOCUMENTS, 1)  # a document that comes back
LIMITS = torch.randint(0, 340, (400,), generator=torch.Generator().manual_seed(1))
FLAGS = torch.arange(400) % 97 == 5
LENGTHS_OF = torch.tensor([100, 333])
IMAGE = 17  # tokens a row of an image


def neighbours(b, h, q, k):
    x, y = (q // IMAGE).clamp(3, IMAGE - 4), (q % IMAGE).clamp(3, IMAGE - 4)
    return ((x - k // IMAGE).abs() <= 3) & ((y - k % IMAGE).abs() <= 3)


def diffusion(b, h, q, k):
    noisy_q, noisy_k = q < 150, k < 150
    block_q, block_k = (torch.where(x < 150, x // 16, (x - 150) // 16) for x in (q, k))
    own = (block_q == block_k) & (noisy_q == noisy_k)
    return own | ((block_q > block_k) & noisy_q & ~noisy_k) | ((block_q >= block_k) & ~noisy_q & ~noisy_k)


@pytest.mark.parametrize(
    ("mask_mod", "layers", "planes"),
    [
        (lambda b, h, q, k: q >= k, 1, 1),
        (lambda b, h, q, k: q + 40 >= k, 1, 1),
        (lambda b, h, q, k: (q - k <= 20) & (q >= k), 1, 1),
        (lambda b, h, q, k: (q - k).abs() <= 20, 1, 1),
        (lambda b, h, q, k: (k < 50) | (q >= k), 1, 1),
        (lambda b, h, q, k: (q >= k) & ((q - k < 30) | (k < 4)), 2, 1),
        (lambda b, h, q, k: DOCUMENTS[q] == DOCUMENTS[k], 1, 1),
        (lambda b, h, q, k: (AGAIN[q] == AGAIN[k]) & (q >= k), 2, 1),
        (lambda b, h, q, k: (q // 64 == k // 64) & (q >= k), 1, 1),
        (lambda b, h, q, k: q // 64 >= k // 64, 1, 1),
        (lambda b, h, q, k: (q - k) // 64 == 0, 1, 1),
        (lambda b, h, q, k: (q - k) % 300 < 20, 2, 1),
        (lambda b, h, q, k: ((q - k).abs() <= 10) | FLAGS[q] | FLAGS[k], 5, 1),
        (lambda b, h, q, k: k < LIMITS[q], 1, 1),
        (lambda b, h, q, k: (k < LENGTHS_OF[b]) & (q >= k), 1, 2),
        (lambda b, h, q, k: (h < 1) & (q >= k), 1, 3),
        (lambda b, h, q, k: q - k < 10 * h + LENGTHS_OF[b], 1, 6),
        (lambda b, h, q, k: k < q * 0.5, 1, 1),
        (lambda b, h, q, k: (q - k).to(torch.float32) < 20.5, 1, 1),
        (lambda b, h, q, k: ((q >= k).int() * (DOCUMENTS[q] == DOCUMENTS[k]).int()).bool(), 1, 1),
        (lambda b, h, q, k: (DOCUMENTS[q] == DOCUMENTS[k]) ^ (q >= k), 2, 1),
        (lambda b, h, q, k: k <= torch.where(DOCUMENTS[q] > 3, q + 20, q), 1, 1),
        (neighbours, 7, 1),
        (diffusion, 2, 1),
        (lambda b, h, q, k: q < 0, 1, 1),
    ],
)
def test_a_mask_of_the_field_is_read_as_intervals(mask_mod, layers, planes):
    if mask_mod.__name__ == "neighbours":
        found = holds(mask_mod, IMAGE * IMAGE, IMAGE * IMAGE, 2, 3)
    else:
        found = holds(mask_mod, 300, 340, 2, 3)
    assert found.predicate is None
    assert (found.intervals.layers, found.intervals.planes) == (layers, planes)


@pytest.mark.parametrize(
    ("mask_mod", "reason", "area"),
    [
        (lambda b, h, q, k: ((q - k).abs() <= 21) & ((q - k) * q % 3 == 0), "// or % of what is no sum", 12_669),
        (lambda b, h, q, k: q * k > 700, "* of query and key", 102_000),
        (lambda b, h, q, k: (q ^ k) < 64, "^ of query and key", 102_000),
        (lambda b, h, q, k: ~((q < k) | ((q ^ k) >= 64)), "^ of query and key", 45_150),
        (lambda b, h, q, k: LIMITS[q] >= LIMITS[k], "more than 64 intervals a row", 102_000),
        (lambda b, h, q, k: k % 2 == 0, "more than 64 intervals a row", 102_000),
    ],
)
def test_what_is_not_read_of_a_conjunction_remains(mask_mod, reason, area):
    found = holds(mask_mod, 300, 340)
    assert reason in found.reason
    assert found.intervals.area() == area


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, *(pytest.param(x, marks=pytest.mark.slow) for x in range(60, 600, 60))])
def test_random_masks_are_never_read_wrongly(first, monkeypatch):
    monkeypatch.setattr(recognise_module, "_ROWS", 16)
    read_as_intervals = 0
    for seed in range(first, first + 60):
        monkeypatch.setattr(recognise_module, "_ROOM", [1 << 23, 400][seed % 2])  # 400: few intervals, rows in parts
        found = holds(random_mask(seed), *LENGTHS, BATCH, HEADS)
        read_as_intervals += found.predicate is None
    assert read_as_intervals > 30


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1)])
def test_lengths_of_nothing_have_masks(shape):
    for mask_mod in (lambda b, h, q, k: q >= k, lambda b, h, q, k: DOCUMENTS[q] == DOCUMENTS[k]):
        assert holds(mask_mod, *shape).intervals.area() == int(shape == (1, 1))


def test_numbers_at_the_ends_of_int64_are_compared_and_not_added():
    ends = torch.tensor([torch.iinfo(torch.int64).min, 0, torch.iinfo(torch.int64).max])
    assert holds(lambda b, h, q, k: ends[q] >= ends[k], 3, 3).predicate is None
    assert "past 2^60" in holds(lambda b, h, q, k: ends[q] + k > 5 - ends[q] // 2, 3, 3).reason


def test_nan_and_infinities_compare_as_they_do():
    numbers = torch.tensor([0.0, float("inf"), float("-inf"), 2.5, float("inf")])
    for compare in (torch.lt, torch.le, torch.eq, torch.ne):
        assert holds(lambda b, h, q, k, f=compare: f(numbers[q], numbers[k]), 5, 5).predicate is None
        assert holds(lambda b, h, q, k, f=compare: f((q - k).float(), numbers[k]), 5, 5).predicate is None
        numbers_and_nan = torch.cat([numbers, torch.tensor([float("nan")])])
        found = holds(lambda b, h, q, k, f=compare, x=numbers_and_nan: f(x[q], x[k]), 6, 6)
        assert found.reason == "it compares NaN"


def test_an_index_outside_of_a_table_is_refused_unless_nobody_reads_there():
    table = torch.arange(10)
    with pytest.raises(IndexError, match="mask_mod reads a captured tensor of shape \\(10,\\) at index 10"):
        read(lambda b, h, q, k: table[q] >= k, 12, 10)
    for mask_mod in (lambda b, h, q, k: (table[q] >= k) & (q >= k), lambda b, h, q, k: (9 // q >= k) & (q >= k)):
        found = read(mask_mod, 12, 10, reads_all=False)
        assert found.predicate is not None
        assert found.intervals.area() == sum(min(i + 1, 10) for i in range(12))


MILLION = 1 << 20
PACKED = torch.arange(MILLION) // 2100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mask_mod", "layers"),
    [
        (lambda b, h, q, k: q >= k, 1),
        (lambda b, h, q, k: (q >= k) & (q - k < 4096), 1),
        (lambda b, h, q, k: (PACKED[q] == PACKED[k]) & (q >= k), 1),
        (lambda b, h, q, k: (PACKED[q] == PACKED[k]) & (q >= k) & ((q - k < 1000) | (k % MILLION < 4) | (k == 9)), 3),
    ],
    ids=["causal", "window", "packed", "composed"],
)
def test_a_million_tokens_are_read_in_twenty_seconds(mask_mod, layers):
    begin = time.process_time()
    found = read(mask_mod, MILLION, MILLION)
    assert time.process_time() - begin < 40  # of two cores
    assert found.predicate is None
    assert found.intervals.layers == layers
    for row in (0, 5000, MILLION - 1):
        keys = torch.arange(MILLION)
        want = mask_mod(0, 0, torch.tensor(row), keys)
        part = found.intervals[row : row + 1]
        inside = ((keys >= part.lo[0]) & (keys < part.hi[0])).any(0)
        assert torch.equal(inside, want.expand(MILLION))
