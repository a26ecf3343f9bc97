"""What every benchmark needs: repeatable timing, the machine it ran on, and results as JSON and as a table."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
WIDTH = 200  # of a text in a table


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


Rows = Sequence[Mapping[str, object]]


def save(
    name: str,
    title: str,
    rows: Rows,
    notes: Sequence[str] = (),
    tables: Mapping[str, Rows] | None = None,
    where: Mapping[str, object] | None = None,
    show: bool = True,
) -> None:
    """Writes `results/name.json` and `results/name.md`, and prints the table unless `show` is False. Texts are whole in
    the JSON and cut to a line in the table.

    tables: further ones, by heading; those without rows are left out. where: what to say besides `machine()`.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    where = {**machine(), **(where or {})}
    tables = {heading: list(rows) for heading, rows in (tables or {}).items() if rows}
    results = {"where": where, "notes": list(notes), "rows": list(rows), **({"tables": tables} if tables else {})}
    _write(RESULTS / f"{name}.json", json.dumps(results, indent=1) + "\n")
    lines = [f"# {title}", ""]
    lines += [*notes, ""] if notes else []
    lines += [*_table(rows), ""]
    for heading, further in tables.items():
        lines += [f"## {heading}", "", *_table(further), ""]
    lines += [f"- {key}: {value}" for key, value in where.items()]
    text = "\n".join(lines) + "\n"
    _write(RESULTS / f"{name}.md", text)
    if show:
        print(text)


def one_line(text: object) -> str:
    """Cut where it would make a table unreadable; a bar would end a cell."""
    line = " ".join(str(text).split()).replace("|", "/")
    return line if len(line) <= WIDTH else f"{line[:WIDTH]}..."


def _write(path: Path, text: str) -> None:
    """Whole or not at all: a run that is killed while it writes leaves what was there."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".new", delete=False) as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def _table(rows: Rows) -> list[str]:
    if not rows:
        return ["Nothing was measured."]
    header = list(rows[0])
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return lines + ["| " + " | ".join(_shown(row[key]) for key in header) + " |" for row in rows]


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else one_line(value)
