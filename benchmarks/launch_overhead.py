"""Microseconds that a call costs on the host when its plan is found again: what a GPU does not hide.

Two parts, measured apart because neither needs a GPU: the Python from `flex_flash_attn_func` to the call of the kernel,
which is replaced by nothing; and the kernel's compiled host function (argument checks, TMA maps, the launch), linked to
the simulator's stub, whose launch does nothing.
"""

from __future__ import annotations

from collections import deque
from typing import Any
from unittest import mock

import torch
import tvm_ffi
from common import median_seconds, save

from cute_attn import backend, flex_flash_attn_func, sim
from cute_attn.mask import causal
from cute_attn.sim.host import stub
from cute_attn.sim.host.arguments import CudaView

CALLS = 500


def per_call(function: Any) -> float:
    """Median microseconds of a call."""

    def repeat() -> None:
        for _ in range(CALLS):
            function()

    return round(median_seconds(repeat) / CALLS * 1e6, 1)


def as_cuda(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tvm_ffi.from_dlpack(CudaView(value))
    return tuple(map(as_cuda, value)) if isinstance(value, tuple) else value


def main() -> None:
    q, k, v = (torch.zeros(4096, heads, 128, dtype=torch.bfloat16) for heads in (8, 2, 2))
    mask, ranges = causal(4096), torch.tensor([[0, 4096]])
    causal_type = torch.tensor([1])
    # The last one alone: outputs that are kept make every call wait for new memory.
    calls: deque[tuple[Any, ...]] = deque(maxlen=1)
    with backend("sim"), mock.patch.object(sim, "run", lambda *call, **options: calls.append(call)):
        by_mask = per_call(lambda: flex_flash_attn_func(q, k, v, mask))
        by_ranges = per_call(lambda: flex_flash_attn_func(q, k, v, ranges, ranges, attn_type_map=causal_type))
        function, *arguments = calls[-1]
        inputs = [x[:64].clone().requires_grad_() for x in (q, k, v)]  # short: gradients are allocated in the call
        short = causal(64)

        def train() -> None:
            out, _ = flex_flash_attn_func(*inputs, short)
            torch.autograd.grad(out, inputs, out)

        with_backward = per_call(train)
    nothing = stub.LaunchCallback(lambda *launch: 0)
    stub.library().cute_attn_stub_on_launch(nothing)
    converted = [as_cuda(x) for x in arguments]
    rows = [
        {"part": "Python, mask given as an IntervalMask", "microseconds": by_mask},
        {"part": "Python, mask given as tensors of ranges", "microseconds": by_ranges},
        {"part": "Python with the backward, mask given as an IntervalMask", "microseconds": with_backward},
        {"part": "host function of the forward kernel", "microseconds": per_call(lambda: function(*converted))},
    ]
    notes = [
        "Causal, 4096 tokens (64 where gradients are asked for), 8 and 2 heads of 128. A call costs a Python part and "
        "the host functions."
    ]
    save("launch_overhead", "Host time of a call whose plan is cached", rows, notes)


if __name__ == "__main__":
    main()
