"""A forward of one kind of call, with everything found but its tensors."""

from __future__ import annotations

from typing import Any

import torch

from cute_attn.spec.forward import Softmax

from ..jit.record import note
from . import run
from .backward import BackwardPlan, spec_of_gradients, workspace_bytes
from .forward import ForwardPlan, ask, fill_without_keys, is_without_keys
from .rows import sinks_of_rows
from .run import KernelBackend, Order
from .tensors import in_kernel_form, view_in_kernel_form

__all__ = ["PreparedKernels"]


class PreparedKernels:
    """See `cute_attn.backends.interface.Prepared`.

    Args:
        plan, backward_plan: for tensors like q, k and v, whose values are not read; backward_plan is None where there
            is to be no backward.
        has_sink: whether calls have sinks. deterministic: whether the backward is.
        backend, order: see `cute_attn.launch.run.run`.
        is_public: whether kernels are obtained now, not at the first call, and no tensor is copied.
    """

    def __init__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        plan: ForwardPlan,
        backward_plan: BackwardPlan | None,
        *,
        softmax_scale: float,
        softcap: float,
        sm_margin: int,
        has_sink: bool,
        deterministic: bool,
        softmax: Softmax,
        backend: KernelBackend,
        order: Order | None,
        is_public: bool,
    ) -> None:
        self.workspace_bytes = 0
        self._is_public = is_public
        self._backend: KernelBackend = backend
        self._order = order
        self._is_empty = q.numel() == 0 or is_without_keys(plan, k)
        if self._is_empty:
            return
        self._asked = ask(
            plan,
            q,
            k,
            v,
            softmax_scale=softmax_scale,
            softcap=softcap,
            has_sink=has_sink,
            sm_margin=sm_margin,
            softmax=softmax,
        )
        self._kernel = run.kernel(self._asked.spec, backend) if is_public else None
        if backward_plan is not None:
            spec = spec_of_gradients(backward_plan, q, v, softmax_scale, softcap, has_turns=deterministic)
            self.workspace_bytes = workspace_bytes(spec, *q.shape[:3])
            if is_public:
                run.kernel(spec, backend)

    def __getstate__(self) -> dict[str, Any]:
        """A kernel belongs to its process; another finds its own at its first call."""
        return vars(self) | {"_kernel": None}

    def fitted(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """See `in_kernel_form`."""
        if not self._is_public:
            return in_kernel_form(name, x)
        found = view_in_kernel_form(x)
        if found is None:
            raise ValueError(
                f"{name} must lie as kernels read it in a prepared call, which copies nothing: its last stride 1, the "
                f"others multiples of 8, its memory 16-byte aligned; got strides {x.stride()} and "
                f"data_ptr() % 16 = {x.data_ptr() % 16}"
            )
        return found

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
        sink: torch.Tensor | None,
    ) -> None:
        sink_lse = None if sink is None else sinks_of_rows(sink)
        if self._is_empty:
            fill_without_keys(out, lse, sink_lse)
            return
        asked, kernel = self._asked, self._kernel
        if kernel is None:
            kernel = self._kernel = run.kernel(asked.spec, self._backend)
        else:
            note(asked.spec)
        run.start(kernel, asked.arguments(q, k, v, out, lse, sink_lse), self._backend, (out, lse), self._order)
