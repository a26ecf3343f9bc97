"""A softcap is recognised, however it is written, and nothing else is."""

import pytest
import torch

from cute_attn.mods.softcap import softcap_of
from cute_attn.mods.trace import trace

CAPS = {
    "product": (lambda s, b, h, q, k: 20.0 * torch.tanh(s / 20.0), 20.0),
    "methods": (lambda s, b, h, q, k: (s / 20).tanh().mul(20), 20.0),
    "in steps": (lambda s, b, h, q, k: torch.mul(torch.tanh(torch.div(s, 30)), 30), 30.0),
    "by the inverse": (lambda s, b, h, q, k: torch.tanh(s * (1 / 15.0)) * 15.0, 15.0),
    "of a third": (lambda s, b, h, q, k: 0.3 * torch.tanh((1 / 0.3) * s), 0.3),
    "twice negative": (lambda s, b, h, q, k: -7.0 * torch.tanh(s / -7.0), 7.0),
    "one": (lambda s, b, h, q, k: torch.tanh(s), 1.0),
    "cast": (lambda s, b, h, q, k: 20 * torch.tanh(s.float() / 20).float(), 20.0),
}
OTHERS = {
    "two numbers": lambda s, b, h, q, k: 20.0 * torch.tanh(s / 21.0),
    "nearly": lambda s, b, h, q, k: 20.0 * torch.tanh(s / 20.000001),
    "negative": lambda s, b, h, q, k: -7.0 * torch.tanh(s / 7.0),
    "sigmoid": lambda s, b, h, q, k: 20.0 * torch.sigmoid(s / 20.0),
    "with a bias": lambda s, b, h, q, k: 20.0 * torch.tanh(s / 20.0) + q,
    "of the index": lambda s, b, h, q, k: 20.0 * torch.tanh(q / 20.0),
    "of a tensor": lambda s, b, h, q, k: torch.tensor(20.0) * torch.tanh(s / torch.tensor(20.0)),
    "rounded": lambda s, b, h, q, k: 20.0 * torch.tanh(s.bfloat16() / 20.0),
}


@pytest.mark.parametrize("name", CAPS)
def test_a_softcap_is_recognised(name):
    function, cap = CAPS[name]
    assert softcap_of(trace(function, "score_mod")) == pytest.approx(cap, rel=1e-15)


@pytest.mark.parametrize("name", OTHERS)
def test_nothing_else_is_taken_for_one(name):
    assert softcap_of(trace(OTHERS[name], "score_mod")) is None
