"""Whether a forward that the backward computes again (activation checkpointing) meets the mask that it had.

Range tensors may have been overwritten in between, in ways that PyTorch counts (it raises) and that it does not: NumPy
views, collectives. Every look-up outside of a backward is witnessed; one inside of it that reads what no look-up has
read there before raises. Where the recomputation compares what is saved for the backward, `seal` makes it exact;
reentrant checkpoints and compiled functions do not compare, and miss ranges that gave way to others which their memory
held before.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["seal", "witness"]

Tensor = torch.Tensor
MEMORIES, CONTENTS = 1024, 4096  # that are remembered, and contents in each and in all; the oldest go first


class _Memory(NamedTuple):
    """Memory that held ranges, and the contents of the masks that were looked up with it."""

    alive: StorageWeakRef
    contents: OrderedDict[bytes, None]


_lock = Lock()
_memories: OrderedDict[int, _Memory] = OrderedDict()
_contents: OrderedDict[bytes, None] = OrderedDict()


def witness(tensors: list[Tensor], content: bytes, is_op: bool) -> None:
    """Notes which mask these tensors meant; in a recomputation raises RuntimeError unless they have meant it before.

    is_op: whether a custom op looks it up. Of its callers those in a backward all recompute; of others, those with
        gradients on.
    """
    in_backward = torch._C._current_graph_task_id() != -1
    with _lock:
        if not in_backward:
            _note(_contents, content)
            for tensor in tensors:
                _note(_memory_of(tensor).contents, content)
            return
        if not is_op and not torch.is_grad_enabled():
            return
        known = [_memories[key] for key in (t.untyped_storage()._cdata for t in tensors) if key in _memories]
        places = [memory.contents for memory in known if not memory.alive.expired()] or [_contents]
    if not all(content in place for place in places):
        raise RuntimeError(
            "a recomputed forward would have another mask than the forward had: its range tensors (or cu_seqlens) were "
            "overwritten before the backward; leave them until then, or describe the mask by an IntervalMask"
        )


def seal(content: bytes) -> Tensor:
    """An empty tensor whose shape is that of this content alone.

    It is saved for the backward: torch.utils.checkpoint compares the shapes of what is saved when it computes again.
    """
    number = int.from_bytes(content[:7], "little")
    return torch.empty(0, number >> 28, number & (1 << 28) - 1, dtype=torch.int8, device="cpu")


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
