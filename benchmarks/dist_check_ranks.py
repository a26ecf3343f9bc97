"""Microseconds that comparing the ranks adds to a call: `calc_attn` with and without `check_ranks`, in turns.

Ranks are processes on this machine joined by gloo. Calls are small, so that the difference shows: on real sequences it
is the same number of microseconds. With more ranks than free cores they wait for each other's time slices, and wall
time says more of the machine than of the call: CPU time, all threads of a rank together, is beside it.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist
from common import save

from cute_attn.dist import DistAttnConfig, DistAttnRuntimeKey, calc_attn, dispatch, magi_attn_flex_key
from cute_attn.mask import causal

WORLDS = (2, 4, 8)
ROUNDS, CALLS = 9, 6
ROWS = 16  # a rank

Times = dict[tuple[str, bool], list[tuple[float, float]]]  # of a call, compared or not: wall and CPU, round by round


def forward(x: torch.Tensor, key: DistAttnRuntimeKey) -> None:
    with torch.no_grad():
        calc_attn(x, x, x, key)


def both(x: torch.Tensor, key: DistAttnRuntimeKey) -> None:
    calc_attn(x, x, x, key)[0].sum().backward()


def measure(rank: int, world: int, folder: str, end: Connection) -> None:
    """Sends rank 0's microseconds a call, wall and CPU: of forward and of forward and backward, compared and not."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    group = dist.group.WORLD
    assert group is not None
    mask, length = causal(ROWS * world), ROWS * world

    def make_key(check_ranks: bool) -> DistAttnRuntimeKey:
        config = DistAttnConfig(mover="group_cast", check_ranks=check_ranks)
        return magi_attn_flex_key(mask, None, None, length, length, 0, ROWS, group, config)

    keys = {check_ranks: make_key(check_ranks) for check_ranks in (True, False)}
    x = dispatch(torch.randn(length, 1, 8), keys[True]).requires_grad_()
    times: Times = {}

    def per_call(function: Callable[[], object]) -> tuple[float, float]:
        dist.barrier()
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(CALLS):
            function()
        return (time.perf_counter() - wall) / CALLS * 1e6, (time.process_time() - cpu) / CALLS * 1e6

    for _ in range(ROUNDS + 1):  # the first does not count
        for name, call in (("forward", forward), ("forward and backward", both)):
            for check_ranks, key in keys.items():
                taken = per_call(lambda call=call, key=key: call(x, key))  # type: ignore[misc]
                times.setdefault((name, check_ranks), []).append(taken)
        times.setdefault(("a key found again", True), []).append(per_call(lambda: make_key(True)))
    if rank == 0:
        end.send({name: values[1:] for name, values in times.items()})
    dist.barrier()
    end.close()
    os._exit(0)


def measured(world: int) -> Times:
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        ranks = [fork.Process(target=measure, args=(rank, world, folder, there)) for rank in range(world)]
        for rank in ranks:
            rank.start()
        times: Times = here.recv()
        for rank in ranks:
            rank.join()
    return times


def row(world: int, call: str, compared: list[float], without: list[float], clock: str) -> dict[str, object]:
    added = statistics.median(a - b for a, b in zip(compared, without, strict=True))
    return {
        "ranks": world,
        "call": call,
        "microseconds of": clock,
        "not compared": round(statistics.median(without)),
        "compared": round(statistics.median(compared)),
        "added": round(added),
    }


def main() -> None:
    rows = []
    for world in WORLDS:
        times = measured(world)
        for clock, name in enumerate(("wall", "CPU a rank")):
            for call in ("forward", "forward and backward"):
                on, off = ([clocks[clock] for clocks in times[call, check_ranks]] for check_ranks in (True, False))
                rows.append(row(world, call, on, off, name))
            again = [clocks[clock] for clocks in times["a key found again", True]]
            rows.append(row(world, "a key found again", again, [0.0] * len(again), name))
    notes = [
        f"Medians of {ROUNDS} rounds of {CALLS} calls, in turns, {ROWS} rows a rank, one head of 8, gloo between "
        "processes of one machine. Added: medians of the differences, round by round. A key is always compared."
    ]
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    save("dist_check_ranks", "What comparing the ranks costs a call", rows, notes, where={"load": load})


if __name__ == "__main__":
    main()
