"""Keys as movers hand them out, block after block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch

from ...mask import IntervalMask

__all__ = ["KeyBlock", "KeyGradients", "Mover"]


class KeyBlock(NamedTuple):
    """Some keys, packed with their values, that a rank attends next.

    number: which of the mover's blocks this is.
    kv: `(keys, heads_k, head_dim + head_dim_v)`.
    mask: the local query rows over these keys; None where no row attends any of them.
    """

    number: int
    kv: torch.Tensor
    mask: IntervalMask | None


class KeyGradients(Protocol):
    """Collects the gradients of blocks at the owners of the keys."""

    def add(self, number: int, grad: torch.Tensor) -> None:
        """Takes the gradient of a block's kv, in the compute dtype and a tensor of its own."""

    def finish(self) -> torch.Tensor:
        """The gradient of the rank's own packed keys."""


class Mover(Protocol):
    """Brings keys to queries. `kv` is the rank's own keys, packed; all ranks take the same steps in the same order."""

    def forward(self, kv: torch.Tensor) -> Iterator[KeyBlock]: ...

    def backward(self, kv: torch.Tensor) -> Iterator[KeyBlock]: ...

    def collect(self, kv: torch.Tensor, dtype: torch.dtype) -> KeyGradients: ...
