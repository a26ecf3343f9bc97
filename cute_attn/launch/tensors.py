"""Tensors as kernels take them, and the multiprocessors that are there to take them."""

from __future__ import annotations

import functools
import logging

import torch

__all__ = [
    "DTYPE_NAMES",
    "NAMED_DTYPES",
    "free_multiprocessors",
    "in_kernel_form",
    "rows_contiguous",
    "view_in_kernel_form",
]

DTYPE_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16"}  # as specs have them
NAMED_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
SIMULATED_SMS = 132  # of the GPU that the simulator stands for

log = logging.getLogger("cute_attn.copy")


def in_kernel_form(name: str, x: torch.Tensor) -> torch.Tensor:
    """The tensor as TMA takes it: the last stride 1, the others multiples of 8 elements, the base 16-byte aligned.

    A tensor that is not so is copied once, which the log `cute_attn.copy` shows; strides of dimensions of size 1 never
    matter.
    """
    view = view_in_kernel_form(x)
    if view is not None:
        return view
    log.info("copying %s of shape %s: strides %s do not fit TMA", name, tuple(x.shape), x.stride())
    return x.clone(memory_format=torch.contiguous_format)


def view_in_kernel_form(x: torch.Tensor) -> torch.Tensor | None:
    """The tensor, or a view of it, as `in_kernel_form` says; None where that takes a copy."""
    *outer, last = x.stride()
    is_aligned = x.data_ptr() % 16 == 0
    if last == 1 and is_aligned and not any(stride % 8 for stride in outer):
        return x
    wanted = (*(8 if size == 1 else stride for size, stride in zip(x.shape, outer, strict=False)), 1)
    if last != 1 or not is_aligned or any(stride % 8 for stride in wanted[:-1]):
        return None
    return x.as_strided(x.shape, wanted)


def rows_contiguous(x: torch.Tensor) -> torch.Tensor:
    """Bounds of a mask, and captured tensors, as kernels read them, row after row."""
    return x if x.stride(-1) == 1 else x.clone(memory_format=torch.contiguous_format)


def free_multiprocessors(device: torch.device, sm_margin: int) -> int:
    """How many a launch takes that leaves `sm_margin` of them to others, but one at least."""
    return max(1, _multiprocessors(device) - sm_margin)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return SIMULATED_SMS
    return torch.cuda.get_device_properties(device).multi_processor_count
