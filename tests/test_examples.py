"""The examples run as their first lines say."""

import importlib.util
import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent / "dist"))
from ranks import run_ranks

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLE = FOLDER / "train_packed_documents.py"
# What they are called with here, and what they then print.
SHORT = {
    "share_a_prompt": ("--prompt 60 --answers 10 18 1", r"prompt shared +89 .*prompt repeated +209 .*differ by \d"),
    "denoise_blocks": ("--tokens 60 --block 16", r"4 forwards of 16 tokens are one of 120, .*differ by .*\S"),
    "sinks_and_windows": ("--tokens 160 --layers 2", r"0 +up to 128 .* 50\.\d%.*1 +all +100%"),
    "learn_a_bias": ("--tokens 40 --steps 30", r"loss .* -> .*head 3 +learned \|@"),
}


def test_every_example_has_a_run_here():
    others = "attend_across_ranks", "serve_with_a_cache", *SHORT
    assert set(FOLDER.rglob("*.py")) == {EXAMPLE, *(FOLDER / f"{name}.py" for name in others)}


def test_an_example_fits_a_page():
    lines = {file.stem: len(file.read_text().splitlines()) for file in FOLDER.rglob("*.py")}
    longest = lines.pop("attend_across_ranks")  # two modules of others, and what they are compared with
    assert longest <= 150
    assert max(lines.values()) < 100


def example(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", SHORT)
def test_a_short_example_ends_with_a_table_or_a_picture(name, capsys):
    arguments, printed = SHORT[name]
    example(name).main(arguments.split())
    assert re.search(printed, capsys.readouterr().out, re.DOTALL)


def test_a_picture_of_the_mask_is_written_where_it_is_asked_for(tmp_path, capsys):
    example("denoise_blocks").main(["--tokens", "20", "--block", "4", "--png", str(tmp_path / "mask.png")])
    assert (tmp_path / "mask.png").read_bytes().startswith(b"\x89PNG")


def compared(rank, world):
    return example("attend_across_ranks").compare(300, torch.device("cpu"))


def test_modules_of_other_libraries_on_two_ranks_match_themselves_alone():
    (documents, _, *held, _, titan, megatron), other = run_ranks(2, compared, 2)
    assert other == [documents, *other[1:]]
    assert documents == "4 documents in 300 tokens"
    tokens, pairs = zip(*((int(n.replace(",", "")) for n in line.split()[1:]) for line in held), strict=True)
    assert sum(tokens) == 300
    assert 300 * 301 // 2 > sum(pairs) > max(pairs) > 0
    for line in (titan, megatron):
        found, alone, _ = map(float, line.split()[1:])
        assert found == pytest.approx(alone, rel=1e-5)


def test_without_ranks_it_says_how_to_have_some(capsys):
    with pytest.raises(SystemExit):
        example("attend_across_ranks").main([])
    assert "torchrun --nproc-per-node 2" in capsys.readouterr().err


def by_torchrun(ranks, *command):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run([*launcher, *command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_two_ranks_print_one_table():
    assert len(by_torchrun(2, FOLDER / "attend_across_ranks.py", "--tokens", "200").splitlines()) == 7


@pytest.mark.slow
def test_training_on_three_ranks_matches_training_alone():
    printed = by_torchrun(3, EXAMPLE, "--steps", "4")
    losses = [line.split()[2:] for line in printed.splitlines()[1:]]
    assert len(losses) == 4
    for together, alone in losses:
        assert abs(float(together) - float(alone)) <= 1e-4


@pytest.mark.parametrize("page_size", ["16", "5"])
def test_serving_agrees_with_computing_anew(page_size, capsys):
    example("serve_with_a_cache").main(["--steps", "2", "--page-size", page_size])  # raises where it does not
    *_, prompts, first, second = capsys.readouterr().out.splitlines()
    lengths = [json.loads(re.search(r"\[.*?\]", line)[0]) for line in (prompts, first, second)]
    assert lengths[0] == [5, 33, 150]
    assert all(a < b <= a + 4 for before, after in pairwise(lengths) for a, b in zip(before, after, strict=True))
