"""What a kernel costs to get: compiled cold, loaded from a warm disk, called from memory.

One forward at head_dim 128. Needs no GPU: loading binds the kernel to the simulator's stub of the CUDA runtime, as it
would be bound to the runtime itself. Run: `python benchmarks/kernel_cache.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

from common import median_seconds, save

from cute_attn.jit import cache
from cute_attn.jit.compile import compile
from cute_attn.jit.entry import link
from cute_attn.jit.obtain import obtain
from cute_attn.launch import run as launch
from cute_attn.spec.forward import ForwardSpec
from cute_attn.spec.mask import MaskForm

SPEC = ForwardSpec(mask=MaskForm(True))
ROUNDS, CALLS, PROCESSES = 101, 1000, 3
FRESH = (
    "import time, torch, cute_attn\n"
    "from cute_attn.launch import run as launch\n"
    "from cute_attn.spec.forward import ForwardSpec; from cute_attn.spec.mask import MaskForm\n"
    "spec = ForwardSpec(mask=MaskForm(True)); start = time.perf_counter()\n"
    "launch.kernel(spec, 'sim'); print(time.perf_counter() - start)"
)


def seconds(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_fresh_process() -> float:
    """Of the first call for the kernel in a process that has imported cute_attn."""
    return float(subprocess.run([sys.executable, "-c", FRESH], stdout=subprocess.PIPE, text=True, check=True).stdout)


def from_disk() -> None:
    launch._kernels.clear()
    launch.kernel(SPEC, "sim")


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.environ["CUTE_ATTN_CACHE_DIR"] = directory
        cold = in_fresh_process()
        first_warm = min(in_fresh_process() for _ in range(PROCESSES))
        rows = [
            ("cold: nothing cached, fresh process, the compiler imported", cold),
            ("compiling again in a warm process", seconds(lambda: cache.commit(link(compile(SPEC))))),
            ("warm disk, fresh process, libraries loaded with it", first_warm),
            ("warm disk: find, verify hashes, load", median_seconds(from_disk, ROUNDS, 3)),
            ("of which find and verify hashes", median_seconds(lambda: obtain(SPEC), ROUNDS, 3)),
            (
                "in memory",
                median_seconds(lambda: [launch.kernel(SPEC, "sim") for _ in range(CALLS)], ROUNDS, 3) / CALLS,
            ),
        ]
    save(
        "kernel_cache",
        "Getting a kernel",
        [
            {"how": how, "milliseconds": 1e3 * value, "relative to in memory": value / rows[-1][1]}
            for how, value in rows
        ],
        [f"One kernel: {SPEC}."],
    )


if __name__ == "__main__":
    main()
