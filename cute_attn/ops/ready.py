"""One kind of call of attention, of which all is known but the tensors: a mask keeps those that came before.

What a call is found by is what its arguments are, never who they are or what they hold: shapes, dtypes, devices and
numbers. So what was checked of them, and chosen by them, once, holds again.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import torch

from ..backend import resolve
from ..backends.find import find
from ..backends.plan import Plan, tuned_generation
from ..mask import IntervalMask
from ..reference import compute_dtype

__all__ = ["Ready", "kind_of_call", "recall", "remember", "wants_gradients"]

Tensor = torch.Tensor
REMEMBERED = 64  # kinds of calls of a mask; all are forgotten where there are more
_CALLS = "calls"  # where they are, among what a mask keeps


def wants_gradients(q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None = None) -> bool:
    """Whether a backward may come of a call on these."""
    return torch.is_grad_enabled() and (
        q.requires_grad or k.requires_grad or v.requires_grad or (sink is not None and sink.requires_grad)
    )


def kind_of_call(q: Tensor, k: Tensor, v: Tensor, *numbers: Hashable) -> tuple[Hashable, ...] | None:
    """What a call is found by; None on the reference, which has nothing to keep.

    q, k, v: of which `is_ours_alone` holds. numbers: the other arguments, as they came.
    """
    backend = resolve(q.device)
    if backend == "reference":
        return None
    return (
        *(q.shape, k.shape, v.shape, q.dtype, k.dtype, v.dtype, q.device, k.device, v.device, q.layout, k.layout),
        *(v.layout, wants_gradients(q, k, v), backend, tuned_generation(), numbers, tuple(map(type, numbers))),
    )


def recall(mask: IntervalMask, kind: tuple[Hashable, ...] | None) -> Ready | None:
    """The call of this kind; None for none, and for arguments that are no kind of any."""
    calls = None if kind is None else mask._derived.get(_CALLS)
    try:
        return None if calls is None else calls.get(kind)
    except TypeError:  # an argument that cannot be hashed
        return None


def remember(mask: IntervalMask, kind: tuple[Hashable, ...], call: Ready) -> None:
    calls = mask._derived.setdefault(_CALLS, {})
    if len(calls) >= REMEMBERED:
        calls.clear()
    calls[kind] = call


class Ready:
    """A kind of call.

    Args:
        q, k, v: checked tensors, whose values are not read: packed, `(tokens, heads, head_dim)`, or `(batch, tokens,
            heads, head_dim)`.
        plan: for them. scalars: the arguments of the op behind its plan.
        has_sink: whether calls have one. backward: whether gradients may be asked for. is_public: see
            `cute_attn.backends.interface.Backend.prepared`.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        plan: Plan,
        scalars: tuple[Any, ...],
        *,
        has_sink: bool = False,
        backward: bool = False,
        is_public: bool = False,
    ) -> None:
        softmax_scale, softcap, deterministic, sm_margin, backend, _ = scalars
        *_, rows, heads, _ = q.shape
        outer = tuple(q.shape[:-3])
        self.plan, self.scalars, self.has_backward = plan, scalars, backward
        self.is_packed = q.ndim == 3
        self.out_shape, self.lse_shape = (*outer, rows, heads, v.shape[-1]), (*outer, heads, rows)
        self.dtype, self.lse_dtype, self.device = q.dtype, compute_dtype(q.dtype), q.device
        self._out_strides, self._lse_strides = _contiguous(self.out_shape), _contiguous(self.lse_shape)
        q, k, v = self.batched(q, k, v)
        self.launch = find(backend).prepared(
            q,
            k,
            v,
            plan,
            softmax_scale=softmax_scale,
            softcap=softcap,
            sm_margin=sm_margin,
            has_sink=has_sink,
            deterministic=deterministic,
            backward=backward,
            is_public=is_public,
        )
        self._strides: tuple[Any, ...] = ()  # of q, k and v that were last found to be as kernels read them

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sink: Tensor | None = None,
        out: Tensor | None = None,
        lse: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """out and lse, into those that are given. sink: as `check_sink` has it."""
        strides, places = (q.stride(), k.stride(), v.stride()), q.data_ptr() | k.data_ptr() | v.data_ptr()
        if self.is_packed:
            q, k, v = q[None], k[None], v[None]
        if strides != self._strides or places % 16:
            q, k, v = self._fitted(q, k, v, strides)
        is_packed = self.is_packed
        if out is None:
            out = torch.empty_strided(self.out_shape, self._out_strides, dtype=self.dtype, device=self.device)
            written = out[None] if is_packed else out
        else:
            written = out[None] if is_packed else out
            if out.stride() != self._out_strides or out.data_ptr() % 16:
                written = self.launch.fitted("out", written)
        if lse is None:
            lse = torch.empty_strided(self.lse_shape, self._lse_strides, dtype=self.lse_dtype, device=self.device)
        written_lse = lse[None] if is_packed else lse
        self.launch(q, k, v, written, written_lse, sink)
        return out, lse

    def batched(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """`(batch, ...)`, as backends take them."""
        return tuple([x[None] for x in tensors]) if self.is_packed else tensors

    def _fitted(self, q: Tensor, k: Tensor, v: Tensor, strides: tuple[Any, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """They as kernels read them; strides that are so are kept in mind, for the next call."""
        fitted = self.launch.fitted
        found = fitted("q", q), fitted("k", k), fitted("v", v)
        if found[0] is q and found[1] is k and found[2] is v:
            self._strides = strides
        return found


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a new tensor."""
    return tuple(math.prod(max(1, size) for size in shape[i + 1 :]) for i in range(len(shape)))
