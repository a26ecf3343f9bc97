"""Timings on a GPU, in order of value until the time is over; each line of stdout is one, in JSON.

python bench.py core --until 140    attention beside its peers: results in FOLDER/attention_core.{json,md}
python bench.py rest --until 140    more of it: masks, lengths, the deterministic backward
python bench.py tiles --until 50    tiles beside each other, in turns
python bench.py warm                compiles flex_attention for the core ahead, into Triton's cache
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from measurements import CORE, PROBLEMS, REST, TILES, Beside, TiledCase, tiles_of  # before its parent's modules

# isort: split
import attention
import attention_kernels
import common
from attention_cases import Inputs, flops, make_inputs
from interleaved import interleaved, summary

from cute_attn.jit.obtain import KernelNotBuilt
from cute_attn.launch.backward import backward
from cute_attn.launch.forward import forward
from cute_attn.launch.run import KernelBackend

PLANS = {"core": CORE, "rest": REST}
HUNG = 7  # exit code
AGREE = 1e-2  # relative norm of the difference between two tiles' results, of which each is right by itself


class Machine:
    """Where it is measured. backend: "sm90", or "sim" where the CPU stands for the GPU."""

    def __init__(self, simulated: bool) -> None:
        self.backend: KernelBackend = "sim" if simulated else "sm90"
        if simulated:
            import cpu_for_gpu

            self.bench, self.limits = cpu_for_gpu.install()
        else:
            self.bench, self.limits = attention.on_this_gpu(True)
        self.patience = 600.0 if simulated else 60.0


def beside_peers(name: str, plan: Sequence[Beside], machine: Machine, until: float, left_out: Sequence[str]) -> None:
    results, used = attention.Results(), {}
    for problem, operations, peers in plan:
        for operation in operations:
            what = f"bench {problem} {operation}"
            if why := _no_turn(operation, until, left_out):
                _say(what, "skipped", why)
                continue
            before = len(results.rows), len(results.wrong), len(results.left_out)
            try:
                with watched(what, machine.patience):
                    attention.measure(machine.bench, problem, PROBLEMS[problem], operation, peers, results)
            except Exception as error:  # it left the GPU unusable for this process
                _say(what, "crash", f"{type(error).__name__}: {error}")
                return
            used[problem] = PROBLEMS[problem]
            if results.rows:
                attention.report(f"attention_{name}", results, used, machine.limits, show=False)
            _say_results(what, results, *before)
            if machine.backend == "sm90":
                torch.cuda.empty_cache()


def _say_results(what: str, results: attention.Results, rows: int, wrong: int, left_out: int) -> None:
    for row in results.rows[rows:]:
        ratio = row["over the fastest peer"]
        beside = "" if ratio == "no peer" else f", {ratio} of the fastest peer's speed"
        text = f"{row['microseconds']} us ({row['middle half']}), {row['TFLOP/s']} TFLOP/s{beside}"
        _say(f"{what} {row['kernel']}", "right", text, measured=row)
    for row in results.wrong[wrong:]:
        _say(f"{what} {row['with']}", _status(str(row["what"])), str(row["what"]))
    for row in results.left_out[left_out:]:
        _say(f"{what} {row['peer']}", "skipped", str(row["why"]))


def tiles(machine: Machine, until: float, left_out: Sequence[str]) -> None:
    for case in TILES:
        what = f"tiles {case.problem} {case.operation}"
        if why := _no_turn(case.operation, until, left_out):
            _say(what, "skipped", why)
            continue
        sets = [make_inputs(PROBLEMS[case.problem], machine.bench.device) for _ in range(2)]
        calls, first = {}, None
        for name, tile, softmax in tiles_of(case):
            try:
                runs = [_tiled(case, inputs, tile, softmax, machine.backend) for inputs in sets]
                with watched(f"{what} {name}", machine.patience):
                    result = runs[0]().double()
                first = result if first is None else first
                error = ((result - first).norm() / first.norm()).item()
                if not error < AGREE:
                    raise RuntimeError(f"it differs from the default tile by {error:.2g}")
            except Exception as error:  # another tile may do
                text = f"{type(error).__name__}: {error}"
                _say(f"{what} {name}", _status(text), text)
                continue
            calls[name] = runs
        if not calls:
            continue
        with watched(what, machine.patience):
            times = interleaved(machine.bench.clock, calls, machine.bench.warm_up, machine.bench.rounds)
        for name, seconds in times.items():
            s = summary(seconds)
            speed = flops(PROBLEMS[case.problem], case.operation) / s.median / 1e12
            row = {"microseconds": round(s.median * 1e6, 1), "TFLOP/s": round(speed, 1)}
            text = f"{row['microseconds']} us ({s.low * 1e6:.1f} to {s.high * 1e6:.1f}), {speed:.1f} TFLOP/s"
            _say(f"{what} {name}", "right", text, measured={**row, "tile": name})


def _tiled(case: TiledCase, inputs: Inputs, tile, softmax: str, backend: KernelBackend):
    q, k, v, dout = inputs
    problem = PROBLEMS[case.problem]
    mask, options = problem.intervals().to(q.device), {"softmax_scale": problem.head_dim**-0.5, "backend": backend}
    if case.operation == "forward":
        return lambda: forward(q, k, v, mask, tile=tile, softmax=softmax, **options)[0]
    out, lse, _ = forward(q, k, v, mask, **options)
    return lambda: backward(dout, q, k, v, out, lse, mask, tile=tile, **options).dk


def warm(machine: Machine) -> None:
    for problem, operations, peers in (*CORE, *REST[:2]):
        if "flex_attention" in peers and not attention_kernels.PEERS["flex_attention"].why_not(PROBLEMS[problem]):
            kernel = attention_kernels.PEERS["flex_attention"].build(PROBLEMS[problem], machine.bench.device, False)
            inputs = make_inputs(PROBLEMS[problem], machine.bench.device)
            for operation in operations:
                attention_kernels.prepared(kernel, operation, inputs)()
            _say(f"warm {problem}", "right", "flex_attention compiled")


def _status(failure: str) -> str:
    return "missing" if failure.startswith(KernelNotBuilt.__name__) else "wrong"


def _no_turn(operation: str, until: float, left_out: Sequence[str]) -> str:
    """Why an operation is not measured; "" if it is."""
    if operation in left_out:
        return "its smallest case hung"
    return "no time left" if time.monotonic() > until else ""


@contextlib.contextmanager
def watched(what: str, seconds: float) -> Iterator[None]:
    """What hangs ends this process, with a line that says where it was."""

    def end() -> None:
        _say(what, "hang", f"more than {seconds:.0f} s")
        os._exit(HUNG)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _say(case: str, status: str, detail: str, **more: object) -> None:
    print(json.dumps({"case": case, "status": status, "detail": detail, **more}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*PLANS, "tiles", "warm"])
    parser.add_argument("--until", type=float, default=120.0, help="seconds from now, after which nothing is begun")
    parser.add_argument("--folder", type=Path, default=Path("first_light_out"), help="where tables are written")
    parser.add_argument("--leave-out", action="append", default=[], choices=attention.OPERATIONS)
    parser.add_argument("--simulate", action="store_true", help="the CPU stands for the GPU, at tiny sizes")
    options = parser.parse_args()
    until = time.monotonic() + options.until
    torch.set_warn_always(True)
    common.RESULTS = options.folder
    machine = Machine(options.simulate)
    for limit, value in machine.limits.items():
        _say(f"ceiling: {limit}", "right", f"{value / 1e12:.4g} T")
    if options.what == "warm":
        warm(machine)
    elif options.what == "tiles":
        tiles(machine, until, options.leave_out)
    else:
        beside_peers(options.what, PLANS[options.what], machine, until, options.leave_out)


if __name__ == "__main__":
    sys.exit(main())
