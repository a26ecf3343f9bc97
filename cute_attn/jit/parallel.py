"""Work on compiled kernels side by side in processes: the compiler serves one thread of a process."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, as_completed
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
    orphans: list[Any] = []
    with contextlib.ExitStack() as stack:
        pool = executor or stack.enter_context(_pool(min(workers, len(items))))
        futures = {pool.submit(_timed, function, item): item for item in items}
        stack.callback(_cancel, futures)
        for future in as_completed(futures):
            if future.cancelled():
                continue
            try:
                yield Outcome(futures[future], *future.result())
            except BrokenExecutor:  # a process died, and with it the pool: of all that was left it is not known whose
                orphans.append(futures[future])
            if until():
                _cancel(futures)
    for item in orphans:
        if not until():
            yield _alone(function, item)


def _alone(function: Callable[[Any], Any], item: Any) -> Outcome:
    """In a process of its own: if that dies, it was for this item."""
    with _pool(1) as pool:
        try:
            return Outcome(item, *pool.submit(_timed, function, item).result())
        except BrokenExecutor:
            return Outcome(item, None, "its process died", 0.0)


def _pool(workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")  # a forked child of a process with CUDA or threads may hang
    return ProcessPoolExecutor(workers, mp_context=context)


def _cancel(futures: Iterable[Future[Any]]) -> None:
    for future in futures:
        future.cancel()


def _timed(function: Callable[[Any], Any], item: Any) -> tuple[Any, str, float]:
    start = time.perf_counter()
    try:
        return function(item), "", time.perf_counter() - start
    except Exception as error:
        return None, f"{type(error).__name__}: {error}", time.perf_counter() - start
