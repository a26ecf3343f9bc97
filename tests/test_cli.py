"""The command `cute-attn`, as a person at a terminal meets it."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from click.testing import CliRunner

from cute_attn import cli
from cute_attn.directories import CacheUnusable
from cute_attn.errors import Unavailable
from cute_attn.mask import BUILDERS
from cute_attn.profile import sass


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")

    def invoke(*arguments):
        return CliRunner().invoke(cli.main, list(arguments))

    return invoke


def test_help_lists_every_command_without_loading_it():
    code = (
        "import sys; from cute_attn import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "loaded = [m for m in sys.modules if m.startswith(('cute_attn.commands', 'matplotlib', 'rich'))]\n"
        "assert not loaded, loaded"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    for name in cli.COMMANDS:
        assert f"\n  {name} " in result.stdout


def test_every_command_explains_itself(run):
    for name in cli.COMMANDS:
        result = run(name, "--help")
        assert result.exit_code == 0
        assert f"cute-attn {name}" in result.output or f"main {name}" in result.output
    assert "Commands:" in run().output
    assert run("--version").output.startswith("cute-attn, version ")


# ---------------------------------------------------------------- show


def test_show_draws_and_measures_slices(run):
    result = run("show", "--slice", "0:8,0:8,causal", "--slice", "8:16,0:16", "--tile", "8x8")
    assert result.exit_code == 0
    assert "16 rows, 16 keys, batch 1" in result.output
    assert "164 of 256 pairs, 64.1%; sparsity 35.9%" in result.output
    assert "2 full, 1 partial, 1 none: 75.0% visited" in result.output
    assert result.output.count("│") == 2 * 16


def test_show_draws_every_named_mask(run):
    needed = {
        "block_causal": ":block_size=32",
        "block_diffusion": ":block_size=32",
        "bidirectional_runs": ":runs=10-40",
        "chunked_causal": ":chunk_size=50",
        "documents": ":cu_seqlens=0/100/256",
        "causal_documents": ":cu_seqlens=0/100/256",
        "global_tokens": ":positions=0,left=8,right=8",
        "prefix_lm": ":prefix_length=64",
        "shared_prefix": ":prefix_length=64,lengths=96/96",
        "sliding_window": ":window_size=32",
    }
    for name in BUILDERS:
        result = run("show", "--mask", name + needed.get(name, ""), "--seqlen-q", "256")
        assert result.exit_code == 0, result.output
        assert "256 rows, 256 keys" in result.output


def test_show_writes_a_png(run, tmp_path):
    path = tmp_path / "mask.png"
    result = run("show", "--mask", "causal", "--seqlen-q", "256", "--seqlen-k", "300", "--png", str(path))
    assert result.exit_code == 0
    assert path.read_bytes().startswith(b"\x89PNG")


FUNCTIONS = """
import torch
limits = torch.arange(2048) // 3
def causal(b, h, q, k): return (q >= k) & (k >= 4 * h)
def dilated(b, h, q, k): return (q - k).abs() % 3 == 0
def outside(b, h, q, k): return k < limits[q + 2048 * b]
def score(s, b, h, q, k): return s
"""


@pytest.fixture
def functions(tmp_path):
    path = tmp_path / "functions.py"
    path.write_text(FUNCTIONS)
    return path


def test_show_draws_a_function_and_says_how_it_is_read(run, functions, tmp_path):
    picture = tmp_path / "mask.png"
    result = run("show", "--mod", f"{functions}:causal", "--seqlen-q", "16", "--head", "1", "--png", str(picture))
    assert result.exit_code == 0, result.output
    assert re.search(r"read as +1 interval a row at most", result.output)
    assert "78 of 256 pairs" in result.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    result = run("show", "--mod", f"{functions}:dilated", "--seqlen-q", "16")
    assert "86 of 256 pairs" in result.output
    assert "a predicate in 100.0% of the pairs: " in result.output
    assert "// or % of" in result.output


@pytest.mark.parametrize(
    ("mod", "words"),
    [
        ("causal", ["--mod", "expected FILE:FUNCTION such as masks.py:causal, got 'causal'"]),
        ("{}:round", ["functions.py has no function 'round'; there are: causal, dilated, outside, score"]),
        ("/nowhere.py:causal", ["/nowhere.py is no Python file"]),
        ("{}:score", ["mask_mod must take (b, h, q_idx, kv_idx)"]),
        ("{}:outside --seqlen-q 8 --batch 1", ["mask_mod reads a captured tensor of shape (2048,) at index 2048"]),
        ("{}:dilated --seqlen-q 16385", ["is not read as intervals", "at most 268,435,456 pairs"]),
    ],
)
def test_a_function_that_cannot_be_shown_is_one_line(run, functions, mod, words):
    result = run("show", "--mod", *mod.format(functions).split())
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["shw"], ["No such command 'shw'"]),
        (["show"], ["show: give either --mask or --slice or --mod"]),
        (["show", "--mask", "causal", "--slice", "0:4,0:4"], ["give either --mask or --slice"]),
        (["show", "--mask", "diagonal"], ["unknown mask 'diagonal'", "there are: bidirectional_runs"]),
        (["show", "--mask", "causal:shift=1"], ["mask causal has no argument 'shift'", "align, offset"]),
        (
            ["show", "--mask", "block_causal:block_size=abc"],
            ["mask block_causal: block_size must be an int, got 'abc'"],
        ),
        (["show", "--mask", "causal", "--seqlen-q", "4", "--seqlen-k", "99999999999"], ["seqlen_k must be below 2^31"]),
        (["show", "--slice", "0:99999999999,0:4"], ["q_ranges[0]", "end must be below 2^31"]),
        (["show", "--mask", "causal", "--seqlen-q", "0"], ["--seqlen-q", "x>=1"]),
        (["show", "--mask", "causal", "--batch", "2"], ["batch must be below the mask's batch 1, got 2"]),
        (["show", "--mask", "causal", "--tile", f"{1 << 70}x1"], ["tile must be (rows, keys), two ints"]),
        (["show", "--mask", "causal", "--tile", "128"], ["--tile", "ROWSxKEYS such as 128x128, got '128'"]),
        (["show", "--slice", "0:4"], ["--slice", "such as 0:128,0:256,causal, got '0:4'"]),
        (["show", "--slice", "0:4,0:b"], ["--slice", "got '0:4,0:b'"]),
        (["show", "--slice", "0:4,0:4,round"], ["unknown name 'round'; allowed: 'full', 'causal'"]),
        (["show", "--slice", "5:4,0:4"], ["0 <= start <= end must hold, got [5, 4)"]),
        (["show", "--slice", "0:4,0:4", "--seqlen-q", "3"], ["q_ranges[0] = [0, 4] is not a range"]),
        (["show", "--mask", "causal", "--png", "/nowhere/at/all.png"], ["No such file or directory"]),
        (["inspect", "--op", "bwd", "--softmax", "exact"], ["--softmax goes with --op fwd"]),
        (["inspect", "--op", "bwd", "--max-logits"], ["--max-logits goes with --op fwd"]),
        (["inspect", "--op", "bwd", "--stages", "4", "--tile", "64x64"], ["--stages goes with --op fwd or decode"]),
        (["inspect", "--op", "decode", "--tile", "32x128"], ["--tile 32x128: the decode has tiles of 64 keys"]),
        (["inspect", "--op", "decode", "--field", "split=1"], ["DecodeSpec.split must be a bool, got 1"]),
        (["inspect", "--field", "split"], ["--field", "expected NAME=VALUE such as split=true, got 'split'"]),
        (["inspect", "--field", "mask=1"], ["--field", "mask is said by other options"]),
        (["inspect", "--stages", "4"], ["--stages goes with --tile"]),
        (["inspect", "--max-logits", "--softmax", "stale"], ["--max-logits implies --softmax exact"]),
        (["predict", "--op", "decode"], ["'decode' is not one of 'fwd', 'bwd'"]),
        (["predict", "--op", "bwd", "--softmax", "exact"], ["--softmax goes with --op fwd"]),
        (["predict", "--deterministic"], ["--deterministic goes with --op bwd"]),
        (["predict", "--stages", "4"], ["--stages goes with --tile"]),
        (["predict", "--heads-q", "8", "--heads-k", "3"], ["--heads-q must be a multiple of --heads-k, got 8 and 3"]),
        (["predict", "--seqlen", "8kb"], ["--seqlen", "such as 65536, 64Ki, 1Mi or 10M, got '8kb'"]),
        (["predict", "--gpu", "b200"], ["--gpu", "'h100', 'h200'"]),
        (["predict", "--mask", "caudal"], ["unknown mask 'caudal'"]),
        (["predict", "--head-dim", "300"], ["--head-dim", "8<=x<=256"]),
        (["demo", "--dtype", "fp8"], ["--dtype", "'bf16', 'fp16', 'fp32', 'fp64'"]),
        (["demo", "--mask", "prefix_lm:prefix_length=4/8", "--seqlen", "16"], ["has a batch of 2"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, arguments, words):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


# ---------------------------------------------------------------- demo and doctor


@pytest.mark.parametrize("dtype", ["bf16", "fp64"])
def test_demo_checks_forward_and_backward_and_draws_the_mask(run, tmp_path, dtype):
    path = tmp_path / "mask.png"
    spec = "causal_documents:cu_seqlens=0/70/160/180"  # and padding, whose rows see no key
    result = run("demo", "--seqlen", "192", "--mask", spec, "--dtype", dtype, "--png", str(path))
    assert result.exit_code == 0, result.output
    for name in ("out", "lse", "dq", "dk", "dv", "forward", "backward", "backend reference"):
        assert name in result.output
    assert result.output.count(" ok ") == 5
    assert "All results agree" in result.output
    assert path.exists()


@pytest.mark.parametrize("wrong", [0.5, float("nan")])
def test_demo_fails_where_a_result_is_wrong(run, tmp_path, monkeypatch, wrong):
    from cute_attn.commands import demo

    right = demo.flex_flash_attn_func

    def broken(q, k, v, mask):
        out, lse = right(q, k, v, mask)
        return out + wrong, lse

    monkeypatch.setattr(demo, "flex_flash_attn_func", broken)
    result = run("demo", "--seqlen", "32", "--mask", "causal", "--png", str(tmp_path / "mask.png"))
    assert result.exit_code == 1
    assert "too large" in result.output
    assert "FAILED" in result.output
    assert "All results agree" not in result.output


def test_doctor_says_what_is_here_and_what_runs(run, monkeypatch, tmp_path):
    monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    result = run("doctor")
    assert result.exit_code == 0
    for name in ("PyTorch", "GPU", "CuTe DSL", "C compiler", str(tmp_path / "cache"), "reference", "sim", "sm90"):
        assert name in result.output
    assert "cute-attn demo" in result.output


def test_doctor_names_the_missing_compiler(run, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    assert "none of $CC, cc, gcc, clang" in run("doctor").output


def test_doctor_names_what_a_machine_with_bundles_lacks(run, monkeypatch):
    from cute_attn.commands import doctor

    def missing():
        raise Unavailable("there is none of it")

    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(doctor, "missing_compiler", lambda: "only half of it is installed")
    monkeypatch.setattr(doctor, "runtime_library", missing)
    monkeypatch.setattr(doctor, "disassembler", missing)
    lines = {line.split()[0]: " ".join(line.split()) for line in run("doctor").output.splitlines()}
    assert "missing only half of it is installed; bundles need none" in lines["CuTe"]
    assert lines["runtime"] == "runtime missing there is none of it"
    assert lines["nvdisasm"] == "nvdisasm missing there is none of it"


@pytest.mark.parametrize(
    ("place", "words"),
    [("file", "is a file, not a directory, so that kernels live in memory only"), (None, "names a home directory")],
)
def test_doctor_says_what_is_wrong_with_the_cache(run, monkeypatch, tmp_path, place, words):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COLUMNS", "300")
    if place:
        monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", str(tmp_path / place))
    else:
        monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", "~nobody-of-this-name/x")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheUnusable)
        result = run("doctor")
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("cache")]
    assert line.split()[1] == "no"
    assert words in line


def test_doctor_and_cache_ls_read_well_at_60_columns(run, monkeypatch, tmp_path):
    sys.path.append(str(Path(__file__).parent / "jit"))
    from fake_compiler import compiled

    from cute_attn.jit import cache
    from cute_attn.jit.entry import link
    from cute_attn.spec.forward import ForwardSpec
    from cute_attn.spec.mask import MaskForm

    sys.path.remove(str(Path(__file__).parent / "jit"))
    cache.commit(link(compiled(ForwardSpec(mask=MaskForm(True)))), tmp_path)
    monkeypatch.setenv("COLUMNS", "60")
    ls = run("cache", "ls", str(tmp_path)).output.splitlines()
    assert [line.split()[:3] for line in ls[:2]] == [[ls[0][:12], "current", "0.0"], ["fwd", "bf16", "head_dim"]]
    assert "".join(" ".join(ls[1:3]).split()).startswith("fwdbf16head_dim128,intervals,stale;128x128,2stages")
    monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", f"/tmp/{'a-long-name/' * 9}")
    output = run("doctor").output
    assert max(map(len, output.splitlines())) <= 60
    assert "…" not in output
    assert "fwd 64       128x128, 2 stages, ping-pong: static default" in output


# ---------------------------------------------------------------- files that cannot be used


@pytest.fixture
def never(monkeypatch):
    """Work that must not begin."""
    from cute_attn.commands import demo, inspect, plan, predict, show

    def begin(*arguments, **options):
        raise AssertionError("the work began")

    works = [
        (show, "from_spec"),
        (plan, "from_spec"),
        (predict, "from_spec"),
        (demo, "from_spec"),
        (inspect, "obtain"),
    ]
    for module, name in works:
        monkeypatch.setattr(module, name, begin)


@pytest.mark.parametrize(
    "command", [("show", "--mask", "causal"), ("plan", "--world", "2", "--seqlen", "64"), ("predict",), ("demo",)]
)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x.xyz", "does not end in .png, and a PNG is what would be written"),
        ("nowhere/x.png", "No such file or directory"),
        ("folder.png", "Is a directory"),
        ("file/x.png", "Not a directory"),
    ],
)
def test_a_picture_that_cannot_be_written_is_refused_before_the_work(run, never, tmp_path, command, name, words):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    result = run(*command, "--png", str(tmp_path / name))
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png"]


def test_folders_that_cannot_be_used_are_refused_before_the_work(run, never, tmp_path):
    (tmp_path / "file").write_text("")
    for arguments, words in (
        (("inspect", "--keep", str(tmp_path / "file" / "a")), "cannot be written to: "),
        (("build", "--mask", "causal", "--output", str(tmp_path / "file")), "is a file, not a directory"),
        (("cache", "ls", str(tmp_path / "nowhere")), "No such file or directory"),
        (("cache", "ls", str(tmp_path)), "is no cache and no bundle"),
        (("cache", "verify", str(tmp_path)), "is no cache and no bundle"),
        (("cache", "prune", str(tmp_path)), "is no cache and no bundle"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2, arguments
        assert words in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["ls", "verify", "prune"])
def test_a_cache_that_is_a_file_is_said_in_a_sentence(run, monkeypatch, tmp_path, command):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CUTE_ATTN_CACHE_DIR", str(tmp_path / "file"))
    result = run("cache", command)
    assert result.exit_code == 2
    assert result.stderr == f"cute-attn: {tmp_path / 'file' / 'kernels'}: Not a directory\n"


# ---------------------------------------------------------------- what a machine lacks, and what a terminal lacks


def test_what_a_machine_lacks_ends_in_one_line_and_exit_code_2(run, monkeypatch):
    from cute_attn.commands import demo
    from cute_attn.jit.obtain import KernelNotBuilt
    from cute_attn.spec.forward import ForwardSpec

    def missing(*arguments, **options):
        raise KernelNotBuilt(ForwardSpec(), "there is no compiler", ["the bundle has another"])

    monkeypatch.setattr(demo, "_run", missing)
    result = run("demo", "--seqlen", "16", "--mask", "causal")
    assert result.exit_code == 2
    assert result.stderr.startswith("cute-attn: there is no compiler, and no cache or bundle has the kernel fwd bf16")
    assert "; the bundle has another; this builds it" in result.stderr
    assert result.stderr.count("\n") == 1


def test_inspect_looks_for_the_disassembler_before_it_compiles(run, never, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sass, "folders_of", lambda package: [])
    result = run("inspect")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "needs nvdisasm, which the extra `inspect` of cute-attn brings" in result.stderr


def test_a_command_that_was_nearly_named_is_suggested(run):
    assert run("shwo").stderr.endswith(": No such command 'shwo'; did you mean 'show'?\n")
    assert "did you mean 'verify'?" in run("cache", "verfiy").stderr
    assert "did you mean" not in run("zzz").stderr


@pytest.mark.parametrize(
    "encoding", [*(pytest.param(x, marks=pytest.mark.slow) for x in ("latin-1", "cp1252")), "ascii"]
)
@pytest.mark.parametrize(
    "command",
    [
        ("show", "--mask", "causal", "--seqlen-q", "8"),
        *(pytest.param(x, marks=pytest.mark.slow) for x in (("plan", "--world", "2", "--seqlen", "8192"), ("doctor",))),
    ],
)
def test_drawings_fall_back_to_ascii_where_the_terminal_lacks_letters(command, encoding):
    program = "from cute_attn.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", program, *command], capture_output=True, timeout=120,
        env={**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "80"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    text = result.stdout.decode("ascii")
    if command[0] == "show":
        assert "|##..............|\n" in text
        assert "# attended  . not" in text
    assert "?" not in text
