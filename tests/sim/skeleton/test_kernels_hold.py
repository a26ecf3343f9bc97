"""Kernels in all orders of their barriers: working ones hold, and bugs are found that a run did not show."""

import pytest
import torch
from mutations.suite import MUTATIONS, mutated
from mutations.suite import check as check_results
from mutations.workloads import WORKLOADS

from cute_attn import sim
from cute_attn.backend import current
from cute_attn.launch.backward import backward
from cute_attn.launch.shapes import spec_for
from cute_attn.mask import causal
from cute_attn.reference import attention_forward
from cute_attn.selftest.cases import case_for
from cute_attn.selftest.check import launch, make_problem
from cute_attn.selftest.decode import decode_case
from cute_attn.sim.errors import MissingBarrier, MissingProxyFence, UninitializedRead
from cute_attn.sim.host.capture import recorded
from cute_attn.sim.host.verify import verified
from cute_attn.sim.skeleton.check import check
from cute_attn.sim.skeleton.program import Skeleton, skeleton_of
from cute_attn.sim.state.steps import ARRIVE, COPY, EXPECT, INIT, MEET, PASS, WAIT
from cute_attn.spec.operation import operation

SCHEDULES = [("eager", 0), ("late", 0), ("random", 1)]


def records(name, mode, seed=0, **options):
    """What the launch of a workload recorded; findings about data do not end it."""
    torch.manual_seed(11)
    workload = WORKLOADS[name]
    arguments, _ = workload.arguments()
    warn = [MissingBarrier, MissingProxyFence, UninitializedRead]
    with recorded() as found:
        sim.run(workload.function(), *arguments, mode=mode, seed=seed, warn=warn, **options)
    return found


@pytest.mark.parametrize(
    "name", [n if n in ("attention", "gram") else pytest.param(n, marks=pytest.mark.slow) for n in WORKLOADS]
)
def test_the_kernels_of_the_tests_hold_and_one_order_proves_it(name):
    found = verified([record for mode, seed in SCHEDULES for record in records(name, mode, seed)])
    assert found.holds, found
    assert not found.checked.races


def test_a_compiled_function_is_run_in_every_schedule_and_searched():
    arguments, expected = WORKLOADS["gram"].arguments()
    report, (found,) = sim.verify(WORKLOADS["gram"].function(), *arguments)
    check_results(expected)
    assert report.statistics["ctas"] == found.ctas == 1
    assert found.holds
    assert str(found) == "no deadlock in any order"


def test_what_launches_nothing_or_other_kernels_in_other_schedules_is_not_verified():
    with pytest.raises(ValueError, match="launched no kernel"):
        sim.verify(lambda: None)
    arguments, _ = WORKLOADS["gram"].arguments()
    calls = []

    def launches():
        calls.append(None)
        for _ in range(1 + len(calls) % 2):
            WORKLOADS["gram"].function()(*arguments)

    _, (found,) = sim.verify(launches)
    assert not found.holds
    assert str(found) == "not searched: two schedules launched different kernels"


# By workload, mode and seed: harmful mutations with which such a run comes to its end.
UNSEEN = {
    ("attention", "eager", 0): (
        "q not awaited",
        "k not awaited",
        "first k not awaited",
        "v not awaited",
        "last v not awaited",
        "q's slot counts one warpgroup",
        "epilogues share a barrier",
    ),
    ("matmul", "eager", 0): ("both warpgroups use one barrier",),
    ("cluster", "random", 1): ("a CTA may leave early",),
}


@pytest.mark.parametrize(
    ("workload", "mode", "seed", "name"),
    [
        pytest.param(*run, name, marks=() if run[0] == "attention" else pytest.mark.slow)
        for run, names in UNSEEN.items()
        for name in names
    ],
)
def test_an_order_in_which_a_bug_shows_is_found_from_a_run_in_which_it_does_not(workload, mode, seed, name):
    found = verified(records(workload, mode, seed, ptx=mutated(MUTATIONS[name])))
    assert found.checked.found, found


@pytest.mark.parametrize("name", [m.name for m in MUTATIONS.values() if m.workload == "attention" and not m.about])
def test_harmless_changes_hold(name):
    assert verified(records("attention", "eager", ptx=mutated(MUTATIONS[name]))).holds


def edits(skeleton):
    """Skeletons with one kind of step left out or changed, wherever in the text it stands."""
    places = dict.fromkeys((s.what, s.line) for cluster in skeleton.clusters for p in cluster.values() for s in p)

    def edited(place, change):
        steps = lambda p: [x for s in p for x in (change(s) if (s.what, s.line) == place else [s])]  # noqa: E731
        return Skeleton([{w: tuple(steps(p)) for w, p in cluster.items()} for cluster in skeleton.clusters])

    for place in places:
        if place[0] in (ARRIVE, EXPECT, COPY):
            yield f"{place} left out", edited(place, lambda s: [])
        if place[0] == INIT:
            yield f"{place} one more", edited(place, lambda s: [s._replace(number=s.number + 1)])
        if place[0] == WAIT:
            yield f"{place} other parity", edited(place, lambda s: [s._replace(number=s.number ^ 1)])
        if place[0] == MEET:  # and the wait behind it, where there is one
            without = edited(place, lambda s: [])
            lines = {s.line for c in skeleton.clusters for p in c.values() for s in p if s.what == PASS}
            if place[1] not in lines:
                yield f"{place} left out", without


def test_every_arrival_count_and_parity_of_a_kernel_is_needed():
    ((_, recorder),) = records("attention", "eager")
    needless = [what for what, skeleton in edits(skeleton_of(recorder)) if check(skeleton).found is None]
    assert not needless


# ---------------------------------------------------------------- our own


def verify(case):
    problem = make_problem(case, torch.device("cpu"))
    with_options = lambda: launch(case, problem, "sim", **current().options)  # noqa: E731
    _, found = sim.verify(with_options, deterministic=getattr(case.spec, "deterministic", False))
    assert all(one.holds for one in found), [str(one) for one in found]
    assert not any(one.checked.races for one in found)
    return found


def small(op, dims, mask, **variant):
    return case_for(spec_for(op, "bf16", *dims, mask, operation(op).default_tile(*dims), **variant))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("op", "dims", "variant"),
    [
        ("fwd", (64, 64), {}),
        ("fwd", (128, 128), {}),
        ("fwd", (192, 128), {}),
        ("bwd", (128, 128), {}),
        ("bwd", (256, 256), {"deterministic": True}),
    ],
)
def test_our_forward_and_backward_hold(op, dims, variant):
    verify(small(op, dims, causal(1000, 1000), **variant).simulated())


@pytest.mark.slow
def test_our_decode_holds_with_its_merge():
    verify(decode_case(parts=2).simulated())


def turns(sm_margin):
    """What the CTAs of a deterministic backward of four key tiles need of each other, with so many left free."""
    n = 500
    mask = causal(n, n)
    q, k, v = (torch.randn(1, n, heads, 128).bfloat16() for heads in (2, 1, 1))
    out, lse, _ = attention_forward(q, k, v, mask.lo, mask.hi, None, 0.1, 0.0)
    runs = []
    for mode, seed in SCHEDULES:
        with recorded() as found, sim.simulated(mode, seed):
            options = {"softmax_scale": 0.1, "deterministic": True, "sm_margin": sm_margin, "backend": "sim"}
            backward(torch.ones_like(q), q, k, v, out, lse, mask, **options)
        runs.append(found[1])
    main = verified(runs)
    assert main.holds, main
    return main.checked.residency


@pytest.mark.slow
def test_turns_need_their_ctas_in_order_and_with_several_items_each_also_at_once():
    """Beyond what bwd/turns.py says: with a margin a CTA has items behind those of CTAs that start after it."""
    alone = turns(0)
    assert (alone.clusters, alone.in_order, alone.in_any_order) == (4, 1, 4)
    two = turns(130)
    assert (two.clusters, two.in_order) == (2, 2)
    three = turns(129)
    assert (three.clusters, three.in_order) == (3, 2)
    assert any("counter" in line and "nobody else comes there any more" in line for line in two.too_few.waits)
