"""The regions of a program that a backward computes again, found on the stack.

A region is a call that has an object of its own in its forward and the same object in its recomputation: the context of
an autograd function (reentrant checkpoints of PyTorch and of training frameworks, compiled functions), or the frame of
a checkpoint that is not reentrant. Neither has a public hook that a call inside of it could ask.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch
from torch.autograd.function import BackwardCFunction, FunctionCtx, _SingleLevelFunction

__all__ = ["Place", "regions"]

Place = dict[Any, Any]  # the attributes of a region's own object: what is put there lives as long as the region


def regions() -> tuple[list[Place], Place | None]:
    """The regions whose forward the caller is in, the innermost first, and the one that is computed again, or None.

    What lies beyond a recomputation is the backward that asked for it, and not listed.
    """
    inside: list[Place] = []
    called: FrameType | None = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        name = code.co_name
        if name in _NAMES:
            if code is _BACKWARD:
                return inside, _of_backward(frame.f_locals["self"])
            if name == "backward" and (context := _context(frame)) is not None:
                return inside, _of_backward(context)
            if name == "forward" and (context := _context(frame)) is not None:
                inside.append(vars(context))
            elif code is _FORWARD and called is not None:
                inside += _of_forward(frame, called)
            elif name == "checkpoint":
                inside += _of_checkpoint(frame)
            elif name == "unpack_hook" and "frame" in frame.f_locals:
                return inside, vars(frame.f_locals["frame"])
        called, frame = frame, frame.f_back
    return inside, None


_FORWARD = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]
_BACKWARD = BackwardCFunction.apply.__code__
# Of all frames that tell something: to look a name up is next to nothing, and stacks are deep.
_NAMES = {"backward", "forward", "checkpoint", "unpack_hook", _FORWARD.co_name, _BACKWARD.co_name}


def _of_forward(apply: FrameType, forward: FrameType) -> list[Place]:
    """Of an autograd function's `apply` and the frame that it called, whatever its name."""
    if _has_context_later(apply.f_locals["cls"]):
        inputs = (x for x in apply.f_locals["args"] if isinstance(x, torch.Tensor) and x.requires_grad)
        return [_metadata(node) for node in map(_node, inputs) if node is not None][:1]
    context = _context(forward) if forward.f_code.co_name != "forward" else None
    return [] if context is None else [vars(context)]


def _context(frame: FrameType) -> Any:
    """What a method of an autograd function is given as its context; those of compiled functions have no `apply`."""
    names = frame.f_code.co_varnames
    first = frame.f_locals.get(names[0]) if names else None
    context = first[0] if isinstance(first, tuple) and first else first
    return context if isinstance(context, FunctionCtx) else None


def _of_backward(context: Any) -> Place:
    function = getattr(context, "_forward_cls", None)  # None where somebody made the context
    if function is not None and _has_context_later(function):
        return next((_metadata(node) for node, _ in context.next_functions if node is not None), vars(context))
    return vars(context)


def _has_context_later(function: type) -> bool:
    """Whether the forward of an autograd function has no context, which `setup_context` gets after it.

    In its place stands the node of its first input that wants a gradient: calls on the same input share it.
    """
    return function.setup_context is not _SingleLevelFunction.setup_context  # type: ignore[attr-defined]


def _metadata(node: Any) -> Place:
    """A property, which PyTorch declares as a method."""
    found: Place = node.metadata
    return found


def _node(x: torch.Tensor) -> torch.autograd.graph.Node | None:
    """Where the gradient of a tensor goes; None for a leaf that is seen from below autograd."""
    if x.grad_fn is not None:
        return x.grad_fn
    with torch.enable_grad():
        view = x.view_as(x).grad_fn
    return None if view is None else view.next_functions[0][0]


def _of_checkpoint(frame: FrameType) -> list[Place]:
    """Of `torch.utils.checkpoint.checkpoint`: what its generator keeps."""
    running = getattr(frame.f_locals.get("gen"), "gi_frame", None)
    kept = None if running is None else running.f_locals.get("new_frame")
    return [] if kept is None else [vars(kept)]
