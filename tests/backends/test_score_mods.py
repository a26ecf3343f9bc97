"""Which score_mod kernels get in the place of a call's. Nothing is compiled."""

import pytest
import torch

from cute_attn.backends.score_mods import ServedScore
from cute_attn.mods.distance import TABLED
from cute_attn.mods.trace import trace

SLOPES, LEARNED = torch.tensor([0.5, 0.25]), torch.zeros(2, 50)
Q, K = torch.empty(1, 30, 2, 64), torch.empty(1, 40, 2, 64)
BY_SLOPE = trace(lambda score, b, h, q, kv: score + SLOPES[h] * (kv - q), "score_mod")
BY_TABLE = trace(lambda score, b, h, q, kv: score + LEARNED[h, q + 10 - kv], "score_mod")
NO_BIAS = trace(lambda score, b, h, q, kv: score * SLOPES[h], "score_mod")


@pytest.mark.parametrize(
    ("score", "wanted", "is_tabled"),
    [
        (BY_SLOPE, (), True),
        (BY_SLOPE, (False,), True),
        (BY_SLOPE, (True,), False),
        (BY_TABLE, (), True),
        (BY_TABLE, (True,), True),
        (NO_BIAS, (), False),
        (NO_BIAS, (True,), False),
    ],
    ids=["forward", "nothing wanted", "in an order", "learned", "learned, wanted", "no bias", "nor wanted"],
)
def test_a_bias_of_the_distance_is_a_table_unless_its_gradients_can_have_an_order(score, wanted, is_tabled):
    served = ServedScore(score, Q, K, wanted)
    assert (served.score.text == TABLED) == is_tabled
    assert is_tabled or served.score is score


@pytest.mark.parametrize("score", [BY_SLOPE, BY_TABLE], ids=["in an order", "through the table"])
@pytest.mark.parametrize("wanted", [True, False])
def test_the_gradients_are_those_of_what_the_call_captured(score, wanted):
    served = ServedScore(score, Q, K, (wanted,))
    (found,) = served.gathered(served.gradients(), torch.zeros(1, 2, 30), None)
    if wanted:
        assert found.shape == score.tensors[0].shape
    else:
        assert found is None
