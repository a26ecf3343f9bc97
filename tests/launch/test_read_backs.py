"""A new mask on a GPU is read by the host once, and then planned for any number of tiles and kinds of call."""

import pytest
import torch
from pretend_gpu import GPU, OnGpu, PretendedGpu, on_gpu

from cute_attn.launch.backward import plan_backward
from cute_attn.launch.forward import plan_forward
from cute_attn.mask import IntervalMask, causal, global_tokens, sliding_window
from cute_attn.mask.source import MaskSource
from cute_attn.mask.thinned import thin
from cute_attn.ops import mask_cache
from cute_attn.spec.tiles import BackwardTile, TileConfig

ROWS, HEADS = 300, 4


def by_head(rows):
    lo = torch.arange(HEADS).view(1, HEADS, 1, 1) * 16
    return IntervalMask.from_intervals(lo.expand(1, HEADS, 1, rows), torch.full((1, HEADS, 1, rows), rows), rows)


def thinned(rows):
    band = sliding_window(rows, left=200, right=0)
    every = torch.ones(1, rows, dtype=torch.bool)
    return thin(band, sliding_window(rows, left=100, right=0), every, every, holds=False)


MASKS = {
    "causal": causal(ROWS),
    "window": sliding_window(ROWS, left=40, right=7),
    "many layers": global_tokens(ROWS, positions=[0, 150, 299], left=20, right=20),
    "nothing": causal(ROWS) & ~causal(ROWS),
    "by head": by_head(ROWS),
}


def moved(mask):
    """The mask as it were made on the GPU."""
    return IntervalMask._made(on_gpu(mask.lo), on_gpu(mask.hi), mask.seqlen_k, mask.heads)


def plans(mask, has_graph=False):
    """Of two tiles, forward and backward, with turns and without."""
    given = torch.bfloat16, (128, 128), (HEADS, 2)
    for n in (128, 64):
        yield plan_forward(mask, *given, "stale", TileConfig(128, n), has_graph=has_graph)
    for has_turns in (False, True):
        yield plan_backward(mask, *given, has_turns, BackwardTile(64), has_graph=has_graph)


def tensors(plan):
    return [x for x in plan if isinstance(x, torch.Tensor)]


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_a_mask_made_on_a_gpu_is_read_once_for_all_its_plans(mask):
    wanted = [tensors(plan) for plan in plans(mask)]
    with PretendedGpu() as gpu:
        found = [tensors(plan) for plan in plans(moved(mask))]
    assert gpu.read == ["aten._to_copy.default"]
    for ours, theirs in zip(found, wanted, strict=True):
        assert all(isinstance(x, OnGpu) for x in ours)
        assert all(torch.equal(x.held, y) for x, y in zip(ours, theirs, strict=True))


def test_a_mask_that_a_predicate_thins_is_read_once_a_tile():
    mask = thinned(ROWS)
    with PretendedGpu() as gpu:
        thinning = mask._thinning
        certain, tested = moved(thinning.certain), moved(thinning.tested)
        there = moved(mask)
        parts = {
            "certain": certain,
            "tested": tested,
            "idle_keys": on_gpu(thinning.idle_keys),
            "lo": on_gpu(thinning.lo),
        }
        object.__setattr__(there, "_thinning", type(thinning)(**parts, is_marked=thinning.is_marked))
        gpu.read.clear()
        schedule = there.schedule((128, 128))
    assert gpu.read == ["aten._to_copy.default"]
    assert torch.equal(schedule.forward.runs.held, mask.schedule((128, 128)).forward.runs)


@pytest.fixture
def any_device(monkeypatch):
    """The pretended GPU is a device that masks are not let on."""
    monkeypatch.setattr("cute_attn.mask.intervals.check_device", lambda device: device)


def test_a_mask_that_went_to_a_gpu_is_not_read_at_all(any_device):
    with PretendedGpu() as gpu:
        there = causal(ROWS).to(GPU)
        list(plans(there))
    assert gpu.read == []


def test_ranges_on_a_gpu_are_read_once_and_their_mask_never(any_device):
    mask_cache.clear_masks()
    ranges, types = torch.tensor([[0, 120], [90, ROWS]]), torch.tensor([1, 0])
    wanted = IntervalMask.from_slices(ranges, ranges, types, ROWS, ROWS)
    with PretendedGpu() as gpu:
        source = MaskSource("slices", on_gpu(ranges), on_gpu(ranges), on_gpu(types))
        mask, _ = mask_cache.find_mask(source, ROWS, ROWS, GPU)
        found = [tensors(plan) for plan in plans(mask)]
    assert gpu.read == ["aten._to_copy.default"]
    assert all(torch.equal(x.held, y) for x, y in zip(found[0], tensors(next(plans(wanted))), strict=True))


def test_the_counter_counts_what_waits_for_a_gpu():
    x = torch.tensor([3, 0, 3])
    with PretendedGpu() as gpu:
        there = on_gpu(x)
        there + 1, there.cumsum(0), there[there.argsort()], torch.zeros(3, device=GPU) + x.to(GPU)
        assert gpu.read == []
        int(there.sum()), there.nonzero(), there.unique(), there.cpu(), there[there > 0]
        there.repeat_interleave(there)
        there.repeat_interleave(there, output_size=6)
    names = ["_local_scalar_dense", "nonzero", "_unique2", "_to_copy", "index", "repeat_interleave"]
    assert [name.split(".")[1] for name in gpu.read] == names
