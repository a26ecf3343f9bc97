"""Numbers that are not finite stay where they are: in rows without keys, in keys without rows, in their tiles."""

import types
from dataclasses import replace

import pytest
import torch
from cases import DIMS, SCHEDULES, Case, draw
from forward_case import run
from poison import DOCUMENTS, MASKS, TOKEN, idle, poisoned, zeroed

from cute_attn.launch import run as launch
from cute_attn.mask import IntervalMask, causal_documents
from cute_attn.sim.errors import MissingProxyFence


def check_that_idle_numbers_change_nothing(case, backend):
    """Every bit of every result is that of zeros in their place."""
    rows, keys = idle(case.mask)
    p = draw(case)
    clean, dirty = (
        run(case, backend, replace(p, q=fill(p.q, rows), k=fill(p.k, keys), v=fill(p.v, keys)))
        for fill in (zeroed, poisoned)
    )
    out, lse, _ = clean
    assert out.isfinite().all()
    for got, wanted in zip(dirty, clean, strict=True):
        assert wanted is None or torch.equal(got, wanted)
    rows = rows.expand(case.batch, -1)
    assert (out[rows] == 0).all()
    if p.sink is None:
        assert torch.equal(lse.isinf(), rows[:, None].expand_as(lse))


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
    case = Case(MASKS["two layers"], heads=(4, 1), dims=(64, 64), dtype=torch.float16, sink="sh", mode="late")
    check_that_idle_numbers_change_nothing(case, backend)


@pytest.mark.slow
def test_many_layers_and_the_largest_logit(backend):
    case = Case(MASKS["many layers"], heads=(2, 2), options={"return_max_logits": True}, mode="random")
    check_that_idle_numbers_change_nothing(case, backend)


@pytest.mark.slow
def test_a_mask_for_each_batch_with_softcap(backend):
    case = Case(MASKS["one for each batch"], batch=2, heads=(8, 1), dims=(80, 72), softcap=5.0, sink="ssh")
    check_that_idle_numbers_change_nothing(case, backend)


@pytest.mark.slow
def test_products_may_not_read_zeroed_rows_without_a_fence(monkeypatch):
    load = launch.kernel

    def without_the_fence(spec, backend):
        """The first is that of the warp that loads V, the second that of the epilogue."""
        found = load(spec, backend)
        return types.SimpleNamespace(function=found.function, ptx=found.ptx.replace("fence.proxy.async", "//", 1))

    monkeypatch.setattr(launch, "kernel", without_the_fence)
    with pytest.raises(MissingProxyFence):
        check_that_idle_numbers_change_nothing(Case(MASKS["holes"]), "sim")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["padding at the end", "holes", "many layers"])
@pytest.mark.parametrize("dims", DIMS)
def test_every_head_dim(name, dims, backend):
    batch = MASKS[name].batch
    check_that_idle_numbers_change_nothing(Case(MASKS[name], batch=batch, dims=dims), backend)
    options = {"softmax": "exact", "fp32_out": True}
    case = Case(MASKS[name], batch=batch, dims=dims, softcap=3.0, options=options, mode="late")
    check_that_idle_numbers_change_nothing(case, backend)


# ---------------------------------------------------------------- numbers that some row attends


def documents_with(which, backend):
    """out and lse of random inputs, and of the same with TOKEN of one of q, k and v not finite."""
    case = Case(causal_documents(600, cu_seqlens=DOCUMENTS), heads=(2, 2))
    clean = draw(case)
    dirty = replace(clean, **{which: getattr(clean, which).clone()})
    getattr(dirty, which)[:, TOKEN] = torch.nan
    return case, *(run(case, backend, p)[:2] for p in (clean, dirty))


def changed(before, after):
    """bool (rows,): where a result (1, rows, heads, dim) has any other bit."""
    return (before != after).any(3).any(2)[0]


@pytest.mark.slow
@pytest.mark.parametrize("which", ["q", "k"])
def test_a_query_or_a_key_reaches_the_rows_that_have_it(which, backend):
    case, (out, lse), (out_after, lse_after) = documents_with(which, backend)
    rows = torch.arange(600) == TOKEN if which == "q" else case.mask.to_dense()[0, :, TOKEN]
    assert torch.equal(changed(out, out_after), rows)
    assert torch.equal(changed(lse.mT[..., None], lse_after.mT[..., None]), rows)
    assert out_after[:, rows].isnan().all()


@pytest.mark.slow
def test_a_value_reaches_the_rows_of_the_query_tiles_that_visit_it_and_no_lse(backend):
    case, (out, lse), (out_after, lse_after) = documents_with("v", backend)
    assert torch.equal(lse, lse_after)
    visits = case.mask.schedule((128, 128)).to_grid()[0, :, TOKEN // 128] > 0
    reached = changed(out, out_after)
    assert not reached[~visits.repeat_interleave(128)[:600]].any()
    assert reached[case.mask.to_dense()[0, :, TOKEN]].all()
    assert out_after[:, reached].isnan().all()


def test_a_row_without_keys_is_zero_whatever_values_others_attend(backend):
    mask = IntervalMask.from_slices([[0, 50], [60, 100]], [[0, 90], [0, 90]], None, 130, 90)
    case = Case(mask, heads=(2, 2))
    problem = draw(case)
    for x in (problem.k, problem.v):
        x[:, 20] = torch.inf
        out, lse, _ = run(case, backend, problem)
        rows, _ = idle(mask)
        assert (out[:, rows[0]] == 0).all()
        assert (lse[:, :, rows[0]] == -torch.inf).all()
