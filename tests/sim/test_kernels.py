"""Small kernels in every mode: what they compute is what torch computes, and no schedule changes a bit of it."""

import kernels
import pytest
import torch
from kernels.attention import attention
from kernels.grouped_matmul import grouped_matmul
from kernels.matmul import matmul
from mutations.suite import check
from mutations.workloads import WORKLOADS, groups

from cute_attn import sim
from cute_attn.sim.errors import Race
from cute_attn.sim.host.strict import SCHEDULES
from cute_attn.sim.launch import Schedule

MODES = [("eager", 0), ("late", 0), ("random", 1)]
every_mode = pytest.mark.parametrize(("mode", "seed"), MODES)


def product(m, n, k):
    a, b = (torch.randn(rows, k).bfloat16() for rows in (m, n))
    return a, b, torch.full((m, n), float("nan"), dtype=torch.bfloat16)


def assert_product(a, b, c):
    """Within bf16 rounding of the fp32 product."""
    exact = a.float() @ b.float().T
    assert ((c.float() - exact).abs() <= exact.abs() * 2**-8 + 1e-3).all()


@every_mode
def test_elementwise_touches_its_elements_and_no_others(mode, seed):
    n = 333
    x, y, out = torch.randn(n), torch.randn(n), torch.full((n + 8,), float("nan"))
    report = sim.run(kernels.scaled_sum(), x, y, out[4:-4], -1.5, mode=mode, seed=seed)
    assert ((out[4:-4] - (y - 1.5 * x)).abs() <= 1e-6).all()
    assert out[:4].isnan().all()
    assert out[-4:].isnan().all()
    assert report.reduced == frozenset()


@every_mode
def test_sums_by_atomics_and_by_bulk_reductions_say_that_they_were_reduced(mode, seed):
    x, out, total = torch.randn(48, 128), torch.randn(128), torch.zeros(1)
    expected = out + x.sum(0)
    report = sim.run(kernels.column_sums(), x, out, total, mode=mode, seed=seed)
    assert ((out - expected).abs() <= 1e-5).all()
    assert ((total - x.sum()).abs() <= 1e-3).all()
    assert report.reduced == {"out", "total"}


def test_one_block_alone_reduces_what_several_of_its_warps_add_up():
    report = sim.run(kernels.column_sums(), torch.randn(8, 128), torch.zeros(128), torch.zeros(1))
    assert report.rounding.keys() == {"total"}


@every_mode
@pytest.mark.parametrize("a_in_registers", [False, True])
def test_matmul_from_both_operand_sources_over_more_tiles_than_stages(a_in_registers, mode, seed):
    a, b, c = product(256, 64, 320)
    sim.run(matmul(a_in_registers=a_in_registers), a, b, c, 1, mode=mode, seed=seed)
    assert_product(a, b, c)


@every_mode
def test_a_cluster_shares_its_loads_by_multicast(mode, seed):
    a, b, c = product(256, 128, 192)
    report = sim.run(matmul(cluster=2), a, b, c, 2, mode=mode, seed=seed)
    assert_product(a, b, c)
    assert report.statistics["ctas"] == 2


@pytest.mark.parametrize("ctas", [1, 3, 8])
def test_a_persistent_kernel_covers_all_tiles_with_any_number_of_blocks(ctas):
    a, b, c = product(384, 128, 64)
    sim.run(matmul(), a, b, c, ctas, mode="late")
    assert_product(a, b, c)


@pytest.mark.parametrize("stages", [2, 4])
def test_rings_of_other_depths(stages):
    a, b, c = product(128, 64, 64 * (stages + 3))
    sim.run(matmul(stages=stages), a, b, c, 1, mode="random", seed=4)
    assert_product(a, b, c)


@every_mode
def test_pipelined_attention_is_attention(mode, seed):
    q, k, v = (torch.randn(rows, 64).bfloat16() for rows in (256, 256, 256))
    out, lse = torch.full((256, 64), float("nan"), dtype=torch.bfloat16), torch.full((256,), float("nan"))
    sim.run(attention(), q, k, v, out, lse, 0.3, 1, mode=mode, seed=seed)
    scores = 0.3 * (q.float() @ k.float().T)
    exact = scores.softmax(-1) @ v.float()
    assert ((out.float() - exact).abs() <= 0.02).all()
    assert ((lse - scores.logsumexp(-1)).abs() <= 1e-3).all()


def test_strict_runs_every_schedule_and_returns_one_report():
    a, b, c = product(128, 64, 320)
    report = sim.strict(matmul(), a, b, c, 1)
    assert_product(a, b, c)
    assert report.statistics["ctas"] == 1


def test_strict_lets_reduced_sums_differ_by_rounding_but_not_where_determinism_is_claimed():
    x, out, total = torch.randn(64, 128), torch.zeros(128), torch.zeros(1)
    sim.strict(kernels.column_sums(), x, out, total)
    with pytest.raises(
        Race, match=r"(bulk reduction|atomic operation) of byte \d+ of (out|total), and nothing orders it"
    ):
        sim.strict(kernels.column_sums(), x, out, total, deterministic=True)


def ties():
    """Blocks of rows that add up to a tie between two neighbours in bf16, or, the small ones first, to a bit more."""
    x = torch.zeros(64, 128)
    x[0], x[8::8] = 1 + 2**-8, 2**-25
    return x, torch.zeros(128), torch.zeros(1), torch.zeros(128, dtype=torch.bfloat16)


def test_what_is_computed_from_reduced_sums_is_reduced():
    x, out, total, rounded = ties()
    report = sim.strict(kernels.rounded_sums(), x, out, total, rounded)
    assert report.reduced == {"out", "total", "rounded"}
    assert report.derived.keys() == {"rounded"}
    with pytest.raises(Race, match=r"^(bulk reduction|atomic operation) of byte \d+ of (out|total), "):
        sim.strict(kernels.rounded_sums(), *ties(), deterministic=True)


def test_python_code_around_reduced_sums_may_round_them_too():
    def function(x):
        out, total = torch.zeros(128), torch.zeros(1)
        kernels.column_sums()(x, out, total)
        return out.bfloat16()

    sim.strict(function, ties()[0])


def test_strict_starts_every_run_from_the_same_contents():
    x, out, total = torch.ones(16, 128), torch.full((128,), 3.0), torch.zeros(1)
    sim.strict(kernels.column_sums(), x, out, total, deterministic=True)  # small integers: exact in any order
    assert torch.equal(out, torch.full((128,), 19.0))
    assert torch.equal(total, torch.tensor([2048.0]))


def test_eager_is_reproducible():
    x = torch.randn(64, 128)
    results = []
    for _ in range(2):
        out, total = torch.zeros(128), torch.zeros(1)
        sim.run(kernels.column_sums(), x, out, total)
        results.append(torch.cat([out, total]))
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("ctas", "modes"),
    [
        (2, [Schedule("eager", races=True)]),
        *(pytest.param(n, SCHEDULES, marks=pytest.mark.slow) for n in (1, 3, 9)),
    ],
)
def test_products_of_groups_of_any_shapes_by_a_kernel_that_changes_its_maps(ctas, modes):
    """Ragged in every extent; with nine CTAs one has nothing to do."""
    shapes = [(72, 64, 136), (8, 72, 64), (130, 40, 200), (64, 64, 64)]
    for schedule in modes:
        arguments, expected = groups(shapes, ctas)
        c, exact, _ = expected["c"]
        report = sim.run(grouped_matmul(), *arguments, mode=schedule.mode, seed=schedule.seed, races=schedule.races)
        assert ((c.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-3).all()
        assert not report.warnings


@pytest.mark.slow
@pytest.mark.parametrize("name", ["groups", "exchange", "patches"])
def test_maps_that_change_rows_that_are_sent_and_windows_in_every_schedule(name):
    arguments, expected = WORKLOADS[name].arguments()
    sim.strict(WORKLOADS[name].function(), *arguments, deterministic=True)
    check(expected)
