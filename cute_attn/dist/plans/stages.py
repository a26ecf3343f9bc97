"""Where remote keys are cut into stages, so that one travels while another is computed."""

from __future__ import annotations

import torch

from ..config import AttnOverlapMode, OverlapAlgType, OverlapConfig
from ..cost import CostModel
from ..placing.needs import Spans, positions_of
from ..placing.placement import Placement

__all__ = ["stage_cuts"]

MAX_DEGREE = 8  # stages that the dynamic mode tries
MAX_GROWTH = 4.0  # from one greedy stage to the next, either way


def stage_cuts(
    needs: Spans, remote: Spans, areas: torch.Tensor, key: Placement, overlap: OverlapConfig, cost: CostModel
) -> torch.Tensor:
    """int64 `(stages + 1, world)`: rank r receives its remote keys in `[cuts[s, r], cuts[s + 1, r])` in stage s.

    needs, remote: by rank, the keys each needs, and those of them that it does not hold. areas: int64 `(world,)`.

    Every rank takes its remote keys in global order, in units of `min_chunk_size` rows (more if that were over
    `max_num_chunks` units). No rows anywhere: no stage. Each stage has rows on some rank.
    """
    world = key.world
    rows = remote.rows_by_group(world)
    if int(rows.sum()) == 0:
        return torch.zeros(1, world, dtype=torch.int64, device="cpu")
    unit = (-(-rows // overlap.max_num_chunks)).clamp(min=overlap.min_chunk_size)
    units = -(-rows // unit)
    # Area spread evenly over the keys a rank needs: seconds to compute and to send one row.
    compute = cost.compute_seconds(1.0) * areas / needs.rows_by_group(world).clamp(min=1)
    send = cost.key_bytes / cost.bandwidth
    if overlap.mode is AttnOverlapMode.DYNAMIC:
        own = needs.rows_by_group(world) - rows
        degree = _best_degree(own * compute, rows * compute, rows * send, cost.latency)
    else:
        degree = overlap.degree or 1
    degree = min(degree, int(units.max()))
    growth = torch.ones(world, dtype=torch.float64, device="cpu")
    if overlap.alg is OverlapAlgType.GREEDY:  # a stage travels as long as the one before it is computed
        growth = (compute.double() / send).clamp(1 / MAX_GROWTH, MAX_GROWTH)
    share = growth ** torch.arange(degree, device="cpu")[:, None]
    share = torch.cat([torch.zeros(1, world, dtype=torch.float64, device="cpu"), (share / share.sum(0)).cumsum(0)])
    counts = torch.minimum((units * share - 1e-6).ceil().long() * unit, rows)
    counts[-1] = rows
    counts = counts[torch.cat([torch.tensor([True], device="cpu"), (counts[1:] > counts[:-1]).any(1)])]
    cuts = positions_of(remote, counts)
    cuts[-1] = key.padded_length
    return cuts


def _best_degree(own: torch.Tensor, remote: torch.Tensor, send: torch.Tensor, latency: float) -> int:
    """The number of equal stages after which the slowest rank is done first; all arguments in seconds.

    Keys of all stages travel one after another from the start; a stage is computed when it is there and the one before
    is done, and costs one more latency for its launch and merge.
    """
    best, fastest = 1, float("inf")
    for degree in range(1, MAX_DEGREE + 1):
        done = own
        for stage in range(1, degree + 1):
            arrived = stage * (send / degree + latency)
            done = torch.maximum(done, arrived) + remote / degree + latency
        if float(done.max()) < fastest:
            best, fastest = degree, float(done.max())
    return best
