"""The head dims that kernels are built for."""

from __future__ import annotations

from cute_attn.spec.operation import operation

__all__ = ["kernel_dims"]


def kernel_dims(op: str, head_dim: int, head_dim_v: int) -> tuple[int, int]:
    """The first pair of an operation's `head_dims` that holds the tensors' head dims."""
    for dims in operation(op).head_dims:
        if 0 < head_dim <= dims[0] and 0 < head_dim_v <= dims[1] and head_dim % 8 == 0 and head_dim_v % 8 == 0:
            return dims
    raise ValueError(
        f"head_dim and head_dim_v must be multiples of 8 up to 256 for the kernels, got {head_dim} and {head_dim_v}"
    )
