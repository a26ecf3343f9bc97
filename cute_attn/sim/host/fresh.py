"""Memory that nobody wrote: PyTorch's operators are watched as they allocate it and as they write it."""

from __future__ import annotations

import contextvars
import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .gpu import aligned_like_memory_of_a_gpu

_ALLOCATES = {
    getattr(torch.ops.aten, name)
    for name in ("empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided")
}


class FreshMemory(TorchDispatchMode):
    """Notes, while it is entered, which bytes of newly allocated CPU memory nobody wrote yet.

    A shadow of a bool per byte belongs to the storage and ends with it. Whatever might have been written counts as
    written: what an operator writes by its schema, and every tensor that an operator outside of aten takes (those of
    torch.distributed do not declare what they write).
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self._shadows: dict[int, tuple[weakref.ref, np.ndarray]] = {}  # by address of the storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _allocates(func):
            result = func(*args, **kwargs)  # debugging may fill it, which is nobody's write
            if not _in_memory(result):
                return result
            result = aligned_like_memory_of_a_gpu(result)
            self._note(result)
            return result
        try:
            return func(*args, **kwargs)
        finally:  # also of an operator that failed halfway; behind it, as it may have resized what it wrote
            if self._shadows:
                for tensor in _written_by(func, args, kwargs):
                    self.wrote(tensor)

    def wrote(self, tensor: torch.Tensor) -> None:
        """The elements of a tensor count as written from now on."""
        found = self._find(tensor.data_ptr()) if _in_memory(tensor) else None
        if found is not None:
            start, shadow = found
            bytes_of(tensor, start, shadow)[...] = False
            if not shadow.any():
                del self._shadows[start]

    def exported(self, export: Callable) -> Callable:
        """A method of tensors that hands their memory to others, who may write it unseen."""

        @functools.wraps(export)
        def method(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.wrote(tensor)
            return export(tensor, *args, **kwargs)

        return method

    def shadow(self, address: int, size: int) -> np.ndarray | None:
        """Of these bytes, which nobody wrote, to be cleared as they are written; None if there is none to know of."""
        found = self._find(address)
        if found is None:
            return None
        start, shadow = found
        part = shadow[address - start : address - start + size]
        return part if part.size == size and part.any() else None

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        first = tensor.data_ptr() - storage.data_ptr()
        shadow = np.zeros(storage.nbytes(), bool)
        shadow[first : first + _extent(tensor)] = True
        self._shadows = {start: s for start, s in self._shadows.items() if s[0]() is not None}
        self._shadows[storage.data_ptr()] = weakref.ref(storage), shadow

    def _find(self, address: int) -> tuple[int, np.ndarray] | None:
        """The storage there, as its address and shadow; by address, so that tensors over memory of others are found."""
        for start, (reference, shadow) in self._shadows.items():
            if start <= address < start + shadow.size:
                storage = reference()
                if storage is not None and (storage.data_ptr(), storage.nbytes()) == (start, shadow.size):
                    return start, shadow
        return None


watching: contextvars.ContextVar[FreshMemory | None] = contextvars.ContextVar("cute_attn_sim_fresh", default=None)


def bytes_of(tensor: torch.Tensor, start: int, shadow: np.ndarray) -> np.ndarray:
    """The part of a shadow of memory from `start` that belongs to a tensor's elements: [*shape, bytes], a view."""
    size = tensor.element_size()
    strides = (*(size * stride for stride in tensor.stride()), 1)
    return np.ndarray((*tensor.shape, size), bool, shadow, tensor.data_ptr() - start, strides)


def _extent(tensor: torch.Tensor) -> int:
    """Bytes from its first element to behind its last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _in_memory(tensor: torch.Tensor) -> bool:
    """Whether there are bytes: fake tensors say that they are on the CPU, their storage does not."""
    return tensor.layout is torch.strided and tensor.numel() > 0 and tensor.untyped_storage().device.type == "cpu"


@functools.cache
def _allocates(func: Any) -> bool:
    return getattr(func, "overloadpacket", None) in _ALLOCATES and not any(w for _, w in _arguments(func))


@functools.cache
def _arguments(func: Any) -> tuple[tuple[str, bool], ...]:
    """Of an operator of aten: the name of each argument, and whether it is written."""
    return tuple((a.name, a.alias_info is not None and a.alias_info.is_write) for a in func._schema.arguments)


def _written_by(func: Any, args: tuple, kwargs: dict) -> Iterator[torch.Tensor]:
    if getattr(func, "namespace", "") != "aten":
        leaves = tree_leaves((args, kwargs))
    else:
        written = _arguments(func)
        values = [value for (_, writes), value in zip(written, args, strict=False) if writes]
        leaves = tree_leaves(values + [kwargs[name] for name, writes in written if writes and name in kwargs])
    return (leaf for leaf in leaves if isinstance(leaf, torch.Tensor))
