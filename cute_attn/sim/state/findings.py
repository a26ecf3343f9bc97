"""What is found wrong: an error, or a warning where the user asked for one."""

from __future__ import annotations

from collections.abc import Collection

from ..errors import SimError
from .fault import Fault


class Findings:
    """Raises faults; keeps those of classes that are to be warned of until somebody knows their place."""

    def __init__(self, warned: Collection[type[SimError]] = ()):
        self.warned = warned
        self.kept: list[Fault] = []

    def found(self, fault: Fault) -> None:
        """Returns if the access may go on."""
        if fault.error not in self.warned:
            raise fault
        self.kept.append(fault)
