"""What stands around every call that communicates over a key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from .agreement import agree, refusing
from .groups import Groups
from .soundness import check_sound, marking

__all__ = ["Guard", "rows_fields"]

_calls: WeakKeyDictionary[dist.ProcessGroup, int] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Guard:
    """Compares the calls over a key among ranks, and marks its groups where one fails.

    key: what stands for the key, the same on every rank. compares: DistAttnConfig.check_ranks.
    """

    groups: Groups
    key: str
    compares: bool

    def checks(self, call: str) -> AbstractContextManager[None]:
        """Around the checks of arguments: RuntimeError if the groups cannot be used any more; see `refusing`."""
        return refusing(self.groups, call, self.compares)

    @contextmanager
    def exchange(self, call: str, fields: Mapping[str, object]) -> Iterator[None]:
        """Around everything from a call's first exchange on. Raises as check_sound and agree do."""
        check_sound(self.groups, call)
        if self.compares:
            agree(self.groups, call, {"key": self.key, **fields})
        with marking(self.groups, call):
            yield

    def backward_exchange(self, call: str, number: int, needs: Sequence[bool]) -> AbstractContextManager[None]:
        """`exchange` around the backward of a call; number: of the call; needs: which inputs need gradients."""
        compared = {"the number of the call": number, "requires_grad": tuple(needs)}
        return self.exchange(f"the backward of {call}", compared)

    def number(self) -> int:
        """1 at the first attention over this group, 2 at the second: tells its backwards apart, on every rank alike."""
        _calls[self.groups.whole] = _calls.get(self.groups.whole, 0) + 1
        return _calls[self.groups.whole]


def rows_fields(x: torch.Tensor, **fields: object) -> dict[str, object]:
    """The fields of a call that moves rows of x."""
    return {"the shape of x": tuple(x.shape), "dtype": x.dtype, "device": x.device.type, **fields}
