"""What keeps the warps of the decode kernel in order is needed: without any of it, some schedule finds a fault."""

import re

import pytest
import torch
from caching import make
from decode_case import check

from cute_attn import sim

pytestmark = pytest.mark.slow
KINDS = {
    "a proxy fence": (r"fence\.proxy\.async\.shared::cta;", 2),
    "a meeting": (r"bar\.sync \t1, 128;", 4),
    "a wait for products": (r"wgmma\.wait_group\.sync\.aligned \t0;", 2),
    "a release": (r"mbarrier\.arrive\.shared\.b64 [^;]*;", 2),
}
MUTANTS = [(kind, i) for kind, (_, count) in KINDS.items() for i in range(count)]


@pytest.fixture
def mutate(monkeypatch):
    """`mutate(pattern, i)` takes the i-th match out of the code that is run; its result is how many there are."""
    original = sim.run
    found = []

    def install(pattern, i):
        def run(function, *arguments, ptx, **options):
            matches = list(re.finditer(pattern, ptx))
            found.append(len(matches))
            place = matches[i]
            return original(function, *arguments, ptx=ptx[: place.start()] + ptx[place.end() :], **options)

        monkeypatch.setattr(sim, "run", run)
        return found

    return install


def call():
    return make(lengths=(1, 100, 300), page_size=64, dtype=torch.bfloat16, heads=(8, 2), growing=True)


@pytest.mark.parametrize(("kind", "i"), MUTANTS)
def test_without_it_a_fault_is_found(kind, i, mutate):
    pattern, count = KINDS[kind]
    found = mutate(pattern, i)
    faults = []
    for mode, seed in (("eager", 0), ("late", 0), ("random", 1), ("random", 2), ("random", 3)):
        try:
            check(call(), "sim", mode, seed)
        except (sim.SimError, AssertionError) as error:
            faults.append(error)
    assert faults
    assert set(found) == {count}
