"""From the mask tensors of a call to its IntervalMask, so that a repeated call plans nothing.

Inside a custom op a mask is only tensors and numbers. The first look-up goes by the identity of the tensors and their
version, which an in-place edit changes, and reads nothing; the second by their content, which synchronises with a GPU
that holds them. Edits that PyTorch does not see, such as through NumPy, are seen by neither.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import Generic, NamedTuple, TypeVar

import torch

from ..mask import IntervalMask
from .window import windowed_documents

__all__ = ["CAPACITY", "MaskArgument", "clear_plans", "find_mask", "remember_mask"]

CAPACITY = 32  # masks kept, O(rows) each; the least recently used goes first

Value = TypeVar("Value")


class MaskArgument(NamedTuple):
    """A mask as it travels into a custom op.

    kind         first, second, third
    "intervals"  lo, hi of an IntervalMask, None
    "slices"     q_ranges, k_ranges, attn_type_map or None
    "documents"  cu_seqlens_q, cu_seqlens_k, None; with the window (left, right), see `windowed_documents`
    "window"     None, None, None; the same as one document
    """

    kind: str
    first: torch.Tensor | None = None
    second: torch.Tensor | None = None
    third: torch.Tensor | None = None
    window_left: int = -1
    window_right: int = -1

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [t for t in (self.first, self.second, self.third) if t is not None]


class _Recent(Generic[Value]):
    """A bounded map that forgets the least recently used; safe to share between threads."""

    def __init__(self) -> None:
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable) -> Value | None:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Hashable, value: Value) -> None:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > CAPACITY:
                self._values.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._values.clear()


class _Seen(NamedTuple):
    """Tensors that were looked up before: who they were, their stamps then, and the mask they meant."""

    tensors: list[weakref.ref[torch.Tensor]]
    stamps: list[Hashable]
    mask: IntervalMask


_by_identity: _Recent[_Seen] = _Recent()
_by_content: _Recent[IntervalMask] = _Recent()


def find_mask(argument: MaskArgument, seqlen_q: int, seqlen_k: int, device: torch.device) -> IntervalMask:
    """The mask of a call on `device`, made now if it was not seen before.

    Raises ValueError where the contents are wrong (ranges out of bounds, lengths that fall), RuntimeError where a CUDA
    graph is being captured and the mask was not seen before: planning reads the ranges, which a graph cannot do.
    """
    rest = (argument.kind, argument.window_left, argument.window_right, seqlen_q, seqlen_k, device)
    tensors = argument.tensors
    mask = _recall(tensors, rest)
    if mask is not None:
        return mask
    _refuse_capture(device)
    if argument.kind == "intervals":  # as large as the mask itself: identity is all that is worth a look
        mask = _make(argument, seqlen_q, seqlen_k, device)
    else:
        content = (*map(_content, tensors), rest)
        mask = _by_content.get(content)
        if mask is None:
            mask = _make(argument, seqlen_q, seqlen_k, device)
            _by_content.put(content, mask)
    _remember(tensors, rest, mask)
    return mask


def remember_mask(mask: IntervalMask) -> None:
    """Lets `find_mask` find this very mask, and the plans it carries, by its tensors."""
    tensors, rest = [mask.lo, mask.hi], ("intervals", -1, -1, mask.seqlen_q, mask.seqlen_k, mask.device)
    if _recall(tensors, rest) is not mask:
        _remember(tensors, rest, mask)


def clear_plans() -> None:
    """Forgets every mask."""
    _by_identity.clear()
    _by_content.clear()


def _recall(tensors: list[torch.Tensor], rest: tuple[Hashable, ...]) -> IntervalMask | None:
    """The mask that these very tensors meant before, if none of them has changed since."""
    if not _are_versioned(tensors):
        return None
    seen = _by_identity.get((*map(id, tensors), *rest))
    if seen is None:
        return None
    same = all(ref() is t and s == _stamp(t) for ref, s, t in zip(seen.tensors, seen.stamps, tensors, strict=True))
    return seen.mask if same else None


def _remember(tensors: list[torch.Tensor], rest: tuple[Hashable, ...], mask: IntervalMask) -> None:
    if _are_versioned(tensors):
        seen = _Seen(list(map(weakref.ref, tensors)), list(map(_stamp, tensors)), mask)
        _by_identity.put((*map(id, tensors), *rest), seen)


def _are_versioned(tensors: list[torch.Tensor]) -> bool:
    return bool(tensors) and not any(t.is_inference() for t in tensors)  # inference tensors count no edits


def _stamp(tensor: torch.Tensor) -> Hashable:
    """Changes with an in-place edit (the version) and with an assignment to `.data` (the rest)."""
    return tensor._version, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.device


def _content(tensor: torch.Tensor) -> bytes:
    return tensor.detach().to("cpu", torch.int64).contiguous().numpy().tobytes()


def _make(argument: MaskArgument, seqlen_q: int, seqlen_k: int, device: torch.device) -> IntervalMask:
    window = argument.window_left, argument.window_right
    if argument.kind == "window":
        queries, keys = (torch.tensor([0, n], device=device) for n in (seqlen_q, seqlen_k))
        return windowed_documents(queries, keys, seqlen_q, seqlen_k, *window)
    first, second = argument.tensors[:2]
    if argument.kind == "documents":
        return windowed_documents(first.to(device), second, seqlen_q, seqlen_k, *window)
    if argument.kind == "slices":
        return IntervalMask.from_slices(first, second, argument.third, seqlen_q, seqlen_k, device)
    return IntervalMask(first, second, seqlen_k)


def _refuse_capture(device: torch.device) -> None:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a mask was first seen while a CUDA graph is captured, where it cannot be planned: prepare it before, "
            "by one call with the same mask outside of the capture"
        )
