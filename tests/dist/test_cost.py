"""The cost model: seconds of attention by the model of the kernels, or as given; bandwidths that are measured."""

import json
from pathlib import Path

import pytest
import torch.distributed as dist
from ranks import error_of, run_ranks

from cute_attn.dist import CostModel
from cute_attn.dist.rates import PREDICTED

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "dist_rates.json"


def test_rates_are_those_of_the_model_of_the_kernels():
    rows = json.loads(RESULTS.read_text())["rows"]
    assert {
        tuple(map(int, row["head_dim"].split("/"))): (round(row["fwd"]) * 1e12, round(row["bwd"]) * 1e12)
        for row in rows
    } == PREDICTED


def test_flops_that_are_given_win_and_shapes_without_kernels_have_a_default():
    products = 2 * 32 * 256
    assert CostModel().compute_seconds(1e6) == pytest.approx(1e6 * products / PREDICTED[128, 128][0])
    assert CostModel().backward_seconds(1e6) == pytest.approx(1e6 * 2.5 * products / PREDICTED[128, 128][1])
    assert CostModel(flops=1e12).compute_seconds(1e6) == pytest.approx(1e6 * products / 1e12)
    assert CostModel(flops=1e12).backward_seconds(1e6) == pytest.approx(2.5e6 * products / 1e12)
    for elsewhere in (CostModel(element_size=4), CostModel(head_dim=288)):
        products = 2 * 32 * (elsewhere.head_dim + 128)
        assert elsewhere.compute_seconds(1e6) == pytest.approx(1e6 * products / 4.5e14)


def test_a_smaller_head_dim_takes_the_time_of_its_kernel():
    assert CostModel(head_dim=80, head_dim_v=80).compute_seconds(1.0) == pytest.approx(
        CostModel(head_dim=96, head_dim_v=96).compute_seconds(1.0)
    )


def test_measured_bandwidths_are_the_same_on_every_rank():
    measured = run_ranks(4, _measured, 2)
    assert len(set(measured)) == 1
    (cost,) = set(measured)
    assert cost.ranks_per_node == 2
    assert cost.heads_q == 16
    assert 0 < cost.bandwidth < float("inf")
    assert 0 < cost.node_bandwidth < float("inf")
    assert 0 <= cost.latency < 10


def _measured(rank, ranks_per_node):
    return CostModel.measured(dist.group.WORLD, CostModel(heads_q=16), ranks_per_node=ranks_per_node, size=1 << 12)


def test_what_cannot_be_measured_keeps_its_number_and_bad_nodes_are_refused():
    (alone,) = run_ranks(1, _measured, 1)
    assert alone == CostModel(heads_q=16)
    (one, _) = run_ranks(2, _measured, 1)
    assert one.node_bandwidth == CostModel().node_bandwidth
    for error in run_ranks(3, _uneven):
        assert error == ("ValueError", "CostModel: ranks_per_node must divide the number of ranks, got 2 for 3 ranks")


def _uneven(rank):
    return error_of(_measured, rank, 2)


def test_ranks_that_bring_other_cost_models_are_told_what_differs():
    for error in run_ranks(3, _differing):
        assert error == (
            "ValueError",
            "measuring a process group: the ranks of the group disagree: heads_q is 32 on ranks 0 and 1; 16 on rank 2, "
            "and overlap is 0.9 on ranks 0 and 1; 0.5 on rank 2",
        )


def _differing(rank):
    cost = CostModel(heads_q=16, overlap=0.5) if rank == 2 else CostModel()
    return error_of(CostModel.measured, dist.group.WORLD, cost, size=1 << 12)
