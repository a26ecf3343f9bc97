"""From a call to the arguments of a kernel a mask is parsed, checked and looked up once, and in the backward never."""

from collections import Counter

import pytest
import torch

from cute_attn import (
    AttnRanges,
    backend,
    create_block_mask,
    fa3_varlen_func_with_sink,
    flex_attention,
    flex_flash_attn_func,
    sim,
)
from cute_attn.mask import IntervalMask, causal, slices
from cute_attn.mask import ranges as ranges_module
from cute_attn.mask.source import MaskSource
from cute_attn.mods import block_mask as block_mask_module
from cute_attn.mods import masks as masks_module
from cute_attn.ops import attention_op, flex_flash, mask_cache, mods_op, plans
from cute_attn.ops import flex_attention as flex_module

TOKENS = 200
# What is counted: each is one step of the walk of a mask.
STEPS = {
    "parse": [(ranges_module, "ranges_tensor"), (flex_flash, "ranges_tensor")],
    "check form": [(flex_flash, "check_integer_tensor"), (flex_flash, "check_mask"), (flex_module, "_check_mask")],
    "check values": [(slices, "_check")],
    "read": [(masks_module, "read_function"), (block_mask_module, "read_lists")],
    "content": [(mask_cache, "on_host")],
    "look up": [(plans, "find_mask"), (flex_flash, "find_mask"), (flex_flash, "seen_mask")],
    "build": [(MaskSource, "build"), (IntervalMask, "_of_slices")],
    "plan": [(plans, "make_plan")],
    "ask for plan": [(attention_op, "plan_of"), (mods_op, "plan_of")],
}


@pytest.fixture
def steps(compiles, monkeypatch):
    """How often each step was taken; no kernel runs."""
    found = Counter()
    for step, places in STEPS.items():
        for module, name in places:
            monkeypatch.setattr(module, name, counting(found, step, getattr(module, name)))
    monkeypatch.setattr(sim, "run", lambda *arguments, **options: None)
    mask_cache.clear_masks()
    return found


def counting(found, step, function):
    def counted(*arguments, **keywords):
        found[step] += 1
        return function(*arguments, **keywords)

    return counted


def taken(steps, call, *shape):
    """The steps of a call, of the same call again, and of the backward of that."""
    q, k, v = (torch.zeros(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    found = []
    with backend("sim"):
        for _ in range(2):
            steps.clear()
            out = call(q, k, v)
            found.append(dict(steps))
        steps.clear()
        out.sum().backward()
    return *found, dict(steps)


def test_ranges_in_tensors(steps):
    ranges, types = torch.tensor([[0, 90], [90, TOKENS]]), torch.tensor([0, 1])

    def call(q, k, v):
        return flex_flash_attn_func(q, k, v, ranges, ranges, attn_type_map=types)[0]

    first = {"look up": 2, "check form": 3, "content": 1}  # unchecked; then checked: q_ranges, k_ranges, attn_type_map
    first |= {"check values": 1, "build": 2, "ask for plan": 1, "plan": 1}  # of slices, and of the intervals
    assert taken(steps, call, TOKENS, 2, 64) == (first, {"look up": 1}, {})


def test_ranges_in_lists(steps):
    ranges = AttnRanges.from_ranges([[0, 90], [90, TOKENS]])

    def call(q, k, v):
        return flex_flash_attn_func(q, k, v, ranges, ranges, attn_type_map="causal")[0]

    again = {"parse": 2, "check form": 1, "look up": 1, "content": 1}
    first = again | {"check values": 1, "build": 2, "ask for plan": 1, "plan": 1}
    assert taken(steps, call, TOKENS, 2, 64) == (first, again, {})


def test_documents(steps):
    ends = torch.tensor([0, 90, TOKENS])

    def call(q, k, v):
        return fa3_varlen_func_with_sink(q, k, v, ends, ends, 110, 110)

    again = {"ask for plan": 1, "look up": 1, "content": 1}
    assert taken(steps, call, TOKENS, 2, 64) == (again | {"build": 1, "plan": 1}, again, {})


def test_an_interval_mask(steps):
    mask = causal(TOKENS)
    found = taken(steps, lambda q, k, v: flex_flash_attn_func(q, k, v, mask)[0], TOKENS, 2, 64)
    assert found == ({"check form": 1, "ask for plan": 1, "plan": 1}, {}, {})


@pytest.mark.parametrize("is_thinned", [False, True], ids=["intervals", "thinned"])
def test_a_block_mask(is_thinned, steps):
    def mask_mod(b, h, q, kv):
        return (q * kv % 3 == 0) if is_thinned else (q >= kv)

    mask = create_block_mask(mask_mod, None, None, TOKENS, TOKENS, device="cpu")
    assert steps == {"read": 1}
    again = {"check form": 1, "ask for plan": 1}
    found = taken(steps, lambda *qkv: flex_attention(*qkv, block_mask=mask), 1, 2, TOKENS, 64)
    assert found == (again | {"plan": 1}, again, {})
