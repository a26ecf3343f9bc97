"""What every backend can do, whoever asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from ..caches import KVCache
from ..mask import IntervalMask
from ..mods.blockwise import Thinned
from ..mods.trace import Traced
from ..reference import Gradients
from .plan import Plan

__all__ = ["Backend", "ModGradients", "Prepared"]

Tensor = torch.Tensor


class ModGradients(NamedTuple):
    """Gradients of q, k and v, and of the tensors that a score_mod captured, in their dtypes; None for none."""

    q: Tensor | None
    k: Tensor | None
    v: Tensor | None
    captured: list[Tensor | None]


class Prepared(Protocol):
    """The forward of one kind of call, with everything found but its tensors; for any number of threads at once."""

    @property
    def workspace_bytes(self) -> int:
        """What kernels of a backward take beside its results; 0 for none, and where no kernel runs."""

    def fitted(self, name: str, x: Tensor) -> Tensor:
        """The tensor as a call takes it: itself, a view, or a copy; where it copies nothing, ValueError names it."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, sink: Tensor | None) -> None:
        """Writes out and lse. q, k, v and out are what `fitted` gave."""


class Backend(Protocol):
    """A backend with its options. All of them take checked tensors of one device, and mean the same by them:

    q: `(b, sq, heads_q, d)`; k: `(b, sk, heads_k, d)`; v: `(b, sk, heads_k, dv)`. mask: over (sq, sk), of batch 1 or b;
    or its plan for such tensors. sink: None or `(b or 1, sq or 1, n, heads_q)`.
    """

    @property
    def name(self) -> str:
        """As `cute_attn.backend` takes it."""

    def check_served(self, dtype: torch.dtype, head_dims: tuple[int, int], device: torch.device) -> None:
        """Raises NotImplementedError, naming what does serve them, for tensors that it does not take, of such head dims
        of q and of v."""

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: IntervalMask | Plan,
        sink: Tensor | None,
        *,
        softmax_scale: float,
        softcap: float,
        sm_margin: int,
        return_max_logits: bool,
        unrounded: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """out `(b, sq, heads_q, dv)`, lse `(b, heads_q, sq)` with the sinks in it, max_logits `(b, heads_q)` without
        them or None; the last two in the compute dtype, and out too where it is to be `unrounded`, else in q's."""

    def prepared(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        plan: Plan,
        *,
        softmax_scale: float,
        softcap: float,
        sm_margin: int,
        has_sink: bool,
        deterministic: bool,
        backward: bool,
        is_public: bool,
    ) -> Prepared:
        """A `forward` of tensors like these, whose values are not read. is_public: whether it is for
        `cute_attn.prepare`: kernels are obtained now, with `backward` those of gradients too, and no tensor is copied.
        """

    def backward(
        self,
        dout: Tensor | None,
        dlse: Tensor | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        mask: IntervalMask | Plan,
        sink: Tensor | None,
        *,
        softmax_scale: float,
        softcap: float,
        deterministic: bool,
        sm_margin: int,
        needs: Sequence[bool],
        unrounded: bool = False,
    ) -> Gradients:
        """Gradients of a forward whose inputs and results these are; out may be rounded. dout, dlse: None for zero.
        needs: which of q, k, v and sink need one. unrounded: those of q, k and v in the compute dtype."""

    def check_decode_served(self, q: Tensor, cache: KVCache, tree: Tensor | None) -> None:
        """Raises for a `decode` of such tensors that it does not take: NotImplementedError naming what does serve them,
        ValueError naming the stride of a cache that does not fit."""

    def decode(
        self,
        q: Tensor,
        cache: KVCache,
        sink: Tensor | None,
        tree: Tensor | None,
        *,
        softmax_scale: float,
        softcap: float,
        window: tuple[int, int],
        num_splits: int,
        sm_margin: int,
    ) -> tuple[Tensor, Tensor]:
        """Attention of the last t positions of each sequence over its cache; arguments as in
        `cute_attn.decode_reference`, num_splits and sm_margin as in `flash_attn_with_kvcache`.

        Returns out `(b, t, heads_q, dv)` like q and lse `(b, heads_q, t)` in the compute dtype."""

    def check_mods(self, score: Traced | None, wanted: Sequence[bool], deterministic: bool) -> None:
        """Raises NotImplementedError, naming what does serve it, where it cannot do `mods_backward` with a score_mod.
        wanted: of the tensors of score, which need a gradient."""

    def mods_forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: IntervalMask | Plan,
        thinned: Thinned | None,
        score: Traced | None,
        *,
        softmax_scale: float,
        return_max_scores: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Attention whose scores are what a score_mod makes of them, and whose mask a predicate thins: out as in
        `forward`, lse and max_scores `(b, heads_q, sq)`."""

    def mods_backward(
        self,
        dout: Tensor | None,
        dlse: Tensor | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        mask: IntervalMask | Plan,
        thinned: Thinned | None,
        score: Traced | None,
        *,
        softmax_scale: float,
        deterministic: bool,
        needs: Sequence[bool],
        wanted: Sequence[bool],
    ) -> ModGradients:
        """Gradients of `mods_forward`. needs: which of q, k, v need one; wanted: which of the tensors of score."""
