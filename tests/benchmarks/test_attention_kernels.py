"""The very calls that are timed on a GPU, on the CPU at small sizes, against the reference in fp32."""

import os

import pytest
import torch
from agreement import disagreement
from attention_cases import CASES, OPERATIONS, make_inputs
from attention_kernels import PEERS, flex, mask_mod, ours, prepared, sdpa
from small_problem import NAMES, exact, small
from torch.nn.attention import SDPBackend

CPU = torch.device("cpu")


def assert_exact(kernel, problem, operation):
    inputs = make_inputs(problem, CPU)
    run = prepared(kernel, operation, inputs)
    expected = exact(problem, operation, inputs)
    for _ in range(2):  # a backward is timed many times
        assert disagreement(NAMES[operation], run(), expected) is None


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", CASES)
def test_ours(name, operation):
    problem = small(name)
    assert_exact(ours(problem, CPU, operation == "deterministic"), problem, operation)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", ["causal", "full", "small", "latent"])
def test_sdpa_with_its_math_backend(name, operation):
    problem = small(name)
    assert PEERS["sdpa-cudnn"].why_not(problem) is None
    kernel = sdpa(problem, CPU, operation == "deterministic", SDPBackend.MATH)
    assert_exact(kernel, problem, operation)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("name", ["full", "window", "prefix"])
def test_flex_attention_uncompiled(name):
    problem = small(name)
    assert_exact(flex(problem, CPU, False, compiler=None), problem, "forward")


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["forward", "backward"])
@pytest.mark.parametrize("name", CASES)
def test_flex_attention_traced_and_run_as_it_is_compiled(name, operation, monkeypatch):
    """PyTorch refuses a backward on the CPU before it gets to the code that is the same everywhere."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *tensors: None)
    problem = small(name)
    assert_exact(flex(problem, CPU, False, compiler="aot_eager"), problem, operation)


@pytest.mark.parametrize("name", CASES)
def test_the_mask_of_flex_attention_is_the_mask(name):
    problem = small(name)
    rows, keys = torch.arange(problem.seqlen_q)[:, None], torch.arange(problem.seqlen_k)[None]
    found = mask_mod(problem, CPU)(0, 0, rows, keys) if problem.mask != "full" else torch.ones(len(rows), keys.numel())
    assert torch.equal(found.bool(), problem.intervals().to_dense()[0])


def test_sdpa_says_which_masks_it_has():
    for name in ("packed", "window", "prefix"):
        assert "causal masks only" in PEERS["sdpa-flash"].why_not(small(name))
    assert (
        PEERS["sdpa-flash"].why_not(small("causal", seqlen_k=256)) is not None
    )  # its diagonal begins at the first key


def test_a_package_that_is_missing_is_named(monkeypatch):
    import attention_kernels

    def missing():
        raise ModuleNotFoundError("No module named 'flash_attn'")

    monkeypatch.setattr(attention_kernels, "_interface", missing)
    assert "not installed" in PEERS["flash-attn-4"].why_not(small("causal"))


@pytest.fixture
def flash_attention_4(monkeypatch):
    """Importable without a GPU, and the simulator to run it in."""
    monkeypatch.setenv("FLASH_ATTENTION_ARCH", "sm_90")
    monkeypatch.setenv("FLASH_ATTENTION_NUM_SMS", "132")
    reason = "flash-attn-4 is not installed: pip install -e '.[peers]'"
    pytest.importorskip("flash_attn.cute.interface", reason=reason)
    import attention_kernels

    attention_kernels._interface()
    return attention_kernels.flash_attention_4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", ["causal", "full", "packed", "small", "window"])
def test_flash_attn_4_in_simulation(flash_attention_4, name, operation):
    from cute_attn import sim

    problem = small(name, heads_q=2, heads_k=2 if name == "small" else 1)
    assert PEERS["flash-attn-4"].why_not(problem) is None
    with sim.simulated():
        assert_exact(flash_attention_4(problem, CPU, operation == "deterministic"), problem, operation)


@pytest.mark.slow
def test_our_kernels_compile_beside_those_of_flash_attn_4(flash_attention_4):
    from cute_attn.jit.compile import compile
    from cute_attn.spec.forward import ForwardSpec
    from cute_attn.spec.mask import MaskForm

    compile(ForwardSpec(head_dim=64, head_dim_v=64, mask=MaskForm(True)))
    assert "flash-attn-4 has no name" in PEERS["flash-attn-4"].why_not(small("prefix"))
    assert os.environ["FLASH_ATTENTION_ARCH"] == "sm_90"
