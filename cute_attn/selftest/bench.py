"""The benchmark of attention beside its peers, which comes with the repository: what of it fits into the time left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cute_attn

from .watch import Row, Settings

__all__ = ["bench"]

SCRIPT = Path(cute_attn.__file__).parents[1] / "benchmarks" / "first_light" / "bench.py"
LEAST_SECONDS = 10.0


def bench(settings: Settings) -> Iterator[Row]:
    """A row for each kernel, case and operation that was timed; status "right" means that all peers agreed with it."""
    left = settings.until - time.monotonic()
    if not SCRIPT.exists():
        yield _row(status="skipped", detail="it comes with the repository, not with the installed package")
        return
    if left < LEAST_SECONDS:
        yield _row(status="skipped", detail="no time left")
        return
    command = [sys.executable, str(SCRIPT), "core", "--until", f"{left - 5:.0f}"]
    command += ["--simulate"] if settings.backend == "sim" else []
    bundle = {"CUTE_ATTN_BUNDLES": settings.bundle} if settings.bundle else {}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **bundle}, start_new_session=True
    )
    timer = threading.Timer(left, _kill, [process])
    timer.start()
    try:
        for line in process.stdout or ():
            with contextlib.suppress(ValueError):
                yield {**_row(), **json.loads(line)}
        code = process.wait()
    finally:
        timer.cancel()
        _kill(process)
    if code == -signal.SIGKILL:
        yield _row(status="skipped", detail="it was ended: no time left")
    elif code:
        yield _row(status="crash", detail=f"it ended with exit code {code}")


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _row(**outcome: str) -> Row:
    empty: Row = {"spec": None, "status": "", "error": {}, "allowed": {}, "seconds": 0.0, "gpu": "", "detail": ""}
    return {"case": "bench", **empty, **outcome}
