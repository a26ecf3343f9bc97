"""What the backward's machine code must look like, seen without running it."""

import pytest

from cute_attn.bwd.config import default_tile
from cute_attn.jit.obtain import cached_or_compiled
from cute_attn.profile.inspect import inspect
from cute_attn.spec.attention import HEAD_DIMS
from cute_attn.spec.backward import BackwardSpec
from cute_attn.spec.mask import MaskForm
from cute_attn.spec.score import ScoreForm


def profile(**fields):
    report = inspect(cached_or_compiled(BackwardSpec(**fields)))
    assert (report.spill_bytes, report.warnings) == (0, ())
    return report.loops


@pytest.mark.slow
def test_the_causal_backward_issues_little_beside_its_products():
    partial, full = profile(mask=MaskForm(True))
    assert full.slots_per_cycle <= 0.195
    assert partial.slots_per_cycle <= 0.235


MASKS = {
    "dense": {},
    "bounded": {"mask": MaskForm(True)},
    "softcap": {"score": ScoreForm("softcap")},
    "bounded softcap": {"score": ScoreForm("softcap"), "mask": MaskForm(True)},
}


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dims", HEAD_DIMS)
def test_no_default_tile_spills_or_serialises_and_any_mask_costs_the_same(dims, mask):
    partial, full = profile(head_dim=dims[0], head_dim_v=dims[1], tile=default_tile(*dims), **MASKS[mask])
    assert partial.common - full.common <= 46  # 32 or 16 scores of a thread, and their bits


@pytest.mark.slow
@pytest.mark.parametrize("dims", [(128, 128), (256, 256)])
@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "fp16"},
        {"deterministic": True},
        {"dlse": True},
        {"dlse": True, "fp32_gradients": True},
        {"dk": False, "dv": False},
        {"dq": False, "dv": False},
        {"dq": False, "dk": False},
    ],
)
def test_no_option_makes_a_default_tile_spill_or_serialise(dims, options):
    profile(head_dim=dims[0], head_dim_v=dims[1], tile=default_tile(*dims), mask=MaskForm(True), **options)
