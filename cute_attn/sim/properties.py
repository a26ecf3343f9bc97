"""What the GPU that is simulated has: an H100 SXM."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PROPERTIES", "Properties"]


@dataclass(frozen=True)
class Properties:
    """What torch.cuda.get_device_properties says of it."""

    name: str = "NVIDIA H100 80GB HBM3"
    major: int = 9
    minor: int = 0
    total_memory: int = 80 << 30
    multi_processor_count: int = 132
    warp_size: int = 32
    max_threads_per_block: int = 1024
    max_threads_per_multi_processor: int = 2048
    regs_per_multiprocessor: int = 65536
    shared_memory_per_block: int = 48 << 10
    shared_memory_per_block_optin: int = 227 << 10
    shared_memory_per_multiprocessor: int = 228 << 10
    L2_cache_size: int = 50 << 20
    is_integrated: int = 0
    is_multi_gpu_board: int = 0


PROPERTIES = Properties()
