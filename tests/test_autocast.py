"""What autocast does to attention: nothing."""

import ast
from pathlib import Path

import pytest
import torch
from oracle import assert_close

import cute_attn
from cute_attn import AttnMaskType, AttnRanges, fa3_func_with_sink, flex_flash_attn_func, reference
from cute_attn.dist import calc_attn, magi_attn_flex_key
from cute_attn.mask import causal

ROWS = 40
EXACT = 1e-5  # fp32 against fp64; products rounded to fp16 would be 1e-3 off, to bf16 more
DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()


def leaves(scale=1.0):
    return [(torch.randn(ROWS, heads, 16) * scale).requires_grad_() for heads in (4, 2, 2)]


def flex(q, k, v):
    return flex_flash_attn_func(q, k, v, [[0, ROWS]], [[0, ROWS]], attn_type_map="causal")


def flash(q, k, v):
    sink = torch.zeros(2, 4, device=q.device)
    return fa3_func_with_sink(q[None], k[None], v[None], sink, causal=True, softcap=5.0, return_attn_probs=True)


def results_and_gradients(function, inputs, within):
    """The backward runs within autocast too."""
    with within:
        results = function(*inputs)
        return [*results, *torch.autograd.grad([x.sin().sum() for x in results], inputs)]


def in_double(function, inputs):
    return results_and_gradients(function, [x.detach().double().requires_grad_() for x in inputs], torch.enable_grad())


@pytest.mark.parametrize("compiler", [None, "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fp32_stays_exact(dtype, compiler):
    inputs = leaves()
    wanted = in_double(flex, inputs)
    function = flex if compiler is None else torch.compile(flex, fullgraph=True, backend=compiler)
    got = results_and_gradients(function, inputs, torch.autocast("cpu", dtype=dtype))
    for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert a.dtype == torch.float32
        assert_close(f"result {i}", a, b, EXACT)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sinks_and_softcap_stay_exact(dtype):
    inputs = leaves()

    def doubled(q, k, v):
        sink = torch.zeros(2, 4, dtype=torch.float64)
        return fa3_func_with_sink(q[None], k[None], v[None], sink, causal=True, softcap=5.0, return_attn_probs=True)

    wanted = in_double(doubled, inputs)
    got = results_and_gradients(flash, inputs, torch.autocast("cpu", dtype=dtype))
    for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert_close(f"result {i}", a, b, EXACT)


def test_large_inputs_do_not_overflow_fp16():
    q, k, v = leaves(scale=400.0)  # scores past 65504
    plain = flex(q, k, v)
    with torch.autocast("cpu", dtype=torch.float16):
        assert all(torch.equal(a, b) for a, b in zip(flex(q, k, v), plain, strict=True))
    assert all(x.isfinite().all() for x in plain)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_itself_is_not_touched(dtype):
    q, k, v = (x.detach()[None] for x in leaves())
    mask = causal(ROWS)
    arguments = mask.lo, mask.hi, None, 0.25, 0.0
    out, lse, _ = reference.attention_forward(q, k, v, *arguments)
    wanted = reference.attention_backward(out, lse, q, k, v, out, lse, *arguments)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(reference.attention_forward(q, k, v, *arguments)[0], out)
        got = reference.attention_backward(out, lse, q, k, v, out, lse, *arguments)
        assert torch.get_autocast_dtype("cpu") == dtype
        assert torch.is_autocast_enabled("cpu")
    assert all(a is None if b is None else torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_every_function_that_multiplies_matrices_of_torch_is_known():
    """The reference and MoBA's gates run without autocast, NumPy and the DSL know none; the rest are formulas."""
    root = Path(cute_attn.__file__).parent
    products = {"matmul", "bmm", "mm", "einsum", "addmm", "baddbmm", "linear", "addbmm", "mv", "dot", "tensordot"}
    found = set()
    for path in root.glob("**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            is_operator = isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in products
            if is_operator or is_call:
                found.add(str(path.relative_to(root)))
    without = {"reference.py", "ops/chosen.py"}
    formulas = {"commands/demo.py", "selftest/plain.py", "selftest/decode.py"}
    numpy_only = {"dist/placing/spread.py", "dist/placing/locality.py"}
    found = {name for name in found if not name.startswith(("sim/", "fwd/", "bwd/", "sm90/"))}
    assert found <= {*without, *formulas, *numpy_only}


@pytest.mark.parametrize("dtype", DTYPES)
def test_calc_attn_stays_exact(dtype, tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        ranges = AttnRanges([[0, ROWS]])
        group = torch.distributed.group.WORLD
        key = magi_attn_flex_key(ranges, ranges, [AttnMaskType.CAUSAL], ROWS, ROWS, 0, 8, group)
        inputs = leaves()
        wanted = in_double(flex, inputs)
        within = torch.autocast("cpu", dtype=dtype)
        got = results_and_gradients(lambda q, k, v: calc_attn(q, k, v, key), inputs, within)
    finally:
        torch.distributed.destroy_process_group()
    for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert a.dtype == torch.float32
        assert_close(f"result {i}", a, b, EXACT)
