"""A score_mod and what thins a mask, over the blocks of the reference: see `cute_attn.reference.Mods`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from ..mask import IntervalMask
from .derivative import derivative
from .evaluate import Scatter, evaluate
from .gather import add_shares
from .graph import Graph
from .ranges import may_wrap
from .trace import Traced

__all__ = ["BlockMods", "Thinned"]

Tensor = torch.Tensor


class BlockLike(Protocol):
    """Of a block, what is read here."""

    @property
    def batch(self) -> int: ...

    @property
    def rows(self) -> slice: ...

    @property
    def keys(self) -> slice: ...

    @property
    def hidden(self) -> Tensor: ...


class Thinned(NamedTuple):
    """What thins a mask: its pairs are attended where the predicate holds, and those of `full` in any case. ticket: by
    which it is known whether what the predicate captured has changed, see `watched`."""

    predicate: Traced
    full: IntervalMask | None = None
    ticket: Tensor | None = None


class BlockMods:
    """score: None for none. thinned: None for a mask that is intervals. dtype: in which scores are computed. wanted: of
    each tensor that score captured whether it needs a gradient.

    gradients: of these tensors, gathered by the backward in `dtype`; None where not wanted.
    """

    def __init__(
        self, score: Traced | None, thinned: Thinned | None, dtype: torch.dtype, wanted: Sequence[bool] = ()
    ) -> None:
        self._score, self._thinned, self._dtype, self._wanted = score, thinned, dtype, tuple(wanted)
        captured = [] if score is None else score.tensors
        self.gradients = [
            torch.zeros(x.shape, dtype=dtype, device=x.device) if needs else None
            for x, needs in zip(captured, self._wanted, strict=False)
        ]

    def hidden(self, block: BlockLike, heads: slice) -> Tensor:
        if self._thinned is None:
            return block.hidden
        predicate, full, _ = self._thinned
        asked = ~block.hidden
        certain = None
        if full is not None:
            certain = ~_hidden_in(full, block, heads)[:, None]
            asked = asked & ~certain
        (holds,) = self._evaluated(predicate, predicate.graph, block, heads, asked, "mask_mod")
        asked = asked & holds
        return ~asked if certain is None else ~((certain & ~block.hidden) | asked)

    def scores(self, scores: Tensor, block: BlockLike, heads: slice, hidden: Tensor) -> Tensor:
        if self._score is None:
            return scores
        graph = self._score.graph
        (found,) = self._evaluated(self._score, graph, block, heads, ~hidden, "score_mod", scores)
        return _own(found, scores)

    def slopes(
        self, scores: Tensor, block: BlockLike, heads: slice, hidden: Tensor
    ) -> tuple[Tensor, Tensor, list[Scatter]]:
        if self._score is None:
            return scores, scores.new_ones(()), []
        graph = derivative(self._score.graph, self._wanted)
        scatters: list[Scatter] = []
        found, slope, *_ = self._evaluated(
            self._score, graph, block, heads, ~hidden, "score_mod", scores, scatters=scatters
        )
        # the new scores are written to, and may be what the others are
        return found.expand(scores.shape).clone(), slope, scatters

    def gather(self, flow: list[Scatter], dscores: Tensor) -> None:
        for number, indices, value in flow:
            gradient = self.gradients[number]
            assert gradient is not None
            share = torch.where(dscores == 0, 0.0, dscores * value)  # 0 * inf where nothing is attended
            add_shares(gradient, indices, share)

    def _evaluated(
        self,
        function: Traced,
        graph: Graph,
        block: BlockLike,
        heads: slice,
        attended: Tensor,
        name: str,
        scores: Tensor | None = None,
        scatters: list[Scatter] | None = None,
    ) -> tuple[Tensor, ...]:
        sizes = block.batch + 1, heads.stop, block.rows.stop, block.keys.stop
        refuses = name == "mask_mod" and may_wrap(graph, sizes, function.scalars)
        integers = torch.int64 if refuses else torch.int32

        def places(at: slice) -> Tensor:
            return torch.arange(at.start, at.stop, dtype=integers, device=attended.device)

        inputs = {
            "b": torch.tensor(block.batch, dtype=integers, device=attended.device),
            "h": places(heads)[:, None],
            "q": places(block.rows)[:, None, None],
            "kv": places(block.keys),
        }
        if scores is not None:
            inputs["score"] = scores
        # a mask is what its function said when it was made, in fp32, whatever comes to be attended
        dtype = torch.float32 if name == "mask_mod" else self._dtype
        of_function = function.tensors, function.scalars
        return evaluate(graph, inputs, *of_function, dtype, attended, name, scatters, refuses_wrapping=refuses)


def _hidden_in(mask: IntervalMask, block: BlockLike, heads: slice) -> Tensor:
    """bool `(rows, keys)`, of the plane that these heads have in another mask."""
    plane = (block.batch if mask.batch > 1 else 0) * mask.heads + (heads.start if mask.heads > 1 else 0)
    keys = torch.arange(block.keys.start, block.keys.stop, dtype=torch.int32, device=mask.device)
    hidden = torch.ones_like(block.hidden[:, 0])
    for lo, hi in zip(mask.lo[plane, :, block.rows, None], mask.hi[plane, :, block.rows, None], strict=True):
        hidden &= (keys < lo) | (keys >= hi)
    return hidden


def _own(found: Tensor, scores: Tensor) -> Tensor:
    """In the shape of the scores, and free to be written to."""
    return found.expand(scores.shape).clone() if found.shape != scores.shape or found is scores else found
