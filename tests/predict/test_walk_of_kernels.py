"""The model walks sums of dQ as the kernel does: what its warps do in the simulator, step by step."""

import pytest
from backward_case import make_problem, run
from cases import Case

from cute_attn.launch.shapes import spec_for
from cute_attn.mask import causal, sliding_window
from cute_attn.predict.kernel import Code, Loop, Step
from cute_attn.predict.ours import call_of
from cute_attn.sim.host.capture import recorded
from cute_attn.sim.skeleton.program import skeleton_of
from cute_attn.sim.state.steps import ADD


@pytest.mark.slow
@pytest.mark.parametrize("mask", [causal(400), sliding_window(400, left=150, right=0)], ids=["causal", "window"])
def test_every_item_adds_to_the_sums_that_the_model_says_in_that_order(mask):
    case = Case(mask, heads=(4, 2), dims=(64, 64), options={"deterministic": True})
    problem = make_problem(case)
    with recorded() as found:
        run(case, "sim", problem)
    _, recorder = found[1]  # behind the preprocess
    added = []
    for warps in skeleton_of(recorder).clusters:
        programs = [
            [s.thing.number // 4 for s in p if (s.what, s.thing.kind) == (ADD, "counter")] for p in warps.values()
        ]
        first, second = (numbers for numbers in programs if numbers)  # of both consumer warpgroups
        assert [number + 1 for number in first] == second
        added.append([number // 2 for number in first])
    spec = spec_for("bwd", "bf16", 64, 64, mask, deterministic=True)
    loop = Loop((Step("run", (1, 0, 0, 0, 0)),), 640, 0)
    assert added == [sums.tolist() for sums in call_of(spec, Code((loop,)), mask, case.heads).sums]
