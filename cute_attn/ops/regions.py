"""The regions of a program that a backward computes again, found on the stack.

A region is a call that has an object of its own in its forward and the same object in its recomputation: the context of
an autograd function (reentrant checkpoints of PyTorch and of training frameworks, compiled functions), or the frame of
a checkpoint that is not reentrant. Neither has a public hook that a call inside of it could ask.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from torch.autograd.function import FunctionCtx

__all__ = ["regions"]


def regions() -> tuple[list[Any], Any]:
    """The regions whose forward the caller is in, the innermost first, and the one that is computed again, or None.

    What lies beyond a recomputation is the backward that asked for it, and not listed.
    """
    inside: list[Any] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name in _FINDERS:
            is_recomputation, find = _FINDERS[frame.f_code.co_name]
            found = find(frame)
            if found is not None and is_recomputation:
                return inside, found
            if found is not None:
                inside.append(found)
        frame = frame.f_back
    return inside, None


def _context(frame: FrameType) -> Any:
    """Of `forward(ctx, ...)` and `backward(ctx, ...)` of an autograd function."""
    code = frame.f_code
    first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
    return first if isinstance(first, FunctionCtx) else None


def _checkpointed(frame: FrameType) -> Any:
    """Of `torch.utils.checkpoint.checkpoint`: what its generator keeps."""
    generator = frame.f_locals.get("gen")
    running = getattr(generator, "gi_frame", None)
    return None if running is None else running.f_locals.get("new_frame")


def _unpacked(frame: FrameType) -> Any:
    """Of the hook that finds a saved tensor missing: the same."""
    return frame.f_locals.get("frame")


_FINDERS = {
    "forward": (False, _context),
    "checkpoint": (False, _checkpointed),
    "backward": (True, _context),
    "unpack_hook": (True, _unpacked),
}
