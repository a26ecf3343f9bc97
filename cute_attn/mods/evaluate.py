"""A graph in PyTorch, over blocks of rows and keys at once, with autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from .graph import Graph, Node
from .ranges import INT32, WRAPPING
from .refused import refuse

__all__ = ["Scatter", "evaluate", "nearest"]

Tensor = torch.Tensor


class Scatter(NamedTuple):
    """What a scatter node says: the derivative by elements of a captured tensor. Indices and value broadcast with each
    other; indices are within the tensor."""

    tensor: int
    indices: tuple[Tensor, ...]
    value: Tensor


def evaluate(
    graph: Graph,
    inputs: Mapping[str, Tensor],
    tensors: Sequence[Tensor],
    scalars: Sequence[int | float],
    dtype: torch.dtype,
    attended: Tensor | None = None,
    name: str = "score_mod",
    scatters: list[Scatter] | None = None,
    clamps: bool = False,
    refuses_wrapping: bool = False,
) -> tuple[Tensor, ...]:
    """The outputs of a graph, each of a shape that broadcasts with that of the inputs.

    Args:
        inputs: those of INPUTS (and "grad") that the graph reads, of shapes that broadcast with each other; score in
            `dtype`, the others integers.
        tensors, scalars: what was captured, as in Traced. Gradients flow to the tensors.
        dtype: in which floats are computed, fp32 or fp64.
        attended: bool, of a shape that broadcasts with the inputs': where the outputs are read. Elsewhere indices may
            lie outside of a captured tensor. None for everywhere.
        name: of the function, for errors.
        scatters: gets those of the graph.
        clamps: whether it does as kernels do and asks no GPU: an index that lies outside reads the nearest element, and
            what is divided by 0 is divided by 1.
        refuses_wrapping: whether an int32 that leaves its range is refused; the inputs are int64 then.

    Raises IndexError where an index lies outside of a captured tensor, ZeroDivisionError where an integer is divided by
    0, and ValueError for an int32 that is refused, at a place that is attended.
    """
    device = next((x.device for x in inputs.values()), torch.device("cpu"))
    values: list[Tensor] = []
    for node in graph.nodes:
        operands = [values[i] for i in node.operands]
        if node.op in inputs:
            value = inputs[node.op]
        elif node.op == "const":
            value = torch.full((), _number(node), dtype=_torch_dtype(node, dtype), device=device)
        elif node.op == "scalar":
            value = torch.full((), scalars[int(node.args[0])], dtype=_torch_dtype(node, dtype), device=device)
        elif node.action == "load":
            tensor = tensors[int(node.args[0])]
            value = _loaded(tensor, operands, attended, name, clamps).to(_torch_dtype(node, dtype))
        elif node.action == "scatter":
            *indices, value = operands
            if scatters is not None:
                number = int(node.args[0])
                scatters.append(Scatter(number, _within(tensors[number].shape, indices, attended, name, clamps), value))
        elif node.op == "convert":
            value = operands[0].to(_torch_dtype(node, dtype))
        elif node.op in _DIVISIONS and not node.dtype.startswith("f"):
            value = _DIVISIONS[node.op](operands[0], _divisor(operands[1], attended, name, clamps))
        else:
            value = _FUNCTIONS[node.op](*operands)
        if refuses_wrapping and node.dtype == "i32" and node.op in WRAPPING:
            _refuse_wrapped(value, attended, name)
        values.append(value)
    return tuple(values[i] for i in graph.outputs)


def _number(node: Node) -> int | float:
    (x,) = node.args
    return float(x) if node.dtype == "f32" else int(x)


def _torch_dtype(node: Node, dtype: torch.dtype) -> torch.dtype:
    return {"f32": dtype, "i32": torch.int32, "i64": torch.int64, "bool": torch.bool}[node.dtype]


def _loaded(tensor: Tensor, indices: Sequence[Tensor], attended: Tensor | None, name: str, clamps: bool) -> Tensor:
    found = _within(tensor.shape, indices, attended, name, clamps)
    if found and not tensor.numel():  # nobody reads it
        return tensor.new_zeros(torch.broadcast_shapes(*(index.shape for index in found)))
    return tensor[found] if found else tensor


def _within(
    shape: torch.Size, indices: Sequence[Tensor], attended: Tensor | None, name: str, clamps: bool
) -> tuple[Tensor, ...]:
    """Indices of a tensor as int64. Where nobody reads they may lie outside: they become 0."""
    found = []
    for dim, (index, size) in enumerate(zip(indices, shape, strict=True)):
        if clamps:
            found.append(nearest(index, size))
            continue
        outside = (index < -size) | (index >= size)
        if bool(outside.any()):
            read = outside if attended is None else outside & attended
            if bool(read.any()):
                at = int(index.expand(read.shape)[read][0])
                raise IndexError(
                    f"{name} reads a captured tensor of shape {tuple(shape)} at index {at} of dimension {dim}, where "
                    f"{-size} to {size - 1} are allowed"
                )
            index = index.masked_fill(outside, 0)
        found.append(index.long())
    return tuple(found)


def nearest(index: Tensor, size: int) -> Tensor:
    """An index as int64; one that lies outside of so many elements becomes that of the nearest."""
    return torch.where(index < 0, index + size, index).clamp(0, max(size - 1, 0)).long()


def _divisor(x: Tensor, attended: Tensor | None, name: str, clamps: bool) -> Tensor:
    zero = x == 0
    if clamps:
        return x.masked_fill(zero, 1)
    if bool(zero.any()):
        if bool((zero if attended is None else zero & attended).any()):
            raise ZeroDivisionError(f"{name} divides an integer by 0")
        x = x.masked_fill(zero, 1)
    return x


def _refuse_wrapped(x: Tensor, attended: Tensor | None, name: str) -> None:
    """ValueError for an int64 that no int32 holds. One that is an int32 wraps in torch too."""
    if x.dtype != torch.int64 or not x.numel():
        return
    least, largest = (int(end) for end in x.aminmax())
    if least >= -INT32 and largest < INT32:
        return
    outside = (x < -INT32) | (x >= INT32)
    read = outside if attended is None else outside & attended
    if bool(read.any()):
        meets = f"meets an int32 with {int(x.expand(read.shape)[read][0])}"
        raise refuse(name, meets, "indices are int32, x.long() makes one an int64")


def _trunc_divide(x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y, rounding_mode="trunc")


def _rounded_to(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda x: x.to(dtype).to(x.dtype)


_DIVISIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "floor_divide": torch.floor_divide,
    "remainder": torch.remainder,
    "trunc_divide": _trunc_divide,
    "fmod": torch.fmod,
}
_SAME = (
    "add sub mul div pow minimum maximum eq ne lt le where neg abs sign exp exp2 expm1 log log2 log1p sqrt rsqrt tanh "
    "sigmoid erf sin cos floor ceil round trunc"
)
_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    **_DIVISIONS,
    **{name: getattr(torch, name) for name in _SAME.split()},
    "and": torch.logical_and,
    "or": torch.logical_or,
    "xor": torch.logical_xor,
    "not": torch.logical_not,
    "bit_and": torch.bitwise_and,
    "bit_or": torch.bitwise_or,
    "bit_xor": torch.bitwise_xor,
    "bit_not": torch.bitwise_not,
    "shift_left": torch.bitwise_left_shift,
    "shift_right": torch.bitwise_right_shift,
    "round_bf16": _rounded_to(torch.bfloat16),
    "round_fp16": _rounded_to(torch.float16),
}
