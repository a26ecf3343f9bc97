"""Which kernels a program uses, written down so that `cute-attn build` can build them ahead."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from ..errors import in_words
from ..spec.operation import Spec

__all__ = ["NOTHING_RECORDED", "Recorder", "note", "record_specs"]

NOTHING_RECORDED = (
    "backend 'reference', which serves CPU tensors unless another is asked for, asks for none; record on a Hopper GPU, "
    "or with cute_attn.backend('sim'), or name kinds of masks: cute-attn build --mask"
)

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

    def __repr__(self) -> str:
        return f"Recorder({len(self._specs)} kernels)"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes them as a JSON list, which `cute-attn build --specs` reads; warns if there is none.

        Raises TypeError for what is no path, OSError where the file cannot be written.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"path must be the path of a file, got {path!r} of type {type(path).__name__}")
        if not self._specs:
            warnings.warn(f"{path} will hold no kernel: {NOTHING_RECORDED}", stacklevel=2)
        text = json.dumps([json.loads(spec.canonical()) for spec in self.specs], indent=1)
        try:
            Path(path).write_text(text + "\n")
        except OSError as error:
            raise OSError(error.errno, f"what was recorded cannot be written: {in_words(error)}") from error


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
