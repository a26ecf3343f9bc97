"""Kernels that we did not write: the interval attention of cuDNN's frontend, through its own interface.

What they make of a mask's intervals before is made by kernels too. Against attention in fp64; allowed is what rounding
P, dS and the results to bf16 explains.
"""

import importlib

import pytest
import torch
from peers import converting_arguments_as

from cute_attn import sim

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # theirs

MODES = ("eager", "late", "random")  # within a test: compiling takes longer than running
TOLERANCE = 2.0**-6  # of the largest number of a result
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


def exact(q, k, v, d_out, seen):
    """out, lse and gradients in fp64; rows that see nothing are zero, their lse is -inf."""
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    queries, keys, values = (x.transpose(1, 2) for x in leaves)
    group = queries.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(group, 1) for x in (keys, values))
    scores = (q.shape[-1] ** -0.5 * queries @ keys.mT).masked_fill(~seen, -torch.inf)
    out = (torch.where(seen.any(-1, keepdim=True), scores, 0.0).softmax(-1) * seen @ values).transpose(1, 2)
    gradients = torch.autograd.grad(out, leaves, d_out.double())
    return {
        "out": out.detach(),
        "lse": scores.logsumexp(-1).detach(),
        **dict(zip(("dq", "dk", "dv"), gradients, strict=True)),
    }


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


def assert_right(results, expected):
    for (name, value), result in zip(expected.items(), results, strict=True):
        finite = value.isfinite()
        assert torch.equal(result[~finite].double(), value[~finite]), name
        error = (result[finite].double() - value[finite]).abs().max() / value[finite].abs().max()
        assert error <= TOLERANCE, f"{name}: {error:.3g} of its largest number"


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dims", "mask_heads"), [(2, 1, (64, 64), 2), (2, 2, (192, 128), 1)], ids=["64", "192/128"]
)
def test_two_intervals_and_rows_without_keys(theirs, heads, kv_heads, dims, mask_heads):
    case = inputs(heads, kv_heads, *dims)
    ends = intervals(mask_heads)
    expected = exact(*case, visible(ends))
    for mode in MODES:
        with sim.simulated(mode):
            results = attended(theirs, ends, *case)
        assert_right(results, expected)


def test_no_schedule_changes_a_bit_where_it_claims_so(theirs):
    case = inputs(1, 1, 128, 128)
    ends = intervals(1)
    results = []
    sim.strict(
        lambda *x: results.append(attended(theirs, ends, *x, deterministic=True)) or results[-1],
        *case,
        deterministic=True,
    )
    assert_right(results[0], exact(*case, visible(ends)))
