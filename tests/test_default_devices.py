"""Where plans live follows from the tensors of a call, never from a default device."""

import ast
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import cute_attn
from cute_attn import (
    AttnRanges,
    IntervalMask,
    fa3_func_with_sink,
    fa3_varlen_func_with_sink,
    flex_flash_attn_func,
    mask,
)
from cute_attn.dist import infer_varlen_mask_from_batch
from cute_attn.dist.config import OverlapConfig
from cute_attn.dist.cost import CostModel
from cute_attn.dist.placing.placement import Placement
from cute_attn.dist.plans.group_cast import plan_group_cast
from cute_attn.ops import mask_cache

# What torch makes on the default device, unless told another.
# fmt: off
FACTORIES = {
    "arange", "as_tensor", "asarray", "complex", "empty", "empty_permuted", "empty_strided", "eye", "full",
    "linspace", "logspace", "normal", "ones", "rand", "randint", "randn", "randperm", "range", "scalar_tensor",
    "tensor", "tril_indices", "triu_indices", "zeros",
}
# fmt: on


def test_every_factory_call_of_the_package_says_where():
    root, missing, seen = Path(cute_attn.__file__).parent, [], 0
    for path in root.glob("**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = node.func.value
            if not isinstance(owner, ast.Name) or owner.id != "torch":
                continue
            if node.func.attr in FACTORIES:
                seen += 1
                given = [keyword for keyword in node.keywords if keyword.arg == "device"]
                if not given or (isinstance(given[0].value, ast.Constant) and given[0].value.value is None):
                    missing.append(f"{path.relative_to(root)}:{node.lineno} torch.{node.func.attr}")
    assert seen > 50
    assert not missing


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


WITHIN = {"with": lambda: torch.device("meta"), "default": lambda: default_device("meta")}


@pytest.mark.parametrize("within", WITHIN)
@pytest.mark.parametrize("form", ["tensors", "lists", "ranges", "types", "window", "documents", "mask"])
def test_a_default_device_changes_no_call(form, within):
    mask_cache.clear_masks()
    q = torch.randn(12, 2, 8, requires_grad=True)
    pairs, ends = torch.tensor([[0, 12]]), torch.tensor([0, 5, 12])

    def call():
        return {
            "tensors": lambda: flex_flash_attn_func(q, q, q, pairs, pairs)[0],
            "lists": lambda: flex_flash_attn_func(q, q, q, [[0, 12]], [[0, 12]], attn_type_map=["causal"])[0],
            "ranges": lambda: flex_flash_attn_func(q, q, q, AttnRanges([[0, 12]]), AttnRanges([[0, 12]]))[0],
            "types": lambda: flex_flash_attn_func(q, q, q, pairs, pairs, attn_type_map="causal")[0],
            "window": lambda: fa3_func_with_sink(q[None], q[None], q[None], window_size=(3, 0)),
            "documents": lambda: fa3_varlen_func_with_sink(q, q, q, ends, ends, 7, 7),
            "mask": lambda: flex_flash_attn_func(q, q, q, mask.sliding_window(12, left=2, right=1))[0],
        }[form]()

    with WITHIN[within]():
        out = call()
        (got,) = torch.autograd.grad(out.sum(), q, torch.ones((), device="cpu"))
    mask_cache.clear_masks()
    wanted = call()
    assert torch.equal(out, wanted)
    assert torch.equal(got, torch.autograd.grad(wanted.sum(), q)[0])


BUILDERS = {
    "full": lambda: mask.full(8),
    "causal": lambda: mask.causal(8, 9, offset=1),
    "sliding_window": lambda: mask.sliding_window(8, window_size=3),
    "documents": lambda: mask.documents(8, cu_seqlens=[0, 3, 8]),
    "causal_documents": lambda: mask.causal_documents(8, segment_ids=[0, 0, 1, 1, 0, 0, 2, 2]),
    "prefix_lm": lambda: mask.prefix_lm(8, prefix_length=3),
    "shared_prefix": lambda: mask.shared_prefix(8, prefix_length=2, lengths=[3, 3]),
    "chunked_causal": lambda: mask.chunked_causal(8, chunk_size=3),
    "block_causal": lambda: mask.block_causal(8, block_size=2),
    "block_diffusion": lambda: mask.block_diffusion(8, block_size=2),
    "bidirectional_runs": lambda: mask.bidirectional_runs(8, runs=[[2, 5]]),
    "bidirectional_mask": lambda: mask.bidirectional_runs(8, bidirectional_mask=[0, 1, 1, 0, 0, 1, 1, 1]),
    "global_tokens": lambda: mask.global_tokens(8, positions=[0, 5], left=1, right=1),
    "from_spec": lambda: mask.from_spec("causal_documents:cu_seqlens=0/3/8", 8),
    "from_slices": lambda: IntervalMask.from_slices([[0, 4], [2, 8]], [[0, 4], [6, 8]], ["full", "causal"]),
    "combined": lambda: ~mask.causal(8) | mask.sliding_window(8, left=1, right=0) & mask.full(8),
}


@pytest.mark.parametrize("within", WITHIN)
@pytest.mark.parametrize("builder", BUILDERS)
def test_a_default_device_changes_no_mask(builder, within):
    assert set(mask.BUILDERS) <= set(BUILDERS)
    with WITHIN[within]():
        made = BUILDERS[builder]()
        schedule = made.schedule((4, 4))
        copy = IntervalMask(made.lo, made.hi, made.seqlen_k)
    assert made.device.type == "cpu"
    assert made.equals(BUILDERS[builder]())
    assert copy.equals(made)
    assert torch.equal(schedule.to_grid(), BUILDERS[builder]().schedule((4, 4)).to_grid())


@pytest.mark.parametrize("within", WITHIN)
def test_a_default_device_changes_no_plan_of_ranks(within):
    def plan():
        placement = Placement.contiguous(64, 8, 2, 4)
        cost = CostModel(2, 1, 64, 64, 2)
        return plan_group_cast(mask.causal(64), placement, placement, 1, OverlapConfig(), cost)

    with WITHIN[within]():
        made = plan()
        ends, _ = infer_varlen_mask_from_batch(2, 5)
    assert ends.tolist() == [0, 5, 10]
    assert str(made) == str(plan())


@pytest.mark.parametrize("name", ["q_ranges", "k_ranges", "attn_type_map", "cu_seqlens_q", "cu_seqlens_k", "lo"])
def test_mask_tensors_on_meta_are_refused(name):
    q = torch.randn(8, 1, 8)
    pairs, ends = torch.tensor([[0, 8]]), torch.tensor([0, 8])
    flex = {"q_ranges": pairs, "k_ranges": pairs, "attn_type_map": torch.tensor([1])}
    varlen = {"cu_seqlens_q": ends, "cu_seqlens_k": ends, "max_seqlen_q": 8, "max_seqlen_k": 8}

    def call():
        if name in flex:
            return flex_flash_attn_func(q, q, q, **{**flex, name: flex[name].to("meta")})
        if name in varlen:
            return fa3_varlen_func_with_sink(q, q, q, **{**varlen, name: ends.to("meta")})
        return IntervalMask(*torch.zeros(2, 1, 1, 8, dtype=torch.int32, device="meta"), 8)

    with pytest.raises(ValueError, match=f"{name} must hold values, got .*meta"):
        call()
