"""The forward where the query heads of a key head share tiles: chosen by shape for few rows, or asked for."""

import pytest
import torch
from cases import NARROW, Case, draw, random_inputs, stacked, with_gaps
from forward_case import check

from cute_attn import sim
from cute_attn.backend import backend as chosen_backend
from cute_attn.jit.record import record_specs
from cute_attn.launch.forward import forward
from cute_attn.mask import IntervalMask, causal, full, sliding_window

DIMS = (64, 64)


def packed_check(case, backend, packed_heads):
    """Checks a case, whose one kernel has tiles of so many heads."""
    with record_specs() as recorder:
        check(case, backend)
    assert [spec.packed_heads for spec in recorder.specs] == [packed_heads]


def narrow(mask, heads, **case):
    options = {"tile": NARROW} | case.pop("options", {})
    return Case(mask, heads=heads, dims=DIMS, options=options, **case)


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [5, 6, 7, 8])
def test_any_ratio_of_heads_shares_tiles(ratio, backend):
    packed_check(narrow(causal(20, 100), (2 * ratio, 2), batch=2), backend, 8)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 16, 17, 40])
def test_any_number_of_rows_ends_within_a_tile(rows, backend):
    ends = torch.arange(90 - rows, 90)  # one row has an upper bound too
    packed_check(narrow(IntervalMask.from_intervals(torch.zeros_like(ends), ends, 90), (8, 1)), backend, 8)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "seed"), [("late", 0), ("random", 1)])
def test_every_order_of_warps_and_copies_gives_the_same(mode, seed, backend):
    many = {"heads_in_tile": 7, "sm_margin": 129}  # more items than CTAs
    packed_check(narrow(causal(100, 130), (14, 2), batch=2, mode=mode, seed=seed, options=many), backend, 8)


@pytest.mark.slow
def test_rows_without_keys_give_zero_output_in_every_head(backend):
    packed_check(narrow(causal(40, 10), (8, 1)), backend, 8)


@pytest.mark.slow
def test_queries_whose_heads_and_rows_lie_apart_run_without_a_copy(backend, caplog):
    def strided(case):
        q, k, v = random_inputs(case)
        whole = torch.full((2, case.heads[0], 25, 160), torch.nan, dtype=case.dtype)
        whole[:, :, 2:22, 32:96] = q.transpose(1, 2).to(case.dtype)
        return whole[:, :, 2:22, 32:96].transpose(1, 2), k, v

    with caplog.at_level("INFO", "cute_attn.copy"):
        packed_check(narrow(causal(20, 100), (10, 2), batch=2, inputs=strided), backend, 8)
    assert not caplog.records


@pytest.mark.slow
def test_sinks_of_every_row_two_layers_and_a_mask_for_each_batch(backend):
    mask = stacked(with_gaps(21, 150, 2), with_gaps(21, 150, 2))
    packed_check(narrow(mask, (6, 2), batch=2, sink="ssh"), backend, 4)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [2, 33])
def test_a_group_of_more_than_64_heads_is_packed_in_parts(rows, backend):
    packed_check(narrow(full(rows, 70), (96, 1)), backend, 64 if rows == 2 else 32)


def test_a_number_of_heads_that_do_not_share_a_key_head_is_refused():
    q, k = torch.zeros(1, 8, 6, 64, dtype=torch.bfloat16), torch.zeros(1, 8, 2, 64, dtype=torch.bfloat16)
    of_heads = stacked(*[causal(8)] * 6, heads=6)
    for mask, shared, allowed in (
        (causal(8), 0, "1, 3"),
        (causal(8), 2, "1, 3"),
        (causal(8), 6, "1, 3"),
        (of_heads, 3, "1"),
    ):
        with pytest.raises(ValueError, match=f"heads_in_tile must be one of {allowed} with heads .* got {shared}"):
            forward(q, k, k, mask, softmax_scale=1.0, heads_in_tile=shared)


@pytest.mark.slow
def test_no_order_deadlocks_or_races():
    case = narrow(causal(40, 100), (10, 2), options={"sm_margin": 129})
    problem = draw(case)

    def launch():
        with chosen_backend("sim"):
            q, k, v = problem.q, problem.k, problem.v
            forward(q, k, v, case.mask, softmax_scale=0.1, backend="sim", tile=NARROW, sm_margin=129)

    _, found = sim.verify(launch)
    assert all(one.holds for one in found), [str(one) for one in found]
    assert not any(one.checked.races for one in found)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [(64, 64), (128, 128), (192, 128), (80, 72), (256, 256)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_kind_of_head_dim(dims, dtype, backend):
    packed_check(Case(causal(30, 300), heads=(14, 2), dims=dims, dtype=dtype), backend, 8)
    packed_check(Case(causal(45, 200), heads=(7, 1), dims=dims, dtype=dtype, batch=2, mode="late"), backend, 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("heads", "packed_heads"), [((2, 1), 2), ((3, 1), 4), ((4, 1), 4), ((16, 1), 16), ((64, 1), 64)]
)
def test_every_number_of_heads(heads, packed_heads, backend):
    for mask in (causal(1, 60), causal(9, 200), causal(32, 20)):
        packed_check(narrow(mask, heads), backend, packed_heads)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mask",
    [
        sliding_window(140, left=40, right=0),
        with_gaps(30, 200, 5),
        IntervalMask.from_slices([[0, 30], [10, 30]], [[0, 100], [150, 300]], [0, 1], 30, 300),
    ],
)
@pytest.mark.parametrize("more", [{}, {"softcap": 5.0, "sink": "sh"}, {"scale": -0.1}])
def test_every_kind_of_mask_and_of_scores(mask, more, backend):
    packed_check(narrow(mask, (12, 2), options={"heads_in_tile": 6}, **more), backend, 8)
