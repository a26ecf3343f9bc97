"""Runs cases in a process that is watched: what hangs or dies costs its own case, the next gets a new process."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .cases import AnyCase
from .debugger import where_warps_stand

__all__ = ["Row", "Settings", "Unable", "run"]

WORKER = ("-m", "cute_attn.selftest.worker")
START_SECONDS = 120.0  # of a process, until it has seen the machine
OBTAIN_SECONDS = 600.0  # of a kernel: it may be compiled, and wait for others that compile
MOST_HANGS = 3  # then nothing more is begun
Row = dict[str, Any]


class Unable(Exception):
    """Nothing can run on this machine, and why."""


@dataclass(frozen=True)
class Settings:
    """How cases run.

    backend: "sm90" or "sim". bundle: the only place of kernels, "" for all. until: time.monotonic() at which all ends.
    patience: seconds that a case may take from its launch on. prefix: a tool that starts the process, and its options.
    variables: of the process's environment, besides ours. launch_only: kernels are launched a few times and not
    checked, for profilers.
    """

    backend: str
    bundle: str
    until: float
    patience: float
    prefix: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    launch_only: bool = False


def run(cases: Sequence[AnyCase], settings: Settings) -> Iterator[Row]:
    """A row for each case, as it is done: case, spec, status, error, allowed, seconds, gpu, detail.

    Raises Unable where the process finds nothing to run on.
    """
    with contextlib.ExitStack() as stack:
        worker: _Worker | None = None
        machine, hangs = "", 0
        for case in cases:
            if hangs >= MOST_HANGS or time.monotonic() >= settings.until:
                why = f"given up after {hangs} hangs" if hangs >= MOST_HANGS else "no time left"
                yield _row(case, machine, status="skipped", detail=why)
                continue
            if worker is None:
                worker = stack.enter_context(_Worker(settings, ask_debugger=not hangs))
                outcome = worker.started()
                machine = worker.machine or machine
            else:
                outcome = None
            outcome = outcome or worker.outcome(case)
            hangs += outcome["status"] == "hang"
            if worker.over:
                worker.end()
                worker = None
            yield _row(case, machine, **outcome)


def _row(case: AnyCase, machine: str, **outcome: Any) -> Row:
    empty = {"status": "", "error": {}, "allowed": {}, "seconds": 0.0, "gpu": machine, "detail": ""}
    return {"case": case.name, "spec": json.loads(case.spec.canonical()), **empty, **outcome}


class _Silent(Exception):
    """Nothing was said in time."""


class _Died(Exception):
    """The process is gone."""


class _Worker:
    """The process, with its stderr in a file. `over` is true when it can run nothing more.

    ask_debugger: whether a debugger, which takes its time, is to say where a kernel hangs.
    """

    def __init__(self, settings: Settings, ask_debugger: bool) -> None:
        self._settings, self._ask_debugger = settings, ask_debugger
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        command = [*settings.prefix, sys.executable, *WORKER, settings.backend, settings.bundle]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **settings.variables},
            start_new_session=True,  # a tool and the process that it starts are ended together
        )
        self._lines: list[bytes] = []
        self._rest = b""
        self.machine = ""
        self.over = False

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self.over = self.over or kind is not None  # who is made to end has no time to wait
        self.end()

    def started(self) -> Row | None:
        """Waits until the process has seen the machine; what became of it if it never does. Raises Unable."""
        begun = time.monotonic()
        try:
            said = self._next(START_SECONDS)
        except (_Silent, _Died) as failure:
            return self._failed(failure, "the start of the process", begun)
        if "unable" in said:
            raise Unable(said["unable"])
        self.machine = said["gpu"]
        return None

    def outcome(self, case: AnyCase) -> Row:
        """What became of a case."""
        begun, at = time.monotonic(), "obtaining the kernel"
        order = {"case": case.to_json(), "launch_only": self._settings.launch_only}
        try:
            self._send(order)
            said = self._next(OBTAIN_SECONDS)
            if "obtained" in said:
                begun, at = time.monotonic(), "running the kernel"
                said = self._next(self._settings.patience)
        except (_Silent, _Died) as failure:
            return self._failed(failure, at, begun)
        self.over = said["status"] == "crash" and self._settings.backend != "sim"
        return said

    def end(self) -> None:
        """The process group gets a moment to end by itself, as tools need to write their reports, unless it failed."""
        if self._process.poll() is None and not self.over:
            with contextlib.suppress(OSError):
                self._process.stdin.close()  # type: ignore[union-attr]
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(max(0.0, min(20.0, self._settings.until + 10.0 - time.monotonic())))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _send(self, order: Row) -> None:
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
        except OSError as error:
            raise _Died from error

    def _next(self, seconds: float) -> Row:
        """The next line that the process says, within seconds and before the end of all."""
        end = min(time.monotonic() + seconds, self._settings.until)
        pipe = self._process.stdout.fileno()  # type: ignore[union-attr]
        while not self._lines:
            ready, _, _ = select.select([pipe], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise _Silent
            chunk = os.read(pipe, 1 << 16)
            if not chunk:
                raise _Died
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            self._lines += [line for line in lines if line.startswith(b"{")]  # tools of the prefix say other things
        said: Row = json.loads(self._lines.pop(0))
        return said

    def _failed(self, failure: Exception, at: str, begun: float) -> Row:
        """The outcome of a case that ended the process, or has to."""
        self.over = True
        waited = time.monotonic() - begun
        if isinstance(failure, _Died):
            code = self._process.wait()
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            status, detail = "crash", f"the process died ({how}) while {at}: {self._said(2000)}"
        elif time.monotonic() >= self._settings.until:
            status, detail = "skipped", f"no time left after {waited:.0f} s of {at}"
        else:
            status, detail = "hang", f"nothing for {waited:.0f} s while {at}; {self._where()}"
        return {"status": status, "seconds": round(waited, 3), "detail": detail}

    def _where(self) -> str:
        """Where the process stands: its warps, if a debugger is at hand, and its Python code."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGUSR1)  # makes the worker write its stack
        time.sleep(0.5)
        stack = self._said(1500)
        if self._settings.backend == "sim" or not self._ask_debugger:
            return f"the host stands at {stack}"
        warps = where_warps_stand(self._process.pid, min(40.0, max(0.0, self._settings.until - time.monotonic())))
        return f"{warps}; the host stands at {stack}"

    def _said(self, characters: int) -> str:
        """The end of what the process wrote to stderr, in one line."""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - 4 * characters))
        return " ".join(self._errors.read().decode(errors="replace").split())[-characters:]
