"""The kernels as a backend, on a GPU ("sm90") or in simulation ("sim")."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..caches import KVCache
from ..mask import IntervalMask
from ..mods.blockwise import Thinned
from ..mods.trace import Traced
from ..reference import Gradients, sink_gradient
from .interface import ModGradients, Prepared
from .plan import Plan, backward_plan, forward_plan, launches
from .score_mods import ServedScore, added_in_no_order

if TYPE_CHECKING:
    from ..launch.run import KernelBackend, Order
    from ..spec.forward import Softmax

__all__ = ["Kernels"]

Tensor = torch.Tensor

_DTYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Kernels:
    """See `cute_attn.backends.interface.Backend`; the fields are the options of `cute_attn.backend`, and the tiles that
    a call asks for, which `ops.plans` reads."""

    name: KernelBackend
    softmax: Softmax = "stale"
    mode: str = "eager"
    seed: int = 0
    tile: str = ""
    backward_tile: str = ""

    def check_served(self, dtype: torch.dtype, head_dims: tuple[int, int], device: torch.device) -> None:
        other = "with cute_attn.backend('reference') they run in plain PyTorch"
        if dtype not in _DTYPES:
            raise NotImplementedError(
                f"backend {self.name!r} has kernels for bfloat16 and float16, got {dtype}; {other}"
            )
        for name, dim in zip(("head_dim", "head_dim of v"), head_dims, strict=True):
            if dim % 8 or not 8 <= dim <= 256:
                raise NotImplementedError(
                    f"backend {self.name!r} has kernels for a {name} that is a multiple of 8 up to 256, got {dim}; "
                    f"{other}"
                )
        self._check_hopper(device)

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
        return launches().forward.forward(
            q,
            k,
            v,
            forward_plan(mask) if isinstance(mask, Plan) else mask,
            softmax_scale=softmax_scale,
            softcap=softcap,
            sink_lse=None if sink is None else launches().rows.sinks_of_rows(sink),
            return_max_logits=return_max_logits,
            sm_margin=sm_margin,
            backend=self.name,
            order=self._order,
            softmax=self.softmax,
            fp32_out=unrounded,
        )

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
        from ..launch.prepared import PreparedKernels

        return PreparedKernels(
            q,
            k,
            v,
            forward_plan(plan),
            backward_plan(plan) if backward else None,
            softmax_scale=softmax_scale,
            softcap=softcap,
            sm_margin=sm_margin,
            has_sink=has_sink,
            deterministic=deterministic,
            softmax=self.softmax,
            backend=self.name,
            order=self._order,
            is_public=is_public,
        )

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
        launch = launches().backward
        if dout is None:
            dout = torch.zeros_like(out)
        if any(needs[:3]):
            dq, dk, dv, delta = launch.backward(
                dout,
                q,
                k,
                v,
                out,
                lse,
                backward_plan(mask) if isinstance(mask, Plan) else mask,
                softmax_scale=softmax_scale,
                softcap=softcap,
                dlse=dlse,
                needs=(needs[0], needs[1], needs[2]),
                needs_delta=needs[3],
                deterministic=deterministic,
                sm_margin=sm_margin,
                fp32_gradients=unrounded,
                backend=self.name,
                order=self._order,
            )
        else:
            dq = dk = dv = None
            delta = launch.row_terms(dout, out, lse, launch.without_keys(mask.lo, mask.hi, mask.heads), dlse)
        dsink = sink_gradient(sink, lse, delta) if needs[3] and sink is not None and delta is not None else None
        return Gradients(dq, dk, dv, dsink)

    def check_decode_served(self, q: Tensor, cache: KVCache, tree: Tensor | None) -> None:
        from ..launch.decode import why_not_served

        if why := why_not_served(q, cache, tree):
            raise NotImplementedError(
                f"backend {self.name!r} has {why}; with cute_attn.backend('reference') it runs in plain PyTorch"
            )
        self._check_hopper(q.device)

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
        from ..launch.decode import decode
        from ..launch.prefill import is_prefill, prefill

        if is_prefill(q, cache):
            return prefill(
                q,
                cache,
                sink,
                softmax_scale=softmax_scale,
                softcap=softcap,
                window=window,
                sm_margin=sm_margin,
                softmax=self.softmax,
                backend=self.name,
                order=self._order,
            )
        return decode(
            q,
            cache,
            sink,
            tree,
            softmax_scale=softmax_scale,
            softcap=softcap,
            window=window,
            num_splits=num_splits,
            sm_margin=sm_margin,
            backend=self.name,
            order=self._order,
        )

    def _check_hopper(self, device: torch.device) -> None:
        if self.name == "sm90" and not _is_hopper(device):
            name = torch.cuda.get_device_name(device)
            raise NotImplementedError(
                f"backend 'sm90' runs on Hopper GPUs, these tensors are on a {name}; "
                "with cute_attn.backend('reference') they run in plain PyTorch"
            )

    def check_mods(self, score: Traced | None, wanted: Sequence[bool], deterministic: bool) -> None:
        if not deterministic or score is None:
            return
        for number in added_in_no_order(score, wanted):
            raise NotImplementedError(
                f"backend {self.name!r} adds up the gradient of a tensor of shape {tuple(score.tensors[number].shape)} "
                f"that score_mod reads at an index of the query in no fixed order, and "
                f"torch.use_deterministic_algorithms(True) asks for one; "
                f"with cute_attn.backend('reference') it runs in plain PyTorch"
            )

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
        plan = forward_plan(mask) if isinstance(mask, Plan) else mask
        return launches().forward.forward(
            q,
            k,
            v,
            plan,
            softmax_scale=softmax_scale,
            return_max_scores=return_max_scores,
            score_mod=None if score is None else ServedScore(score, q, k).score,
            predicate=None if thinned is None else thinned.predicate,
            backend=self.name,
            order=self._order,
            softmax=self.softmax,
        )

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
        self.check_mods(score, wanted, deterministic)
        served = None if score is None else ServedScore(score, q, k, wanted)
        captured = None if served is None else served.gradients()
        dq, dk, dv, _ = launches().backward.backward(
            torch.zeros_like(out) if dout is None else dout,
            q,
            k,
            v,
            out,
            lse,
            backward_plan(mask) if isinstance(mask, Plan) else mask,
            softmax_scale=softmax_scale,
            dlse=dlse,
            needs=(needs[0], needs[1], needs[2]),
            needs_delta=False,
            captured=captured,
            predicate=None if thinned is None else thinned.predicate,
            deterministic=deterministic,
            backend=self.name,
            order=self._order,
        )
        found = [] if served is None or captured is None else served.gathered(captured, lse, dlse)
        return ModGradients(dq, dk, dv, found)

    @functools.cached_property
    def _order(self) -> Order | None:
        return (self.mode, self.seed) if self.name == "sim" else None


@functools.cache
def _is_hopper(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) == (9, 0)
