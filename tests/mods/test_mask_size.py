"""What making a mask costs: no pairs for intervals, few at a time for others, and fields only when asked for."""

import subprocess
import sys

import pytest
import torch

from cute_attn import BlockMask, IntervalMask, and_masks, create_block_mask
from cute_attn.mods import reading, recognise
from cute_attn.mods.block_mask import as_block_mask
from cute_attn.mods.evaluate import evaluate


@pytest.fixture
def evaluated(monkeypatch):
    """How many values each evaluation of a graph gives."""
    sizes = []

    def counted(graph, inputs, *arguments, **options):
        sizes.append(torch.broadcast_shapes(*(x.shape for x in inputs.values())).numel())
        return evaluate(graph, inputs, *arguments, **options)

    for module in (reading, recognise):
        monkeypatch.setattr(module, "evaluate", counted)
    return sizes


def window(b, h, q, k):
    return (q - k).abs() <= 100


def products(b, h, q, k):
    return q * k % 3 == 0


def test_no_pair_of_a_mask_of_intervals_is_evaluated(evaluated):
    ids = torch.arange(2000) // 300
    mask = create_block_mask(and_masks(window, lambda b, h, q, k: ids[q] == ids[k]), 2, 3, 2000, 2000, device="cpu")
    assert mask.intervals.layers == 1
    assert max(evaluated) == 2000


def test_other_masks_are_evaluated_where_intervals_meet_them_and_a_part_at_a_time(evaluated):
    mask = create_block_mask(and_masks(window, products), 2, 3, 2000, 2000, device="cpu")
    assert mask.intervals is None
    assert max(evaluated) <= 1 << 18
    assert sum(evaluated) < 2000 * (100 + 128) * 2 + 50_000  # once, for all planes
    del evaluated[:]
    create_block_mask(products, None, None, 2000, 2000, device="cpu", BLOCK_SIZE=1 << 30)
    assert max(evaluated) <= 1 << 18
    assert sum(x for x in evaluated if x > 2000) == 2000 * 2000


def test_lists_are_read_and_not_evaluated(evaluated):
    counts, indices = torch.ones(1, 1, 4, dtype=torch.int32), torch.arange(4, dtype=torch.int32).view(1, 1, 4, 1)
    mask = BlockMask.from_kv_blocks(counts, indices, None, None, 128, products, (512, 512))
    assert mask.reading().predicate is not None
    assert max(evaluated, default=0) <= 512


def test_fields_are_made_when_they_are_asked_for():
    mask = create_block_mask(window, None, None, 2000, 2000, device="cpu")
    repr(mask), mask.shape, mask.numel(), mask.intervals, mask.reading(), mask.device
    assert mask._fields == {}
    assert mask._grid is None
    assert mask.kv_indices is mask.kv_indices


SCRIPT = """
import torch
from cute_attn import IntervalMask, create_block_mask

def most():  # of the memory of this process so far, in MiB
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024

def products(b, h, q, k): return q * k % 3 == 0
create_block_mask(products, None, None, 256, 256, device="cpu")
before = most()
{what}
print(most() - before, most())
"""


def most_memory(what):
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(what=what)], capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    return map(int, result.stdout.split())


@pytest.mark.slow
def test_a_mask_of_16_ki_tokens_that_is_no_intervals_takes_250_mib():
    more, _ = most_memory("assert create_block_mask(products, 1, 1, 1 << 14, 1 << 14, device='cpu').intervals is None")
    assert more <= 250


@pytest.mark.slow
def test_a_composed_mask_of_a_million_tokens_takes_one_and_a_half_gib():
    what = """
ids = torch.arange(1 << 20) // 2100
def composed(b, h, q, k): return (ids[q] == ids[k]) & (q >= k) & ((q - k < 1000) | (k < 1000))
mask = create_block_mask(composed, 1, 1, 1 << 20, 1 << 20, device="cpu")
assert mask.intervals.layers == 2 and mask._grid is None and mask.numel() == 1 << 40
"""
    _, most = most_memory(what)
    assert most <= 1536


def test_masks_of_intervals_are_block_masks_of_any_length():
    mask = as_block_mask(IntervalMask.from_function(window, 1 << 18))
    assert mask.intervals.layers == 1
    assert mask._fields == {}
