"""How fast the simulator is, as a ratio to the same arithmetic done directly in NumPy on the same cores.

One forward tile of 128x128 and one backward step of 64x128 at head_dim 128, of flash-attn-4's kernels (extra `peers`),
after compiling and translating; and what it gains when CTAs run side by side. Run: `python benchmarks/sim_speed.py`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator

os.environ.setdefault("CUTE_DSL_ARCH", "sm_90a")
os.environ.setdefault("FLASH_ATTENTION_ARCH", "sm_90")
os.environ.setdefault("FLASH_ATTENTION_NUM_SMS", "132")

import numpy as np
import torch
from common import save
from flash_attn.cute.interface import _flash_attn_bwd, _flash_attn_fwd

from cute_attn import backend, flex_flash_attn_func, sim
from cute_attn.mask import causal
from cute_attn.sim.host import capture

D = 128
MODES = ("eager", "late", "random")
ROUNDS, DIRECT_ROUNDS, SIDE_BY_SIDE_ROUNDS, GROWTH_ROUNDS = 12, 500, 10, 5  # of which the best counts
TOKENS, GROWTH = 2048, (8, 16, 32, 64)  # side by side; key tiles of a query tile


@contextlib.contextmanager
def kernel_seconds() -> Iterator[list[float]]:
    """The time that each launch takes, without the host code."""
    times: list[float] = []
    execute = capture.execute

    def timed(*args: object, **options: object) -> object:
        start = time.perf_counter()
        report = execute(*args, **options)
        times.append(time.perf_counter() - start)
        return report

    capture.execute = timed
    try:
        yield times
    finally:
        capture.execute = execute


def forward(tiles: int, mode: str) -> float:
    """Seconds of one query tile of 128 rows over so many key tiles of 128."""
    q, k, v = (torch.randn(1, rows, 1, D).bfloat16() for rows in (128, 128 * tiles, 128 * tiles))
    with sim.simulated(mode=mode), kernel_seconds() as times:
        _flash_attn_fwd(q, k, v)
    return sum(times)


def backward(tiles: int, mode: str) -> float:
    """Seconds of the main backward kernel, causal, over so many key tiles: tiles * (tiles + 1) steps of 64x128."""
    q, k, v, out, d_out = (torch.randn(1, 128 * tiles, 1, D).bfloat16() for _ in range(5))
    with sim.simulated(mode=mode), kernel_seconds() as times:
        _flash_attn_bwd(q, k, v, out, d_out, torch.randn(1, 1, 128 * tiles).abs() + 5, causal=True)
    return max(times)


def side_by_side() -> list[dict[str, object]]:
    """Seconds of whole calls of our forward, causal, 4 query heads of 128 and a key head, by processes."""
    q, k, v = (torch.randn(TOKENS, heads, D).bfloat16() for heads in (4, 1, 1))
    mask, cores, rows = causal(TOKENS), torch.get_num_threads(), []
    for mode in MODES:
        times = {1: float("inf"), cores: float("inf")}
        for _ in range(SIDE_BY_SIDE_ROUNDS):  # in turns
            for processes in times:
                torch.set_num_threads(processes)
                with backend("sim", mode=mode):
                    times[processes] = min(times[processes], seconds(lambda: flex_flash_attn_func(q, k, v, mask)))
        rows.append(
            {"mode": mode, "s in one process": times[1], f"s in {cores}": times[cores], "gain": times[1] / times[cores]}
        )
    return rows


def best(run: Callable[[], float], repeats: int) -> float:
    """The shortest of several times: what the code takes when nobody else takes the cores."""
    return min(run() for _ in range(repeats))


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def numpy_forward() -> Callable[[], object]:
    q, k, v = (np.random.randn(128, D).astype(np.float32) for _ in range(3))

    def run() -> object:
        scores = q @ k.T
        top = scores.max(1, keepdims=True)
        p = np.exp(scores - top)
        return p @ v, p.sum(1)

    return run


def numpy_backward() -> Callable[[], object]:
    q, d_out = (np.random.randn(64, D).astype(np.float32) for _ in range(2))
    k, v = (np.random.randn(128, D).astype(np.float32) for _ in range(2))
    lse, delta = (np.random.randn(64, 1).astype(np.float32) for _ in range(2))

    def run() -> object:
        p = np.exp(q @ k.T - lse)
        ds = p * (d_out @ v.T - delta)
        return p.T @ d_out, ds.T @ q, ds @ k

    return run


def main() -> None:
    torch.manual_seed(0)
    rows: list[dict[str, object]] = []
    for name, run, direct, sizes, steps in (
        ("forward tile 128x128", forward, numpy_forward(), (2, 10), lambda n: n),
        ("backward step 64x128", backward, numpy_backward(), (2, 5), lambda n: n * (n + 1)),
    ):
        numpy = best(lambda: seconds(direct), DIRECT_ROUNDS)  # noqa: B023
        times = dict.fromkeys(itertools.product(MODES, sizes), float("inf"))
        for _, (mode, size) in itertools.product(
            range(ROUNDS), times
        ):  # in turns: all have the machine's better minutes
            times[mode, size] = min(times[mode, size], run(size, mode))
        costs = {  # seconds a step: what more steps cost
            mode: (times[mode, sizes[1]] - times[mode, sizes[0]]) / (steps(sizes[1]) - steps(sizes[0]))
            for mode in MODES
        }
        for mode, cost in costs.items():
            rows.append(
                {
                    "what": name,
                    "mode": mode,
                    "ms": cost * 1e3,
                    "NumPy ms": numpy * 1e3,
                    "ratio to NumPy": cost / numpy,
                    "ratio to eager": cost / costs["eager"],
                }
            )
    growth = {tiles: best(lambda: forward(tiles, "eager"), GROWTH_ROUNDS) / tiles * 1e3 for tiles in GROWTH}  # noqa: B023
    save(
        "sim_speed",
        "Speed of the simulator",
        rows,
        [
            "Growth: a query tile over "
            + ", ".join(f"{tiles} key tiles takes {cost:.2f} ms a tile" for tiles, cost in growth.items())
            + "."
        ],
        {f"CTAs side by side: our forward, {TOKENS:,} causal tokens, 4 heads of 128": side_by_side()},
    )


if __name__ == "__main__":
    main()
