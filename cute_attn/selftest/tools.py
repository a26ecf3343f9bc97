"""The same cases under NVIDIA's tools: compute-sanitizer, which finds bad accesses, and ncu, which counts."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from .cases import cases, profiled
from .watch import Row, Settings, run
from .worker import LAUNCHES

__all__ = ["SANITIZERS", "profile", "sanitize"]

# What each tool of compute-sanitizer writes about findings.
SANITIZERS = {"memcheck": r"ERROR SUMMARY: (\d+) error", "racecheck": r"RACECHECK SUMMARY: (\d+) hazard"}
SLOWER = 10  # a case under a tool may take so many times longer
KERNELS = {"fwd": "cute_attn_forward", "bwd": "MainKernel"}  # what the kernels' names match
COUNTERS = (
    r"gpu__time_duration\.sum",
    r"sm__(inst_executed_)?pipe_tensor.*pct_of_peak_sustained_active",
    r"sm__inst_executed_pipe_(xu|fma|alu|lsu|uniform).*pct_of_peak_sustained_active",
    r"smsp__issue_active\.avg\.pct",
    r"(sm|dram)__throughput\.avg\.pct.*",
    r"lts__t_sector_hit_rate\.pct",
    r"l1tex__data_bank_conflicts_pipe_lsu\.sum",
    r"launch__(registers_per_thread|grid_size|shared_mem_per_block_dynamic)",
    r"smsp__inst_executed_op_local.*",
)
STALLED = re.compile(r"smsp__average_warps_issue_stalled_(\w+)_per_issue_active\.ratio")


def sanitize(tool: str, settings: Settings) -> Iterator[Row]:
    """Rows of the cases of the group "tools" under a tool of SANITIZERS, and one of what it found."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        yield _row(tool, status="skipped", detail="there is no compute-sanitizer on PATH")
        return
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log.txt"
        prefix = (program, "--tool", tool, "--target-processes", "all", "--print-limit", "20", "--log-file", str(log))
        apart = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # every tensor its own allocation: what is beyond it is seen
        under = replace(settings, prefix=prefix, patience=SLOWER * settings.patience, variables=apart)
        for row in run(cases(["tools"], settings.backend == "sim"), under):
            yield {**row, "case": f"{tool}: {row['case']}"}
        text = log.read_text(errors="replace") if log.exists() else ""
    counts = [int(number) for number in re.findall(SANITIZERS[tool], text)]
    findings = " | ".join(line for line in text.splitlines() if re.match(r"=+ (Invalid|Error|Race|Program hit)", line))
    if counts and not any(counts):
        yield _row(tool, status="right", detail="nothing found")
    elif counts:
        yield _row(tool, status="wrong", detail=f"{sum(counts)} found: {findings[:4000]}")
    else:
        yield _row(tool, status="skipped", detail=f"it ended without a summary: {text[-1000:]}")


def profile(directory: Path, settings: Settings) -> Iterator[Row]:
    """A row with the counters of one large forward and backward; ncu's report and its CSV files stay in `directory`."""
    program = shutil.which("ncu")
    if program is None:
        yield _row("ncu", status="skipped", detail="there is no ncu on PATH")
        return
    directory.mkdir(parents=True, exist_ok=True)
    for case in profiled(settings.backend == "sim"):
        report = directory / f"ncu_{case.op}"
        options = f"--clock-control none --set full --import-source no --launch-skip {LAUNCHES - 1} --launch-count 1"
        prefix = (program, *options.split(), "-k", f"regex:{KERNELS[case.op]}", "-f", "-o", str(report))
        under = replace(settings, prefix=prefix, patience=SLOWER * settings.patience, launch_only=True)
        for row in list(run([case], under)):  # to its end: ncu writes the report when the process has ended
            counted = _counters(program, report) if row["status"] == "right" else ""
            status = row["status"] if row["status"] != "right" or counted else "skipped"
            detail = counted or row["detail"] if status != "skipped" else f"ncu profiled no kernel: {row['detail']}"
            yield {**row, "case": f"ncu: {case.name}", "status": status, "detail": detail}


def _counters(program: str, report: Path) -> str:
    """The counters of a report in words, "" if it has none; the CSV pages are left beside it."""
    pages = {}
    for page in ("raw", "source"):
        command = [program, "-i", f"{report}.ncu-rep", "--page", page, "--csv"]
        pages[page] = subprocess.run(command, capture_output=True, text=True, errors="replace").stdout
        report.with_name(f"{report.name}_{page}.csv").write_text(pages[page])
    lines = (line for line in pages["raw"].splitlines() if not line.startswith("=="))
    rows = [row for row in csv.reader(lines) if len(row) > 8]
    if len(rows) < 3:
        return ""
    found = {name: f"{value} {unit}".strip() for name, unit, value in zip(*rows[:3], strict=False)}
    stalls = {match[1]: found[name] for name in found if (match := STALLED.fullmatch(name))}
    order = sorted(stalls, key=lambda name: -_number(stalls[name]))[:8]
    kept = {name: value for name, value in found.items() if any(re.fullmatch(k, name) for k in COUNTERS)}
    return json.dumps({"stalls": {name: stalls[name] for name in order}, "counters": kept})


def _number(text: str) -> float:
    try:
        return float(text.split()[0].replace(",", ""))
    except (ValueError, IndexError):
        return 0.0


def _row(name: str, **outcome: str) -> Row:
    return {"case": name, "spec": None, "status": "", "error": {}, "allowed": {}, "seconds": 0.0, "gpu": "", **outcome}
