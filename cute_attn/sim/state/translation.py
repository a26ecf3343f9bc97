"""What a running CTA needs to know of its kernel's translation; code/program.py makes one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ..errors import Place
from .matrices import MmaTile


class Translation(Protocol):
    """A kernel, translated. A site is the number of an instruction."""

    @property
    def parameters(self) -> Mapping[str, tuple[int, int]]:
        """Where in the bytes of all parameters each begins, and how many it has."""

    @property
    def registers(self) -> Mapping[str, int]:
        """How many rows the file of each kind of register has."""

    @property
    def registers_at_entry(self) -> int | None:
        """Registers that a thread has at first, None if its kernel moves none."""

    @property
    def local_bytes(self) -> int:
        """Local memory of a lane."""

    @property
    def dynamic_start(self) -> int:
        """Where dynamic shared memory begins."""

    @property
    def tiles(self) -> Mapping[int, MmaTile]:
        """What is fixed of each wgmma, by its site."""

    def place(self, site: int, cta: tuple[int, int, int] | None = None, warps: tuple[int, ...] = ()) -> Place:
        """What a report says of an instruction."""
