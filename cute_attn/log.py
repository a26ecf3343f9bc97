"""What the library says while it works, for those who ask: `CUTE_ATTN_LOG=compile,cache` prints it on stderr."""

from __future__ import annotations

import logging

__all__ = ["TOPICS", "show"]

TOPICS = ("compile", "cache", "plan", "copy")  # each the logger `cute_attn.TOPIC`


def show(topics: str) -> None:
    """Prints the messages of a comma list of topics on stderr. Raises ValueError for an unknown one."""
    for name in filter(None, (part.strip() for part in topics.split(","))):
        if name not in TOPICS:
            raise ValueError(f"CUTE_ATTN_LOG must be a comma list of {', '.join(TOPICS)}, got {topics!r}")
        logger = logging.getLogger(f"cute_attn.{name}")
        logger.setLevel(logging.INFO)
        if not logger.handlers:
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
            logger.addHandler(handler)
