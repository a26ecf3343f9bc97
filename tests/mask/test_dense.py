"""Masks given pair by pair, and masks that show themselves."""

import re

import pytest
import torch

from cute_attn import IntervalMask
from cute_attn import mask as masks
from cute_attn.mask import dense as dense_module


@pytest.mark.parametrize("shape", [(7, 9), (1, 1), (0, 5), (5, 0), (3, 40, 33), (1, 0, 4), (2, 3, 50, 70)])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_dense_mask_comes_back_from_its_intervals(shape, share, monkeypatch):
    monkeypatch.setattr(dense_module, "_PAIRS", 300)  # a few rows at a time
    dense = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < share
    mask = IntervalMask.from_dense(dense)
    assert torch.equal(mask.to_dense().reshape(shape), dense)
    assert mask.heads == (shape[1] if len(shape) == 4 else 1)
    IntervalMask(mask.lo, mask.hi, mask.seqlen_k, heads=mask.heads)  # whose check is the invariant


def test_a_dense_mask_may_have_any_strides():
    dense = masks.causal(9).to_dense()[0].T
    assert torch.equal(IntervalMask.from_dense(dense).to_dense()[0], dense)


@pytest.mark.parametrize(
    ("dense", "error", "message"),
    [
        (torch.ones(3, 3), TypeError, "dense must be a bool tensor, got a tensor of shape (3, 3) and dtype"),
        ([[True]], TypeError, "dense must be a bool tensor, got [[True]] of type list"),
        (torch.ones(3, dtype=torch.bool), ValueError, "dense must have shape (seqlen_q, seqlen_k)"),
        (torch.ones(0, 3, 3, dtype=torch.bool), ValueError, "at least one batch element and head, got (0, 3, 3)"),
        (torch.ones(3, 3, dtype=torch.bool, device="meta"), ValueError, "dense must hold values"),
    ],
)
def test_what_is_no_dense_mask_is_refused(dense, error, message):
    with pytest.raises(error, match=re.escape(message)):
        IntervalMask.from_dense(dense)


def test_a_mask_draws_itself(capsys):
    masks.causal(8).draw(width=40)
    assert capsys.readouterr().out == masks.draw.draw_text(masks.causal(8), 40) + "\n"


def test_a_notebook_shows_a_mask_and_only_the_text_of_an_empty_one():
    assert masks.causal(64)._repr_png_().startswith(b"\x89PNG")
    assert masks.full(0)._repr_png_() is None
