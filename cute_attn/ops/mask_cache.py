"""From what describes the mask of a call to its IntervalMask, so that a repeated call plans nothing.

Content decides: neither who a tensor is nor its version proves what it holds, since compiled code and collectives write
behind both. Reading what is on a GPU waits for it; an IntervalMask is never looked up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from ctypes import string_at
from threading import Lock
from typing import Any, NamedTuple

import torch

from ..mask import IntervalMask
from ..mask.readback import on_host
from ..mask.source import MaskSource
from .recomputed import seal, witness

__all__ = ["CAPACITY", "clear_masks", "find_mask", "seen_mask"]

CAPACITY = 32  # masks kept, O(rows) each; the least recently used goes first
PIECE = 2**30  # bytes read at once: ctypes takes their number as a C int, and what it cannot hold falls silently


class _Entry(NamedTuple):
    """A mask that was looked up: by what it is found again, and what it is."""

    key: list[Any]  # see `_key`
    content: bytes  # a digest of all that makes the mask; equal for tensors of other dtypes that mean the same
    mask: IntervalMask
    seal: torch.Tensor


class _Recent:
    """The entries, the most recently used first; safe to share between threads."""

    def __init__(self) -> None:
        self._entries: tuple[_Entry, ...] = ()
        self._lock = Lock()

    def find(self, key: list[Any]) -> _Entry | None:
        for entry in self._entries:
            if entry.key == key:
                self.put(entry)
                return entry
        return None

    def with_content(self, content: bytes) -> _Entry | None:
        return next((entry for entry in self._entries if entry.content == content), None)

    def put(self, entry: _Entry) -> None:
        if self._entries and self._entries[0] is entry:
            return
        with self._lock:
            self._entries = (entry, *(other for other in self._entries if other is not entry))[:CAPACITY]

    def clear(self) -> None:
        with self._lock:
            self._entries = ()


_recent = _Recent()


def find_mask(
    source: MaskSource, seqlen_q: int, seqlen_k: int, device: torch.device, *, is_op: bool = False
) -> tuple[IntervalMask, torch.Tensor]:
    """The mask of a call on `device`, made now if it was not seen before, and its seal (see `recomputed`).

    is_op: whether a custom op asks, which a compiled function calls.

    Raises ValueError where the contents are wrong (ranges out of bounds, lengths that fall), RuntimeError where a CUDA
    graph is being captured, whose replays would not read them, and where a backward recomputes a forward whose tensors
    were overwritten.
    """
    tensors = source.tensors
    if tensors:
        refuse_capture(device, "a mask described by tensors is read")
    read = on_host(tensors)
    lengths = source.form, seqlen_q, seqlen_k, device
    entry = _recent.find(_key(lengths, read))
    if entry is None:
        entry = _make(source, lengths, read)
        _recent.put(entry)
    if tensors:
        witness(tensors, entry.content, is_op)
    return entry.mask, entry.seal


def seen_mask(
    form: tuple[object, ...], tensors: list[torch.Tensor], seqlen_q: int, seqlen_k: int, device: torch.device
) -> tuple[IntervalMask, torch.Tensor] | None:
    """`find_mask` of a source that nobody checked, its form and its dense tensors on the CPU; None unless it was seen
    before."""
    refuse_capture(device, "a mask described by tensors is read")
    entry = _recent.find(_key((form, seqlen_q, seqlen_k, device), tensors))
    if entry is None:
        return None
    witness(tensors, entry.content, False)
    return entry.mask, entry.seal


def clear_masks() -> None:
    """Forgets every mask."""
    _recent.clear()


def refuse_capture(device: torch.device, what: str) -> None:
    """Raises RuntimeError where a CUDA graph is being captured, in which nothing can be read or planned."""
    if device != _CPU and device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{what} while a CUDA graph is captured, which it cannot be: make an IntervalMask before the capture, "
            "call mask.prepare(q, k, v) on it, and give it to flex_flash_attn_func"
        )


_CPU = torch.device("cpu")  # to compare devices is cheaper than to ask for a type


def _key(lengths: tuple[Any, ...], read: Sequence[torch.Tensor]) -> list[Any]:
    """All that makes a mask, its numbers as they are now: what equals it means the same. read: on the CPU."""
    key = list(lengths)
    for x in read:
        place = x.data_ptr()
        if not place or not x.is_contiguous() or x.is_neg():  # without a place: what PyTorch knows to be zero
            x = x.clone(memory_format=torch.contiguous_format)
            place = x.data_ptr()
        size = x.nbytes
        key += x.dtype, x.shape, string_at(place, size) if size <= PIECE else _long_bytes(place, size)
    return key


def _long_bytes(place: int, size: int) -> bytes:
    return b"".join(string_at(place + i, min(PIECE, size - i)) for i in range(0, size, PIECE))


def _make(source: MaskSource, lengths: tuple[Any, ...], read: Sequence[torch.Tensor]) -> _Entry:
    copies = [t.clone(memory_format=torch.contiguous_format) for t in read]
    key, source = _key(lengths, copies), source.holding(copies)
    content = hashlib.blake2b(repr(lengths).encode() + source.content(), digest_size=16).digest()
    known = _recent.with_content(content)
    if known is not None:
        return known._replace(key=key)
    *_, seqlen_q, seqlen_k, device = lengths
    refuse_capture(device, "a mask is first seen")
    mask = source.build_from_host(seqlen_q, seqlen_k, device)
    return _Entry(key, content, mask, seal(content))
