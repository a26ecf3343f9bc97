"""A long packed forward makes no tensor of queries times keys, nor anything near it."""

import pytest
import torch
from tiny_models import model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cute_attn.integrations.transformers import register
from cute_attn.ops import attention_op, plans

TOKENS, DOCUMENT = 16384, 256
INSIDE = {"cute_attn.attention.default": attention_op._forward, "cute_attn.plan.default": plans._plan}


class Largest(TorchDispatchMode):
    """The numbers in the largest tensor that any op returns, those inside of our ops too."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        inside = INSIDE.get(str(function))
        if inside is None:
            result = function(*args, **(kwargs or {}))
        else:
            with self:
                result = inside(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return result


def largest(attention, tokens, document=DOCUMENT):
    one_head = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    made = model("llama", attention, **one_head)
    given = {
        "input_ids": torch.randint(2, 60, (1, tokens)),
        "position_ids": torch.arange(document).repeat(tokens // document)[None],
    }
    with torch.no_grad(), Largest() as mode:
        made(**given, use_cache=False)
    return mode.numbers


@pytest.fixture(autouse=True)
def _registered():
    with register():
        yield


def test_a_packed_forward_of_16_ki_tokens_makes_no_tensor_of_all_pairs():
    assert largest("cute_attn", TOKENS) <= 64 * TOKENS  # logits of the vocabulary


def test_the_count_sees_the_pairs_of_eager_and_the_blocks_inside_of_our_op():
    assert largest("eager", 1024) >= 1024**2
    assert largest("cute_attn", 2048, 2048) >= 128 * 2048
