"""A pytest plugin: which kernels tests ask for, without compiling or running any. `pytest -p recording`, RECORDED=FILE.

Launches do nothing, so the tests fail; what they asked for is written down all the same.
"""

from __future__ import annotations

import os

import cute_attn.launch.run
import cute_attn.sim
from cute_attn.jit.record import note, record_specs
from cute_attn.launch.run import Kernel, KernelBackend
from cute_attn.spec.operation import Spec

_recording = record_specs()
_recorder = _recording.__enter__()


def _noted(spec: Spec, backend: KernelBackend) -> Kernel:
    note(spec)
    return Kernel(spec, lambda *arguments: None, "")


def pytest_configure(config) -> None:
    cute_attn.launch.run.kernel = _noted
    cute_attn.sim.run = lambda *arguments, **options: None


def pytest_unconfigure(config) -> None:
    _recorder.save(os.environ["RECORDED"])
