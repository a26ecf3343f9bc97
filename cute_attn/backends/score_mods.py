"""The score_mod that kernels get in the place of a call's: itself, or a table of its distances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..mods.distance import by_table, table_gradients
from ..mods.trace import Traced

if TYPE_CHECKING:
    from ..launch.captured import CapturedGradients

__all__ = ["ServedScore", "added_in_no_order"]

Tensor = torch.Tensor


class ServedScore:
    """What kernels get for a score_mod, and how its gradients come back.

    A bias that depends on the distance alone is a table, so that one kernel serves all of them. Not where gradients of
    what it captured are wanted that kernels can add up in a fixed order: those of a table have none.

    q, k: of the call. wanted: in a backward, which of the captured tensors need a gradient.
    """

    def __init__(self, score: Traced, q: Tensor, k: Tensor, wanted: Sequence[bool] | None = None) -> None:
        lengths, is_backward, wanted = (q.shape[1], k.shape[1]), wanted is not None, wanted or ()
        self._score, self._wanted, self._lengths, self._device = score, wanted, lengths, q.device
        has_order = any(wanted) and not added_in_no_order(score, wanted)
        self.score = score if has_order else by_table(score, q.shape[2], *lengths, q.device, is_backward)

    def gradients(self) -> CapturedGradients:
        """Where the kernels of a backward leave them."""
        from ..launch.captured import CapturedGradients

        wanted = self._wanted if self.score is self._score else [any(self._wanted)]
        return CapturedGradients(self.score, wanted, self._device)

    def gathered(self, left: CapturedGradients, lse: Tensor, dlse: Tensor | None) -> list[Tensor | None]:
        """Those of the tensors that the call's score_mod captured, when the kernels are done."""
        found = left.gathered(lse, dlse)
        if self.score is self._score:
            return found
        return table_gradients(self._score, found[0], self._wanted, *self._lengths)


def added_in_no_order(score: Traced, wanted: Sequence[bool]) -> list[int]:
    """The numbers of the captured tensors to whose gradients a backward adds by atomics: what kernels read through a
    table of distances is one of them."""
    from ..launch.captured import in_no_order

    return in_no_order(score, wanted)
