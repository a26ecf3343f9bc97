"""The process that runs cases: it may hang or die. `python -m cute_attn.selftest.worker`, driven by `watch`.

A line of JSON comes in for each case, on stdin; lines go out on stdout: first one that says what the machine is, then
for each case one when its kernel was obtained and one with what became of it. What libraries print goes to stderr.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time
from typing import Any, TextIO

import torch

from cute_attn.jit import bundle
from cute_attn.jit.cache import cache_mode
from cute_attn.jit.near import near_misses
from cute_attn.jit.obtain import KernelNotBuilt
from cute_attn.launch.run import KernelBackend, kernel

from .cases import AnyCase, case_of
from .check import check, launch, make_problem

__all__ = ["main"]

LAUNCHES = 3  # of a case that is launched only, for a profiler


def main(backend: KernelBackend, path: str) -> None:
    """path: of a bundle, the only place where kernels are looked for; or "" for all."""
    said = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    faulthandler.register(signal.SIGUSR1)  # so that a hang can be asked where it is
    device = torch.device("cpu" if backend == "sim" else "cuda")
    try:
        machine = _machine(device)
        if path:
            os.environ.pop("CUTE_ATTN_BUNDLES", None)
            os.environ.setdefault("CUTE_ATTN_CACHE_MODE", "cached-only")
            bundle.load_bundle(path)
        bundle.bundles()  # what CUTE_ATTN_BUNDLES names must be there
    except (RuntimeError, OSError, ValueError) as error:
        _say(said, unable=str(error))
        return
    _say(said, gpu=machine)
    for line in sys.stdin:
        order = json.loads(line)
        case, started = case_of(order["case"]), time.monotonic()
        try:
            _find(case, backend, path)
            _say(said, obtained=True)
            found = _launched(case, backend, device) if order["launch_only"] else _checked(case, backend, device)
        except KernelNotBuilt as error:
            found = {"status": "missing", "detail": str(error)}
        except Exception as error:  # a kernel may raise anything: the next one is to have its turn
            found = {"status": "hang" if type(error).__name__ == "Deadlock" else "crash", "detail": _text(error)}
        found["seconds"] = round(time.monotonic() - started, 3)
        _say(said, **found)
        if found["status"] == "crash" and device.type == "cuda":
            os._exit(3)  # after an error of CUDA nothing in this process runs any more


def _machine(device: torch.device) -> str:
    if device.type == "cpu":
        return "simulation"
    if not torch.cuda.is_available():
        raise RuntimeError("PyTorch finds no GPU; --backend sim runs the kernels without one, slowly")
    name = torch.cuda.get_device_name(device)
    if torch.cuda.get_device_capability(device) != (9, 0):
        raise RuntimeError(f"the kernels run on Hopper GPUs (compute capability 9.0), this is a {name}")
    torch.ones(1, device=device).item()
    return name


def _find(case: AnyCase, backend: KernelBackend, path: str) -> None:
    """Raises KernelNotBuilt where the kernel is nowhere, or is not in the one bundle that is tested."""
    mode = cache_mode()
    if path and bundle.find(case.spec, mode) is None:
        raise KernelNotBuilt(case.spec, f"only the bundle {path} is tested", near_misses(case.spec, mode))
    kernel(case.spec, backend)


def _checked(case: AnyCase, backend: KernelBackend, device: torch.device) -> dict[str, Any]:
    verdict = check(case, backend, device)
    return {
        "status": "wrong" if verdict.wrong else "right",
        "error": {name: float(f"{value:.3g}") for name, value in verdict.error.items()},
        "allowed": {name: float(f"{value:.3g}") for name, value in verdict.allowed.items()},
        "detail": verdict.wrong,
    }


def _launched(case: AnyCase, backend: KernelBackend, device: torch.device) -> dict[str, Any]:
    problem = make_problem(case, device)
    for _ in range(LAUNCHES):
        launch(case, problem, backend)
    return {"status": "right", "detail": "launched, not checked"}


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _say(said: TextIO, **row: Any) -> None:
    said.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main("sim" if sys.argv[1] == "sim" else "sm90", sys.argv[2])
