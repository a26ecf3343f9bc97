"""Balance, bytes and planning time of every dispatch algorithm, from 8 to 1,024 ranks with 8 Ki tokens each.

Run: `python benchmarks/dist_plan.py`. Times are CPU seconds of one thread, which other work disturbs least.
"""

from __future__ import annotations

import os
import statistics
import time

import torch
from common import save

from cute_attn import IntervalMask
from cute_attn import mask as masks
from cute_attn.dist import (
    AutoDispatchAlg,
    ContiguousDispatchAlg,
    DispatchConfig,
    LocalityDispatchAlg,
    MinHeapDispatchAlg,
    Placement,
    ZigzagDispatchAlg,
    place,
    plan_group_cast,
)
from cute_attn.dist.placing.needs import rows_sent
from cute_attn.dist.plans.placed import PlacedMask
from cute_attn.dist.workload import lognormal_documents

TOKENS = 8192  # a rank
ALGS = [
    ContiguousDispatchAlg(),
    ZigzagDispatchAlg(),
    MinHeapDispatchAlg(),
    LocalityDispatchAlg(),
    AutoDispatchAlg(),
]


def shared_prefix(total: int) -> IntervalMask:
    """A prefix of an eighth of the sequence that 16 continuations share."""
    prefix = total // 8
    lengths = [(total - prefix) // 16] * 16
    return masks.shared_prefix(total, prefix_length=prefix, lengths=lengths)


MASKS = {
    "causal": masks.causal,
    "packed documents": lognormal_documents,
    "window 1024": lambda total: masks.sliding_window(total, left=1023, right=0),
    "shared prefix": shared_prefix,
}


def measure(mask: IntervalMask, query: Placement, key: Placement) -> dict[str, float]:
    placed = PlacedMask(mask, query, key)
    areas, remote = placed.areas, placed.remote
    received, sent = remote.rows_by_group(query.world), rows_sent(remote, key)
    others = (query.world - 1) * key.rows_per_rank  # what all-gather brings to a rank
    return {
        "max/mean area": float(areas.max() / areas.double().mean()),
        "bytes / all-gather": float(received.double().mean()) / others,
        "busiest receiver": float(received.max()) / others,
        "busiest sender": float(sent.max()) / others,
    }


LENGTHS = (1 << 18, 1 << 19, 1 << 20, 1 << 21)  # of sequences on 64 ranks
CHUNK_SIZES = {8: (512, 1024), 64: (512, 1024), 1024: (512,)}  # by number of ranks


def compare() -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for world, chunk_sizes in CHUNK_SIZES.items():
        for name, make in MASKS.items():
            mask = make(TOKENS * world)
            for chunk_size in chunk_sizes:
                for alg in ALGS:
                    began = time.process_time()
                    query, key = place(mask, world, chunk_size, config=DispatchConfig(alg))
                    seconds = time.process_time() - began
                    row = {"ranks": world, "mask": name, "chunk": chunk_size, "dispatch": type(alg).__name__}
                    rows.append(row | measure(mask, query, key) | {"CPU s": seconds})
                    print(rows[-1], flush=True)
    return rows


REPEATS = 5  # of which the median counts


def growth() -> list[dict[str, object]]:
    """Placement with the default algorithm, and one rank's plan with all its tables, as the sequence grows."""
    rows: list[dict[str, object]] = []
    for tokens in LENGTHS:
        for name, make in MASKS.items():
            chunk_size = 1024 if tokens > 1 << 20 else 512
            placing, planning = zip(*(plan(make(tokens), chunk_size) for _ in range(REPEATS)), strict=True)
            row = {"ranks": 64, "tokens": tokens, "mask": name, "chunk": chunk_size}
            row |= {
                "placement CPU s": statistics.median(placing),
                "plan CPU s": statistics.median(planning),
                "both, most": max(map(sum, zip(placing, planning, strict=True))),
            }
            rows.append(row)
            print(rows[-1], flush=True)
    return rows


def plan(mask: IntervalMask, chunk_size: int) -> tuple[float, float]:
    """CPU seconds of the placement, and of one rank's plan, of a mask that keeps nothing yet."""
    began = time.process_time()
    query, key = place(mask, 64, chunk_size)
    placed = time.process_time()
    plan_group_cast(mask, query, key, 5)
    return placed - began, time.process_time() - placed


def main() -> None:
    torch.set_num_threads(1)
    save(
        "dist_plan",
        "Balance and bytes of dispatch algorithms, 8 Ki tokens a rank",
        compare(),
        [
            "Group cast in the forward. Bytes are rows of K and V that a rank receives on average, and those of the "
            "busiest receiver and sender, as a share of what all-gather brings to every rank. Documents are causal, "
            "lengths lognormal with mean 4 Ki and sigma 1, none over a quarter of the total, seed 0; the prefix is an "
            "eighth of the sequence, shared by 16 continuations.",
        ],
    )
    save(
        "dist_plan_time",
        "Planning time on 64 ranks",
        growth(),
        [
            "Placement by AutoDispatchAlg, then one rank's whole group cast with its index tables: medians of "
            f"{REPEATS}, and the slowest of them. On average {os.getloadavg()[2]:.1f} processes shared the "
            f"{os.cpu_count()} cores."
        ],
    )


if __name__ == "__main__":
    main()
