"""From a call to a time: units, what binds, and what must change it."""

from dataclasses import replace

import numpy as np
import pytest

from cute_attn.predict.call import Call, predict
from cute_attn.predict.kernel import Code, Loop, Step
from cute_attn.predict.machine import H200, SOURCES, Machine


def loop(slots, tensor=1000):
    steps = (Step("products", (tensor,)), Step("wait", (0,)), Step("run", (slots, 0, 0, 0, 0)), Step("send"))
    return Loop(steps, tensor, tensor // 2)


CALL = Call(
    Code((loop(400), loop(100))),
    warpgroups=2,
    tiles_in_pass=1,
    partial=np.full(132, 1),
    full=np.full(132, 50),
    dealt=False,
    loaded=1.0,
    flop=1e12,
    moved=1.0,
)


def seconds(machine=H200, **changes):
    return predict(replace(CALL, **changes), machine).seconds


def test_a_tile_more_on_every_multiprocessor_costs_what_a_tile_costs():
    cycles = (seconds(full=CALL.full + 1) - seconds()) * H200.boost_clock
    assert cycles == pytest.approx(2000, rel=0.02)  # the products of two warpgroups; the rest hides under them


def test_one_item_more_than_multiprocessors_costs_a_whole_round():
    one_more = {name: np.append(getattr(CALL, name), getattr(CALL, name)[0]) for name in ("partial", "full")}
    twice = {name: np.repeat(getattr(CALL, name), 2) for name in ("partial", "full")}
    assert seconds(**one_more) == pytest.approx(seconds(**twice))


def test_tflops_are_those_of_attended_pairs():
    found = predict(CALL, H200)
    assert found.tflops == pytest.approx(1e12 / found.seconds / 1e12)


@pytest.mark.parametrize(
    ("changes", "binds"),
    [
        ({}, "tensor cores"),
        ({"loaded": 2e5}, "L2"),
        ({"sent": 2e5}, "L2"),
        ({"moved": 1e12}, "memory"),
        ({"code": Code((loop(3000),))}, "issue slots"),
    ],
)
def test_what_is_occupied_most_binds(changes, binds):
    assert predict(replace(CALL, **changes), H200).binds == binds


def test_short_items_wait_though_a_tile_keeps_the_tensor_cores_busy():
    short = predict(replace(CALL, partial=np.full(1320, 1), full=np.zeros(1320, int)), H200)
    assert short.shares["tensor cores"] > 0.8
    assert short.binds == "waiting"
    assert short.at_tiles == pytest.approx(2000 / (2000 + H200.item), rel=0.15)


def test_a_call_is_at_tiles_for_less_of_the_time_if_multiprocessors_have_none():
    one = predict(replace(CALL, partial=CALL.partial[:1], full=CALL.full[:1]), H200)
    assert one.at_tiles == pytest.approx(predict(CALL, H200).at_tiles / H200.multiprocessors)
    assert (predict(CALL, H200).binds, one.binds) == ("tensor cores", "waiting")


def test_a_call_that_attends_nothing_takes_its_launch_and_its_items():
    nothing = predict(replace(CALL, partial=CALL.partial * 0, full=CALL.full * 0, flop=0.0), H200)
    assert nothing.seconds > CALL.kernels * H200.launch
    assert (nothing.tflops, nothing.at_tiles, nothing.binds) == (0, 0, "waiting")


def test_what_a_call_does_besides_is_added():
    memory = H200.hbm * H200.hbm_share
    assert seconds(besides=memory, kernels=3) - seconds() == pytest.approx(1 + 2 * H200.launch)


def test_turns_at_one_sum_cost_time():
    own = [np.arange(51) + 51 * item for item in range(132)]
    shared = [np.arange(51)] * 132
    assert seconds(sums=own) < seconds(sums=shared)


def test_long_calls_are_slowed_by_what_power_allows():
    once, ten_times = predict(CALL, H200), predict(replace(CALL, full=CALL.full * 4000), H200)
    assert once.clock == H200.boost_clock > ten_times.clock


def test_every_constant_of_a_machine_says_where_it_is_from():
    assert SOURCES.keys() == Machine.__dataclass_fields__.keys() - {"name"}
