"""Microseconds that a call costs on the host when its plan is found again: what a GPU does not hide.

Two parts, measured apart because neither needs a GPU: the Python from a public function to the call of the kernel,
which is replaced by nothing; and the kernel's compiled host function (argument checks, TMA maps, the launch), linked to
the simulator's stub, whose launch does nothing. Beside them PyTorch's scaled_dot_product_attention on the CPU, of one
token, whose arithmetic is next to nothing.

flash-attn-4, where it is installed, is measured alike: its Python, and its launch is nothing.

All of it is least processor time of many short rounds, in each of which every call has its turn: the ratios hold on a
machine that others load, the microseconds do not.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import torch
import tvm_ffi
from attention_kernels import PEERS
from common import save
from torch.nn.functional import scaled_dot_product_attention

from autotune.problem import Problem
from cute_attn import backend, flex_flash_attn_func, prepare, sim
from cute_attn.mask import causal
from cute_attn.ops.attention_op import is_ours_alone
from cute_attn.ops.ready import wants_gradients
from cute_attn.sim.host.arguments import CudaView
from cute_attn.sim.host.capture import launches_are_left_out
from cute_attn.sim.host.gpu import answers

CALLS, ROUNDS = 40, 150
TOKENS = 8  # of outputs that an allocator has at hand: those of many wait for new memory, on the CPU

Calls = Mapping[str, Callable[[], object]]


def least(calls: Calls) -> dict[str, float]:
    """Microseconds of a call of each."""
    found = dict.fromkeys(calls, float("inf"))
    for _ in range(ROUNDS):
        for name, call in calls.items():
            call()
            start = time.process_time()
            for _ in range(CALLS):
                call()
            found[name] = min(found[name], (time.process_time() - start) / CALLS * 1e6)
    return found


def with_gradients(inputs: list[torch.Tensor], attend: Callable[[], torch.Tensor]) -> Callable[[], object]:
    def call() -> object:
        out = attend()
        return torch.autograd.grad(out, inputs, out)

    return call


def forwards(inputs: list[torch.Tensor], leaves: list[torch.Tensor]) -> Calls:
    """inputs: packed q, k, v. leaves: the same with gradients."""
    q, k, v = inputs
    mask, ranges, types = causal(TOKENS), torch.tensor([[0, TOKENS]]), torch.tensor([1])
    batched = [x[None] for x in inputs]
    out, lse = flex_flash_attn_func(q, k, v, mask)
    packed, in_batches = prepare(q, k, v, mask), prepare(*batched, mask)
    results = [out[None], lse[None]]
    return {
        "prepared, in batches, into given tensors": lambda: in_batches(*batched, *results),
        "prepared, in batches": lambda: in_batches(*batched),
        "prepared, packed, into given tensors": lambda: packed(q, k, v, out, lse),
        "prepared, packed": lambda: packed(q, k, v),
        "flex_flash_attn_func, an IntervalMask": lambda: flex_flash_attn_func(q, k, v, mask),
        "flex_flash_attn_func, an IntervalMask, gradients kept in mind": lambda: flex_flash_attn_func(*leaves, mask),
        "flex_flash_attn_func, tensors of ranges": lambda: flex_flash_attn_func(
            q, k, v, ranges, ranges, attn_type_map=types
        ),
        "flex_flash_attn_func, tensors of ranges, gradients kept in mind": lambda: flex_flash_attn_func(
            *leaves, ranges, ranges, attn_type_map=types
        ),
    }


def pieces(inputs: list[torch.Tensor], arguments: tuple[Any, ...]) -> Calls:
    """What a prepared call of packed tensors does. arguments: of its kernel."""
    q, k, v = inputs
    attend = prepare(q, k, v, causal(TOKENS))
    call, (out, lse) = attend._call, attend(q, k, v)
    given = q, k, v, out, lse
    batched = [x[None] for x in given]
    takes_anything = tvm_ffi.get_global_func("testing.nop")
    news = [(x.shape, x.stride(), x.dtype) for x in (out, lse)]
    return {
        "nothing": lambda: None,
        "whether somebody looks on, and the tensors are those that were prepared": lambda: (
            is_ours_alone(q, k, v),
            attend._check_alike(q, k, v),
            wants_gradients(q, k, v),
        ),
        "five views in batches": lambda: [x[None] for x in given],
        "two new tensors": lambda: [
            torch.empty_strided(shape, strides, dtype=dtype, device=q.device) for shape, strides, dtype in news
        ],
        "the arguments of the kernel": lambda: call.launch(*batched, None),
        "their way into its host function, by tvm_ffi (in no call above)": lambda: takes_anything(*arguments),
    }


def trained(leaves: list[torch.Tensor]) -> Calls:
    mask = causal(TOKENS)
    attend = prepare(*leaves, mask, backward=True)
    return {
        "prepared, with its backward": with_gradients(leaves, lambda: attend(*leaves)[0]),
        "flex_flash_attn_func, with its backward": with_gradients(
            leaves, lambda: flex_flash_attn_func(*leaves, mask)[0]
        ),
    }


def as_cuda(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tvm_ffi.from_dlpack(CudaView(value))
    return tuple(map(as_cuda, value)) if isinstance(value, tuple) else value


def host_function(function: Any, arguments: tuple[Any, ...]) -> Callable[[], object]:
    """A kernel's, to be called where launches are left out."""
    converted = [as_cuda(x) for x in arguments]
    return lambda: function(*converted)


def of_flash_attention_4(inputs: list[torch.Tensor]) -> dict[str, float]:
    """Microseconds of its forward, without its launch; empty where it is not installed. inputs: packed q, k, v."""
    os.environ.setdefault("FLASH_ATTENTION_ARCH", "sm_90")
    os.environ.setdefault("FLASH_ATTENTION_NUM_SMS", "132")
    peer, problem = PEERS["flash-attn-4"], Problem(heads_q=8, heads_k=2, seqlen_q=TOKENS, seqlen_k=TOKENS)
    if peer.reason(problem) is not None:
        return {}
    from cutlass.cutlass_dsl import tvm_ffi_provider as provider

    kernel, batched = peer.build(problem, torch.device("cpu"), False), [x[None] for x in inputs]
    with contextlib.ExitStack() as stack:
        stack.enter_context(kernel.within())
        with sim.simulated():
            kernel.attention(*batched)  # compiles
        for owner, name, value in (
            (provider.TVMFFIJitCompiledFunction, "__call__", lambda *call, **options: None),
            (provider.TVMFFIJitCompiledFunctionWithKwargs, "__call__", lambda *call, **options: None),
            (torch.Tensor, "is_cuda", True),
            *answers(),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        return least({"flash-attn-4, its launch left out": lambda: kernel.attention(*batched)})


def main() -> None:
    torch.set_num_threads(1)
    inputs = [torch.zeros(TOKENS, heads, 128, dtype=torch.bfloat16) for heads in (8, 2, 2)]
    leaves = [x.clone().requires_grad_() for x in inputs]
    one = [torch.zeros(1, 8, 1, 128, dtype=torch.bfloat16) for _ in range(3)]
    ones = [x.clone().requires_grad_() for x in one]
    sdpa = "scaled_dot_product_attention"
    # The last one alone: outputs that are kept make every call wait for new memory.
    calls: deque[tuple[Any, ...]] = deque(maxlen=1)
    with backend("sim"), mock.patch.object(sim, "run", lambda *call, **options: calls.append(call)):
        forward = {sdpa: lambda: scaled_dot_product_attention(*one), **forwards(inputs, leaves)}
        backward = {
            sdpa: with_gradients(ones, lambda: scaled_dot_product_attention(*ones)),
            **trained(leaves),
        }
        tables = [least(forward), least(backward)]
        flex_flash_attn_func(*inputs, causal(TOKENS))
        function, *arguments = calls[-1]
        inside = least(pieces(inputs, tuple(arguments)))
    with launches_are_left_out():
        tables[0] |= least({"host function of the forward kernel": host_function(function, tuple(arguments))})
    tables[0] |= of_flash_attention_4(inputs)
    first, second = (
        [{"call": name, "microseconds": x, "times PyTorch's": x / found[sdpa]} for name, x in found.items()]
        for found in tables
    )
    nothing = inside.pop("nothing")
    parts = [{"piece": name, "microseconds": x - nothing} for name, x in inside.items()]
    notes = [
        f"Causal, {TOKENS} tokens, 8 and 2 heads of 128, bf16; least processor time of {ROUNDS} rounds of {CALLS} "
        f"calls. A call of ours costs a Python part and its host functions; {sdpa} runs on the CPU, one token, 8 heads "
        f"of 128. {os.getloadavg()[1]:.1f} programs ran on average in these five minutes."
    ]
    others = {"With the backward": second, "A prepared call of packed tensors, piece by piece, each alone": parts}
    save("launch_overhead", "Host time of a call whose plan is cached", first, notes, others)


if __name__ == "__main__":
    main()
