"""What every `register` returns."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Registration"]


class Registration:
    """What `register` returns. `remove()` takes us out of the other library again; as a context manager it does so at
    the end of the block. What was made under our name cannot run without it.

    alive: the registrations of a library, of which this becomes one. undo: what is called when the last of them ends.
    """

    def __init__(self, alive: set[Registration], undo: Callable[[], None]) -> None:
        self._alive, self._undo = alive, undo
        alive.add(self)

    def remove(self) -> None:
        """Undoes this registration. The name stays while another one lives; a second call does nothing."""
        if self in self._alive:
            self._alive.remove(self)
            if not self._alive:
                self._undo()

    def __enter__(self) -> Registration:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()
