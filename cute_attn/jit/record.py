"""Which kernels a program uses, written down so that `cute-attn build` can build them ahead."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from .compile import Spec

__all__ = ["Recorder", "note", "record_specs"]

_active: tuple[Recorder, ...] = ()


class Recorder:
    """The specs of all kernels that were asked for, each once, in order."""

    def __init__(self) -> None:
        self._specs: dict[Spec, None] = {}

    @property
    def specs(self) -> tuple[Spec, ...]:
        return tuple(self._specs)

    def add(self, spec: Spec) -> None:
        self._specs[spec] = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes them as a JSON list, which `cute-attn build --specs` reads. TypeError for what is no path."""
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"path must be the path of a file, got {path!r} of type {type(path).__name__}")
        text = json.dumps([json.loads(spec.canonical()) for spec in self.specs], indent=1)
        Path(path).write_text(text + "\n")


@contextlib.contextmanager
def record_specs() -> Iterator[Recorder]:
    """Within it, the specs of all kernels that this process uses are recorded, also of those in memory already.

    with cute_attn.record_specs() as recorder:
        train_one_step()
    recorder.save("specs.json")
    """
    global _active
    recorder = Recorder()
    _active = (*_active, recorder)
    try:
        yield recorder
    finally:
        _active = tuple(r for r in _active if r is not recorder)


def note(spec: Spec) -> None:
    """A kernel is asked for."""
    for recorder in _active:
        recorder.add(spec)
