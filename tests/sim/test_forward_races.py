"""Our own forward has no race, and one that hardly any schedule shows is found in the first."""

import re

import pytest
import torch

from cute_attn import sim
from cute_attn.launch.forward import forward
from cute_attn.mask import causal
from cute_attn.sim.errors import Race

MASK = causal(192, 320)


def compiled(monkeypatch):
    """The compiled function of a call, its arguments and options."""
    q, k, v = (torch.randn(1, *shape, 128).bfloat16() for shape in ((192, 2), (320, 1), (320, 1)))
    calls, run = [], sim.run

    def noted(function, *args, **options):
        calls.append((function, args, options))
        return run(function, *args, **options)

    with monkeypatch.context() as patch, sim.simulated():
        patch.setattr(sim, "run", noted)
        forward(q, k, v, MASK, softmax_scale=0.1, backend="sim")
    (call,) = calls
    return call


def moved(ptx):
    """The store that tells consumers which tile is in a slot, taken behind the copies of that tile."""
    lines = ptx.splitlines()
    store = next(i for i, line in enumerate(lines) if re.search(r"st\.shared\.v4\.b32", line))
    announced = next(i for i in range(store, len(lines)) if "mbarrier.arrive.expect_tx" in lines[i])
    assert announced - store < 12
    copies = [i for i in range(announced, len(lines)) if "cp.async.bulk.tensor" in lines[i]][:2]
    lines.insert(copies[-1] + 1, lines[store])
    del lines[store]
    return "\n".join(lines)


@pytest.mark.slow
def test_a_place_that_is_stored_behind_the_copies_of_its_tile_races_with_those_who_read_it(monkeypatch):
    function, args, options = compiled(monkeypatch)
    sim.run(function, *args, ptx=options["ptx"], races=True, deterministic=True)
    with pytest.raises(Race, match=r"of shared address .* and nothing orders it behind") as caught:
        sim.run(function, *args, ptx=moved(options["ptx"]), races=True)
    assert "st.shared.v4.b32" in str(caught.value)
