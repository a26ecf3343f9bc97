"""What every benchmark needs: repeatable timing, the machine it ran on, and results as JSON and as a table."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def median_seconds(run: Callable[[], object], repeats: int = 7, warm_up: int = 1) -> float:
    """Median wall time of `run()` after `warm_up` calls that are not counted."""
    for _ in range(warm_up):
        run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def machine() -> dict[str, object]:
    """Where and with what a benchmark ran."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "command": " ".join(["python", *sys.argv]),
    }


def save(name: str, title: str, rows: Sequence[Mapping[str, object]], notes: Sequence[str] = ()) -> None:
    """Writes `results/name.json` and `results/name.md`, and prints the table."""
    RESULTS.mkdir(exist_ok=True)
    where = machine()
    (RESULTS / f"{name}.json").write_text(
        json.dumps({"where": where, "notes": list(notes), "rows": rows}, indent=1) + "\n"
    )
    header = list(rows[0])
    lines = [f"# {title}", "", *notes, ""] if notes else [f"# {title}", ""]
    lines += ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(_shown(row[key]) for key in header) + " |" for row in rows]
    lines += ["", *(f"- {key}: {value}" for key, value in where.items())]
    text = "\n".join(lines) + "\n"
    (RESULTS / f"{name}.md").write_text(text)
    print(text)


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
