"""Numbers that are not finite stay where they are: in rows without keys, in keys without rows, in their tiles."""

from dataclasses import replace

import pytest
import torch
from backward_case import make_problem, run
from cases import DIMS, NEEDS_ONE, SCHEDULES, Case
from poison import DOCUMENTS, MASKS, TOKEN, idle, poisoned, zeroed

from cute_attn.mask import IntervalMask, causal_documents
from cute_attn.reference import sink_gradient


def filled(problem, rows, keys, fill):
    """The problem with other numbers in rows without keys and keys without rows; dlse only where no sink has it."""
    dlse = problem.dlse
    if dlse is not None and problem.sink is None:
        dlse = fill(dlse, rows, dim=2)
    of_rows = {name: fill(getattr(problem, name), rows) for name in ("q", "out", "dout")}
    return replace(problem, k=fill(problem.k, keys), v=fill(problem.v, keys), dlse=dlse, **of_rows)


def check_that_idle_numbers_change_nothing(case, backend):
    """Every bit of every gradient is that of zeros in their place, and zero itself where they stood."""
    rows, keys = idle(case.mask)
    problem = make_problem(case)
    clean = filled(problem, rows, keys, zeroed)
    wanted, got = run(case, backend, clean), run(case, backend, filled(problem, rows, keys, poisoned))
    for name, a, b in zip(wanted._fields, got, wanted, strict=True):
        assert a is None or torch.equal(a, b), name
        assert b is None or b.isfinite().all(), name
    for gradient, places in zip(got, (rows, keys, keys), strict=False):
        assert gradient is None or (gradient[places.expand(case.batch, -1)] == 0).all()
    if problem.sink is not None:
        dsink = sink_gradient(problem.sink, problem.lse, got.delta)
        assert torch.equal(dsink, sink_gradient(problem.sink, problem.lse, wanted.delta))
        assert dsink.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["padding at the end", "more rows than keys", "one token"])
def test_padding(name, backend):
    check_that_idle_numbers_change_nothing(Case(MASKS[name], batch=2, heads=(4, 2)), backend)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "seed"), SCHEDULES[:4])
def test_holes_in_every_schedule(mode, seed, backend):
    case = Case(MASKS["holes"], mode=mode, seed=seed, options={"sm_margin": 130})
    check_that_idle_numbers_change_nothing(case, backend)


@pytest.mark.slow
def test_two_layers_with_sinks_at_head_dim_64(backend):
    case = Case(
        MASKS["two layers"], heads=(4, 1), dims=(64, 64), dtype=torch.float16, sink="sh", dlse=True, mode="late"
    )
    check_that_idle_numbers_change_nothing(case, backend)


@pytest.mark.slow
def test_many_layers_and_a_sink_for_each_row(backend):
    case = Case(MASKS["many layers"], heads=(2, 2), sink="ssh", mode="random")
    check_that_idle_numbers_change_nothing(case, backend)


@pytest.mark.slow
def test_a_mask_for_each_batch_with_softcap(backend):
    case = Case(MASKS["one for each batch"], batch=2, heads=(8, 1), dims=(80, 72), softcap=5.0)
    check_that_idle_numbers_change_nothing(case, backend)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["padding at the end", "holes", "many layers"])
@pytest.mark.parametrize("dims", DIMS)
def test_every_head_dim(name, dims, backend):
    case = Case(MASKS[name], batch=MASKS[name].batch, dims=dims)
    check_that_idle_numbers_change_nothing(case, backend)
    options = {"deterministic": True, "fp32_gradients": True}
    case = replace(case, softcap=3.0, dlse=True, options=options, mode="late")
    check_that_idle_numbers_change_nothing(case, backend)


@pytest.mark.slow
@pytest.mark.parametrize("needs", NEEDS_ONE)
@pytest.mark.parametrize("dims", [(64, 64), (256, 256)])
def test_any_gradient_alone(needs, dims, backend):
    case = Case(MASKS["holes"], dims=dims, options={"needs": needs}, mode="random")
    check_that_idle_numbers_change_nothing(case, backend)


# ---------------------------------------------------------------- numbers that some row attends


@pytest.mark.slow
@pytest.mark.parametrize("which", ["q", "k", "v", "dout"])
def test_a_token_reaches_what_attends_it_and_nothing_beyond_the_tiles_of_these(which, backend):
    mask = causal_documents(600, cu_seqlens=DOCUMENTS)
    case = Case(mask, heads=(2, 2))
    clean = make_problem(case)
    dirty = replace(clean, **{which: getattr(clean, which).clone()})
    getattr(dirty, which)[:, TOKEN] = torch.nan
    dense, tokens = mask.to_dense()[0], torch.arange(600) == TOKEN
    visits = tile_pairs(mask)
    rows = dense[:, TOKEN] if which in "kv" else tokens  # those whose own numbers are not finite
    if which != "dout":
        dirty.out[:, rows] = torch.nan
    if which in "qk":
        dirty.lse[:, :, rows] = torch.nan
    before, after = run(case, backend, clean), run(case, backend, dirty)
    near_rows = rows | (visits[:, TOKEN] if which in "kv" else rows)
    near_keys = visits[rows].any(0)
    attended = dense[rows].any(0)
    reach = {  # docs/backward.md
        "q": (rows, near_keys, attended),
        "k": (near_rows, attended, attended),
        "v": (near_rows, near_keys, tokens & False),
        "dout": (rows, near_keys, near_keys),
    }[which]
    for name, allowed in zip(("dq", "dk", "dv"), reach, strict=True):
        a, b = getattr(before, name), getattr(after, name)
        reached = (a != b).any(3).any(2)[0]
        assert not reached[~allowed].any(), name
        assert not b[:, reached].isfinite().all(3).any(), name
    must = {"dq": rows, "dk": attended, "dv": attended}
    for name, places in must.items():
        if (which, name) != ("v", "dv"):
            assert getattr(after, name)[:, places].isnan().all(), name


def tile_pairs(mask):
    """bool (rows, keys): pairs in a tile that the backward visits."""
    grid = mask.schedule((64, 128)).to_grid()[0] > 0
    return grid.repeat_interleave(64, 0).repeat_interleave(128, 1)[: mask.seqlen_q, : mask.seqlen_k]


def test_a_row_without_keys_has_no_gradient_whatever_keys_others_attend(backend):
    mask = IntervalMask.from_slices([[0, 50], [60, 100]], [[0, 90], [0, 90]], None, 130, 90)
    problem = make_problem(Case(mask, heads=(2, 2)))
    problem.k[:, 20] = problem.v[:, 20] = torch.inf
    gradients = run(Case(mask, heads=(2, 2)), backend, problem)
    assert (gradients.dq[:, idle(mask)[0][0]] == 0).all()
    assert gradients.dq.isnan().any()


@pytest.mark.slow
def test_a_row_whose_lse_is_infinite_does_not_pass_for_one_without_keys(backend):
    mask = causal_documents(200, cu_seqlens=[0, 64, 200])
    problem = make_problem(Case(mask, heads=(2, 2)))
    problem.lse[:, :, 150] = torch.inf
    gradients = run(Case(mask, heads=(2, 2)), backend, problem)
    attended = mask.to_dense()[0, 150]
    for gradient in (gradients.dk, gradients.dv):
        assert gradient[:, attended].isnan().all()
        assert gradient[:, ~attended].isfinite().all()
