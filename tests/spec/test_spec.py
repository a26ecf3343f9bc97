"""Specs: they refuse what no kernel serves, compare by value, and are one text in every process."""

import dataclasses
import subprocess
import sys

import pytest

from cute_attn.fwd.config import check, default_tile, shared_memory_bytes
from cute_attn.spec.forward import HEAD_DIMS, ForwardSpec
from cute_attn.spec.tiles import TileConfig

OTHER = {
    "dtype": "fp16",
    "head_dim": 192,
    "head_dim_v": 192,
    "layers": 1,
    "score": "softcap",
    "sink": True,
    "softmax": "exact",
    "tile": TileConfig(128, 64),
}


@pytest.mark.parametrize("field", OTHER)
def test_every_field_is_part_of_the_text(field):
    fields = {field: OTHER[field]}
    if field.startswith("head_dim"):
        fields = {"head_dim": 192, "head_dim_v": 192 if field == "head_dim_v" else 128}
    assert ForwardSpec(**fields).canonical() != ForwardSpec().canonical()


def test_the_text_gives_the_spec_back():
    spec = ForwardSpec(layers="many", has_lower=True, tile=TileConfig(128, 64, stages=4))
    assert ForwardSpec.from_canonical(spec.canonical()) == spec
    with pytest.raises(ValueError, match="not a spec of 'fwd'"):
        ForwardSpec.from_canonical("{}")


def test_the_text_is_the_same_in_another_process():
    code = "from cute_attn.spec.forward import ForwardSpec; print(ForwardSpec(layers=1).canonical())"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert there.strip() == ForwardSpec(layers=1).canonical()


def test_specs_print_what_they_are():
    spec = ForwardSpec(head_dim=192, layers=1, has_lower=True, sink=True)
    assert str(spec) == ("fwd bf16 head_dim 192/128, layers 1 (lower+upper), sink, stale; 128x128, 2 stages, ping-pong")


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"dtype": "fp32"}, ValueError, "dtype must be one of 'bf16', 'fp16', got 'fp32'"),
        ({"layers": 3}, ValueError, "layers must be one of 0, 1, 2, 'many', got 3"),
        ({"layers": True}, ValueError, "layers must be one of .*, got True"),
        ({"head_dim": 80, "head_dim_v": 80}, ValueError, r"must be one of .*\(256, 256\), got \(80, 80\)"),
        ({"sink": 1}, TypeError, "sink must be a bool, got 1"),
        ({"tile": (128, 128)}, TypeError, r"tile must be a TileConfig, got \(128, 128\)"),
        ({"has_lower": True}, ValueError, "layers=0 tests the end of the keys and nothing else, got has_lower=True"),
        ({"layers": 1, "has_upper": False}, ValueError, "layers=1 needs a bound to test"),
        ({"layers": 2}, ValueError, "layers=2 tests both bounds, got has_lower=False"),
        ({"max_logits": True}, ValueError, "max_logits needs softmax='exact', got softmax='stale'"),
        ({"tile": TileConfig(192, 128)}, ValueError, "two register sets for P.*got tile.m = 192"),
    ],
)
def test_a_spec_refuses_what_no_kernel_serves(fields, error, message):
    with pytest.raises(error, match=message):
        ForwardSpec(**fields)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"m": 64}, ValueError, "m must be 128 or 192 .*, got 64"),
        ({"n": 120}, ValueError, "n must be a multiple of 16 in .*, got 120"),
        ({"stages": 3}, ValueError, "stages must be 2, 4 or 8, got 3"),
        ({"n": 128.0}, TypeError, "n must be an int, got 128.0"),
        ({"ping_pong": 1}, TypeError, "ping_pong must be a bool, got 1"),
    ],
)
def test_a_tile_refuses_what_no_kernel_serves(fields, error, message):
    with pytest.raises(error, match=message):
        TileConfig(**fields)


def test_every_default_tile_fits_a_multiprocessor():
    for dims in HEAD_DIMS:
        for softmax in ("stale", "exact"):
            spec = ForwardSpec(head_dim=dims[0], head_dim_v=dims[1], softmax=softmax, tile=default_tile(*dims))
            check(spec)
            assert shared_memory_bytes(spec) <= 232_448


def test_a_tile_that_does_not_fit_is_refused_before_compiling():
    wide = ForwardSpec(head_dim=256, head_dim_v=256, tile=TileConfig(128, 128))
    with pytest.raises(ValueError, match=r"needs 256 registers for S, O and P; 2 consumer warpgroups have 208"):
        check(wide)
    deep = ForwardSpec(tile=TileConfig(128, 128, stages=4))
    with pytest.raises(ValueError, match=r"needs 295936 bytes of shared memory; a CTA has 232448"):
        check(deep)
    with pytest.raises(dataclasses.FrozenInstanceError):
        wide.tile = TileConfig()
