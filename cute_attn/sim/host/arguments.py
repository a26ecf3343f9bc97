"""CPU tensors as the compiled host code wants them, CUDA ones, and as the engine wants them, buffers."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import to_dlpack

from ..launch import Buffer
from .fresh import bytes_of, watching


def converted(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """An argument with its CPU tensors turned to CUDA ones for the host code; notes each tensor under its name."""
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu":
            raise ValueError(f"{name}: cute_attn.sim runs on CPU tensors, got one on {value.device}")
        tensors[name] = value
        return cuda_view(value)
    if isinstance(value, (tuple, list)):
        return tuple(converted(item, f"{name}[{i}]", tensors) for i, item in enumerate(value))
    return value


class CudaView:
    """A CPU tensor that hands itself over as device kDLCUDA, so that the DSL compiles global-memory accesses."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor.detach()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, **_: Any) -> Any:
        capsule = to_dlpack(self.tensor)  # not the method, which counts as a write: see `simulated`
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
        # DLTensor: the data pointer, then the device type
        ctypes.c_int32.from_address(pointer(capsule, b"dltensor") + 8).value = 2
        return capsule


def cuda_view(tensor: torch.Tensor) -> Any:
    import tvm_ffi

    return tvm_ffi.from_dlpack(CudaView(tensor))


def buffers_of(tensors: dict[str, torch.Tensor], fresh: Sequence[torch.Tensor] = ()) -> list[Buffer]:
    """The memory that each tensor spans; tensors that share memory become one buffer.

    Nobody wrote the bytes of tensors in `fresh`, except those that another tensor holds too.
    """
    spans = []
    for name, tensor in tensors.items():
        if tensor.numel():
            extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
            spans.append([tensor.data_ptr(), tensor.data_ptr() + extent * tensor.element_size(), name])
    spans.sort()
    merged: list[list] = []
    for span in spans:
        if merged and span[0] < merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], span[1])
            merged[-1][2] += f"+{span[2]}"
        else:
            merged.append(span)
    return [
        Buffer(start, _bytes_at(start, end - start), name, _unwritten(start, end - start, tensors, fresh))
        for start, end, name in merged
    ]


def _unwritten(
    start: int, size: int, tensors: dict[str, torch.Tensor], fresh: Sequence[torch.Tensor]
) -> np.ndarray | None:
    """The shadow of a buffer, None if all of it is written."""
    memory = watching.get()
    shadow = None if memory is None else memory.shadow(start, size)
    here = [t for t in tensors.values() if t.numel() and start <= t.data_ptr() < start + size]
    blank = [t for t in here if any(t is x for x in fresh)]
    if not blank:
        return shadow
    shadow = np.zeros(size, bool) if shadow is None else shadow
    before = shadow.copy()
    for tensor in blank:
        bytes_of(tensor, start, shadow)[...] = True
    for tensor in here:
        if not any(tensor is x for x in blank):
            bytes_of(tensor, start, shadow)[...] = bytes_of(tensor, start, before)
    return shadow


def _bytes_at(address: int, size: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
