"""Whether a forward that the backward computes again (activation checkpointing) meets the mask that it had.

Range tensors may have been overwritten in between, in ways that PyTorch counts (it raises) and that it does not: NumPy
views, collectives. Every look-up is noted where it happens: in the regions that may be computed again (see `regions`),
and, for a recomputation whose region is not found, by the memory that was read. One in a recomputation that reads what
its region has not read raises. Eager checkpoints that compare what is saved for the backward are exact by `seal`.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from .regions import Place, regions

__all__ = ["seal", "witness"]

Tensor = torch.Tensor
MEMORIES, CONTENTS = 1024, 4096  # that are remembered, and contents in each and in all; the oldest go first


class _Memory(NamedTuple):
    """Memory that held ranges, and the contents of the masks that were looked up with it."""

    alive: StorageWeakRef
    contents: OrderedDict[bytes, None]


_Seen = list[tuple[StorageWeakRef, bytes]]  # memory that was read in a region, and the content of the mask it meant


_lock = Lock()
_memories: OrderedDict[int, _Memory] = OrderedDict()
_contents: OrderedDict[bytes, None] = OrderedDict()


def witness(tensors: list[Tensor], content: bytes, is_op: bool) -> None:
    """Notes which mask these tensors meant; in a recomputation raises RuntimeError unless they meant it in the forward.

    is_op: whether a custom op looks it up. Of its callers those in a backward all recompute; of others, those with
        gradients on, or in a forward of their own.
    """
    in_backward = torch._C._current_graph_task_id() != -1
    inside, again = regions()
    for region in inside:
        _seen_in(region).extend((StorageWeakRef(tensor.untyped_storage()), content) for tensor in tensors)
    if not in_backward:
        if not _is_noted(tensors, content):
            with _lock:
                _note(_contents, content)
                for tensor in tensors:
                    _note(_memory_of(tensor).contents, content)
    elif is_op or torch.is_grad_enabled() or inside:
        seen = _seen_in(again) if again is not None else []
        places = [_held(seen, tensor) for tensor in tensors] if seen else _places(tensors)
        if not all(content in place for place in places):
            raise RuntimeError(
                "a recomputed forward would have another mask than the forward had: its range tensors (or cu_seqlens) "
                "were overwritten before the backward; leave them until then, or describe the mask by an IntervalMask"
            )


def seal(content: bytes) -> Tensor:
    """An empty tensor whose shape is that of this content alone.

    It is saved for the backward: torch.utils.checkpoint compares the shapes of what is saved when it computes again.
    """
    number = int.from_bytes(content[:7], "little")
    with torch.inference_mode(False):  # a mask that is first seen in inference may be met again in training
        return torch.empty(0, number >> 28, number & (1 << 28) - 1, dtype=torch.int8, device="cpu")


def _seen_in(region: Place) -> _Seen:
    """What was looked up in the forward of a region."""
    return region.setdefault("_cute_attn_seen", [])


def _held(seen: _Seen, tensor: Tensor) -> set[bytes]:
    """What this memory meant in a forward; of memory made anew, anything that was looked up there."""
    storage = tensor.untyped_storage()._cdata
    here = {content for memory, content in seen if memory.cdata == storage and not memory.expired()}
    return here or {content for _, content in seen}


def _places(tensors: list[Tensor]) -> list[OrderedDict[bytes, None]]:
    """Where the contents of a recomputation must be known, if its region was not found."""
    with _lock:
        known = [_memories[key] for key in (t.untyped_storage()._cdata for t in tensors) if key in _memories]
        return [memory.contents for memory in known if not memory.alive.expired()] or [_contents]


def _is_noted(tensors: list[Tensor], content: bytes) -> bool:
    """Whether these tensors meant it before, as those of most calls did."""
    if content not in _contents:
        return False
    for tensor in tensors:  # a weak reference keeps its address, which no other storage has
        memory = _memories.get(tensor.untyped_storage()._cdata)
        if memory is None or content not in memory.contents:
            return False
    return True


def _memory_of(tensor: Tensor) -> _Memory:
    storage = tensor.untyped_storage()
    memory = _memories.get(storage._cdata)
    if memory is None or memory.alive.expired():
        memory = _memories[storage._cdata] = _Memory(StorageWeakRef(storage), OrderedDict())
        while len(_memories) > MEMORIES:
            _memories.popitem(last=False)
    return memory


def _note(contents: OrderedDict[bytes, None], content: bytes) -> None:
    if content not in contents:
        contents[content] = None
        while len(contents) > CONTENTS:
            contents.popitem(last=False)
