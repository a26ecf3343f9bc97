"""Whether the tensors that a mask_mod captured are what they were, asked wherever they are used: in a graph, by its op.

Compiled code knows of no Python object. What travels into it besides the tensors is a ticket, by which the op finds
what they were; the tensors that it is given may be copies, which tell nothing of themselves.
"""

from __future__ import annotations

import secrets
import weakref
from collections.abc import Sequence

import torch

__all__ = ["Watched", "check_ticket", "version_of"]

Tensor = torch.Tensor

_known: weakref.WeakValueDictionary[int, Watched] = weakref.WeakValueDictionary()


class Watched:
    """Tensors that must not change.

    names: of the tensors, for errors. versions: how often each was changed before; None for until now.
    ticket: int64 (1,) on the CPU, another for each.
    """

    def __init__(self, tensors: Sequence[Tensor], names: Sequence[str], versions: Sequence[int] | None = None) -> None:
        self.tensors, self.names = tuple(tensors), tuple(names)
        self.versions = tuple(map(version_of, tensors)) if versions is None else tuple(versions)
        self.places = tuple(map(_place_of, tensors))
        number = secrets.randbits(62)  # a graph that is loaded into another process must meet no other's
        with torch.inference_mode(False):
            self.ticket = torch.tensor([number], device="cpu")
        _known[number] = self

    def some(self, tensors: Sequence[Tensor]) -> Watched:
        """Of some of the tensors."""
        places = [next(i for i, y in enumerate(self.tensors) if y is x) for x in tensors]
        return Watched(tensors, [self.names[i] for i in places], [self.versions[i] for i in places])

    def check(self, given: Sequence[Tensor] | None = None) -> None:
        """ValueError where one has changed since. given: what stands for them in a call."""
        now = given or self.tensors
        for x, y, version, place, name in zip(self.tensors, now, self.versions, self.places, self.names, strict=True):
            if version_of(x) != version or _place_of(x) != place or not _is_same(x, y):
                raise ValueError(
                    f"{name}, which mask_mod captures, was changed after the block mask was made: make the mask again, "
                    "or capture a copy"
                )


def check_ticket(ticket: Tensor, given: Sequence[Tensor]) -> None:
    """`Watched.check`, where whatever the ticket is of is still there: the mask of a call is."""
    watched = _known.get(int(ticket))
    if watched is not None:
        watched.check(given)


def version_of(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


def _place_of(x: Tensor) -> tuple[int, torch.dtype, torch.Size]:
    """What changes where other memory is put under a tensor, as Module.half() does: that counts no version."""
    return x.data_ptr(), x.dtype, x.shape


def _is_same(x: Tensor, y: Tensor) -> bool:
    """Whether y is x, or holds the same numbers: what changes x in a graph may give another tensor for it. Only then
    a GPU is asked for them."""
    if x is y or x.data_ptr() == y.data_ptr():
        return True
    return bool(((x == y) | ((x != x) & (y != y))).all())
