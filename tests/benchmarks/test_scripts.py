"""Every script of benchmarks/ runs from its inputs to its tables, at a tiny size: none stays broken unseen."""

import importlib
import json
import os
from pathlib import Path
from unittest import mock

import pytest
import torch

from cute_attn.spec.mask import MaskForm

TESTS = Path(__file__).parent
FOLDER = TESTS.parents[1] / "benchmarks"
SCRIPTS = sorted(path for path in FOLDER.rglob("*.py") if '__name__ == "__main__"' in path.read_text())


def attention(tiny):
    """What it measures runs in test_attention_command; here the script without time for any of it."""
    script = tiny("attention", has_hopper=lambda: True)
    with pytest.raises(SystemExit, match="0"):
        script.main(["--quick", "--budget", "0"])


def backward_profile(tiny):
    sizes = {"HEAD_DIMS": [(64, 64)], "MASKS": {"bounded": MaskForm(True)}, "DETERMINISTIC_DIMS": (64,), "TOKENS": 1024}
    tiny("backward_profile", **sizes).main()


def decode_profile(tiny):
    script = importlib.import_module("decode_profile")
    tiny("decode_profile", SPECS=script.SPECS[:1]).main()


def deterministic(tiny):
    tiny("deterministic", TOKENS=1024, MASKS={"causal": "causal"}, HEADS_K=(8,)).main()


def dist_check_ranks(tiny):
    tiny("dist_check_ranks", WORLDS=(2,), ROUNDS=1, CALLS=1).main()


def dist_plan(tiny):
    tiny("dist_plan", TOKENS=1024, CHUNK_SIZES={8: (128,)}, LENGTHS=(1 << 16,)).main()


def dist_rates(tiny):
    tiny("dist_rates", TOKENS=1024, DIMS=((64, 64),)).main()


def dist_workloads(tiny):
    tiny("dist_workloads", TOKENS=1024, BATCH=2048, RANKS=(8, 16), BATCH_RANKS=(8,), SEEDS=range(1)).main()


def forward_profile(tiny):
    tiny("forward_profile", HEAD_DIMS=[(64, 64)]).main()


def kernel_cache(tiny):
    tiny("kernel_cache", ROUNDS=1, CALLS=1, PROCESSES=1).main()


def large_logits(tiny):
    tiny("large_logits", TOKENS=32, POWERS=(6,), BACKENDS=("reference",)).main()


def launch_overhead(tiny):
    tiny("launch_overhead", CALLS=2, ROUNDS=1, of_flash_attention_4=lambda inputs: {}).main()  # see below


def mask_planning(tiny):
    tiny("mask_planning", ROWS=(1 << 12, 1 << 13), BLOCK_SPARSE_ROWS=1 << 11).main()


def predict(tiny):
    tiny("predict", LENGTHS=(2048,), OUR_KERNELS=("64/64 causal_window forward",)).main()


def sim_speed(tiny):
    pytest.importorskip("flash_attn.cute.interface", reason="flash-attn-4 is not installed: pip install -e '.[peers]'")
    rounds = {"ROUNDS": 1, "DIRECT_ROUNDS": 2, "SIDE_BY_SIDE_ROUNDS": 1, "GROWTH_ROUNDS": 1}
    tiny("sim_speed", **rounds, MODES=("eager",), TOKENS=256, GROWTH=(1, 2)).main()


RUNS = [attention, dist_check_ranks, dist_plan, dist_workloads, large_logits, mask_planning]
# Seconds for each of several kernels.
COMPILING = [
    backward_profile,
    decode_profile,
    deterministic,
    dist_rates,
    forward_profile,
    kernel_cache,
    launch_overhead,
    predict,
    sim_speed,
]
WRITTEN = {"dist_plan": ["dist_plan", "dist_plan_time"]}


@pytest.fixture
def tiny(monkeypatch):
    """`tiny(name, CONSTANT=value, ...)` is a script as a module, with these values."""
    threads = torch.get_num_threads()

    def sized(name, **constants):
        script = importlib.import_module(name)
        for constant, value in constants.items():
            monkeypatch.setattr(script, constant, value)
        return script

    with mock.patch.dict(os.environ):  # scripts set what they need
        yield sized
    torch.set_num_threads(threads)


def test_every_script_has_a_run_here():
    names = {path.stem for path in SCRIPTS if path.parent == FOLDER}
    assert names == {run.__name__ for run in (*RUNS, *COMPILING)}


@pytest.mark.parametrize("folder", sorted({path.parent.name for path in SCRIPTS} - {FOLDER.name}))
def test_every_folder_of_scripts_has_a_test_that_names_it(folder):
    assert any(folder in path.read_text() for path in TESTS.parent.rglob("test_*.py") if path.name != "test_scripts.py")


@pytest.mark.parametrize(
    "run", [*RUNS, *(pytest.param(run, marks=pytest.mark.slow) for run in COMPILING)], ids=lambda run: run.__name__
)
def test_a_script_runs_and_writes_its_results(run, tiny, results, capsys):
    run(tiny)
    printed = capsys.readouterr().out
    for name in WRITTEN.get(run.__name__, [run.__name__]):
        found = json.loads((results / f"{name}.json").read_text())
        assert found["rows"] or found["tables"]["Not run"]
        assert (results / f"{name}.md").read_text() in printed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # theirs
def test_the_host_of_flash_attention_4_is_timed_beside_ours(tiny):
    pytest.importorskip("flash_attn.cute.interface", reason="flash-attn-4 is not installed: pip install -e '.[peers]'")
    script = tiny("launch_overhead", CALLS=2, ROUNDS=1)
    inputs = [torch.zeros(script.TOKENS, heads, 128, dtype=torch.bfloat16) for heads in (8, 2, 2)]
    assert script.of_flash_attention_4(inputs)["flash-attn-4, its launch left out"] > 0
