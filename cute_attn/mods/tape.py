"""What a mod is called with while it is traced: scalars without values, which write on a tape what is done to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from .graph import Argument, Written, canonical, operands
from .refused import refuse, unknown

__all__ = ["CAPTURED", "HANDLERS", "Partial", "Tape", "Value", "apply", "needed", "tape_of"]

# name of an operator -> what writes it: (tape, *arguments, **keywords) -> Value; filled by `operators`
HANDLERS: dict[str, Callable[..., Any]] = {}

# dtype of a captured tensor -> its name in graphs, and the dtype in which its elements are computed with
CAPTURED: dict[torch.dtype, tuple[str, str]] = {
    torch.float32: ("f32", "f32"),
    torch.float64: ("f64", "f32"),
    torch.bfloat16: ("bf16", "f32"),
    torch.float16: ("fp16", "f32"),
    torch.int8: ("i8", "i32"),
    torch.uint8: ("u8", "i32"),
    torch.int16: ("i16", "i32"),
    torch.int32: ("i32", "i32"),
    torch.int64: ("i64", "i64"),
    torch.bool: ("bool", "bool"),
}
NARROW = (torch.int8, torch.uint8, torch.int16)
TORCH: dict[str, torch.dtype] = {
    "f32": torch.float32,
    "i32": torch.int32,
    "i64": torch.int64,
    "bool": torch.bool,
}
RANK: dict[str, int] = {"bool": 0, "i32": 1, "i64": 2, "f32": 3}
INFINITY = float("inf")
INT32 = 1 << 31


class Tape:
    """The graph that is being traced. Equal nodes are one."""

    def __init__(self, kind: str, device: torch.device) -> None:
        self.kind, self.device = kind, device
        self.nodes: list[Written] = []
        self.tensors: list[torch.Tensor] = []
        self.scalars: list[int | float] = []
        self.scalar_dtypes: list[str] = []
        self._numbers: dict[Written, int] = {}

    def add(self, op: str, args: tuple[Argument, ...], dtype: str) -> Value:
        key = (op, args, dtype)
        if key not in self._numbers:
            self._numbers[key] = len(self.nodes)
            self.nodes.append(key)
        return Value(self, self._numbers[key], dtype)

    def constant(self, x: float, dtype: str) -> Value:
        """A number that is part of the code."""
        if dtype != "f32":
            return self.add("const", (int(x),), dtype)
        x = float(x)
        if x != x:
            return self.add("const", ("nan",), dtype)
        if x == INFINITY or x == -INFINITY:
            return self.add("const", ("inf" if x > 0 else "-inf",), dtype)
        return self.add("const", (x,), dtype)

    def number(self, x: float, dtype: str) -> Value:
        """A number of the user's. Other than 0, 1, -1 and what is not finite it comes at run time, so that a window of
        64 and one of 4,096 are the same code."""
        if dtype == "bool":
            return self.constant(1 if x else 0, dtype)
        x = float(x) if dtype == "f32" else int(x)
        if x == 0 or x == 1 or x == -1 or x != x or x == INFINITY or x == -INFINITY:
            return self.constant(x, dtype)
        if dtype == "i32" and not -INT32 <= x < INT32:
            raise refuse(self.kind, f"meets an int32 with {x}", "indices are int32, x.long() makes one an int64")
        self.scalars.append(x)
        self.scalar_dtypes.append(dtype)
        return self.add("scalar", (len(self.scalars) - 1,), dtype)

    def loaded(self, tensor: torch.Tensor, indices: tuple[int, ...]) -> Value:
        """An element of a captured tensor; indices are nodes."""
        if tensor.dtype not in CAPTURED:
            dtypes = ", ".join(f"{dtype}"[6:] for dtype in CAPTURED)
            raise refuse(self.kind, f"captures a tensor of {tensor.dtype}", f"it may be of {dtypes}")
        if tensor.is_nested or tensor.layout != torch.strided:
            layout = "nested" if tensor.is_nested else f"of layout {tensor.layout}"
            raise refuse(self.kind, f"captures a tensor that is {layout}", "it must be dense and strided")
        at = None
        for i, known in enumerate(self.tensors):
            if known is tensor:
                at = i
        if at is None:
            at = len(self.tensors)
            self.tensors.append(tensor)
        found = self.add("load", (at, *indices), CAPTURED[tensor.dtype][1])
        return Value(self, found.node, found.dtype_name, tensor.dtype in NARROW)

    def value(self, x: Any, dtype: str | None = None) -> Value:
        """Whatever an operator may meet, as a value; a Python number becomes one of `dtype`, or of its own kind."""
        if isinstance(x, Value):
            return x
        if isinstance(x, torch.Tensor):
            if x.ndim:
                raise refuse(
                    self.kind,
                    f"computes with a captured tensor of shape {tuple(x.shape)} as a whole",
                    "read one element of it, such as table[h, q_idx], or compute it outside of the function",
                )
            return self.loaded(x, ())
        if isinstance(x, Partial):
            raise refuse(
                self.kind,
                f"computes with a tensor of shape {tuple(x.tensor.shape)} of which it gave {len(x.indices)} indices",
                f"give all {x.tensor.ndim}",
            )
        if isinstance(x, np.generic):
            x = x.item()
        if isinstance(x, bool) and torch.compiler.is_compiling():
            # Dynamo takes a value and a number that changes between calls for unequal things, whatever they are.
            raise refuse(
                self.kind,
                "meets a bool of Python while it is compiled, which x == n becomes where n changes between calls",
                "torch.eq(x, n), torch.ne(x, n)",
            )
        if not isinstance(x, (bool, int, float, torch.SymInt, torch.SymFloat)):
            raise refuse(self.kind, f"computes with {type(x).__name__}", "values, tensors and numbers are allowed")
        if dtype is None:
            dtype = "bool" if isinstance(x, bool) else "f32" if isinstance(x, (float, torch.SymFloat)) else "i64"
        return self.number(x, dtype)  # type: ignore[arg-type]

    def common(self, values: Iterable[Any]) -> str:
        """The dtype in which values meet: that of torch, where every float is one of the compute dtype."""
        found, least = "", "bool"
        for x in values:
            if isinstance(x, (Value, torch.Tensor, Partial)):
                dtype = self.value(x).dtype_name
                if not found or RANK[dtype] > RANK[found]:
                    found = dtype
            elif isinstance(x, (float, np.floating, torch.SymFloat)):
                least = "f32"
            elif not isinstance(x, (bool, np.bool_)) and least == "bool":
                least = "i64"
        if not found or (least == "f32" and found != "f32") or (least == "i64" and found == "bool"):
            return least
        return found

    def converted(self, x: Value, dtype: str) -> Value:
        if x.dtype_name == dtype:
            return x
        number = self.constant_of(x)
        if number is not None and number == number and abs(number) != INFINITY:
            return self.constant(number != 0 if dtype == "bool" else number, dtype)
        return self.add("convert", (x.node,), dtype)

    def constant_of(self, x: Value) -> float | None:
        """The number that a value is, if it is part of the code."""
        op, args, _ = self.nodes[x.node]
        return float(args[0]) if op == "const" else None

    def together(self, values: Iterable[Any], dtype: str) -> tuple[int, ...]:
        """Nodes of the values in one dtype."""
        return tuple([self.converted(self.value(x, dtype), dtype).node for x in values])

    def finished(self, outputs: tuple[int, ...]) -> tuple[str, list[torch.Tensor], list[int | float]]:
        """Text, tensors and scalars of what the outputs need, which alone is the function: inputs that it does not
        read, and what it computes for nothing, are no part of the key."""
        nodes, places = needed(self.nodes, outputs)
        tensors: list[int] = []
        scalars: list[int] = []
        for i, (op, args, dtype) in enumerate(nodes):
            if op == "scalar":
                nodes[i] = (op, (_position(scalars, args[0]),), dtype)
            elif op == "load":
                nodes[i] = (op, (_position(tensors, args[0]), *args[1:]), dtype)
        captured = [self.tensors[i] for i in tensors]
        forms = [(CAPTURED[t.dtype][0], t.ndim) for t in captured]
        text = canonical(nodes, places, forms, [self.scalar_dtypes[i] for i in scalars])
        return text, captured, [self.scalars[i] for i in scalars]


def needed(nodes: list[Written], outputs: tuple[int, ...]) -> tuple[list[Written], tuple[int, ...]]:
    """The nodes that the outputs need, and the outputs among them."""
    wanted = [False] * len(nodes)
    for i in outputs:
        wanted[i] = True
    for i in range(len(nodes) - 1, -1, -1):
        if wanted[i]:
            for a in operands(nodes[i][0], nodes[i][1]):
                wanted[a] = True
    place: dict[int, int] = {}
    kept: list[Written] = []
    for i, (op, args, dtype) in enumerate(nodes):
        if wanted[i]:
            place[i] = len(kept)
            read = operands(op, args)
            own = args[: len(args) - len(read)]
            kept.append((op, own + tuple([place[a] for a in read]), dtype))
    return kept, tuple([place[i] for i in outputs])


def _position(places: list[int], x: Any) -> int:
    """Where x stands in the list, appended if it does not."""
    if x not in places:
        places.append(x)
    return places.index(x)


class _Taped:
    """What stands for a tensor inside of a mod."""

    tape: Tape

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatched(func, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise unknown(self.tape.kind, name)

    def __matmul__(self, _: Any) -> Any:
        raise unknown(self.tape.kind, "matmul")

    __rmatmul__ = __matmul__


class Value(_Taped):
    """A scalar inside of a mod: a node of the graph. It behaves as a 0-d tensor whose value nobody knows."""

    def __init__(self, tape: Tape, node: int, dtype: str, is_narrow: bool = False) -> None:
        """is_narrow: whether torch would compute in 8 or 16 bits with it, where integers wrap."""
        self.tape, self.node, self.dtype_name, self.is_narrow = tape, node, dtype, is_narrow

    # what a function may ask of a tensor without computing anything

    @property
    def dtype(self) -> torch.dtype:
        return TORCH[self.dtype_name]

    @property
    def device(self) -> torch.device:
        return self.tape.device

    @property
    def shape(self) -> torch.Size:
        return torch.Size([])

    @property
    def ndim(self) -> int:
        return 0

    def dim(self) -> int:
        return 0

    def size(self) -> torch.Size:
        return torch.Size([])

    def numel(self) -> int:
        return 1

    # what would need the value now

    def __bool__(self) -> bool:
        raise refuse(
            self.tape.kind,
            "asks in Python whether a score or an index is true (if, while, and, or, not, min, max, a < b < c)",
            "there is one graph for all of them; torch.where, &, |, ~, torch.minimum and torch.maximum do it",
        )

    def _as_number(self, *_: Any) -> Any:
        raise refuse(
            self.tape.kind,
            "makes a Python number of a score or an index (int, float, item, math)",
            "there is one graph for all of them; compute with torch, and x.to(dtype) for a cast",
        )

    def __index__(self) -> Any:
        raise refuse(
            self.tape.kind,
            "indexes a list, a tuple or a range by a score or an index, which have no value yet",
            "index a tensor made outside of the function, such as table = torch.tensor(values), by table[h]",
        )

    def __hash__(self) -> int:
        raise refuse(
            self.tape.kind,
            "looks a score or an index up (a dict, a set, functools.cache)",
            "index a tensor of what is looked up, such as torch.tensor([1.0, 0.5])[h]",
        )

    __array_priority__ = 1.0  # numbers and arrays of NumPy leave their operators to ours

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise refuse(
            self.tape.kind,
            "brings a score or an index to NumPy (array[h], np.exp)",
            "compute with torch, and index torch.from_numpy(array)",
        )

    __int__ = __float__ = __len__ = __iter__ = __getitem__ = __complex__ = _as_number
    item = tolist = numpy = _as_number


class Partial(_Taped):
    """A captured tensor, some of whose first dimensions have got an index."""

    def __init__(self, tape: Tape, tensor: torch.Tensor, indices: tuple[int, ...]) -> None:
        self.tape, self.tensor, self.indices = tape, tensor, indices

    def __getitem__(self, index: Any) -> Value | Partial:
        return element(self.tape, self.tensor, self.indices, index)


def element(tape: Tape, tensor: torch.Tensor, indices: tuple[int, ...], index: Any) -> Value | Partial:
    """`tensor[indices][index]`: a value once every dimension has an index."""
    found = indices
    for x in index if isinstance(index, (tuple, list)) else (index,):
        if x is None or x is Ellipsis or isinstance(x, slice):
            shown = "..." if x is Ellipsis else ":" if isinstance(x, slice) else "None"
            raise refuse(tape.kind, f"indexes a captured tensor with {shown}", "give one integer for each dimension")
        at = tape.value(x, "i32")
        if at.dtype_name not in ("i32", "i64"):
            kind = "bool" if at.dtype_name == "bool" else "float"
            raise refuse(
                tape.kind, f"indexes a captured tensor with a {kind}", "indices are integers: x.to(torch.int32)"
            )
        found = (*found, at.node)
    if len(found) > tensor.ndim:
        raise refuse(
            tape.kind,
            f"gives {len(found)} indices to a tensor of shape {tuple(tensor.shape)}",
            f"it takes {tensor.ndim}",
        )
    return tape.loaded(tensor, found) if len(found) == tensor.ndim else Partial(tape, tensor, found)


def tape_of(x: Any) -> Tape | None:
    """The tape of the first value in arguments, if there is one."""
    if isinstance(x, (Value, Partial)):
        return x.tape
    if isinstance(x, (tuple, list)):
        for item in x:
            tape = tape_of(item)
            if tape is not None:
                return tape
    if isinstance(x, dict):
        return tape_of(list(x.values()))
    return None


def _dispatched(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tape = tape_of((args, kwargs))
    if tape is None:  # torch found us somewhere else
        raise TypeError(f"{func.__name__} takes no scores or indices there")
    return apply(tape, func, args, kwargs)


def apply(tape: Tape, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A function of torch, or a method of Tensor, on arguments with values among them."""
    name = f"{func.__name__}"  # a plain string under torch.compile too
    if name == "__getitem__":
        tensor, index = args
        if isinstance(tensor, Partial):
            return tensor[index]
        return element(tape, tensor, (), index)
    if name not in HANDLERS:
        raise unknown(tape.kind, name)
    if "input" in kwargs:  # torch's name of the first operand, which the condition of where precedes
        kwargs = {**kwargs}
        before = (kwargs.pop("condition"),) if "condition" in kwargs else args
        args = (*before, kwargs.pop("input"))
    return HANDLERS[name](tape, *args, **kwargs)
