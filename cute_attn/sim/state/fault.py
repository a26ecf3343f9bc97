"""What is wrong with an access, before it is known where the kernel made it."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import Place, SimError


class Fault(Exception):
    """Something wrong with an access, before the place is known."""

    def __init__(self, error: type[SimError], what: str, subject: str = "", notes: Sequence[str] = ()):
        super().__init__(what)
        self.error, self.what, self.subject, self.notes = error, what, subject, notes

    def with_note(self, note: str) -> Fault:
        return Fault(self.error, self.what, self.subject, (*self.notes, note))

    def at(self, place: Place) -> SimError:
        return self.error(self.what, place, subject=self.subject, notes=self.notes)
