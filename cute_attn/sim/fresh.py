"""Which tensors hold nothing yet: memory that was allocated, and that nobody has written since.

A shadow has a bool for every byte of a tensor's storage, true while nobody wrote it. Kernels clear what they write, and
reading what is left is an error. `FreshMemory` notes what PyTorch allocates and writes outside of kernels.
"""

from __future__ import annotations

import contextvars
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["FreshMemory", "declared", "noted", "shadow_of"]

ALLOCATIONS = frozenset(
    {
        torch.ops.aten.empty.memory_format,
        torch.ops.aten.empty_like.default,
        torch.ops.aten.empty_strided.default,
        torch.ops.aten.new_empty.default,
        torch.ops.aten.new_empty_strided.default,
    }
)


class FreshMemory(TorchDispatchMode):
    """Within it, what PyTorch allocates without writing is known to be so, until an operation of PyTorch writes it.

    Writes that PyTorch does not dispatch, through NumPy or a pointer, are not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shadows: dict[int, tuple[StorageWeakRef, np.ndarray]] = {}  # by address of the storage

    def __enter__(self) -> FreshMemory:
        self._token = noted.set(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        noted.reset(self._token)
        super().__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in ALLOCATIONS:
            if result.device.type == "cpu" and result.numel():
                storage = result.untyped_storage()
                self.shadows[storage.data_ptr()] = StorageWeakRef(storage), np.ones(storage.nbytes(), bool)
        elif self.shadows:
            for tensor in _written(function, args, kwargs or {}):
                shadow = self.of(tensor)
                if shadow is not None:
                    bytes_of(shadow, tensor)[...] = False
        return result

    def of(self, tensor: torch.Tensor) -> np.ndarray | None:
        storage = tensor.untyped_storage()
        known = self.shadows.get(storage.data_ptr())
        if known is None:
            return None
        if known[0] != StorageWeakRef(storage):  # another storage lies there now
            del self.shadows[storage.data_ptr()]
            return None
        return known[1]


noted: contextvars.ContextVar[FreshMemory | None] = contextvars.ContextVar("cute_attn_sim_fresh", default=None)


def _written(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    """The tensors that an operation writes, by its schema."""
    for i, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            for tensor in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                    yield tensor


def bytes_of(shadow: np.ndarray, tensor: torch.Tensor) -> np.ndarray:
    """The part of a storage's shadow that belongs to a tensor's elements: its shape, and the bytes of an element."""
    size = tensor.element_size()
    strides = (*(stride * size for stride in tensor.stride()), 1)
    return np.ndarray((*tensor.shape, size), bool, shadow, tensor.storage_offset() * size, strides)


def declared(fresh: Sequence[torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> dict[int, np.ndarray]:
    """Shadows by address of the storage, of tensors that a caller says nobody wrote.

    What they share with other tensors of the call counts as written. Raises TypeError or ValueError for what is not
    among the tensors of the call.
    """
    shadows: dict[int, np.ndarray] = {}
    for i, tensor in enumerate(fresh):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"fresh[{i}] must be a tensor, got {type(tensor).__name__}")
        if not any(tensor is other for other in tensors.values()):
            raise ValueError(f"fresh[{i}] must be among the tensors that the function is called with")
        storage = tensor.untyped_storage()
        shadow = shadows.setdefault(storage.data_ptr(), np.zeros(storage.nbytes(), bool))
        bytes_of(shadow, tensor)[...] = True
    for tensor in tensors.values():
        address = tensor.untyped_storage().data_ptr()
        if address in shadows and not any(tensor is other for other in fresh):
            bytes_of(shadows[address], tensor)[...] = False
    return shadows


def shadow_of(tensor: torch.Tensor, shadows: Mapping[int, np.ndarray]) -> np.ndarray | None:
    """The shadow of a tensor's storage: declared for a call, or else noted since its allocation."""
    found = shadows.get(tensor.untyped_storage().data_ptr())
    memory = noted.get()
    return found if found is not None or memory is None else memory.of(tensor)
