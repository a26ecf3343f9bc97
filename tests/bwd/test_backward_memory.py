"""What the backward allocates beside its inputs: no square of the length, no copy of K or V."""

import pytest
import torch
from backward_case import make_problem
from cases import Case
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cute_attn.bwd.config import default_tile
from cute_attn.launch.backward import backward
from cute_attn.mask import causal


class NewMemory(TorchDispatchMode):
    """Counts the bytes of every memory that appears while it is entered, the freed included."""

    def __init__(self):
        super().__init__()
        self.seen, self.bytes = set(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        known = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            storage = x.untyped_storage() if isinstance(x, torch.Tensor) else None
            if storage is not None and storage.data_ptr() not in known:
                self.bytes += storage.nbytes()
        return result


@pytest.mark.slow
def test_the_backward_allocates_its_results_the_sums_of_dq_and_two_numbers_a_row():
    length, heads, dim = 300, (4, 2), 128
    case = Case(causal(length), heads=heads, dims=(dim, dim))
    p = make_problem(case)

    def gradients():
        return backward(p.dout, p.q, p.k, p.v, p.out, p.lse, case.mask, softmax_scale=case.softmax_scale, backend="sim")

    gradients()  # makes what belongs to the mask, once
    with NewMemory() as memory:
        gradients()
    m = default_tile(dim, dim).m
    rows = -(-length // m) * m * heads[0]  # whole tiles
    results = 2 * length * dim * (heads[0] + 2 * heads[1])
    delta = 4 * rows  # that it returns, put in order
    assert memory.bytes <= results + 4 * rows * dim + 8 * rows + delta
