"""What CTAs that ended leave to those that come, and what those of one shape have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..addresses import SHARED_START
from .findings import Findings
from .lanes import KINDS, Files, Lanes, Warpgroup
from .shared_memory import SharedMemory


class Spares:
    """Shared memories and register files to use again; the sets of lanes that are known, a table for each warpgroup."""

    def __init__(self, shared_end: int, registers: Mapping[str, int], findings: Findings):
        self._shared_end, self._registers, self._findings = shared_end, registers, findings
        self._shared: list[SharedMemory] = []
        self._files: list[Files] = []
        self._lanes: dict[int, dict[int, Lanes]] = {}

    def shared(self) -> SharedMemory:
        if not self._shared:
            return SharedMemory(SHARED_START, self._shared_end, self._findings)
        shared = self._shared.pop()
        shared.clear()
        return shared

    def files(self) -> Files:
        """The register files of a warpgroup, by kind of register."""
        if self._files:
            return self._files.pop()
        return {kind: np.empty((self._registers[kind], 128), dtype) for kind, dtype in KINDS.items()}

    def known_lanes(self, warpgroup: int) -> dict[int, Lanes]:
        return self._lanes.setdefault(warpgroup, {})

    def keep(self, shared: SharedMemory, warpgroups: Sequence[Warpgroup]) -> None:
        """Takes what a CTA has that ended."""
        self._shared.append(shared)
        self._files.extend(wg.files for wg in warpgroups)
