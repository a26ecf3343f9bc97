"""The GPU that is simulated, an H100 SXM, as host code asks for it: through PyTorch and the DSL."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from ..properties import PROPERTIES

ALIGNMENT = 512  # bytes: of what PyTorch allocates on a GPU


class HardwareInfo:
    """In the place of the DSL's class of that name, which asks the driver."""

    def __init__(self, device_id: int = 0):
        self.device_id = device_id

    def get_max_active_clusters(self, cluster_size: int, stream: Any = None) -> int:
        """As many as there are multiprocessors for; a GPU of which some groups of multiprocessors are cut has fewer."""
        if not 0 < cluster_size <= 16:
            raise ValueError(f"cluster_size is {cluster_size}; allowed: 1 to 16")
        return PROPERTIES.multi_processor_count // cluster_size

    def get_l2_cache_size_in_bytes(self) -> int:
        return PROPERTIES.L2_cache_size

    def get_device_multiprocessor_count(self) -> int:
        return PROPERTIES.multi_processor_count


class Device(contextlib.nullcontext):
    """In the place of `torch.cuda.device`: the memory of the GPU is that of the CPU, and there is but one."""


def answers() -> list[tuple[Any, str, Any]]:
    """What to put in the place of what, as owner, name and value."""
    from cutlass.utils import hardware_info

    methods = [name for name in vars(HardwareInfo) if name.startswith(("get_", "__init__"))]
    return [
        *((hardware_info.HardwareInfo, name, vars(HardwareInfo)[name]) for name in methods),
        (torch.cuda, "get_device_capability", lambda device=None: (PROPERTIES.major, PROPERTIES.minor)),
        (torch.cuda, "get_device_properties", lambda device=None: PROPERTIES),
        (torch.cuda, "get_device_name", lambda device=None: PROPERTIES.name),
        (torch.cuda, "device", Device),
    ]


def aligned_like_memory_of_a_gpu(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, if its memory is aligned, else another of its shape and strides, just as unwritten."""
    if tensor.data_ptr() % ALIGNMENT == 0:
        return tensor
    size = tensor.untyped_storage().nbytes()
    raw = torch.empty(size + ALIGNMENT, dtype=torch.uint8, device=tensor.device)
    first = -raw.data_ptr() % ALIGNMENT
    return raw[first : first + size].view(tensor.dtype).as_strided(tensor.size(), tensor.stride())
