"""Every row of the page's table of what is refused, by the call that is."""

import pytest
import torch
from test_differences import rows_of
from test_transformers_attention import LAYER, TOKENS, tensors

from cute_attn import backend
from cute_attn.integrations.transformers.attention import attention_forward


def refused(error, words, mask=None, dtype=torch.float64, **options):
    with pytest.raises(error, match=words):
        attention_forward(LAYER, *tensors(dtype=dtype), mask, **options)


def on_kernels():
    with backend("sim"):
        refused(NotImplementedError, "float32", dtype=torch.float32)


REFUSED = {
    "`dropout` of attention in training": lambda: refused(ValueError, "attention_dropout=0.0", dropout=0.1),
    "`output_attentions=True`": lambda: refused(ValueError, "'eager' returns them", output_attentions=True),
    "a position bias (T5)": lambda: refused(ValueError, "score_mod of .*flex_attention", position_bias=torch.zeros(1)),
    "`cu_seq_lens_q` and its like, of collators for FlashAttention": lambda: refused(
        ValueError, "read off position_ids", cu_seq_lens_q=torch.tensor([0, TOKENS])
    ),
    "masks of floats": lambda: refused(
        TypeError, "attention_mask must be bool", torch.zeros(1, 1, TOKENS, TOKENS, dtype=torch.float64)
    ),
    "continuous batching": lambda: refused(ValueError, r"generate\(\) has others", block_table=torch.zeros(1)),
    "fp32 on kernels": on_kernels,
}


def test_every_row_of_the_page_is_here():
    assert rows_of("transformers", "\n## What is refused\n") == list(REFUSED)


@pytest.mark.parametrize("what", REFUSED)
def test_a_row_says_what_is_refused(what):
    REFUSED[what]()
