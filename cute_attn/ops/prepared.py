"""Attention of one kind of call, checked, planned and compiled ahead: what is left is to look at tensors and launch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..checks import check_flag, check_mask, check_qkv, check_scale, check_sink, check_softcap
from ..mask import IntervalMask
from ..mask.intervals import check_mask as check_is_mask
from .attention_op import is_ours_alone, make_ready, planned_attention, ready_attention
from .ready import wants_gradients

__all__ = ["PreparedAttention", "prepare"]

Tensor = torch.Tensor
# As PyTorch's own functions do, so that a backward sees what was overwritten.
_count_write = torch._C._increment_version


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: IntervalMask,
    *,
    softmax_scale: float | None = None,
    softcap: float = 0.0,
    sink: Tensor | None = None,
    deterministic: bool = False,
    backward: bool = False,
) -> PreparedAttention:
    """Checks, plans and compiles a call of attention now, for calls on tensors like these that cost the host as little
    as they can.

    Args:
        q, k, v: tensors of the shapes, dtype and device of the calls, packed `(tokens, heads, head_dim)` as for
            `flex_flash_attn_func` or `(batch, tokens, heads, head_dim)`; their values are not read.
        mask: over their tokens; it owns its intervals, so that what it was made of may change.
        softmax_scale, softcap, deterministic: as for `flex_flash_attn_func`.
        sink: as there with sink_layout "sh", `(s_sink, heads_q)` or `(heads_q,)`. It is read at every call, and has a
            gradient; one fp32 logit a head is read where it lies, others take a sum and its memory at every call.
        backward: whether calls may ask for gradients.

    The backend is the one that serves the device now, whatever `cute_attn.backend` says later.

    Raises TypeError or ValueError naming the argument; NotImplementedError where no backend serves the device;
    RuntimeError inside a function that torch.compile compiles, and while a CUDA graph is captured.
    """
    if torch.compiler.is_compiling():
        raise RuntimeError(
            "cute_attn.prepare is called outside of what is compiled; what it returns may be called inside"
        )
    is_packed = isinstance(q, Tensor) and q.ndim == 3
    check_qkv(q, k, v, "(tokens, heads, head_dim)" if is_packed else "(batch, tokens, heads, head_dim)")
    check_is_mask("mask", mask)
    check_flag("deterministic", deterministic)
    check_flag("backward", backward)
    check_sink(sink, "sh", q)
    scale, cap = check_scale(softmax_scale, q.shape[-1]), check_softcap(softcap)
    return PreparedAttention(q, k, v, mask, scale, cap, sink, deterministic, backward)


class PreparedAttention:
    """What `cute_attn.prepare` returns: attention of one kind of call.

    workspace_bytes: what the kernels of one backward take from PyTorch's allocator beside its results; 0 without one,
        and with the reference, which allocates as it goes.

    A call writes nothing but its results: any number of threads and streams may share one, each backward has a
    workspace of its own, and a CUDA graph may hold any of its calls.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: IntervalMask,
        softmax_scale: float,
        softcap: float,
        sink: Tensor | None,
        deterministic: bool,
        backward: bool,
    ) -> None:
        """Of arguments that `prepare` checked."""
        self._shapes, self._dtype, self._device = tuple([tuple(x.shape) for x in (q, k, v)]), q.dtype, q.device
        self._sink, self._has_backward = sink, backward
        check_mask("mask", mask, *(x[None] if x.ndim == 3 else x for x in (q, k)))
        arguments = q, k, v, mask, softmax_scale, softcap, sink, deterministic, 0
        self._call = make_ready(*arguments, backward=backward, is_public=True)
        self.workspace_bytes: int = self._call.launch.workspace_bytes

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {shape}" for name, shape in zip("qkv", self._shapes, strict=True))
        return f"PreparedAttention({shapes}, {self._dtype}, device='{self._device}', backend={self._call.scalars[4]!r})"

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, out: Tensor | None = None, lse: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attention of tensors like those that it was prepared with.

        Args:
            q, k, v: of the same shapes, dtype and device. On kernels they are read where they lie: their last stride is
                1, the others are multiples of 8, and their memory is 16-byte aligned.
            out, lse: where to write, each of the shape, dtype and device of what is returned. out lies as q, k and v
                do, the last stride of lse is 1, and neither shares memory with another argument. With both, and sinks
                as `prepare` says, kernels allocate nothing. None makes a new one. Not for calls with gradients.

        Returns out `(tokens, heads_q, head_dim_v)` and lse `(heads_q, tokens)`, or `(batch, tokens, heads_q,
        head_dim_v)` and `(batch, heads_q, tokens)`, as `flex_flash_attn_func` has them.

        Raises TypeError or ValueError, naming the argument, for tensors that are not so; RuntimeError where a gradient
        is asked for and it was prepared without `backward=True`.
        """
        sink, call = self._sink, self._call
        is_alone = is_ours_alone(q, k, v, sink)
        self._check_alike(q, k, v)
        if wants_gradients(q, k, v, sink):
            self._check_gradients(out, lse)
            if is_alone:
                return ready_attention(call, q, k, v, self._sinks())
        if not is_alone:
            return self._by_op(q, k, v, out, lse)
        if out is not None or lse is not None:
            places = [q.data_ptr(), k.data_ptr(), v.data_ptr()]
            if out is not None:
                self._check_given("out", out, call.out_shape, call.dtype, places)
                places.append(out.data_ptr())
            if lse is not None:
                self._check_given("lse", lse, call.lse_shape, call.lse_dtype, places)
        return call.attend(q, k, v, None if sink is None else self._sinks(), out, lse)

    def _sinks(self) -> Tensor | None:
        """As `check_sink` has them, of the sink as it is now."""
        sink = self._sink
        return None if sink is None else sink.to(self._call.lse_dtype).reshape(1, 1, -1, sink.shape[-1])

    def _by_op(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor | None, lse: Tensor | None) -> tuple[Tensor, Tensor]:
        """Where somebody wants to see an op."""
        call = self._call
        if out is not None:
            self._check_given("out", out, call.out_shape, call.dtype)
        if lse is not None:
            self._check_given("lse", lse, call.lse_shape, call.lse_dtype)
        q, k, v = call.batched(q, k, v)
        found, found_lse, _ = planned_attention(q, k, v, self._sinks(), call.plan, call.scalars)
        if call.is_packed:
            found, found_lse = found.squeeze(0), found_lse.squeeze(0)
        return found if out is None else out.copy_(found), found_lse if lse is None else lse.copy_(found_lse)

    # ---------------------------------------------------------------- checks

    def _check_alike(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Tensors like those of `prepare`."""
        shape_q, shape_k, shape_v = self._shapes
        dtype, device = self._dtype, self._device
        try:
            if (
                (q.shape == shape_q and k.shape == shape_k and v.shape == shape_v)
                and (q.dtype is dtype and k.dtype is dtype and v.dtype is dtype)
                and (q.device == device and k.device == device and v.device == device)
                and (q.layout is k.layout is v.layout is torch.strided)
            ):
                return
        except (AttributeError, RuntimeError):  # no tensors, or nested ones
            pass
        check_qkv(q, k, v, "(tokens, heads, head_dim)" if self._call.is_packed else "(batch, tokens, heads, head_dim)")
        for name, x, shape in zip("qkv", (q, k, v), self._shapes, strict=True):
            if x.shape != shape:
                raise ValueError(f"{name} must have the shape that was prepared, {shape}, got {tuple(x.shape)}")
            if x.dtype is not dtype:
                raise TypeError(f"{name} must have the dtype that was prepared, {dtype}, got {x.dtype}")
            if x.device != device:
                raise ValueError(f"{name} must be on the device that was prepared, {device}, got {x.device}")

    def _check_gradients(self, out: Tensor | None, lse: Tensor | None) -> None:
        if not self._has_backward:
            raise RuntimeError(
                "a gradient is asked for, and this call was prepared without: give backward=True to "
                "cute_attn.prepare, or call it under torch.no_grad()"
            )
        if out is not None or lse is not None:
            raise ValueError("out and lse must be None where a gradient is asked for")

    def _check_given(
        self,
        name: str,
        x: Tensor,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        places: Sequence[int] | None = None,
    ) -> None:
        """A tensor to write to. places: where others lie, and it must not; with them it counts as written, in place."""
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor or None, got {type(x).__name__}")
        if x.shape != shape or x.device != self._device:
            raise ValueError(f"{name} must have shape {shape} on {self._device}, got {tuple(x.shape)} on {x.device}")
        if x.dtype is not dtype:
            raise TypeError(f"{name} must be {dtype}, got {x.dtype}")
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} must need no gradient: what is written to it has none")
        if places is None:
            return
        if type(x) is not Tensor or x.is_neg() or x.layout is not torch.strided:
            raise TypeError(f"{name} must be a plain, dense torch.Tensor, got {type(x).__name__}, {x.layout}")
        if x.data_ptr() in places and x.numel():
            raise ValueError(f"{name} must share no memory with another argument")
        if name == "lse" and x.stride(-1) != 1:
            raise ValueError(f"lse must have a last stride of 1, got strides {x.stride()}")
        if not x.is_inference():
            _count_write((x,))
