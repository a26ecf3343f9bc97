"""Calls that fail half-way on one rank: nobody computes a wrong sum, and every rank learns of it in time."""

import gc
import time
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from problems import Problem, check, config, results
from ranks import error_of, join_world, run_ranks
from torch.utils.checkpoint import checkpoint

from cute_attn import mask as masks
from cute_attn.dist import (
    calc_attn,
    clear_cache,
    compute_pad_size,
    dispatch,
    magi_attn_flex_key,
    roll,
    soundness,
    undispatch,
)
from cute_attn.dist import rows as rows_module
from cute_attn.dist import runtime as runtime_module

LENGTH, CHUNK = 96, 4
TIMEOUT = 5  # seconds, of the process group
BROKEN = 1  # the rank whose memory runs out, or that is late
SLOW = pytest.mark.slow


def make_key(settings, group=None):
    group = dist.group.WORLD if group is None else group
    pad_size = compute_pad_size(LENGTH, group.size(), CHUNK)
    return magi_attn_flex_key(masks.causal(LENGTH), None, None, LENGTH, LENGTH, pad_size, CHUNK, group, settings)


def fail_once(rank, name, call=0, module=runtime_module):
    """Makes a function of a module raise on the broken rank, at its call of this number alone."""
    original, calls = getattr(module, name), []

    def function(*arguments):
        calls.append(1)
        if rank == BROKEN and len(calls) == call + 1:
            raise torch.OutOfMemoryError("no memory is left")
        return original(*arguments)

    setattr(module, name, function)


def local_inputs(key):
    torch.manual_seed(0)
    return [dispatch(torch.randn(LENGTH, heads, 8).double(), key).requires_grad_() for heads in (4, 2, 2)]


def solve(problem, settings):
    key = make_key(settings)

    def attention(q, k, v, sink):
        out, lse, most = calc_attn(*(dispatch(x, key) for x in (q, k, v)), key, sink, return_max_logits=True)
        return undispatch(out, key), undispatch(lse.T, key).T, most

    check("healed", results(problem.inputs, problem.gradients, attention), problem.wanted)


def checked(mover, check_ranks):
    return replace(config(mover), check_ranks=check_ranks)


@pytest.mark.parametrize(
    ("world", "name", "call", "settings"),
    [
        pytest.param(3, "attend", 0, checked("group_cast", True), id="forward"),
        pytest.param(2, "attend_backward", 1, checked("ring", False), id="backward, not compared"),
        *(
            pytest.param(world, name, call, checked(mover, check_ranks), marks=SLOW)
            for world, name, call in ((2, "attend", 0), (4, "attend", 1), (4, "attend_backward", 0))
            for mover in ("group_cast", "ring", "ulysses")
            for check_ranks in (True, False)
            if mover != "ulysses" or call == 0  # it attends once
        ),
    ],
)
def test_after_a_failure_every_rank_raises_until_the_group_is_made_anew(world, name, call, settings, tmp_path):
    problem = Problem(masks.causal(LENGTH), sinks=1)
    ranks = run_ranks(world, _fail, name, call, settings, problem, tmp_path, timeout=TIMEOUT)
    for rank, (first, later, seconds) in enumerate(ranks):
        if rank == BROKEN:
            assert first == ("OutOfMemoryError", "no memory is left")
        else:
            assert first[0] == "RuntimeError"
            assert "another rank has raised, has ended, is too late, or makes other calls" in first[1]
            assert "destroy_process_group on every rank" in first[1]
        for what, error in later.items():
            assert error is not None, what
            assert error[0] == "RuntimeError", (what, error)
            assert "the process group cannot be used any more, since" in error[1]
            assert "destroy_process_group on every rank" in error[1]
            if rank == BROKEN:
                assert "OutOfMemoryError: no memory is left" in error[1]
        assert seconds < 2 * TIMEOUT


def _fail(rank, name, call, settings, problem, folder):
    """A step fails on one rank, which goes on to the next; then everybody tries all there is."""
    key = make_key(settings)
    qkv = local_inputs(key)
    with_grad = [f(qkv[0]) for f in (lambda x: undispatch(x, key), lambda x: roll(x, 1, 0, key))]
    fail_once(rank, name, call)
    begun = time.monotonic()
    first = error_of(_steps, qkv, key)
    seconds = time.monotonic() - begun
    later = {
        "calc_attn": error_of(calc_attn, *qkv, key),
        "dispatch": error_of(dispatch, torch.zeros(LENGTH), key),
        "undispatch": error_of(undispatch, qkv[0], key),
        "roll": error_of(roll, qkv[0], 1, 0, key),
        "the backward of roll": error_of(with_grad[1].sum().backward),
    }
    clear_cache()
    later["a key"] = error_of(make_key, settings)
    world = dist.get_world_size()
    dist.destroy_process_group()
    join_world(rank, world, _fresh(folder), TIMEOUT)
    solve(problem, settings)
    return first, later, seconds


def _fresh(folder):
    (folder / "again").mkdir(exist_ok=True)
    return folder / "again"


def _steps(qkv, key):
    """Steps until one fails: ranks that a failure reaches late get through the first."""
    for _ in range(3):
        out, _ = calc_attn(*qkv, key)
        out.sum().backward()


@pytest.mark.parametrize("what", ["calc_attn", *(pytest.param(x, marks=SLOW) for x in ("a key", "the backward"))])
def test_a_rank_that_is_later_than_the_timeout_ends_as_those_that_waited_for_it(what, tmp_path):
    for first, later, seconds in run_ranks(2, _too_late, what, tmp_path / "given up", timeout=TIMEOUT):
        assert first[0] == later[0] == "RuntimeError"
        assert "another rank has raised, has ended, is too late, or makes other calls" in first[1]
        assert "destroy_process_group on every rank" in first[1]
        assert "the process group cannot be used any more, since" in later[1]
        assert seconds < 2 * TIMEOUT


def _too_late(rank, what, given_up):
    key = make_key(config("group_cast"))
    qkv = local_inputs(key)
    out, _ = calc_attn(*qkv, key)
    call = {
        "calc_attn": (calc_attn, *qkv, key),
        "a key": (make_key, config("ring")),
        "the backward": (out.sum().backward,),
    }[what]
    while rank == BROKEN and not given_up.exists():
        time.sleep(0.05)
    begun = time.monotonic()
    error = error_of(*call)
    seconds = time.monotonic() - begun
    given_up.touch()
    return error, error_of(calc_attn, *qkv, key), seconds


def test_a_rank_that_is_late_is_waited_for():
    run_ranks(2, _late, Problem(masks.causal(LENGTH)))


def _late(rank, problem):
    time.sleep(0.5 * rank)
    solve(problem, config("ring"))


def test_rows_that_fail_half_way_end_the_same():
    ranks = run_ranks(2, _fail_in_undispatch, timeout=TIMEOUT)
    assert ranks[BROKEN][0][0] == "OutOfMemoryError"
    assert "another rank has raised" in ranks[0][0][1]
    for _, later in ranks:
        assert "undispatch failed half-way on this rank" in later[1]


def _fail_in_undispatch(rank):
    key = make_key(config("ring"))
    x = dispatch(torch.ones(LENGTH, 2), key)
    fail_once(rank, "gather_rows", module=rows_module)
    return error_of(undispatch, x, key), error_of(roll, x, 1, 0, key)


def test_a_mark_is_that_of_its_group_alone_and_ends_with_it():
    run_ranks(2, _two_groups)


def _two_groups(rank):
    groups = [dist.new_group(timeout=timedelta(seconds=3)), dist.new_group()]
    first, second = (make_key(config("group_cast"), group) for group in groups)
    qkv = local_inputs(second)
    fail_once(rank, "attend")
    assert error_of(_steps, qkv, first) is not None
    calc_attn(*qkv, second)[0].sum().backward()
    assert len(soundness._failures) == 1
    del first, second
    clear_cache()
    dist.destroy_process_group(groups.pop(0))
    gc.collect()
    assert len(soundness._failures) == 0


def test_a_key_of_a_destroyed_group_is_refused_by_that_name():
    run_ranks(2, _destroyed)


def _destroyed(rank):
    group = dist.new_group()
    key = make_key(config("ring"), group)
    qkv = local_inputs(key)
    dist.destroy_process_group(group)
    for call in ((calc_attn, *qkv, key), (undispatch, qkv[0], key), (dispatch, torch.zeros(LENGTH), key)):
        error = error_of(*call)
        assert error[0] == "RuntimeError"
        assert "the process group of this key has been destroyed" in error[1]


def test_a_rank_alone_may_go_on():
    run_ranks(1, _alone)


def _alone(rank):
    key = make_key(config("ring"))
    qkv = local_inputs(key)
    fail_once(BROKEN, "attend")
    assert error_of(calc_attn, *qkv, key) == ("OutOfMemoryError", "no memory is left")
    calc_attn(*qkv, key)


@pytest.mark.slow
def test_activation_checkpointing_is_no_failure():
    """It leaves the recomputed forward by an exception once it has all that it needs."""
    run_ranks(2, _checkpointed)


def _checkpointed(rank):
    key = make_key(config("ring"))
    for _ in range(2):
        qkv = local_inputs(key)
        calc_attn(*qkv, key)[0].square().sum().backward()
        wanted = [x.grad for x in qkv]
        qkv = local_inputs(key)
        checkpoint(lambda *x: calc_attn(*x, key)[0].square().sum(), *qkv, use_reentrant=False).backward()
        for x, grad in zip(qkv, wanted, strict=True):
            assert torch.equal(x.grad, grad)
