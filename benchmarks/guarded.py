"""Work in a process of its own that is killed when it says nothing for too long: a kernel that hangs does not return,
and neither does whatever waits for it."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Guarded", "Say", "Stopped"]

Say = Callable[[str], None]


class Stopped(Exception):
    """doing: what the process last said that it does. why: what became of it."""

    def __init__(self, doing: str, why: str) -> None:
        super().__init__(f"{doing}: {why}")
        self.doing, self.why = doing, why


class Guarded:
    """`guarded(item)` is `work(item, say)` in a process that lives on for the next item, and is replaced once it was
    killed, died or raised.

    work: importable; calls `say(doing)` before each step. seconds: that a step may take.
    """

    def __init__(self, work: Callable[[Any, Say], Any], seconds: float) -> None:
        self._work, self._seconds = work, seconds
        self._process: Any = None
        self.killed = 0

    def __call__(self, item: Any, until: float = float("inf")) -> Any:
        """until: on time.monotonic; what is not done then is killed. Raises Stopped where there is no result."""
        self._start()
        self._pipe.send(item)
        doing = "starting"
        while True:
            left = until - time.monotonic()
            wait = min(self._seconds, left)
            try:
                if not self._pipe.poll(max(0.0, wait)):
                    self.end()
                    self.killed += 1
                    raise Stopped(doing, "the time was over" if wait == left else f"hung: {wait:g} s without an end")
                kind, said = self._pipe.recv()
            except (EOFError, OSError):
                self._process.join(10)
                code = self._process.exitcode
                self.end()
                raise Stopped(doing, f"its process died with exit code {code}") from None
            if kind == "doing":
                doing = said
            elif kind == "done":
                return said
            else:
                self.end()
                raise Stopped(doing, said)

    def end(self) -> None:
        """Ends the process, if there is one. The next call gets a fresh one."""
        if self._process is not None:
            self._process.kill()
            self._process.join(10)  # one that waits for a driver may take its time, and is not waited for
            self._pipe.close()
            self._process = None

    def _start(self) -> None:
        if self._process is None:
            context = multiprocessing.get_context("spawn")  # a forked child cannot use CUDA
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(self._work, theirs), daemon=True)
            self._process.start()
            theirs.close()


def _serve(work: Callable[[Any, Say], Any], pipe: Any) -> None:
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        try:
            answer = "done", work(item, lambda doing: pipe.send(("doing", doing)))
        except Exception as error:
            answer = "failed", f"{type(error).__name__}: {error}"
        pipe.send(answer)
