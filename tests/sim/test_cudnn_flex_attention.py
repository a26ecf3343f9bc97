"""Kernels that we did not write: the interval attention of cuDNN's frontend, through its own interface.

What they make of a mask's intervals before is made by kernels too. They may be twice as far from attention in fp64 as
plain PyTorch in bf16 is.
"""

import functools
import importlib

import pytest
import torch
from oracle import assert_no_worse, plain_attention, results
from peers import converting_arguments_as

from cute_attn import sim

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # theirs

MODES = ("eager", "late", "random")  # within a test: compiling takes longer than running
TOKENS = 200


@pytest.fixture(scope="module")
def theirs():
    """Imported by the worker that needs it: the import alone takes seconds. It asks once which GPU there is."""
    reason = "nvidia-cudnn-frontend is not installed: EXTRAS=dev,peers bash setup.sh"
    flex = pytest.importorskip("cudnn.flex_attention", reason=reason)
    architecture = importlib.import_module("cudnn.flex_attention.runtime.arch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLEX_ATTENTION_ARCH", "sm_90")
        with sim.simulated():
            patch.setattr(torch.cuda, "is_available", lambda: True)
            assert architecture.get_device_arch(None) == 90  # and remembers it
            patch.undo()
        patch.setenv("FLEX_ATTENTION_ARCH", "sm_90")
        with converting_arguments_as("cudnn.flex_attention._compat.cute_dsl_utils"):
            yield flex


def intervals(heads):
    """int32 [heads, 3, tokens]: keys from 0 to the first, and from the second to the third; some rows see none."""
    row, head = torch.arange(TOKENS), torch.arange(heads)[:, None]
    start = (row // 2 + 8 * head).minimum(row + 1)
    ends = torch.stack([(row // 4).expand(heads, -1), start, (row + 1).expand(heads, -1)], 1)
    ends[:, :, 7:9] = 0  # empty ones
    ends[:, :, 150:] = torch.tensor([0, 90, 190])[:, None]
    return ends.int().contiguous()


def visible(ends):
    """bool [heads, tokens, tokens]."""
    key = torch.arange(TOKENS)
    first, start, end = (x[..., None] for x in ends.unbind(1))
    return (key < first) | ((key >= start) & (key < end))


def attention(q, k, v, d_out, seen, dtype):
    """out, lse and gradients of PyTorch in a dtype, lse in fp32 at least; rows that see nothing are zero."""
    leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
    attend = functools.partial(
        plain_attention, mask=seen[None], sink=None, softmax_scale=q.shape[-1] ** -0.5, softcap=0.0
    )
    return results(lambda *x: attend(*x)[:2], leaves, d_out, torch.zeros(1, q.shape[2], TOKENS))


def inputs(heads, kv_heads, head_dim, head_dim_v):
    """q, k, v and the gradient of the output, [1, tokens, heads, head_dim]."""
    shapes = (heads, head_dim), (kv_heads, head_dim), (kv_heads, head_dim_v), (heads, head_dim_v)
    return [torch.randn(1, TOKENS, *shape).bfloat16() for shape in shapes]


def attended(theirs, ends, q, k, v, d_out, deterministic=False):
    """Their output, logsumexp and gradients."""
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    plan = theirs.create_mask_plan(ends, *leaves)
    out, lse = theirs.flex_attn_func(*leaves, mask_plan=plan, return_lse=True, deterministic=deterministic)
    out.backward(d_out)
    return out.detach(), lse.detach(), *(leaf.grad for leaf in leaves)


def assert_right(got, case, seen):
    expected, plain = (attention(*case, seen, dtype) for dtype in (torch.float64, torch.bfloat16))
    assert_no_worse(("out", "lse", "dq", "dk", "dv"), got, expected, plain)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dims", "mask_heads"), [(2, 1, (64, 64), 2), (2, 2, (192, 128), 1)], ids=["64", "192/128"]
)
def test_two_intervals_and_rows_without_keys(theirs, heads, kv_heads, dims, mask_heads):
    case = inputs(heads, kv_heads, *dims)
    ends = intervals(mask_heads)
    for mode in MODES:
        with sim.simulated(mode):
            got = attended(theirs, ends, *case)
        assert_right(got, case, visible(ends))


def test_no_schedule_changes_a_bit_where_it_claims_so(theirs):
    case = inputs(1, 1, 128, 128)
    ends = intervals(1)
    runs = []
    sim.strict(
        lambda *x: runs.append(attended(theirs, ends, *x, deterministic=True)) or runs[-1],
        *case,
        deterministic=True,
    )
    assert_right(runs[0], case, visible(ends))
