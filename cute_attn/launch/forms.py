"""What a spec says of a problem: the head dims that a kernel is built for, and the kind of its mask."""

from __future__ import annotations

from typing import Protocol

from cute_attn.spec.forward import HEAD_DIMS, Layers

__all__ = ["backward_mask_kind", "kernel_dims", "mask_kind"]


class MaskFacts(Protocol):
    """What a tile schedule, or a plan made of one, says of a mask."""

    @property
    def layers(self) -> int: ...

    @property
    def has_lower(self) -> bool: ...

    @property
    def has_upper(self) -> bool: ...


def kernel_dims(head_dim: int, head_dim_v: int) -> tuple[int, int]:
    """The smallest pair of HEAD_DIMS that holds the tensors' head dims."""
    for dims in HEAD_DIMS:
        if 0 < head_dim <= dims[0] and 0 < head_dim_v <= dims[1] and head_dim % 8 == 0 and head_dim_v % 8 == 0:
            return dims
    raise ValueError(
        f"head_dim and head_dim_v must be multiples of 8 up to 256 for the kernels, got {head_dim} and {head_dim_v}"
    )


def mask_kind(mask: MaskFacts, softcap: bool) -> tuple[Layers, bool, bool]:
    """A schedule's mask as specs of the forward name it: layers, has_lower, has_upper."""
    if mask.layers == 0 or not (mask.has_lower or mask.has_upper):
        return 0, False, True
    if mask.layers == 1:
        return 1, mask.has_lower, mask.has_upper
    return (2, True, True) if mask.layers == 2 else ("many", True, True)


def backward_mask_kind(mask: MaskFacts, softcap: bool) -> tuple[Layers, bool, bool]:
    """The same for specs of the backward."""
    kind = mask_kind(mask, softcap)
    # The arithmetic of a softcap leaves registers for one way to test bounds only.
    return ("many", True, True) if softcap and kind[0] != 0 else kind
