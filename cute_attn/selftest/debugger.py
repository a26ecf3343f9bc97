"""Where the warps of a kernel that hangs stand, as cuda-gdb tells."""

from __future__ import annotations

import re
import shutil
import subprocess

__all__ = ["where_warps_stand"]

QUESTIONS = ("info cuda kernels", "info cuda warps", "x/4i $pc", "info cuda sms")
CHARACTERS = 6000  # of its answer


def where_warps_stand(pid: int, seconds: float) -> str:
    """What cuda-gdb answers about a process, in lines joined by " | "; or why it does not."""
    debugger = shutil.which("cuda-gdb")
    if debugger is None:
        return "where its warps stand is not known: there is no cuda-gdb"
    command = [debugger, "-batch", "-p", str(pid)]
    for question in QUESTIONS:
        command += ["-ex", question]
    try:
        ended = subprocess.run(command, capture_output=True, timeout=seconds, text=True, errors="replace")
    except subprocess.TimeoutExpired as error:
        said = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        return f"cuda-gdb did not finish in {seconds:.0f} s: {_joined(said)}"
    return f"cuda-gdb: {_joined(ended.stdout + ended.stderr)}"


def _joined(text: str) -> str:
    """Without the lines about threads and libraries that every attach prints."""
    noise = re.compile(r"\[New |\[Thread |Reading symbols|\(No debugging|Using host|warning:|^\s*$")
    lines = [" ".join(line.split()) for line in text.splitlines() if not noise.search(line)]
    return " | ".join(lines)[:CHARACTERS]
