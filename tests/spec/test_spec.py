"""Specs: they refuse what no kernel serves, compare by value, and are one text in every process."""

import dataclasses
import math
import subprocess
import sys

import pytest

from cute_attn.fwd.config import check, default_tile, shared_memory_bytes
from cute_attn.spec.attention import HEAD_DIMS
from cute_attn.spec.backward import BackwardSpec, backward_score
from cute_attn.spec.forward import ForwardSpec
from cute_attn.spec.mask import MaskForm
from cute_attn.spec.score import ScoreForm
from cute_attn.spec.tiles import TileConfig

OTHER = {
    "dtype": "fp16",
    "head_dim": 192,
    "head_dim_v": 192,
    "mask": MaskForm(True),
    "score": ScoreForm("softcap"),
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


def test_pages_are_part_of_the_text():
    assert len({ForwardSpec(mask=MaskForm(True), piece=piece).canonical() for piece in (0, 16, 128)}) == 3


def test_the_text_gives_the_spec_back():
    spec = ForwardSpec(mask=MaskForm(True), tile=TileConfig(128, 64, stages=4))
    assert ForwardSpec.from_canonical(spec.canonical()) == spec
    with pytest.raises(ValueError, match="not a spec of 'fwd'"):
        ForwardSpec.from_canonical("{}")


@pytest.mark.slow
def test_the_text_is_the_same_in_another_process():
    code = (
        "from cute_attn.spec.forward import ForwardSpec; from cute_attn.spec.mask import MaskForm; "
        "print(ForwardSpec(mask=MaskForm(True)).canonical())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert there.strip() == ForwardSpec(mask=MaskForm(True)).canonical()


def test_predicates_are_told_from_each_other():
    thinned = [MaskForm(True, predicate=text) for text in ("[]", "[0]")]
    assert len({str(form) for form in [MaskForm(True), *thinned]}) == 3


def test_specs_print_what_they_are():
    spec = ForwardSpec(head_dim=192, mask=MaskForm(True), sink=True)
    assert str(spec) == ("fwd bf16 head_dim 192/128, intervals, sink, stale; 128x128, 2 stages, ping-pong")
    assert ", pieces of 32, stale; " in str(ForwardSpec(mask=MaskForm(True), piece=32))
    assert ", pieces of 32, window, stale; " in str(ForwardSpec(mask=MaskForm(True), piece=32, window=True))


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"dtype": "fp32"}, ValueError, "dtype must be one of 'bf16', 'fp16', got 'fp32'"),
        ({"mask": 1}, TypeError, "mask must be a MaskForm, got 1"),
        ({"score": "softcap"}, TypeError, "score must be a ScoreForm, got 'softcap'"),
        ({"head_dim": 128.0}, TypeError, "head_dim must be an int, got 128.0"),
        ({"head_dim": 80, "head_dim_v": 80}, ValueError, r"must be one of .*\(256, 256\), got \(80, 80\)"),
        ({"sink": 1}, TypeError, "sink must be a bool, got 1"),
        ({"tile": (128, 128)}, TypeError, r"tile must be a TileConfig, got \(128, 128\)"),
        ({"max_logits": True}, ValueError, "max_logits needs softmax='exact', got softmax='stale'"),
        ({"max_scores": True}, ValueError, "max_scores needs softmax='exact', got softmax='stale'"),
        ({"tile": TileConfig(192, 128)}, ValueError, "two register sets for P.*got tile.m = 192"),
        ({"piece": 4, "mask": MaskForm(True)}, ValueError, "piece must be 0 or a multiple of 8 that.*, got 4"),
        ({"piece": 96, "mask": MaskForm(True)}, ValueError, "piece must be 0 or a multiple of 8 .*, got 96"),
        ({"piece": 16}, ValueError, "piece needs a mask of intervals.*got all keys"),
        ({"window": True, "mask": MaskForm(True)}, ValueError, "window is of pieces.*got piece=0"),
    ],
)
def test_a_spec_refuses_what_no_kernel_serves(fields, error, message):
    with pytest.raises(error, match=message):
        ForwardSpec(**fields)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"is_bounded": 1}, TypeError, "is_bounded must be a bool, got 1"),
        ({"predicate": None}, TypeError, "predicate must be a str, got None"),
        ({"is_bounded": True, "has_certain": True}, ValueError, "got is_bounded=True, no predicate"),
        ({"predicate": "[]", "has_certain": True}, ValueError, "got is_bounded=False, a predicate"),
    ],
)
def test_the_form_of_a_mask_refuses_what_no_kernel_serves(fields, error, message):
    with pytest.raises(error, match=message):
        MaskForm(**fields)


@pytest.mark.parametrize(
    ("scale", "softcap", "kind", "factors"),
    [
        (0.5, 0.0, "plain", (1.0, 0.5)),
        (-0.5, 0.0, "scaled", (-0.5, 1.0)),
        (0.0, 0.0, "scaled", (0.0, 1.0)),
        (1e9, 0.0, "scaled", (1e9, 1.0)),
        (-0.5, 2.0, "softcap", (-0.25, 2.0)),
    ],
)
def test_scale_and_softcap_say_how_scores_are_changed(scale, softcap, kind, factors):
    form = ScoreForm.of(scale, softcap)
    assert form == ScoreForm(kind)
    assert form.factors(scale, softcap) == (factors[0], pytest.approx(factors[1] * math.log2(math.e)))


@pytest.mark.parametrize("kind", ["plain", "scaled", "softcap"])
def test_a_backward_has_exactly_the_forms_of_scores_that_it_says(kind):
    form = backward_score(ScoreForm(kind))
    assert backward_score(form) == form
    BackwardSpec(score=form)
    if form != ScoreForm(kind):
        with pytest.raises(ValueError, match="BackwardSpec"):
            BackwardSpec(score=ScoreForm(kind))


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
