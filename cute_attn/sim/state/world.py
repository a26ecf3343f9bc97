"""What a CTA asks of the launch that it is part of; schedules/machine.py is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ..errors import Place
from ..launch import Launch, Mode
from .findings import Findings
from .global_memory import GlobalMemory
from .groups import Group
from .maps import Maps
from .races import Races
from .steps import Recorder
from .transfers import Load, Store


class World(Protocol):
    """A launch in progress."""

    mode: Mode
    findings: Findings
    memory: GlobalMemory
    progress: int  # counts what others may have waited for: arrivals, stores, copies
    statistics: dict[str, int]
    maps: Maps  # that the kernel makes
    recorder: Recorder | None  # of the steps of its warps, if somebody wants them
    races: Races | None  # what finds them, if somebody wants that

    @property
    def launch(self) -> Launch: ...

    @property
    def parameters(self) -> np.ndarray:
        """The bytes of all parameters."""

    def warn(self, what: str, place: Place) -> None:
        """Notes what is legal and probably not meant, once for each PTX line."""

    def warn_found(self, place: Place) -> None:
        """Warns of the findings that were kept, of each kind once for each PTX line."""

    def wake(self, groups: Sequence[Group]) -> None:
        """Makes groups ready."""

    def start(self, copy: Load) -> None:
        """Starts an asynchronous load: now, or held back."""

    def begin_store(self, store: Store) -> None:
        """Starts an asynchronous store: now, or held back."""

    def holds_copies(self) -> bool:
        """Whether the copies that start now are held back."""

    def multiplies_at_commit(self) -> bool:
        """Whether the products of a group run when it is committed, and not when they are waited for."""

    def look_away(self, g: Group) -> bool:
        """Whether a look at a barrier is answered with no although its phase is over: legal, and hostile."""

    def poll(self, g: Group) -> bool:
        """Whether an unsuccessful poll may go round again; if not, the group waits for progress of others."""
