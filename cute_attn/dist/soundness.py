"""Whether a process group may still be used: not once a call has failed on it half-way.

A rank that leaves a call in its middle has sent some of its rows and not others. What it sends next, the other ranks
would take for the rest and add up: a wrong sum, without an error. So the group is marked, and every call that would
communicate over it raises. The mark is the group's own: it ends with the group.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch.distributed as dist

from .groups import Groups

__all__ = ["REFUSALS", "REMEDY", "check_sound", "first_line", "marking"]

REMEDY = (
    "call torch.distributed.destroy_process_group on every rank, then make the process group and its keys anew "
    "(clear_cache does not help)"
)
REFUSALS = (TypeError, ValueError, NotImplementedError)  # what bad arguments raise, before anything is sent

_failures: WeakKeyDictionary[dist.ProcessGroup, str] = WeakKeyDictionary()


def check_sound(groups: Groups, call: str) -> None:
    """Raises RuntimeError if the groups have been destroyed, or a call has failed half-way on any of them."""
    try:
        dist.get_process_group_ranks(groups.whole)
    except KeyError:
        raise RuntimeError(
            f"{call}: the process group of this key has been destroyed; make a key of another group"
        ) from None
    for group in groups.every:
        failure = _failures.get(group)
        if failure is not None:
            raise RuntimeError(f"{call}: the process group cannot be used any more, since {failure}; {REMEDY}")


@contextmanager
def marking(groups: Groups, call: str, but: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """Marks the groups if anything is raised inside, except what is in `but`; a rank alone has nobody to mislead."""
    try:
        yield
    except but:
        raise
    except BaseException as error:
        for group in groups.every if groups.world > 1 else ():
            _failures.setdefault(group, f"{call} failed half-way on this rank ({first_line(error)})")
        raise


def first_line(error: BaseException) -> str:
    """An error as one line of bounded length."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
