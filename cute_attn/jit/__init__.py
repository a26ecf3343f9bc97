"""Kernels by specification: what their machine code depends on, compiling them, and keeping them."""

from .spec import HEAD_DIMS, KernelSpec, TileConfig

__all__ = ["HEAD_DIMS", "KernelSpec", "TileConfig"]
