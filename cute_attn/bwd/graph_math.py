"""The arithmetic of a tile whose scores or mask a graph has a say in: see `tile_math`, whose fragments these are.

P and dS of an element are computed together, once both products are there: what was computed of a place serves the
score, its derivative and what flows to captured tensors.
"""

import functools
from dataclasses import dataclass
from typing import Any

import cutlass.cute as cute
from cutlass import Int32, Uint32

from cute_attn.mods.device.keys import Flow, KeyGraph, TilePredicate, TileScores
from cute_attn.sm90.ptx import exp2, fma, has_bit, keep_before, keep_where, pack, with_bit
from cute_attn.sm90.score import Where
from cute_attn.spec.backward import BackwardSpec

from .arguments import Tensors
from .tile_math import TileMath

__all__ = ["GraphMath", "Graphs"]


@dataclass(frozen=True)
class Graphs:
    """Those of a spec on a thread's keys in an item; None for none."""

    scores: KeyGraph | None
    predicate: KeyGraph | None
    flow: Flow

    @classmethod
    def of(cls, spec: BackwardSpec, tensors: Tensors, batch: Any, keys: Any, part: Any) -> "Graphs":
        """part: as of Flow."""
        lengths = tensors.lse.shape[2], tensors.k.shape[1]
        captured = (tensors.captured, tensors.numbers), (tensors.asked, tensors.asked_numbers)
        scores, predicate = (
            KeyGraph.of(text, *of_text, batch, keys, lengths) if text else None
            for text, of_text in zip((spec.score.graph, spec.mask.predicate), captured, strict=True)
        )
        return cls(scores, predicate, Flow(tensors.scattered, batch, part, keys, lengths[1]))

    def in_tile(self, where: Where, masked: bool) -> tuple[TileScores | None, TilePredicate | None]:
        """where: the first of the thread's scores is."""
        scores, predicate = self.scores, self.predicate if masked else None
        return (
            None if scores is None else TileScores(scores, where.head, where.row, self.flow),
            None if predicate is None else TilePredicate(predicate, where.head, where.row),
        )


class GraphMath(TileMath):
    """Of a spec that carries a graph."""

    def gradients(
        self,
        scores: cute.Tensor,
        dp: cute.Tensor | None,
        packed: tuple[cute.Tensor, cute.Tensor],
        statistics: tuple[cute.Tensor, cute.Tensor],
        words: list[Any],
        graphs: tuple[TileScores | None, TilePredicate | None],
        where: Where,
        masked: bool,
        early: Any,
    ) -> None:
        """packed = P^T and dS^T = P^T (dP^T - delta) times the derivative of the score; both zero outside the mask.

        dp: dP^T; None if nothing but P is asked for. statistics: shift and delta; where, masked: as in `probabilities`.
        words: none, that of attended pairs, and that of those in marked intervals. graphs: of the tile. early: what
        `asked_early` gives; then the predicate is not asked here.
        """
        p_packed, ds_packed = (cute.recast_tensor(x, Int32) for x in packed)
        of_scores, predicate = graphs
        flags, certain = [*words, None, None][:2]
        if early is not None:
            predicate = None
            early = early if certain is None else early | certain
            flags = early if flags is None else early & flags
        for i in range(self.queries // 16):
            shifts, deltas = (self.of_thread(x, i) for x in statistics)
            for b in range(2):
                changed = self.changed(of_scores, scores, where, 8 * i + 4 * b)
                asked: list[Any] = [predicate and predicate.column(16 * i + 8 * b + e) for e in range(2)]
                for h in range(2):
                    p, ds = [], []
                    for e in range(2):
                        k, row = 8 * i + 4 * b + 2 * h + e, 2 * b + e
                        x, slope, element = changed[k % 4]
                        exponent = fma(x, self.exp2_factor, shifts[row])
                        keep: Any = None if flags is None else has_bit(flags, k)
                        if predicate is not None:
                            holds = predicate.holds(h, asked[e])
                            if certain is not None:
                                holds = holds | has_bit(certain, k)
                            keep = holds if keep is None else keep & holds
                        if masked and not self.spec.mask.is_bounded:
                            exponent = keep_before(exponent, self.keys[h], self.seqlen_k, keep)
                        elif keep is not None:
                            exponent = keep_where(exponent, keep)
                        p.append(exp2(exponent))
                        if dp is not None:
                            gradient = p[e] * (dp[k] - deltas[row])
                            if of_scores is not None:
                                of_scores.scatter(h, element, gradient)
                            ds.append(gradient if slope is None else slope(gradient))
                    place = 4 * i + 2 * b + h
                    p_packed[place] = pack(*p, self.spec.dtype == "bf16")
                    if ds:
                        ds_packed[place] = pack(*ds, self.spec.dtype == "bf16")
        if of_scores is not None:
            of_scores.finish()

    def asked_early(self, predicate: TilePredicate | None) -> Any:
        """A word of bits, what a predicate says, while the products run; None where it is asked when they are done,
        which takes up to two instructions less a score.

        What is read of the rows waits in registers, and beside dK and dV of 128 keys and dims these hold one element of
        every row but not two: there, whoever reads more is asked early.
        """
        is_full = self.spec.tile.n == 128 and self.spec.head_dim == 128
        if predicate is None or not is_full or predicate.reads_of_rows < 2:
            return None
        word = Uint32(0)
        for place in range(self.queries // 8):
            asked = [predicate.column(8 * place + e) for e in range(2)]
            for h in range(2):
                for e in range(2):
                    k = 4 * place + 2 * h + e
                    word = with_bit(word, k, predicate.holds(h, asked[e]))
        return word

    def changed(self, graph: TileScores | None, scores: cute.Tensor, where: Where, first: int) -> list[Any]:
        """Of four registers: the new score; from its gradient that of the old one, None for the same; and of a graph,
        its element."""
        found: list[Any] = []
        columns: dict[int, Any] = {}
        for k in range(first, first + 4):
            at = self.at(where, k)
            if graph is None:
                x = self.score.changed(scores[k], at)
                derivative = self.score.derivative(x, at)
                found.append((x, None if derivative is None else functools.partial(_times, derivative), None))
                continue
            offset, key = 16 * (k // 8) + 8 * (k // 4 % 2) + k % 2, k // 2 % 2
            if offset not in columns:
                columns[offset] = graph.column(offset)
            element = graph.element(key, columns[offset], scores[k] * self.score.factor)
            found.append((element.score, functools.partial(graph.by_score, element), element))
        return found


def _times(derivative: Any, gradient: Any) -> Any:
    return gradient * derivative
