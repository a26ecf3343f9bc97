"""Drawings, as the terminal can show them."""

from __future__ import annotations

import sys

__all__ = ["drawn"]

_PLAIN = str.maketrans("█▓▒░·│─┌┐└┘", "#%+:.|-++++")


def drawn(text: str) -> str:
    """The text, in letters of ASCII where the encoding of the output lacks block characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return text.translate(_PLAIN)
    return text
