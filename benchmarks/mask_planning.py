"""How long a mask takes to plan: slices to intervals to tile schedules in both directions; and to be found again.

The yardstick is `torch.sort` of 2^20 random int64 in the same process. Run: `python benchmarks/mask_planning.py`;
with `--lookups` for what is found again alone.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import torch
from common import median_seconds, save

from cute_attn.mask import IntervalMask, TileSchedule
from cute_attn.mask.source import MaskSource
from cute_attn.ops.mask_cache import clear_masks, find_mask

CALLS = 20
DOCUMENT = 256  # mean tokens a document: 4,096 documents at 1 Mi rows
ROWS, BLOCK_SPARSE_ROWS = (1 << 16, 1 << 18, 1 << 20, 1 << 22), 1 << 14


def packed_causal_documents(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    count = rows // DOCUMENT
    cuts = torch.randperm(rows - 1, generator=generator)[: count - 1] + 1
    ends = torch.cat([torch.tensor([0]), cuts.sort().values, torch.tensor([rows])])
    ranges = torch.stack([ends[:-1], ends[1:]], 1).int()
    return ranges, ranges, torch.ones(count, dtype=torch.int32)


def block_sparse(rows: int, density: float) -> tuple[torch.Tensor, torch.Tensor, None]:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.rand(rows // 128, rows // 128, generator=generator) < density
    q, k = (torch.stack([x * 128, x * 128 + 128], 1).int() for x in blocks.nonzero(as_tuple=True))
    return q, k, None


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def extra_memory(run) -> int:
    """Largest growth of resident memory during `run()`, sampled every millisecond."""
    before = highest = resident_bytes()
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.is_set():
            highest = max(highest, resident_bytes())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return highest - before


def measure_lookups() -> None:
    """Finding the mask of range tensors on the CPU by their content."""
    rows, cpu = 1 << 16, torch.device("cpu")
    rows_out = []
    for count in (8, 512, 8192):
        ends = torch.linspace(0, rows, count + 1, dtype=torch.float64).long()
        ranges = torch.stack([ends[:-1], ends[1:]], 1)
        source = MaskSource("slices", ranges, ranges.clone(), torch.ones(count, dtype=torch.int64))

        def plan(source: MaskSource = source) -> None:
            clear_masks()
            find_mask(source, rows, rows, cpu)

        def look(source: MaskSource = source) -> None:
            for _ in range(CALLS):
                find_mask(source, rows, rows, cpu)

        planned = median_seconds(plan)
        found = min(median_seconds(look, repeats=1) for _ in range(300)) / CALLS
        rows_out.append(
            {
                "slices": count,
                "microseconds a call": round(found * 1e6, 1),
                "planning / finding": round(planned / found),
            }
        )
    title = "Finding the mask of range tensors again, by their content, on the CPU"
    notes = [
        "64 Ki rows, int64 ranges and types, the shortest of 300 rounds of 20 calls; an IntervalMask is not looked up. "
        f"The load average of the machine was {os.getloadavg()[0]:.0f}."
    ]
    save("mask_lookup", title, rows_out, notes)


def main() -> None:
    measure_lookups()
    if "--lookups" in sys.argv[1:]:
        return
    numbers = torch.randint(0, 2**62, (1 << 20,))
    sort = median_seconds(lambda: numbers.sort())
    cases = [(f"packed causal documents, {rows >> 10} Ki rows", rows, packed_causal_documents(rows))
             for rows in ROWS]  # fmt: skip
    sparse = block_sparse(BLOCK_SPARSE_ROWS, 0.1)
    cases.append((f"128-block-sparse, 10 %, {BLOCK_SPARSE_ROWS >> 10} Ki rows", BLOCK_SPARSE_ROWS, sparse))
    rows_out = []
    for name, rows, slices in cases:
        mask = IntervalMask.from_slices(*slices, rows, rows)
        intervals = median_seconds(lambda: IntervalMask.from_slices(*slices, rows, rows))  # noqa: B023
        tiles = median_seconds(lambda: TileSchedule.from_mask(mask))  # noqa: B023
        schedule = mask.schedule()
        memory = extra_memory(lambda: TileSchedule.from_mask(IntervalMask.from_slices(*slices, rows, rows)))  # noqa: B023
        rows_out.append(
            {
                "mask": name,
                "slices": len(slices[0]),
                "layers": mask.layers,
                "runs forward + backward": len(schedule.forward.runs) + len(schedule.backward.runs),
                "intervals / sort": intervals / sort,
                "schedules / sort": tiles / sort,
                "together / sort": (intervals + tiles) / sort,
                "bytes a row": memory / rows,
            }
        )
    save(
        "mask_planning",
        "Planning a mask, relative to torch.sort of 2^20 random int64",
        rows_out,
        [f"torch.sort took {sort * 1e3:.1f} ms here. Memory is the growth of the resident set while planning."],
    )


if __name__ == "__main__":
    main()
