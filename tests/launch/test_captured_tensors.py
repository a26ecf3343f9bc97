"""What a function captured, as kernels get it."""

import torch

from cute_attn.launch.captured import captured_by
from cute_attn.mods.trace import trace


def test_one_number_of_the_hosts_goes_where_the_call_is():
    gain, table = torch.tensor(2.0), torch.zeros(3, device="meta")
    traced = trace(lambda s, b, h, q, k: gain * s + table[k], "score_mod")
    tensors, _ = captured_by(traced, torch.device("meta"))
    assert [(x.device.type, tuple(x.shape)) for x in tensors] == [("meta", (1,)), ("meta", (3,))]
