"""What a machine lacks, as an exception; and errors of files, as part of a sentence."""

from __future__ import annotations

__all__ = ["Unavailable", "in_words"]


class Unavailable(RuntimeError):
    """This machine lacks what was needed: a compiler, a disassembler, a kernel. The message says what would help."""


def in_words(error: OSError) -> str:
    """Which file, and what is the matter with it, without Python's number for it."""
    if error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
