"""The attention of cute_attn and of its peers, each as one function of q, k and v for a problem on a device."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from attention_cases import Inputs, mask_arguments
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from autotune.problem import Problem
from cute_attn.ops.attention_op import attention

__all__ = ["OURS", "PEERS", "Kernel", "Peer", "failure", "flash_attention_4", "flex", "ours", "prepared", "sdpa"]

os.environ.setdefault("CUTE_DSL_ARCH", "sm_90a")  # of flash-attn-4; read when the DSL is first loaded, not here
Tensor = torch.Tensor
OURS = "cute_attn"


@dataclass(frozen=True)
class Kernel:
    """attention: out of q, k, v, `(batch, tokens, heads, dim)`, differentiable. within: what its calls stand in."""

    attention: Callable[[Tensor, Tensor, Tensor], Tensor]
    within: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext


@dataclass(frozen=True)
class Peer:
    """why_not: one line if it cannot do a problem, known without a GPU. build: its kernel for problem, device, and
    whether the backward must be deterministic."""

    why_not: Callable[[Problem], str | None]
    build: Callable[[Problem, torch.device, bool], Kernel]

    def reason(self, problem: Problem) -> str | None:
        """`why_not`; where even asking fails, that is the reason: a peer's import may raise whatever it likes."""
        try:
            return self.why_not(problem)
        except Exception as error:
            return failure(error)


def failure(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def prepared(kernel: Kernel, operation: str, inputs: Inputs) -> Callable[[], tuple[Tensor, ...]]:
    """One call, ready to be timed: the output, or the gradients of q, k and v from an output made here."""
    q, k, v, dout = inputs
    if operation == "forward":

        def forward() -> tuple[Tensor, ...]:
            with torch.no_grad(), kernel.within():
                return (kernel.attention(q, k, v),)

        return forward
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    with kernel.within():
        out = kernel.attention(*leaves)

    def backward() -> tuple[Tensor, ...]:
        with kernel.within():
            return torch.autograd.grad(out, leaves, dout, retain_graph=True)

    return backward


# ---------------------------------------------------------------- cute_attn


def ours(problem: Problem, device: torch.device, deterministic: bool) -> Kernel:
    """The op below every public function; unlike flex_flash_attn_func it takes a batch under any mask."""
    mask = problem.intervals().to(device)
    scale = problem.head_dim**-0.5

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, None, mask, scale, 0.0, deterministic, 0, False)[0]

    return Kernel(call)


# ---------------------------------------------------------------- torch SDPA


def _sdpa_why_not(problem: Problem) -> str | None:
    if problem.mask == "full" or (problem.mask == "causal" and problem.seqlen_q == problem.seqlen_k):
        return None
    return "scaled_dot_product_attention has full and square causal masks only"


def sdpa(problem: Problem, device: torch.device, deterministic: bool, backend: SDPBackend) -> Kernel:
    causal, grouped = problem.mask == "causal", problem.heads_q != problem.heads_k

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        return scaled_dot_product_attention(*heads_first, is_causal=causal, enable_gqa=grouped).transpose(1, 2)

    @contextlib.contextmanager
    def within() -> Iterator[None]:
        with sdpa_kernel(backend), _deterministic_torch() if deterministic else contextlib.nullcontext():
            yield

    return Kernel(call, within)


@contextlib.contextmanager
def _deterministic_torch() -> Iterator[None]:
    """PyTorch's flag, without the filling of fresh memory that comes with it and would be timed."""
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]


# ---------------------------------------------------------------- flex_attention


def _flex_why_not(problem: Problem) -> str | None:
    return (
        None if importlib.util.find_spec("triton") else "flex_attention is compiled by Triton, which is not installed"
    )


def flex(problem: Problem, device: torch.device, deterministic: bool, compiler: str | None = "inductor") -> Kernel:
    """Its backward adds nothing atomically: it is the same with and without `deterministic`.

    compiler: a backend of torch.compile, or None for none.
    """
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    block_mask = None
    if problem.mask != "full":
        lengths = problem.seqlen_q, problem.seqlen_k
        block_mask = create_block_mask(mask_mod(problem, device), None, None, *lengths, device=str(device))
    function: Any = flex_attention
    if compiler is not None:
        import torch._functorch.config

        torch._dynamo.reset()  # compiled for one problem at a time: many shapes would reach the limit of recompiles
        torch._functorch.config.donated_buffer = False  # a backward is timed many times, over the same saved tensors
        function = torch.compile(flex_attention, dynamic=False, fullgraph=True, backend=compiler)
    grouped = problem.heads_q != problem.heads_k

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        return function(*heads_first, block_mask=block_mask, enable_gqa=grouped).transpose(1, 2)

    return Kernel(call)


def mask_mod(problem: Problem, device: torch.device) -> Callable[..., Tensor]:
    """What flex_attention asks for each pair: by formula where there is a short one, else by look-up of the row."""
    name, arguments = mask_arguments(problem)
    offset = problem.seqlen_k - problem.seqlen_q
    if problem.mask == "causal":
        return lambda b, h, q, k: k <= q + offset
    if name == "sliding_window" and set(arguments) == {"left", "right"}:
        (left,), (right,) = arguments["left"], arguments["right"]
        return lambda b, h, q, k: (k <= q + (offset + right)) & (k >= q + (offset - left))
    mask = problem.intervals().to(device)
    layers = list(zip(mask.lo[0].unbind(), mask.hi[0].unbind(), strict=True))

    def attended(b: Any, h: Any, q: Tensor, k: Tensor) -> Tensor:
        (lo, hi), *more = layers
        found = (k >= lo[q]) & (k < hi[q])
        for lo, hi in more:
            found = found | ((k >= lo[q]) & (k < hi[q]))
        return found

    return attended


# ---------------------------------------------------------------- flash-attn-4


def _flash_attention_4_why_not(problem: Problem) -> str | None:
    try:
        _interface()
    except ModuleNotFoundError as error:
        return f"flash-attn-4 is not installed (pip install -e '.[peers]'): {error}"
    return None if _flash_attention_4_arguments(problem) is not None else "flash-attn-4 has no name for this mask"


def _flash_attention_4_arguments(problem: Problem) -> dict[str, Any] | None:
    """Those that name the mask, or None."""
    name, arguments = mask_arguments(problem)
    if problem.mask in ("causal", "full"):
        return {"causal": problem.mask == "causal"}
    if name == "sliding_window" and set(arguments) == {"left", "right"}:
        return {"window_size": (arguments["left"][0], arguments["right"][0])}
    if name == "causal_documents" and set(arguments) == {"cu_seqlens"} and problem.batch == 1:
        return {"causal": True, "cu_seqlens": arguments["cu_seqlens"]}
    return None


def flash_attention_4(problem: Problem, device: torch.device, deterministic: bool) -> Kernel:
    interface = _interface()
    arguments = _flash_attention_4_arguments(problem)
    assert arguments is not None, problem.mask
    ends = arguments.pop("cu_seqlens", None)
    if ends is None:

        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return interface.flash_attn_func(q, k, v, deterministic=deterministic, **arguments)[0]

        return Kernel(call, _dsl_of_flash_attention_4)
    longest = max(end - begin for begin, end in itertools.pairwise(ends))
    packed = {name: torch.tensor(ends, dtype=torch.int32, device=device) for name in ("cu_seqlens_q", "cu_seqlens_k")}
    packed |= {"max_seqlen_q": longest, "max_seqlen_k": longest}

    def call_packed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = interface.flash_attn_varlen_func(q[0], k[0], v[0], deterministic=deterministic, **packed, **arguments)[0]
        return out[None]

    return Kernel(call_packed, _dsl_of_flash_attention_4)


def _interface() -> Any:
    """Its module. Importing it, also where that fails half-way, replaces a function of the DSL by one that our kernels
    do not fit: undone here."""
    try:
        from flash_attn.cute import interface
    finally:
        if "quack.cute_dsl_utils" in sys.modules:
            _use_converter("_original_convert_single_arg")
    return interface


@contextlib.contextmanager
def _dsl_of_flash_attention_4() -> Iterator[None]:
    _use_converter("_patched_convert_single_arg")
    try:
        yield
    finally:
        _use_converter("_original_convert_single_arg")


def _use_converter(name: str) -> None:
    from quack import cute_dsl_utils

    cute_dsl_utils._converter_module._convert_single_arg = getattr(cute_dsl_utils, name)


# ---------------------------------------------------------------- all


def _sdpa_with(backend: SDPBackend) -> Peer:
    return Peer(_sdpa_why_not, lambda problem, device, deterministic: sdpa(problem, device, deterministic, backend))


PEERS: dict[str, Peer] = {
    "sdpa-cudnn": _sdpa_with(SDPBackend.CUDNN_ATTENTION),
    "sdpa-flash": _sdpa_with(SDPBackend.FLASH_ATTENTION),
    "flex_attention": Peer(_flex_why_not, flex),
    "flash-attn-4": Peer(_flash_attention_4_why_not, flash_attention_4),
}
