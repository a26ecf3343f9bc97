"""The forward and backward beside their peers on a Hopper GPU, in one process.

python benchmarks/attention.py            # everything: writes benchmarks/results/attention.{json,md}
python benchmarks/attention.py --list     # what would run, and which peers cannot: needs no GPU
python benchmarks/attention.py --case causal --op forward --peer flash-attn-4 --quick
"""

from __future__ import annotations

import importlib.metadata
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import click
import torch
from agreement import disagreement
from attention_cases import CASES, OPERATIONS, Inputs, flops, make_inputs, shrunk
from attention_kernels import OURS, PEERS, Kernel, ours, prepared
from common import save
from interleaved import Clock, CudaClock, ceilings, interleaved, sets_needed, summary
from rich.console import Console
from rich.progress import Progress

from autotune.problem import Problem
from cute_attn.commands.machine import has_hopper

QUICK = 4  # lengths are divided by it
WARM_UP, ROUNDS = 5, {False: 50, True: 20}
PACKAGES = ("cute-attn", "nvidia-cutlass-dsl", "apache-tvm-ffi", "triton", "flash-attn-4", "quack-kernels")


@dataclass
class Results:
    """rows: timings. left_out: who was not timed, and why. wrong: what disagreed or failed of ours: no timings."""

    rows: list[dict[str, object]] = field(default_factory=list)
    left_out: list[dict[str, object]] = field(default_factory=list)
    wrong: list[dict[str, object]] = field(default_factory=list)


@dataclass(frozen=True)
class Bench:
    """Where and how candidates are timed. ceiling: FLOP a second of a matrix product there."""

    device: torch.device
    clock: Clock
    l2_bytes: int
    ceiling: float
    warm_up: int = WARM_UP
    rounds: int = ROUNDS[False]


@click.command()
@click.option("--op", "operations", type=click.Choice(OPERATIONS), multiple=True, help="Default: all.")
@click.option("--case", "names", type=click.Choice(list(CASES)), multiple=True, help="Default: all.")
@click.option("--peer", "peers", type=click.Choice(list(PEERS)), multiple=True, help="Default: all.")
@click.option("--quick", is_flag=True, help=f"Lengths divided by {QUICK}, fewer rounds.")
@click.option("--name", "file", default="attention", show_default=True, help="Of the files in benchmarks/results.")
@click.option("--list", "listing", is_flag=True, help="Print what would run and why peers are left out; needs no GPU.")
def main(
    operations: Sequence[str], names: Sequence[str], peers: Sequence[str], quick: bool, file: str, listing: bool
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
    bench, limits = on_this_gpu(quick)
    results = Results()
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("attention", total=len(cases) * len(operations))
        for name, problem in cases.items():
            for operation in operations:
                progress.update(task, description=f"{name}, {operation}")
                measure(bench, name, problem, operation, peers, results)
                report(file, results, cases, limits, show=False)  # a run that is cut short leaves what it has
                progress.advance(task)
    report(file, results, cases, limits, show=True)
    for wrong in results.wrong:
        click.echo(f"WRONG: {wrong['case']}, {wrong['operation']}, {wrong['with']}: {wrong['what']}", err=True)
    sys.exit(1 if results.wrong else 0)


def plan(cases: Mapping[str, Problem], operations: Sequence[str], peers: Sequence[str]) -> Iterator[str]:
    """What would run, a line each. A peer may still refuse on the GPU; the results then say why."""
    for name, problem in cases.items():
        yield f"{name}: {str(problem).removeprefix('fwd ')}; {', '.join(operations)}"
        yield f"  {OURS}"
        for peer in peers:
            reason = PEERS[peer].why_not(problem)
            yield f"  {peer}" if reason is None else f"  {peer}: left out, {reason}"


def on_this_gpu(quick: bool) -> tuple[Bench, dict[str, float]]:
    """How to measure here, and what the machine gives at most."""
    device = torch.device("cuda", torch.cuda.current_device())
    clock = CudaClock()
    limits = ceilings(clock, device)
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    return Bench(device, clock, l2_bytes, limits["product, FLOP a second"], rounds=ROUNDS[quick]), limits


def measure(bench: Bench, name: str, problem: Problem, operation: str, peers: Sequence[str], results: Results) -> None:
    """One operation of one case: ours is checked against every peer that runs, then all are timed in turns."""
    about: dict[str, object] = {"case": name, "operation": operation}
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
        results.wrong.append({**about, "with": OURS, "what": _one_line(error)})
        return
    outputs = ("out",) if operation == "forward" else ("dq", "dk", "dv")
    agreed = True
    for peer in peers:
        reason = PEERS[peer].why_not(problem)
        if reason is None:
            build, seen = PEERS[peer].build, []
            try:
                with _warnings_into(seen):
                    runs = runs_of(lambda: build(problem, bench.device, deterministic), operation, sets)  # noqa: B023
                    theirs = runs[0]()
            except Exception as error:  # whatever a peer raises says that it cannot do this
                reason = "; ".join(dict.fromkeys([_one_line(error), *seen]))
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
        times = interleaved(bench.clock, candidates, bench.warm_up, bench.rounds)
        results.rows += rows_of(about, flops(problem, operation), times, bench.ceiling)


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


def report(file: str, results: Results, cases: Mapping[str, Problem], limits: Mapping[str, float], show: bool) -> None:
    """Writes the results so far, if there are any."""
    if not results.rows:
        return
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
    }
    save(file, "Attention beside its peers", results.rows, notes, tables, versions(), show)


def versions() -> dict[str, str]:
    """Of what the timings depend on besides PyTorch."""
    found = {"CUDA of torch": str(torch.version.cuda), "cuDNN": str(torch.backends.cudnn.version())}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


@contextmanager
def _warnings_into(lines: list[str]) -> Iterator[None]:
    """Collects warnings, in one line each: SDPA says in them why a backend cannot run."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            lines += [_first_line(str(warning.message)) for warning in seen]


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {_first_line(str(error))}"


def _first_line(text: str) -> str:
    """Cut where it would make a table unreadable; a bar would end a cell."""
    return (text.strip().splitlines() or ["no message"])[0].replace("|", "/")[:200]


if __name__ == "__main__":
    torch.set_warn_always(True)
    main()
