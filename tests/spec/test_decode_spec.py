"""Specs of the decode kernel refuse what no kernel serves, and are one text in every process."""

import dataclasses

import pytest

from cute_attn.decode.config import check, default_tile, shared_memory_bytes
from cute_attn.spec.decode import DECODE_HEAD_DIMS, DecodeSpec, DecodeTile
from cute_attn.spec.operation import parse_spec
from cute_attn.spec.score import ScoreForm

EIGHT = {"cache": "int8", "score": ScoreForm("scaled")}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"dtype": "fp16", "piece": 0, "tree": True, "sink": True, "split": True},
        {**EIGHT, "token_scales": True, "head_dim": 256, "head_dim_v": 256, "tile": DecodeTile(32)},
    ],
)
def test_a_spec_is_its_text(fields):
    spec = DecodeSpec(**fields)
    assert parse_spec(spec.canonical()) == spec
    assert spec.canonical() == DecodeSpec(**fields).canonical()
    for other in (dataclasses.replace(spec, split=not spec.split), dataclasses.replace(spec, piece=32)):
        assert other.canonical() != spec.canonical()
        assert str(other) != str(spec)


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"dtype": "fp32"}, ValueError, "DecodeSpec.dtype must be one of 'bf16', 'fp16', got 'fp32'"),
        ({"cache": "int4"}, ValueError, "DecodeSpec.cache must be one of .* got 'int4'"),
        ({"head_dim": 96, "head_dim_v": 96}, ValueError, r"head_dim_v must be one of \(64, 64\), .* got \(96, 96\)"),
        ({"piece": 8}, ValueError, "DecodeSpec.piece must be one of 0, 16, 32, 64, got 8"),
        ({"piece": False}, TypeError, "DecodeSpec.piece must be an int, got False"),
        ({"sink": 1}, TypeError, "DecodeSpec.sink must be a bool, got 1"),
        ({"tile": 8}, TypeError, "DecodeSpec.tile must be a DecodeTile, got 8"),
        (
            {**EIGHT, "score": ScoreForm()},
            ValueError,
            "8-bit cache has a score of kind 'scaled' or 'softcap', got 'plain'",
        ),
        ({"token_scales": True}, ValueError, "DecodeSpec.token_scales needs an 8-bit cache"),
    ],
)
def test_a_spec_that_no_kernel_serves_is_refused(fields, error, words):
    with pytest.raises(error, match=words):
        DecodeSpec(**fields)


@pytest.mark.parametrize(
    ("fields", "error"), [({"rows": 24}, ValueError), ({"stages": 1}, ValueError), ({"rows": 8.0}, TypeError)]
)
def test_a_tile_that_no_kernel_has_is_refused(fields, error):
    with pytest.raises(error, match=f"DecodeTile.{next(iter(fields))} must be .* got {next(iter(fields.values()))}"):
        DecodeTile(**fields)


def test_default_tiles_fit_and_too_many_rows_do_not():
    for dims in DECODE_HEAD_DIMS:
        spec = DecodeSpec(head_dim=dims[0], head_dim_v=dims[1], tile=default_tile(*dims))
        check(spec)
        assert shared_memory_bytes(spec) <= 232_448
    with pytest.raises(ValueError, match=r"DecodeTile\.rows must be at most 32 with head_dim_v 192, got 64"):
        check(DecodeSpec(head_dim=192, head_dim_v=192, tile=DecodeTile(64)))
    with pytest.raises(ValueError, match="bytes of shared memory; a CTA has 232448"):
        check(DecodeSpec(head_dim=256, head_dim_v=256, tile=DecodeTile(32, 4)))
