"""Work on compiled kernels side by side in processes: the compiler serves one thread of a process."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, as_completed
from typing import Any, NamedTuple

__all__ = ["Outcome", "in_processes"]


class Outcome(NamedTuple):
    """What became of an item: `result`, or what went wrong in words, and the seconds it took in its process."""

    item: Any
    result: Any
    error: str
    seconds: float


def in_processes(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    workers: int,
    executor: Executor | None = None,
    until: Callable[[], bool] = lambda: False,
) -> Iterator[Outcome]:
    """Yields the outcome of `function(item)` for each item as it is done, in the order in which they finish.

    function: importable, its items and results picklable; both stay between our own processes.
    executor: runs them instead of new processes. until: once it is true, no further item is begun.
    """
    if not items:
        return
    own = executor is None
    if executor is None:
        context = multiprocessing.get_context("spawn")  # a forked child of a process with CUDA or threads may hang
        executor = ProcessPoolExecutor(min(workers, len(items)), mp_context=context)
    try:
        futures = {executor.submit(_timed, function, item): item for item in items}
        for future in as_completed(futures):
            if future.cancelled():
                continue
            try:
                yield Outcome(futures[future], *future.result())
            except BrokenExecutor:
                yield Outcome(futures[future], None, "its process died", 0.0)
            if until():
                for other in futures:
                    other.cancel()
    finally:
        if own:
            executor.shutdown(cancel_futures=True)


def _timed(function: Callable[[Any], Any], item: Any) -> tuple[Any, str, float]:
    start = time.perf_counter()
    try:
        return function(item), "", time.perf_counter() - start
    except Exception as error:
        return None, f"{type(error).__name__}: {error}", time.perf_counter() - start
