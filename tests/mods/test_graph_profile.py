"""What machine code of kernels with graphs must look like, seen without running it."""

import pytest
import torch

from cute_attn.bwd import config as bwd
from cute_attn.fwd import config as fwd
from cute_attn.jit.obtain import cached_or_compiled
from cute_attn.launch.captured import CapturedGradients, text_of
from cute_attn.mods.distance import by_table
from cute_attn.mods.trace import trace
from cute_attn.profile.inspect import inspect
from cute_attn.spec.backward import BackwardSpec
from cute_attn.spec.forward import ForwardSpec
from cute_attn.spec.mask import MaskForm
from cute_attn.spec.score import ScoreForm

pytestmark = pytest.mark.slow

TOKENS, HEADS, CPU = 4096, 16, torch.device("cpu")
SIZES = (2, HEADS, TOKENS, TOKENS)
DOCUMENTS, OTHERS = (torch.zeros(TOKENS, dtype=torch.int32) for _ in range(2))
SLOPES = torch.zeros(HEADS)


def distance():
    learned = trace(lambda s, b, h, q, k: s + SLOPES[h] * (q - k), "score_mod")
    return by_table(learned, HEADS, TOKENS, TOKENS, CPU)


def alibi():
    return trace(lambda s, b, h, q, k: s + SLOPES[h] * (q - k), "score_mod")


def two_comparisons():
    asked = trace(lambda b, h, q, k: (DOCUMENTS[q] < OTHERS[k]) & (OTHERS[q] > DOCUMENTS[k]), "mask_mod")
    return MaskForm(True, predicate=text_of(asked, SIZES))


def check_that_nothing_spills(spec):
    report = inspect(cached_or_compiled(spec))
    assert (report.spill_bytes, report.warnings) == (0, ())


@pytest.mark.parametrize("dims", [(128, 128), (192, 128)])
def test_forwards_that_ask_a_predicate_keep_in_memory_what_a_producer_needs_once_an_item(dims):
    """A launch leaves producers 24 registers, two or three too few between items: a store and a load each."""
    mask, tile = two_comparisons(), fwd.graph_tile(*dims)
    report = inspect(cached_or_compiled(ForwardSpec(head_dim=dims[0], head_dim_v=dims[1], mask=mask, tile=tile)))
    assert report.spill_bytes <= 32
    assert report.warnings == ()


def test_a_backward_that_asks_a_predicate_keeps_all_in_registers():
    check_that_nothing_spills(BackwardSpec(mask=two_comparisons(), tile=bwd.default_tile(128, 128)))


@pytest.mark.parametrize(("score_mod", "learns"), [(distance, True), (distance, False), (alibi, True)])
def test_backwards_of_a_bias_keep_all_in_registers(score_mod, learns):
    made = score_mod()
    gradients = CapturedGradients(made, [learns and x.is_floating_point() for x in made.tensors], CPU)
    score = ScoreForm("graph", gradients.text(SIZES))
    check_that_nothing_spills(BackwardSpec(mask=MaskForm(True), score=score, tile=bwd.default_tile(128, 128)))
