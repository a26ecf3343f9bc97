"""The folder of `cute-attn package`, loaded from disk by the library that loads kernels of the Hugging Face Hub, in
processes of their own. Two things stand in for what a test machine lacks: the loader is told that PyTorch is built for
CUDA, without which it takes no folder of CUDA kernels, and transformers that it may use this version of the loader.
"""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from inspect import getsource
from pathlib import Path

import pytest
from oracle import allowed_error
from pages import blocks

from cute_attn.commands.kernels_layout import write_kernels_layout

TESTS = Path(__file__).parent.parent


def missing():
    """The packages that are not installed. Not by import: the tests of the simulator have a folder named kernels."""
    for name in ("kernels", "transformers"):
        try:
            version(name)
        except PackageNotFoundError:
            yield name


pytestmark = pytest.mark.skipif(bool(list(missing())), reason=f"not installed here: {', '.join(missing())}")

# None of these can be imported once the loader is there. An installed cute_attn would hide an import that leads to it.
LOAD = """
import os, sys, torch
from pathlib import Path
from kernels import get_local_kernel

for name in ("autotune", "click", "cute_attn", "matplotlib", "PIL", "platformdirs", "rich"):
    assert name not in sys.modules
    sys.modules[name] = None
torch.version.cuda = os.environ.get("CUDA", "12.8")
kernel = get_local_kernel(Path(sys.argv[1]))
torch.version.cuda = None
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hub")
    write_kernels_layout(path, None)
    return path


def run(program, *arguments, **environment):
    """What a program prints, run where no source of ours can be imported by accident."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", **environment}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    result = subprocess.run(command, cwd=arguments[0], capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


# For a process that finds no tests.
CHECK = f"""
{getsource(allowed_error)}
def check(found, exact, plain):
    error, allowed = (found.double() - exact).abs().max().item(), allowed_error(exact, plain)
    assert error <= allowed, (error, allowed)
"""
BY_ITS_PAGE, IN_TRANSFORMERS = blocks("hub.md", __file__)
ATTEND = """
import torch.nn.functional as F
from kernels import get_loaded_kernels
from kernels._rust import Digest, DigestAlgorithm

loaded = get_loaded_kernels()[0]
assert loaded.metadata.id == kernel.__name__
loaded.metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, Path(kernel.__file__).parent))

torch.manual_seed(0)
q, k, v = (torch.randn(2, 9, heads, 8, dtype=torch.bfloat16, requires_grad=True) for heads in (4, 2, 2))
wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
torch.version.cuda = "12.8"
example = (Path(sys.argv[1]) / "README.md").read_text().split("```python")[1].split("```")[0]
exec(example.replace("this folder", sys.argv[1]))
by_its_own_page = out
PAGE
torch.version.cuda = None
assert torch.equal(out, by_its_own_page)
torch.testing.assert_close(out, kernel.flash_attn_func(q, k, v, causal=True)[0])

sink = torch.randn(4)
def dense(q, k, v):
    q, k, v = q.transpose(1, 2), *(x.transpose(1, 2).repeat_interleave(2, 1) for x in (k, v))
    score = q @ k.mT * 8**-0.5
    rows, keys = score.shape[-2:]
    score = score.masked_fill(torch.ones(rows, keys).tril(keys - rows) == 0, -torch.inf)
    score = torch.cat([score, sink.to(q)[:, None, None].expand(len(q), 4, rows, 1)], -1).softmax(-1)[..., :-1]
    return (score @ v).transpose(1, 2)

plain, exact = dense(q, k, v), dense(*wide)
out = kernel.flash_attn_func(q, k, v, causal=True, s_aux=sink)
check(out, exact, plain)
of = ((out, (q, k, v)), (exact, wide), (plain, (q, k, v)))
for x in zip(*(torch.autograd.grad(x.square().sum(), leaves, retain_graph=True) for x, leaves in of)):
    check(*x)

with torch.no_grad():
    ends = torch.tensor([0, 9, 18], dtype=torch.int32)
    packed = [x.flatten(0, 1) for x in (q, k, v)]
    out = kernel.flash_attn_varlen_func(*packed, ends, ends, 9, 9, causal=True, s_aux=sink)
    check(out.unflatten(0, (2, 9)), exact, plain)

    pools = [x.new_full((4, 8, 2, 8), float("nan")) for x in (k, v)]
    table = torch.tensor([[2, 0], [1, 3]], dtype=torch.int32)
    for row in range(2):
        for pool, x in zip(pools, (k, v)):
            pool[table[row].long()] = F.pad(x[row, :8], (0, 0, 0, 0, 0, 8), value=float("nan")).unflatten(0, (2, 8))
    lengths = torch.tensor([8, 8], dtype=torch.int32)
    last = [x[:, 8:] for x in (q, k, v)]
    out = kernel.flash_attn_with_kvcache(
        last[0], *pools, *last[1:], cache_seqlens=lengths, page_table=table, causal=True, s_aux=sink
    )
    check(out, exact[:, 8:], plain[:, 8:])

try:
    kernel.flash_attn_func(q, k, v, dropout_p=0.5)
except ValueError as error:
    assert "dropout_p" in str(error)
else:
    raise AssertionError("dropout was let pass")

del sys.modules["cute_attn"]
sys.path.insert(0, sys.argv[2])
import cute_attn  # another version of it, for all that it knows

assert cute_attn.renamed.NAMESPACE == "cute_attn" and kernel.cute_attn.renamed.NAMESPACE == kernel.__name__
mask = cute_attn.mask.causal(9)
out, lse = cute_attn.flex_flash_attn_func(q[0], k[0], v[0], mask)
again, _ = kernel.cute_attn.flex_flash_attn_func(q[0], k[0], v[0], kernel.cute_attn.mask.causal(9))
assert torch.equal(out, again)
assert not [name for name in ("click", "rich", "matplotlib", "PIL", "platformdirs") if sys.modules[name]]
"""


@pytest.mark.slow
def test_the_loader_takes_it_where_neither_the_commands_libraries_nor_another_cute_attn_can_be_imported(folder):
    run(LOAD + CHECK + ATTEND.replace("PAGE", BY_ITS_PAGE.replace('"hub"', "sys.argv[1]")), folder, TESTS.parent)


COMPILE = """
q = torch.randn(2, 9, 4, 8)
compiled = torch.compile(lambda: kernel.flash_attn_func(q, q, q, causal=True), backend="aot_eager", fullgraph=True)
torch.testing.assert_close(compiled(), kernel.flash_attn_func(q, q, q, causal=True))
"""


@pytest.mark.slow
def test_a_compiled_graph_takes_its_ops(folder):
    run(LOAD + COMPILE, folder)


MODELS = """
import os, sys, torch
from pathlib import Path
os.environ["LOCAL_KERNELS"] = f"somebody/cute-attn={sys.argv[1]}"
import transformers.utils.import_utils as utils
utils.is_kernels_available = lambda *versions: True

sys.path.insert(0, sys.argv[2])
from tiny_models import model, tokens

padding = torch.ones(2, 12, dtype=torch.long)
padding[0, :5] = 0
for name in ("llama", "mistral", "gemma2", "gpt_oss"):
    own, ids = model(name, "eager").eval(), tokens()
    wanted = [own(ids).logits, own(ids, attention_mask=padding).logits[padding.bool()]]
    torch.version.cuda = "12.8"
    own.set_attn_implementation("somebody/cute-attn")
    torch.version.cuda = None
    found = [own(ids).logits, own(ids, attention_mask=padding).logits[padding.bool()]]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
name = str(Path(sys.argv[1]).parent / "model")
own.save_pretrained(name)
torch.version.cuda = "12.8"
PAGE
torch.version.cuda = None
torch.testing.assert_close(model.eval()(ids).logits, wanted[0], rtol=0, atol=1e-5)
from kernels import get_loaded_kernels
print(*(loaded.module.__file__ for loaded in get_loaded_kernels()))
"""


@pytest.mark.slow
def test_transformers_loads_it_by_its_own_code_and_gives_the_logits_of_eager(folder):
    printed = run(MODELS.replace("PAGE", IN_TRANSFORMERS), folder, Path(__file__).parent)
    assert printed.split() == [str(folder / "build" / "torch-cuda" / "__init__.py")]


ON_KERNELS = """
if len(sys.argv) > 2:
    sys.modules["cutlass"] = None
torch.manual_seed(1)
q, k, v = (torch.randn(1, 2, 70, 64, dtype=torch.bfloat16) for _ in range(3))
halved = lambda score, b, h, q_idx, kv_idx: torch.where(kv_idx == 3, score * 0.5, score)
with kernel.cute_attn.backend("sim"):
    out = kernel.cute_attn.flex_attention(q, k, v, halved)
def dense(q, k, v):
    score = q @ k.mT * 64**-0.5
    score[..., 3] *= 0.5
    return score.softmax(-1) @ v
check(out, dense(q.double(), k.double(), v.double()), dense(q, k, v))
print(kernel.__file__, out.view(torch.int16).tolist())
"""


@pytest.mark.slow
def test_what_it_compiles_makes_the_variant_that_runs_without_the_compiler(folder, tmp_path):
    """The kernel of a score_mod: its sources import one another inside of functions too."""
    program, cache = LOAD + CHECK + ON_KERNELS, tmp_path / "cache"
    _, _, first = run(program, folder, CUTE_ATTN_CACHE_DIR=str(cache)).partition(" ")
    _pure, ahead = write_kernels_layout(tmp_path / "hub", cache)
    elsewhere = str(tmp_path / "none")
    cuda = "13.0" if "-cu130-" in ahead.name else "12.8"
    printed = run(program, tmp_path / "hub", "no compiler", CUTE_ATTN_CACHE_DIR=elsewhere, CUDA=cuda)
    file, _, second = printed.partition(" ")
    assert Path(file) == ahead / "__init__.py"
    assert first == second
