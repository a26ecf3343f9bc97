"""From a Python function of scalars to its graph, by calling it once with values that note what is done to them.

The values are no tensors: what a function does with its captured tensors alone is plain PyTorch, whose result is what
is captured, gradients included, and Python numbers are Python's. So a call costs tens of microseconds and nothing is
kept that could go stale. torch.compile follows the same code, which is why it is written plainly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

from . import operators as _operators  # noqa: F401  (fills the table of operators)
from .graph import INPUTS, Graph
from .refused import refuse
from .tape import Tape, apply, tape_of

__all__ = ["Traced", "trace"]

Kind = Literal["score_mod", "mask_mod"]


class Traced(NamedTuple):
    """A traced function. text: of its graph. tensors: that it captured. scalars: the numbers that it captured, ints and
    floats as the graph says. All may change from call to call while the text stays."""

    text: str
    tensors: list[torch.Tensor]
    scalars: list[int | float]

    @property
    def graph(self) -> Graph:
        return Graph.parse(self.text)


def trace(function: Callable[..., Any], kind: Kind, device: torch.device | None = None) -> Traced:
    """The graph of `score_mod(score, b, h, q_idx, kv_idx)`, whose output is a float, or of
    `mask_mod(b, h, q_idx, kv_idx)`, whose output is a bool.

    device: what the function reads as the device of its arguments.

    Raises ValueError, naming the operator and what would do, for what cannot be part of a graph.
    """
    tape = Tape(kind, torch.device("cpu") if device is None else device)
    names = INPUTS if kind == "score_mod" else INPUTS[1:]
    inputs = [tape.add(name, (), "f32" if name == "score" else "i32") for name in names]
    with _Noted():
        result = function(*inputs)
    if result is None or isinstance(result, (tuple, list, dict, str)):
        what = "a bool" if kind == "mask_mod" else "the new score"
        raise refuse(kind, f"returned {type(result).__name__}", f"it must return {what}")
    value = tape.value(result)
    if kind == "mask_mod" and value.dtype_name != "bool":  # a bias, say, or a difference that nobody compared
        number = "a float" if value.dtype_name == "f32" else "an integer"
        raise refuse(kind, f"returned {number}", "it must return a bool: a comparison, such as x != 0")
    output = tape.converted(value, "f32" if kind == "score_mod" else "bool")
    return Traced(*tape.finished((output.node,)))


class _Noted(TorchFunctionMode):
    """Brings calls that meet one of our values to them: indexing a tensor asks nobody else."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tape = tape_of((args, kwargs))
        if tape is not None:
            return apply(tape, func, args, kwargs)
        return func(*args, **kwargs)
