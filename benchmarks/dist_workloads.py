"""Context parallelism on the workloads of two published evaluations: balance, bytes and predicted time beside peers.

Run: `python benchmarks/dist_workloads.py`. All numbers but those of planning follow from masks and placements alone,
and one cost model gives the time of every system: predicted, never measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from common import save
from dist_packs import MaskOf, blockwise, causal, full, lambda_shaped, masked, pack, shared_question

from cute_attn import IntervalMask
from cute_attn.dist import (
    AutoDispatchAlg,
    CostModel,
    DispatchConfig,
    MinHeapDispatchAlg,
    OverlapConfig,
    ZigzagDispatchAlg,
    place,
)
from cute_attn.dist.plans.placed import PlacedMask
from cute_attn.dist.plans.predict import predict_movers

TOKENS = 8192  # a rank, as MagiAttention's
BATCH = 131_072  # tokens, as DCP's
RANKS = (8, 16, 32, 64)
BATCH_RANKS = (8, 32)
SEEDS = range(5)
COST = CostModel(64, 8, 128, 128, flops=4.58e14, bandwidth=5e10, latency=3e-5, ranks_per_node=8, node_bandwidth=4e11)
DOCUMENTS: dict[str, MaskOf] = {"causal": causal, "full": full}
BATCHES: dict[str, MaskOf] = {
    "causal": causal,
    "lambda": lambda_shaped,
    "shared question": shared_question,
    "blockwise": blockwise,
}


@dataclass(frozen=True)
class System:
    """A way to place and to move: chunk_size None is two chunks a rank. movers: the fastest of them counts."""

    dispatch: DispatchConfig
    chunk_size: int | None
    movers: tuple[str, ...]


SYSTEMS = {
    "all-gather": System(DispatchConfig(ZigzagDispatchAlg()), None, ("all_gather",)),
    "ring": System(DispatchConfig(ZigzagDispatchAlg()), None, ("ring",)),
    "min-heap": System(DispatchConfig(MinHeapDispatchAlg()), 2048, ("group_cast",)),
    "min-heap, nodes": System(DispatchConfig(MinHeapDispatchAlg()), 2048, ("node_cast", "group_cast")),
    "ours, keys move": System(DispatchConfig(AutoDispatchAlg()), 512, ("node_cast", "group_cast")),
    "ours": System(DispatchConfig(AutoDispatchAlg()), 512, ("node_cast", "group_cast", "query_cast")),
}


def measure(mask: IntervalMask, world: int, system: System, cost: CostModel) -> dict[str, object]:
    """One system on one mask. Bytes are those of a forward."""
    chunk_size = mask.seqlen_q // (2 * world) if system.chunk_size is None else system.chunk_size
    chunk_size = min(chunk_size, mask.seqlen_q // world)
    began = time.process_time()
    placed = PlacedMask(mask, *place(mask, world, chunk_size, config=system.dispatch, cost=cost))
    seconds = time.process_time() - began
    overlap = OverlapConfig()
    predictions = [p for p in predict_movers(placed, overlap, cost) if p.mover in system.movers]
    best = min(predictions, key=lambda p: p.seconds)
    areas = (placed.moved_areas(overlap, cost) if best.mover == "query_cast" else placed.areas).double()
    return {
        "max/mean area": float(areas.max() / areas.mean()),
        "mean MB": float(best.bytes_received.double().mean()) / 1e6,
        "most in": float(best.bytes_received.max()) / 1e6,
        "most out": float(best.bytes_sent.max()) / 1e6,
        "ms": best.seconds * 1e3,
        "TFLOP/s": cost.compute_seconds(float(areas.mean())) * cost.flops / best.seconds / 1e12,
        "mover": best.mover,
        "planning CPU s": seconds,
    }


def spread(found: Sequence[dict[str, object]]) -> dict[str, object]:
    """The mean over seeds; of the time also the range."""
    row: dict[str, object] = {}
    for name, first in found[0].items():
        values = [x[name] for x in found]
        if isinstance(first, str):
            row[name] = " ".join(sorted(set(values)))
        else:
            row[name] = statistics.fmean(values)
        if name in ("ms", "TFLOP/s"):
            row[f"{name}, range"] = f"{min(values):.3g} to {max(values):.3g}"
    return row


Found = dict[tuple[str, int, str], list[dict[str, object]]]


def compare(masks: dict[str, MaskOf], ranks: Sequence[int], tokens: int | None, cost: CostModel = COST) -> Found:
    """For each mask, number of ranks and system, what it does with each seed. tokens: in all, or TOKENS a rank."""
    found: Found = {}
    for world in ranks:
        packs = [pack(tokens or TOKENS * world, seed) for seed in SEEDS]
        for name, mask_of in masks.items():
            for lengths in packs:
                mask = masked(lengths, mask_of)
                for system, how in SYSTEMS.items():
                    found.setdefault((name, world, system), []).append(measure(mask, world, how, cost))
            print(name, world, flush=True)
    return found


def rows_of(found: Found) -> list[dict[str, object]]:
    return [
        {"mask": name, "ranks": world, "system": system, **spread(seeds)}
        for (name, world, system), seeds in found.items()
    ]


def efficiency(found: Found) -> list[dict[str, object]]:
    """TFLOP/s a rank on the most ranks as a share of that on the fewest, seed by seed."""
    few, many = min(RANKS), max(RANKS)
    rows = []
    for name in DOCUMENTS:
        for system in SYSTEMS:
            pairs = zip(found[name, few, system], found[name, many, system], strict=True)
            shares = [there["TFLOP/s"] / here["TFLOP/s"] for here, there in pairs]
            rows.append(
                {
                    "mask": name,
                    "system": system,
                    f"worst of {few} to {many} ranks": min(shares),
                    "by seed": " ".join(f"{x:.3f}" for x in shares),
                }
            )
    return rows


def main() -> None:
    torch.set_num_threads(1)
    documents = compare(DOCUMENTS, RANKS, None)
    batches = compare(BATCHES, BATCH_RANKS, BATCH)
    as_many = compare(BATCHES, BATCH_RANKS, BATCH, replace(COST, heads_k=COST.heads_q))
    save(
        "dist_workloads",
        "Context parallelism on the workloads of two published evaluations",
        efficiency(documents),
        [
            "Predicted by one cost model for every system, not measured: 8 ranks a node, 400 GB/s inside, 50 GB/s a "
            "rank to other nodes, 30 us a collective, 458 TFLOP/s a rank, 90 % of communication able to hide behind "
            "compute (that of all-gather cannot); 64 query heads on 8 key heads, head_dim 128, bf16, the forward.",
            "Lengths follow the distribution of a pretraining set that MagiAttention publishes with its benchmark, "
            "none over a quarter of the pack. Min-heap is with chunks of 2,048 as there, once with one group cast and "
            "once where rows may cross to each node once; all-gather and ring are on a zigzag of two chunks a rank; "
            f"ours is the default with chunks of 512, beside it without the mover by which queries move. Means over "
            f"seeds {min(SEEDS)} to {max(SEEDS)}, MB of a forward; "
            "most in and out are of the busiest rank.",
        ],
        {
            "MagiAttention's packs, 8 Ki tokens a rank": rows_of(documents),
            "DCP's masks, batches of 128 Ki tokens": rows_of(batches),
            "The same with 64 key heads": rows_of(as_many),
        },
    )


if __name__ == "__main__":
    main()
