"""The forward and backward beside their peers on a Hopper GPU, in one process as long as nothing hangs in it.

python benchmarks/attention.py            # everything: writes benchmarks/results/attention.{json,md}
python benchmarks/attention.py --list     # what would run, and which peers cannot: needs no GPU
python benchmarks/attention.py --case causal --op forward --peer flash-attn-4 --quick --budget 120
"""

from __future__ import annotations

import functools
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import click
import torch
from agreement import disagreement
from attention_cases import CASES, OPERATIONS, Inputs, flops, make_inputs, shrunk
from attention_kernels import OURS, PEERS, Kernel, failure, ours, prepared
from common import one_line, save
from guarded import Guarded, Say, Stopped
from interleaved import Clock, CudaClock, ceilings, interleaved, sets_needed, summary
from rich.console import Console
from rich.progress import Progress

from autotune.problem import Problem
from cute_attn.commands.machine import has_hopper
from cute_attn.packages import versions_of

QUICK = 4  # lengths are divided by it
WARM_UP, ROUNDS = 5, {False: 50, True: 20}
STEP_SECONDS = 180  # of the first calls of one kernel, compiling included, or of all timings of a case
TIMING = "timing"
PACKAGES = ("cute-attn", "nvidia-cutlass-dsl", "apache-tvm-ffi", "triton", "flash-attn-4", "quack-kernels")


@dataclass
class Results:
    """rows: timings. left_out: who was not timed, and why. wrong: what disagreed or failed of ours: no timings.
    not_run: what the budget did not reach."""

    rows: list[dict[str, object]] = field(default_factory=list)
    left_out: list[dict[str, object]] = field(default_factory=list)
    wrong: list[dict[str, object]] = field(default_factory=list)
    not_run: list[dict[str, object]] = field(default_factory=list)

    def add(self, other: Results) -> None:
        self.rows += other.rows
        self.left_out += other.left_out
        self.wrong += other.wrong
        self.not_run += other.not_run


@dataclass(frozen=True)
class Bench:
    """Where and how candidates are timed. ceiling: FLOP a second of a matrix product there."""

    device: torch.device
    clock: Clock
    l2_bytes: int
    ceiling: float
    warm_up: int = WARM_UP
    rounds: int = ROUNDS[False]


class Task(NamedTuple):
    """One operation of one case, as it is handed to the process that measures it."""

    name: str
    problem: Problem
    operation: str
    peers: tuple[str, ...]
    quick: bool


@click.command()
@click.option("--op", "operations", type=click.Choice(OPERATIONS), multiple=True, help="Default: all.")
@click.option("--case", "names", type=click.Choice(list(CASES)), multiple=True, help="Default: all.")
@click.option("--peer", "peers", type=click.Choice(list(PEERS)), multiple=True, help="Default: all.")
@click.option("--quick", is_flag=True, help=f"Lengths divided by {QUICK}, fewer rounds.")
@click.option("--name", "file", default="attention", show_default=True, help="Of the files in benchmarks/results.")
@click.option("--budget", type=click.FloatRange(min=0), metavar="SECONDS", help="After them it ends with what it has.")
@click.option("--list", "listing", is_flag=True, help="Print what would run and why peers are left out; needs no GPU.")
def main(
    operations: Sequence[str],
    names: Sequence[str],
    peers: Sequence[str],
    quick: bool,
    file: str,
    budget: float | None,
    listing: bool,
) -> None:
    """cute_attn and its peers, side by side, on a Hopper GPU."""
    cases = {name: shrunk(CASES[name], QUICK) if quick else CASES[name] for name in names or CASES}
    operations, peers = operations or OPERATIONS, peers or list(PEERS)
    if listing:
        click.echo("\n".join(plan(cases, operations, peers)))
        return
    if not has_hopper():
        click.echo(
            "measuring needs an NVIDIA Hopper GPU (compute capability 9.0); --list shows what would run", err=True
        )
        sys.exit(2)
    tasks = [Task(name, p, operation, tuple(peers), quick) for name, p in cases.items() for operation in operations]
    until = time.monotonic() + budget if budget is not None else float("inf")
    guarded, results, limits = Guarded(measure_on_gpu, STEP_SECONDS), Results(), {}
    with Progress(console=Console(stderr=True)) as progress:
        shown = progress.add_task("attention", total=len(tasks))
        for task in tasks:
            progress.update(shown, description=f"{task.name}, {task.operation}")
            found, limits = measure_guarded(guarded, task, until, limits)
            results.add(found)
            about = about_this_run(guarded.killed, budget)
            report(file, results, cases, limits, show=False, about=about)  # a run that is cut short leaves what it has
            progress.advance(shown)
    guarded.end()
    report(file, results, cases, limits, show=True, about=about)
    for wrong in results.wrong:
        click.echo(
            f"WRONG: {wrong['case']}, {wrong['operation']}, {wrong['with']}: {one_line(wrong['what'])}", err=True
        )
    if results.not_run:
        click.echo(f"{len(results.not_run)} of {len(tasks)} were not run: the budget was over", err=True)
    sys.exit(1 if results.wrong else 0)


def measure_guarded(
    guarded: Guarded, task: Task, until: float, limits: Mapping[str, float]
) -> tuple[Results, Mapping[str, float]]:
    """A task measured in a process of its own, again without each peer that hangs, dies or spoils the GPU there.

    Also returns the ceilings, which are `limits` where nothing was measured.
    """
    results = Results()
    about: dict[str, object] = {"case": task.name, "operation": task.operation}
    while time.monotonic() < until:
        try:
            found, limits = guarded(task, until)
        except Stopped as stopped:
            if time.monotonic() >= until:
                results.not_run.append({**about, "why": f"the budget was over during: {stopped.doing}"})
            elif stopped.doing in task.peers:
                results.left_out.append({**about, "peer": stopped.doing, "why": stopped.why})
                task = task._replace(peers=tuple(peer for peer in task.peers if peer != stopped.doing))
                continue
            else:
                results.wrong.append({**about, "with": stopped.doing, "what": stopped.why})
        else:
            results.add(found)
        return results, limits
    results.not_run.append({**about, "why": "the budget was over before"})
    return results, limits


def measure_on_gpu(task: Task, say: Say) -> tuple[Results, dict[str, float]]:
    """In the process that measures."""
    torch.set_warn_always(True)
    say("measuring the ceilings")
    (bench, limits), results = on_this_gpu(task.quick), Results()
    measure(bench, task.name, task.problem, task.operation, task.peers, results, say)
    return results, limits


def plan(cases: Mapping[str, Problem], operations: Sequence[str], peers: Sequence[str]) -> Iterator[str]:
    """What would run, a line each. A peer may still refuse on the GPU; the results then say why."""
    for name, problem in cases.items():
        yield f"{name}: {str(problem).removeprefix('fwd ')}; {', '.join(operations)}"
        yield f"  {OURS}"
        for peer in peers:
            reason = PEERS[peer].reason(problem)
            yield f"  {peer}" if reason is None else f"  {peer}: left out, {one_line(reason)}"


@functools.cache
def on_this_gpu(quick: bool) -> tuple[Bench, dict[str, float]]:
    """How to measure here, and what the machine gives at most."""
    device = torch.device("cuda", torch.cuda.current_device())
    clock = CudaClock()
    limits = ceilings(clock, device)
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    return Bench(device, clock, l2_bytes, limits["product, FLOP a second"], rounds=ROUNDS[quick]), limits


def measure(
    bench: Bench,
    name: str,
    problem: Problem,
    operation: str,
    peers: Sequence[str],
    results: Results,
    say: Say = lambda doing: None,
) -> None:
    """One operation of one case: ours is checked against every peer that runs, then all are timed in turns.

    say: told before each step whose it is, or TIMING.
    """
    about: dict[str, object] = {"case": name, "operation": operation}
    say(OURS)
    first = make_inputs(problem, bench.device)
    sets = [first, *(make_inputs(problem, bench.device) for _ in range(sets_needed(first.bytes, bench.l2_bytes) - 1))]
    deterministic = operation == "deterministic"
    candidates = {}
    try:
        candidates[OURS] = runs_of(lambda: ours(problem, bench.device, deterministic), operation, sets)
        result = candidates[OURS][0]()
        if deterministic and not all(map(torch.equal, result, candidates[OURS][0]())):
            raise RuntimeError("two runs give different bits")
    except Exception as error:
        if spoilt(bench.device):
            raise
        results.wrong.append({**about, "with": OURS, "what": failure(error)})
        return
    outputs = ("out",) if operation == "forward" else ("dq", "dk", "dv")
    agreed = True
    for peer in peers:
        say(peer)
        reason = PEERS[peer].reason(problem)
        if reason is None:
            build, seen = PEERS[peer].build, []
            try:
                with _warnings_into(seen):
                    runs = runs_of(lambda: build(problem, bench.device, deterministic), operation, sets)  # noqa: B023
                    theirs = runs[0]()
            except Exception as error:  # whatever a peer raises says that it cannot do this
                if spoilt(bench.device):
                    raise
                reason = "; ".join(dict.fromkeys([failure(error), *seen]))
        if reason is not None:
            results.left_out.append({**about, "peer": peer, "why": reason})
            continue
        difference = disagreement(outputs, result, theirs)
        if difference is None:
            candidates[peer] = runs
        else:
            agreed = False
            results.wrong.append({**about, "with": peer, "what": difference})
    if agreed:
        say(TIMING)
        times = interleaved(bench.clock, candidates, bench.warm_up, bench.rounds)
        results.rows += rows_of(about, flops(problem, operation), times, bench.ceiling)


def spoilt(device: torch.device) -> bool:
    """Whether an error of the GPU was left in this process: nothing that comes after it in there works."""
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def runs_of(build: Callable[[], Kernel], operation: str, sets: Sequence[Inputs]) -> list[Callable[[], tuple]]:
    kernel = build()
    return [prepared(kernel, operation, inputs) for inputs in sets]


def rows_of(
    about: Mapping[str, object], operations: int, times: Mapping[str, Sequence[float]], ceiling: float
) -> list[dict[str, object]]:
    """A row for each candidate, from the medians. The last column is the fastest peer's time over the candidate's."""
    summaries = {name: summary(seconds) for name, seconds in times.items()}
    fastest = min((s.median for name, s in summaries.items() if name != OURS), default=None)
    return [
        {
            **about,
            "kernel": name,
            "microseconds": round(s.median * 1e6, 1),
            "middle half": f"{s.low * 1e6:.1f} to {s.high * 1e6:.1f}",
            "TFLOP/s": round(operations / s.median / 1e12, 1),
            "of the ceiling": round(operations / s.median / ceiling, 3),
            "over the fastest peer": round(fastest / s.median, 3) if fastest else "no peer",
        }
        for name, s in summaries.items()
    ]


def about_this_run(killed: int, budget: float | None) -> dict[str, object]:
    """How it was guarded, for the report."""
    return {
        "guard": f"a process of its own, killed where a step takes more than {STEP_SECONDS} s; {killed} were killed",
        "budget": "none" if budget is None else f"{budget:g} s",
    }


def report(
    file: str,
    results: Results,
    cases: Mapping[str, Problem],
    limits: Mapping[str, float],
    show: bool,
    about: Mapping[str, object] | None = None,
) -> None:
    """Writes the results so far. about: what to say of the run besides the machine and versions."""
    notes = [
        "GPU time by CUDA events: median and middle half of many calls, in turns, over inputs that together exceed",
        "twice the L2. TFLOP/s count the products of exactly the attended pairs (`flops` in `attention_cases.py`); the",
        "ceiling is a bf16 product of 8192^3 measured just before. Backward is without its forward; deterministic is",
        "the backward with equal bits from run to run, which flex_attention's always has. All take q, k, v as (batch,",
        "tokens, heads, dim), those that want heads first as transposed views. All were compared with ours before.",
    ]
    tables = {
        "Ceilings": [{"of": what, "measured": f"{value / 1e12:.4g} T"} for what, value in limits.items()],
        "Cases": [{"case": name, "is": str(problem).removeprefix("fwd ")} for name, problem in cases.items()],
        "Left out": results.left_out,
        "Wrong, and so not timed": results.wrong,
        "Not run": results.not_run,
    }
    save(file, "Attention beside its peers", results.rows, notes, tables, {**versions(), **(about or {})}, show)


def versions() -> dict[str, str]:
    """Of what the timings depend on besides PyTorch."""
    found = {"CUDA of torch": str(torch.version.cuda), "cuDNN": str(torch.backends.cudnn.version())}
    return found | dict.fromkeys(PACKAGES, "not installed") | versions_of(PACKAGES)


@contextmanager
def _warnings_into(lines: list[str]) -> Iterator[None]:
    """Collects warnings: SDPA says in them why a backend cannot run."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            lines += [str(warning.message) for warning in seen]


if __name__ == "__main__":
    main()
