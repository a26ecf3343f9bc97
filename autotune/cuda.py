"""The GPU as a `Device`: CUDA graphs, timed by events, with a cold L2."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from cute_attn.launch.tensors import NAMED_DTYPES
from cute_attn.mask import IntervalMask
from cute_attn.spec.operation import operation
from cute_attn.spec.tiles import Tile

from .measure import Lost
from .problem import Problem

__all__ = ["CudaDevice"]

HUNG_AFTER = 60.0  # seconds, of one call


class CudaDevice:
    """The current GPU. Raises RuntimeError if it is no Hopper."""

    def __init__(self) -> None:
        if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
            raise RuntimeError("measuring needs an NVIDIA Hopper GPU (compute capability 9.0)")
        self._device = torch.device("cuda", torch.cuda.current_device())
        properties = torch.cuda.get_device_properties(self._device)
        self.gpu, self.sms = properties.name, properties.multi_processor_count
        self._uuid = str(properties.uuid)
        self.metadata: dict[str, Any] = {"gpu": self.gpu, "cuda": torch.version.cuda, "driver": _driver()}
        self._cold = torch.empty(max(2 * properties.L2_cache_size, 1 << 28), dtype=torch.uint8, device=self._device)

    def lock(self) -> contextlib.AbstractContextManager[object]:
        import filelock

        return filelock.FileLock(Path(tempfile.gettempdir()) / f"cute-attn-autotune-{self._uuid}.lock")

    def prepare(self, problem: Problem, tile: Tile) -> torch.cuda.CUDAGraph:
        with _unless_lost(self._device):
            call = self._call(problem, tile)
            side = torch.cuda.Stream(self._device)
            side.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(side):  # compiles, plans and allocates before the capture
                call()
            wait_for(side.record_event())
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                call()
            torch.cuda.synchronize(self._device)
            return graph

    def seconds(self, run: torch.cuda.CUDAGraph) -> float:
        with _unless_lost(self._device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._cold.zero_()
            start.record()
            run.replay()
            end.record()
            wait_for(end)
            return start.elapsed_time(end) / 1e3

    def now(self) -> float:
        return time.monotonic()

    def _call(self, problem: Problem, tile: Tile) -> Callable[[], object]:
        mask = problem.intervals()
        mask = IntervalMask(mask.lo.to(self._device), mask.hi.to(self._device), mask.seqlen_k)
        dtype, scale = NAMED_DTYPES[problem.dtype], problem.head_dim**-0.5

        def random(seqlen: int, heads: int, dim: int) -> torch.Tensor:
            return torch.randn(problem.batch, seqlen, heads, dim, device=self._device, dtype=dtype)

        q = random(problem.seqlen_q, problem.heads_q, problem.head_dim)
        k = random(problem.seqlen_k, problem.heads_k, problem.head_dim)
        v = random(problem.seqlen_k, problem.heads_k, problem.head_dim_v)
        return operation(problem.op).call(q, k, v, mask, scale, tile)


def wait_for(event: torch.cuda.Event) -> None:
    """Raises Lost where it takes so long that the kernel before it hangs: to synchronise would wait for ever."""
    until = time.monotonic() + HUNG_AFTER
    while not event.query():
        if time.monotonic() > until:
            raise Lost(f"it hangs, {HUNG_AFTER:g} s without an end")
        time.sleep(1e-5)


@contextlib.contextmanager
def _unless_lost(device: torch.device) -> Iterator[None]:
    """Turns an error after which the GPU serves this process no more into Lost."""
    try:
        yield
    except RuntimeError as error:
        try:
            torch.cuda.synchronize(device)
        except RuntimeError:
            raise Lost(str(error)) from error
        raise


def _driver() -> str | None:
    try:
        from cuda.bindings import driver
    except ImportError:
        return None
    error, version = driver.cuDriverGetVersion()
    return f"{version // 1000}.{version % 1000 // 10}" if int(error) == 0 else None
