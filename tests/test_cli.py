"""The command `cute-attn`, as a person at a terminal meets it."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from cute_attn import cli
from cute_attn.mask import BUILDERS


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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["shw"], ["No such command 'shw'"]),
        (["show"], ["show: give either --mask or --slice"]),
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
