"""The problems of the benchmark, and the arithmetic that is counted for them."""

import pytest
from attention_cases import CASES, flops, make_inputs, mask_arguments, shrunk

from autotune.problem import PRESETS, Problem


def test_the_cases_are_the_presets_of_tuning_and_a_shared_prefix():
    assert set(CASES) == {*PRESETS, "prefix"}
    assert CASES["prefix"].intervals().layers == 2


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("factor", [4, 64])
def test_a_shrunk_case_has_the_same_mask_on_fewer_tokens(name, factor):
    case, small = CASES[name], shrunk(CASES[name], factor)
    assert small.seqlen_q * factor == case.seqlen_q
    assert (small.heads_q, small.head_dim) == (case.heads_q, case.head_dim)
    share = [p.intervals().area() / p.seqlen_q / p.seqlen_k for p in (case, small)]
    assert share[1] == pytest.approx(share[0], rel=4.0 / small.seqlen_q + 0.05)  # the diagonal weighs more
    assert (small.intervals().row_area() > 0).all()


def test_a_forward_has_four_operations_a_pair_head_and_dim_and_a_backward_two_and_a_half_times_as_many():
    problem = Problem(mask="full", seqlen_q=100, seqlen_k=200, heads_q=4, heads_k=2, batch=3)
    pairs = 100 * 200 * 4 * 3
    assert flops(problem, "forward") == 4 * pairs * 128
    assert flops(problem, "backward") == flops(problem, "deterministic") == 10 * pairs * 128


def test_operations_follow_the_dims_of_each_product_where_they_differ():
    problem = Problem(mask="causal", seqlen_q=3, seqlen_k=3, heads_q=1, heads_k=1, head_dim=192, head_dim_v=128)
    assert flops(problem, "forward") == 2 * 6 * (192 + 128)
    assert flops(problem, "backward") == 2 * 6 * (3 * 192 + 2 * 128)


def test_inputs_have_the_shapes_of_the_problem_and_a_forward_reads_three_of_them():
    problem = Problem(seqlen_q=8, seqlen_k=16, heads_q=4, heads_k=2, head_dim=192, head_dim_v=128, batch=2)
    inputs = make_inputs(problem, "cpu")
    shapes = [(2, 8, 4, 192), (2, 16, 2, 192), (2, 16, 2, 128), (2, 8, 4, 128)]
    assert [tuple(x.shape) for x in inputs] == shapes
    assert inputs.bytes == 2 * (2 * 8 * 4 * 192 + 2 * 16 * 2 * (192 + 128))


def test_the_numbers_of_a_mask_are_read_off_its_name():
    assert mask_arguments(Problem(mask="causal")) == ("causal", {})
    assert mask_arguments(CASES["window"]) == ("sliding_window", {"left": [1023], "right": [0]})
    assert mask_arguments(CASES["packed"])[1]["cu_seqlens"][:3] == [0, 2048, 4096]
