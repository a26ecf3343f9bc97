"""The play of warpgroups, on programs whose times are known."""

from dataclasses import replace

import pytest

from cute_attn.predict.kernel import Step
from cute_attn.predict.machine import H200
from cute_attn.predict.model import play
from cute_attn.predict.picture import draw_png, draw_text

IDLE = replace(H200, issue=1.0, turn_latency=0.0, wait_latency=0.0)


def run(slots, mufu=0):
    return Step("run", (slots, 0, 0, mufu, 0))


def products(cycles):
    return Step("products", (cycles,))


WAIT, WAIT_1 = Step("wait", (0,)), Step("wait", (1,))


def cycles(steps, warpgroups, machine=IDLE, **more):
    return pytest.approx(play([steps], warpgroups, machine, **more).cycles)


def test_products_and_what_waits_for_them_take_the_sum():
    assert cycles([products(100), WAIT, run(50)], 1) == 150


def test_what_does_not_wait_runs_under_the_products():
    assert cycles([products(100), run(50), WAIT], 1) == 100


def test_a_wait_for_the_first_group_does_not_wait_for_the_second():
    assert cycles([products(100), products(60), WAIT_1, run(50), WAIT], 1) == 160


def test_warpgroups_take_the_tensor_cores_one_after_another():
    assert cycles([products(100), WAIT], 2) == 200


def test_warpgroups_share_a_pipe_that_is_full_and_not_one_that_has_room():
    assert cycles([run(10, mufu=80)], 2) == 160
    assert cycles([run(100)], 2) == 200
    assert cycles([Step("run", (40, 0, 0, 0, 0))], 1, replace(IDLE, issue=2.0)) == 80
    assert cycles([Step("run", (40, 0, 0, 0, 0))], 2, replace(IDLE, issue=2.0)) == 80


def test_turns_let_one_softmax_hide_under_the_products_of_the_other():
    turn, give = Step("turn"), Step("give")
    steps = [turn, products(100), products(40), give, WAIT_1, run(80), WAIT]
    assert play([steps] * 9, 2, IDLE).cycles - play([steps] * 8, 2, IDLE).cycles == pytest.approx(280)


def test_a_meeting_waits_for_the_last():
    turn, give = Step("turn"), Step("give")
    staggered = [turn, run(30), give, Step("meet"), products(10), WAIT]
    assert cycles(staggered, 2) == 80


def test_what_is_sent_holds_up_the_next_only():
    machine = replace(IDLE, l2=16.0, reduction=2.0)
    steps = [Step("staged"), run(10), Step("send")]
    assert play([steps], 1, machine, sent_bytes=800.0).cycles == pytest.approx(10)
    assert play([steps] * 2, 1, machine, sent_bytes=800.0).cycles == pytest.approx(10 + 100 + 10)


def test_a_wait_ends_with_the_products_that_it_is_for():
    products_first, then = play([[products(100), WAIT, run(50)]], 1, IDLE).spans
    assert (products_first.kind, products_first.begin, products_first.end) == ("products", 0.0, pytest.approx(100))
    assert (then.kind, then.begin, then.end) == ("run", pytest.approx(100), pytest.approx(150))


def test_a_program_that_gives_no_turn_is_said_to_be_stuck():
    with pytest.raises(RuntimeError, match="stuck"):
        play([[Step("turn"), run(1)]], 2, IDLE)


def test_pictures_show_what_ran_when(tmp_path):
    found = play([[products(100), WAIT, run(100)]], 1, IDLE)
    instructions, tensor, _ = draw_text(found, width=10).splitlines()
    assert instructions.endswith(".....#####")
    assert tensor.endswith("=====.....")
    draw_png(found, tmp_path / "a.png", "A")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
