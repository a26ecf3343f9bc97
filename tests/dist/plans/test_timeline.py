"""Timelines of movers: what the plan says takes its time, nothing begins before what it needs, and how it is drawn."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner

from cute_attn.cli import main
from cute_attn.dist import ContiguousDispatchAlg, CostModel, DispatchConfig, OverlapConfig, place
from cute_attn.dist.cost import BACKWARD
from cute_attn.dist.plans.group_cast import plan_placed_group_cast
from cute_attn.dist.plans.node_cast import plan_placed_node_cast
from cute_attn.dist.plans.placed import PlacedMask
from cute_attn.dist.plans.predict import predict_movers
from cute_attn.dist.plans.ring import plan_placed_ring
from cute_attn.dist.plans.timeline import Event, Timeline, draw_timelines, slowest_rank, timelines
from cute_attn.mask import builders

COST = CostModel(8, 2, 64, 32, flops=1e12, bandwidth=1e9)
OVERLAP = OverlapConfig(degree=3, min_chunk_size=8)
ROW = 2 * (64 + 32) * 2  # bytes of a row of keys and values
WORLD = 4


@pytest.fixture(scope="module")
def placed():
    mask = builders.causal(256)
    return PlacedMask(mask, *place(mask, WORLD, 8, config=DispatchConfig(ContiguousDispatchAlg())))


def of_lane(timeline, lane):
    return [event for event in timeline.events if event.lane == lane]


def lasting(event):
    return event.end - event.begin


def assert_nothing_begins_before_what_it_needs(timeline):
    exchanges = [event for event in timeline.events if event.lane != "attend"]
    for queue in (exchanges, of_lane(timeline, "attend")):
        assert all(before.end <= event.begin for before, event in pairwise(queue))
    attended = {event.block: event for event in of_lane(timeline, "attend")}
    for event in of_lane(timeline, "keys"):
        assert event.end <= attended[event.block].begin
    for event in of_lane(timeline, "dK, dV"):
        assert event.begin >= attended[event.block].end
    assert timeline.seconds == max(event.end for event in timeline.events)


def test_a_group_cast_takes_the_time_of_its_stages(placed):
    plan = plan_placed_group_cast(placed, WORLD - 1, OVERLAP, COST)
    assert len(plan.stages) == 4
    forward, backward = timelines("group_cast", placed, WORLD - 1, OVERLAP, COST)
    rows = [max(sum(stage.send_splits), sum(stage.receive_splits)) for stage in plan.stages]
    for timeline, factor, order in ((forward, 1.0, [0, 1, 2, 3]), (backward, BACKWARD, [3, 2, 1, 0])):
        assert_nothing_begins_before_what_it_needs(timeline)
        attended = of_lane(timeline, "attend")
        assert [event.block for event in attended] == order
        for event in attended:
            assert lasting(event) == pytest.approx(factor * COST.compute_seconds(plan.stages[event.block].area))
        fetched = of_lane(timeline, "keys")
        assert [event.block for event in fetched] == [block for block in order if block]
        for event in fetched:
            assert lasting(event) == pytest.approx(COST.send_seconds(rows[event.block] * ROW))
        assert timeline.waiting == pytest.approx(timeline.seconds - sum(map(lasting, attended)))
    assert not of_lane(forward, "dK, dV")
    returned = of_lane(backward, "dK, dV")
    assert [event.block for event in returned] == [3, 2, 1]
    for event in returned:
        assert lasting(event) == pytest.approx(COST.send_seconds(rows[event.block] * ROW * 2)), "fp32"


def test_a_node_cast_crosses_before_it_hands_on(placed):
    cost = replace(COST, ranks_per_node=2, node_bandwidth=1e10)
    plan = plan_placed_node_cast(placed, WORLD - 1, OVERLAP, cost)
    forward, backward = timelines("node_cast", placed, WORLD - 1, OVERLAP, cost)
    for timeline, width in ((forward, ROW), (backward, ROW)):
        assert_nothing_begins_before_what_it_needs(timeline)
        for event in of_lane(timeline, "keys"):
            stage = plan.stages[event.block]
            across = max(sum(stage.across.send_splits), sum(stage.across.receive_splits)) if stage.across else 0
            inside = max(
                sum(n for peer, n in enumerate(rows) if peer != WORLD - 1)
                for rows in (stage.send_splits, stage.receive_splits)
            )
            steps = cost.send_seconds(0, 1, inside * width)
            if stage.across:
                steps += cost.send_seconds(across * width)
            assert lasting(event) == pytest.approx(steps)
    assert any(stage.across for stage in plan.stages)


def test_what_stays_inside_of_a_node_takes_its_own_bandwidth(placed):
    cost = replace(COST, ranks_per_node=WORLD, node_bandwidth=1e10)
    plan = plan_placed_group_cast(placed, WORLD - 1, OVERLAP, cost)
    (forward, _) = timelines("group_cast", placed, WORLD - 1, OVERLAP, cost)
    for event in of_lane(forward, "keys"):
        rows = max(sum(plan.stages[event.block].send_splits), sum(plan.stages[event.block].receive_splits))
        assert lasting(event) == pytest.approx(cost.send_seconds(0, 1, rows * ROW))


def test_a_stage_travels_while_the_one_before_it_is_attended(placed):
    slow = CostModel(8, 2, 64, 32, flops=1e9, bandwidth=1e9)  # attention takes much longer than anything else
    forward, backward = timelines("group_cast", placed, WORLD - 1, OVERLAP, slow)
    assert forward.waiting == 0.0
    first_fetch, last_return = backward.events[0], of_lane(backward, "dK, dV")[-1]
    assert backward.waiting == pytest.approx(lasting(first_fetch))
    assert last_return.end < of_lane(backward, "attend")[-1].end, "behind the own keys"
    together = timelines("group_cast", placed, WORLD - 1, OverlapConfig(enable=False), slow)
    for timeline, exchanges in zip(together, (1, 2), strict=True):
        assert len(of_lane(timeline, "attend")) == 1
        assert timeline.waiting == pytest.approx(sum(lasting(e) for e in timeline.events if e.lane != "attend"))
        assert len(timeline.events) == 1 + exchanges


def test_a_ring_takes_the_time_of_its_steps(placed):
    rank = 1
    plan = plan_placed_ring(placed, rank, 1)
    forward, backward = timelines("ring", placed, rank, OVERLAP, COST)
    for timeline in (forward, backward):
        fetched = of_lane(timeline, "keys")
        assert [event.block for event in fetched] == [1, 2, 3]
        for event, step in zip(fetched, plan.steps, strict=False):
            rows = max(len(step.send_index), step.receive_rows)
            assert lasting(event) == pytest.approx(COST.send_seconds(rows * ROW))
    assert {event.block for event in of_lane(forward, "attend")} == {
        n for n, step in enumerate(plan.steps) if step.area
    }
    for event in of_lane(backward, "dK, dV"):
        step = plan.steps[event.block]
        rows = max(len(step.send_index) + len(step.end_index), step.receive_rows + len(step.home_index))
        assert lasting(event) == pytest.approx(COST.send_seconds(rows * ROW * 2))
    assert_nothing_begins_before_what_it_needs(timelines("ring", placed, WORLD - 1, OVERLAP, COST)[1])


@pytest.mark.parametrize(("mover", "size"), [("ulysses", 4), ("ulysses_ring", 2)])
def test_heads_are_exchanged_before_and_after(placed, mover, size):
    rows = 256 // WORLD
    queries, outputs = ((size - 1) * rows * (8 // size) * dim * 2 for dim in (64, 32))
    keys = (size - 1) * rows * max(1, 2 // size) * (64 + 32) * 2
    forward, backward = timelines(mover, placed, 2, OVERLAP, COST, size)
    for timeline, sizes in ((forward, (queries + keys, outputs)), (backward, (outputs, queries + keys))):
        first, *_, last = timeline.events
        assert (first, last) == tuple(of_lane(timeline, "heads"))
        for event, bytes_moved in zip((first, last), sizes, strict=True):
            assert lasting(event) == pytest.approx(COST.send_seconds(bytes_moved))
        assert last.begin >= of_lane(timeline, "attend")[-1].end
    attended = sum(map(lasting, of_lane(forward, "attend")))
    areas = placed.ring(size).areas
    assert attended == pytest.approx(COST.compute_seconds(int(areas[2 // size]) / size))


def test_the_slowest_rank_has_most_to_attend_and_to_move(placed):
    (cast,) = (p for p in predict_movers(placed, OVERLAP, COST) if p.mover == "group_cast")
    assert slowest_rank(placed, OVERLAP, COST, cast) == WORLD - 1


def test_lanes_are_drawn_on_one_scale():
    attend = Event("attend", 0, 0.0, 2.0), Event("attend", 1, 2.0, 3.0)
    forward = Timeline("forward", (Event("keys", 1, 0.0, 1.0), *attend))
    late = Event("dK, dV", 11, 5.0, 6.0), Event("keys", 2, 6.0, 6.0)
    backward = Timeline("backward", (Event("attend", 0, 0.0, 5.0), *late))
    assert draw_timelines([forward, backward], width=19).splitlines() == [
        "forward: 3000.00 ms, 0.00 ms without attention",
        "keys   11",
        "attend 000011",
        "backward: 6000.00 ms, 1000.00 ms without attention",
        "keys              2",
        "attend 0000000000",
        "dK, dV           bb",
    ]
    assert draw_timelines([Timeline("forward", ())]) == "forward: 0.00 ms, 0.00 ms without attention"


def run(*arguments):
    return CliRunner().invoke(main, ["plan", *arguments])


def test_the_documented_timeline_is_what_the_command_prints():
    page = (Path(__file__).parents[3] / "docs" / "context_parallel.md").read_text()
    section = page.split("## Timelines\n")[1]
    command, shown = (section.split(f"```{kind}\n")[1].split("```")[0] for kind in ("bash", "text"))
    result = run(*command.split()[2:])
    assert result.exit_code == 0, result.output

    def words(text):
        return [re.sub(r"\d+", "#", re.sub(r"^(keys|attend|dK, dV) .*", r"\1", line)) for line in text.splitlines()]

    assert words(result.output)[-len(words(shown)) :] == words(shown)


def test_a_timeline_can_be_a_picture(tmp_path):
    png = tmp_path / "timeline.png"
    result = run("--world", "4", "--seqlen", "4Ki", "--chunk-size", "64", "--timeline-png", str(png))
    assert result.exit_code == 0, result.output
    assert "the slowest; a block by its number" in result.output
    assert png.read_bytes().startswith(b"\x89PNG")


def test_a_mover_may_be_named_and_one_that_does_not_serve_is_refused():
    few = ["--world", "3", "--seqlen", "300", "--chunk-size", "10"]
    assert "ring on rank 2, the slowest" in run(*few, "--timeline", "ring", "--alg", "contiguous").output
    assert "on rank" in run(*few, "--timeline").output
    assert "on rank" not in run(*few).output
    refused = run(*few, "--timeline", "ulysses")
    assert refused.exit_code == 2
    assert "--timeline ulysses does not serve these ranks and heads" in refused.output
