"""Kernels that we did not write: quack's products, softmax and normalisation for Hopper, against fp64."""

import functools
import itertools

import pytest
import torch
from peers import converting_arguments_as

from cute_attn import sim
from cute_attn.sim.errors import UninitializedRead

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

MODES = ("eager", "late", "random")  # within a test: compiling takes longer than running
UNIT = 2.0**-8  # relative error of rounding to bf16


@pytest.fixture(scope="module", autouse=True)
def compiled_for_hopper():
    """Imported by the worker that needs it. Its cache on disk is off: kernels from there bring no PTX."""
    pytest.importorskip("quack", reason="quack-kernels is not installed: pip install -e '.[peers]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUACK_ARCH", "sm_90")
        from quack import cache, cute_dsl_utils  # noqa: F401

        patch.setattr(cache, "CACHE_ENABLED", False)  # the variable is read when quack is imported, by whomever
        with converting_arguments_as("quack.cute_dsl_utils"):
            yield


def assert_rounded(name, result, exact):
    """What rounding once to bf16 explains, and a little for sums in fp32."""
    allowed = UNIT * exact.abs() + 1e-4 * exact.abs().max()
    share = ((result.double() - exact).abs() / allowed).max()
    assert share <= 1, f"{name}: an error is {share.item():.3g} times what rounding explains"


@pytest.mark.slow
def test_a_persistent_matrix_product_with_ragged_tiles():
    from quack.gemm_interface import gemm

    a, b = torch.randn(200, 136).bfloat16(), torch.randn(136, 192).bfloat16()
    for mode in MODES:
        with sim.simulated(mode):
            out = gemm(a, b, tuned=False)
        assert_rounded("out", out, a.double() @ b.double())


@pytest.mark.slow
def test_products_of_groups_of_rows_of_any_length_through_one_map_that_is_moved():
    from quack.gemm_interface import gemm

    a, b = torch.randn(200, 64).bfloat16(), torch.randn(3, 64, 128).bfloat16()
    starts = torch.tensor([0, 70, 70, 200], dtype=torch.int32)  # one is empty
    pairs = enumerate(itertools.pairwise(starts.tolist()))
    expected = torch.cat([a[first:end].double() @ b[i].double() for i, (first, end) in pairs])
    for mode in MODES:
        with sim.simulated(mode):
            out = gemm(a, b, cu_seqlens_m=starts, tuned=False)
        assert_rounded("out", out, expected)


def test_softmax_of_fewer_rows_than_a_block_has_reads_what_it_discards():
    from quack.softmax import softmax_fwd

    x = torch.randn(6, 256).bfloat16()
    with pytest.raises(UninitializedRead), sim.simulated():
        softmax_fwd(x)
    for mode in MODES:
        with sim.simulated(mode, warn=[UninitializedRead]) as reports:
            out = softmax_fwd(x)
        assert any("UninitializedRead" in warning for report in reports for warning in report.warnings)
        assert_rounded("out", out, x.double().softmax(-1))


@pytest.mark.slow
def test_gradients_of_a_normalisation():
    from quack.rmsnorm import rmsnorm_bwd

    x, grad = (torch.randn(9, 256).bfloat16() for _ in range(2))
    weight = torch.randn(256)
    root = x.float().square().mean(-1).add(1e-6).rsqrt()
    leaves = x.double().requires_grad_(), weight.double().requires_grad_()
    normal = leaves[0] * leaves[0].square().mean(-1, keepdim=True).add(1e-6).rsqrt() * leaves[1]
    exact = torch.autograd.grad(normal, leaves, grad.double())
    for mode in MODES:
        with sim.simulated(mode):
            dx, dweight, dbias, _ = rmsnorm_bwd(x, weight, grad, root, has_bias=True)  # without, an operator of CUDA's
        assert_rounded("dx", dx, exact[0])
        assert_rounded("dweight", dweight, exact[1])
        assert_rounded("dbias", dbias, grad.double().sum(0))


@pytest.mark.slow
def test_no_schedule_changes_a_bit_of_a_product():
    from quack.gemm_interface import gemm

    product = functools.partial(gemm, tuned=False)
    sim.strict(product, torch.randn(130, 64).bfloat16(), torch.randn(64, 128).bfloat16(), deterministic=True)
