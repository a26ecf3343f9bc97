"""What a score_mod or a predicate captured, as kernels take it, and its gradients."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from ..mods.derivative import derivative
from ..mods.gather import gather_from
from ..mods.graph import Graph
from ..mods.ranges import with_reads_inside
from ..mods.scatters import kind_of
from ..mods.trace import Traced
from ..spec.tiles import Tile
from .tensors import rows_contiguous

__all__ = ["NOTHING_CAPTURED", "CapturedGradients", "captured_by", "in_no_order", "text_of"]


def captured_by(
    function: Traced | None, device: torch.device
) -> tuple[tuple[torch.Tensor, ...] | None, tuple[int | float, ...] | None]:
    """Its tensors, with a last stride of 1, 0-d ones as (1,), and its numbers; None for none.

    device: of the call; 0-d tensors may come from the host.
    """
    if function is None:
        return None, None
    return tuple(_stored(x.to(device)) for x in function.tensors) or None, tuple(function.scalars) or None


def text_of(function: Traced | None, sizes: tuple[int, int, int, int], graph: Graph | None = None) -> str:
    """The graph of a spec, "" for no function. sizes: batch elements, query heads, rows and keys of the call. graph: in
    place of the function's own, with the same tensors and numbers."""
    if function is None:
        return ""
    shapes = [x.shape for x in function.tensors]
    return with_reads_inside(graph or function.graph, sizes, shapes, function.scalars).text


def _stored(x: torch.Tensor) -> torch.Tensor:
    x = x.detach() if x.numel() else x.new_zeros((1,) * x.ndim)  # nobody attended reads it, but others may
    x = x.view(torch.uint8) if x.dtype == torch.bool else x
    return rows_contiguous(x) if x.ndim else x.view(1)


NOTHING_CAPTURED: tuple[Any, ...] = (None, None, None)  # as `CapturedGradients.targets` gives it


class CapturedGradients:
    """Of one backward: where its kernels leave what flows to captured tensors, and what becomes of it.

    wanted: of each tensor that score_mod captured whether it has a gradient. device: of the call.
    """

    def __init__(self, score_mod: Traced, wanted: Sequence[bool], device: torch.device) -> None:
        self._function, self._device = score_mod, device
        self._joint, self._asked, self._scatters = _split(score_mod.text, tuple(wanted))
        self._gradients = [
            torch.zeros(x.shape, dtype=torch.float32, device=device) if needs else None
            for x, needs in zip(score_mod.tensors, wanted, strict=True)
        ]
        self._sums: dict[int, torch.Tensor] = {}  # by scatter

    def text(self, sizes: tuple[int, int, int, int]) -> str:
        """The graph of a BackwardSpec; sizes: as of `text_of`."""
        return text_of(self._function, sizes, self._asked)

    def targets(self, batch: int, heads: int, keys: int, tile: Tile) -> tuple[Any, ...]:
        """captured, numbers and scattered of `cute_attn.bwd.arguments.Tensors`. heads: of queries."""
        parts = 1 if tile.n == 128 else 2  # warpgroups that share a key, each with queries of its own
        found = []
        for scatter, tensor, kind in self._scatters:
            gradient = self._gradients[tensor]
            assert gradient is not None
            if kind == "key":
                self._sums[scatter] = gradient.new_zeros(batch, heads, parts, keys)
                found.append(self._sums[scatter])
            elif kind == "anywhere":  # with room where there is none, as in what kernels read
                found.append(gradient if gradient.numel() else gradient.new_zeros((1,) * gradient.ndim))
        return *captured_by(self._function, self._device), tuple(found) or None

    def gathered(self, lse: torch.Tensor, dlse: torch.Tensor | None) -> list[torch.Tensor | None]:
        """The gradients in the dtypes of the tensors, when the kernels are done; dlse: None for zero."""
        for scatter, tensor, kind in self._scatters:
            gradient = self._gradients[tensor]
            assert gradient is not None
            if kind == "row" and dlse is not None:
                share = dlse.float().masked_fill(lse == -torch.inf, 0.0)
                gather_from(gradient, self._function, self._joint, scatter, share, "q", weighs=True)
            elif scatter in self._sums:
                share = self._sums[scatter].sum(2)
                gather_from(gradient, self._function, self._joint, scatter, share, "kv", weighs=False)
        return [
            None if gradient is None else gradient.to(x.device, x.dtype)
            for gradient, x in zip(self._gradients, self._function.tensors, strict=True)
        ]


@functools.lru_cache(maxsize=1024)
def _split(text: str, wanted: tuple[bool, ...]) -> tuple[Graph, Graph, tuple[tuple[int, int, str], ...]]:
    """The joint graph of a score_mod; what kernels compute of it; of each scatter number, tensor and kind."""
    joint = derivative(Graph.parse(text), wanted)
    score, slope, *scatters = joint.outputs
    kinds = tuple((i, int(joint.nodes[i].args[0]), kind_of(joint, i)) for i in scatters)
    return joint, joint.only((score, slope, *(i for i, _, kind in kinds if kind != "row"))), kinds


def in_no_order(function: Traced, wanted: Sequence[bool]) -> list[int]:
    """The numbers of the tensors whose gradients kernels add up in no fixed order."""
    _, _, scatters = _split(function.text, tuple(wanted))
    return sorted({tensor for _, tensor, kind in scatters if kind == "anywhere"})
