"""What the backend of a call reads of its mask, as tensors: nothing else travels through a custom op.

An IntervalMask keeps the plans made of it; a mask described by other tensors is looked up by content, and its plans
with it. In a graph (torch.compile, torch.export, make_fx) an op makes the plan, which is the graph's own: the memory of
what an op returns may be used again, and a kept plan must not change.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch._library.fake_impl import allocate_size
from torch.compiler import is_compiling

from ..backend import option_of
from ..backends.find import find
from ..backends.plan import FORM, Call, Plan, make_plan, tuned_generation
from ..backends.tiles import TILES
from ..columns import TurnRow
from ..custom_ops import register
from ..mask import IntervalMask
from ..mask.source import MaskSource
from ..renamed import OPS
from .library import SOURCE_SCHEMA
from .mask_cache import find_mask, refuse_capture

__all__ = ["Plan", "is_traced", "plan_of", "prepare_calls", "size_that_a_mask_decides"]

Tensor = torch.Tensor


def plan_of(
    mask: IntervalMask | MaskSource,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    backend: str,
    deterministic: bool,
    return_max_logits: bool,
    captured: tuple[Tensor, ...] = (),
    has_graph: bool = False,
    needs_grad: bool | None = None,
) -> Plan:
    """The plan of a call on checked tensors `(b, s, heads, d)`. captured: what else may need a gradient. has_graph:
    whether a score_mod or a predicate comes with the mask. needs_grad: None asks the tensors."""
    if needs_grad is None:
        needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, *captured))
    call = _call(q, k, v, backend, return_max_logits, needs_grad, deterministic and needs_grad, has_graph)
    if isinstance(mask, IntervalMask):
        return _kept(mask, backend, call)
    lengths = q.shape[1], k.shape[1]
    device = torch.device("cpu") if q.is_meta else q.device  # on meta nobody reads the plan
    if is_traced():
        return _in_graph(mask, *lengths, device, backend, call)
    found, seal = find_mask(mask, *lengths, device)
    return _kept(found, backend, call)._replace(seal=seal)


def prepare_calls(mask: IntervalMask, q: Tensor, k: Tensor, v: Tensor, backend: str, backward: bool) -> None:
    """Makes the plans of all calls on checked tensors `(b, s, heads, d)`."""
    for max_logits in (False, True):
        for needs_grad, deterministic in ((False, False), (True, False), (True, True))[: 3 if backward else 1]:
            _kept(mask, backend, _call(q, k, v, backend, max_logits, needs_grad, deterministic))


def _call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    backend: str,
    return_max_logits: bool,
    needs_grad: bool,
    deterministic: bool,
    has_graph: bool = False,
) -> Call | None:
    """None for the reference, which reads nothing but the intervals."""
    if backend == "reference":
        return None
    is_exact, *tiles = (_options if is_compiling() else _known_options)(backend)
    _, _, heads_q, head_dim = q.shape
    _, _, heads_k, head_dim_v = v.shape
    exact = return_max_logits or is_exact
    generation = tuned_generation()
    return Call(
        q.dtype, head_dim, head_dim_v, heads_q, heads_k, exact, needs_grad, deterministic, has_graph, generation, *tiles
    )


def _options(backend: str) -> tuple[bool, str, str]:
    """Of the text of a backend: whether the exact maximum is kept, and the tiles that the call asks for."""
    tile, backward_tile = (option_of(backend, option) or "" for option in TILES)
    return option_of(backend, "softmax") == "exact", tile, backward_tile


_known_options = functools.lru_cache(_options)  # dynamo would warn of it


def _kept(mask: IntervalMask, backend: str, call: Call | None) -> Plan:
    """The plan that a mask keeps, made now if it does not; in a graph, by an op of the graph."""
    if call is None:
        return Plan(mask.lo, mask.hi, torch.tensor([mask.heads], dtype=torch.int64, device="cpu"))
    plan = mask._plans.get(call)
    if plan is None:
        if not is_traced():
            refuse_capture(mask.device, "a mask is planned")
            plan = mask._plans[call] = make_plan(mask, call)
        else:
            plan = _in_graph(MaskSource.of_mask(mask), mask.seqlen_q, mask.seqlen_k, mask.device, backend, call)
            # Dynamo hands what the graph returned to the mask, as eager code does.
            if torch.compiler.is_dynamo_compiling():
                mask._plans[call] = plan
    return plan


# ---------------------------------------------------------------- in a graph


def is_traced() -> bool:
    """Whether what is called now is recorded, mapped or seen by a mode that wants to see ops: an op makes the plan."""
    return is_compiling() or _len_torch_dispatch_stack() > 0 or _innermost_map() is not None


_len_torch_dispatch_stack = torch._C._len_torch_dispatch_stack
_innermost_map = torch._C._functorch.peek_interpreter_stack


def _in_graph(
    source: MaskSource, seqlen_q: int, seqlen_k: int, device: torch.device, backend: str, call: Call | None
) -> Plan:
    """call: None for the reference, of which nothing but the first three tensors are asked for."""
    dtype, *numbers = (_NO_CALL if call is None else call)[:_OF_OP]
    made = OPS.plan(*source, seqlen_q, seqlen_k, device, backend, dtype, *numbers)
    return Plan(*made)


_OF_OP = 9  # fields of a Call that the op takes as they are; the others are in the text of the backend
_NO_CALL = Call(torch.float32, 0, 0, 0, 0, False, False, False, False, 0)


def size_that_a_mask_decides() -> int | torch.SymInt:
    """In the fake of an op. `new_dynamic_size` would break the graph where torch.compile may break graphs."""
    shapes = torch.library.get_ctx()._shape_env
    return 1 if shapes is None else allocate_size(shapes)  # without shapes nobody reads them


_SCHEMA = (
    f"({SOURCE_SCHEMA}, SymInt seqlen_q, SymInt seqlen_k, Device device, str backend, ScalarType dtype, "
    "SymInt head_dim, SymInt head_dim_v, SymInt heads_q, SymInt heads_k, bool exact, bool backward, "
    "bool deterministic, bool has_graph) -> Tensor[]"
)
_FIELDS = len(MaskSource._fields)


def _plan(*arguments: Any) -> list[Tensor]:
    """The fields of a Plan that are there, none of which anybody else holds."""
    source = MaskSource(*arguments[:_FIELDS])
    seqlen_q, seqlen_k, device, backend, dtype, *numbers = arguments[_FIELDS:]
    if source.kind == "chosen":
        mask = source.build(seqlen_q, seqlen_k, device)
    else:
        mask, _ = find_mask(source, seqlen_q, seqlen_k, device, is_op=True)
    call = None
    if backend != "reference":
        find(backend).check_served(dtype, (numbers[0], numbers[1]), device)
        call = Call._make((dtype, *numbers, tuned_generation(), *_options(backend)[1:]))
    return [tensor.clone() for tensor in _kept(mask, backend, call) if tensor is not None]


def _fake_plan(*arguments: Any) -> list[Tensor]:
    source = MaskSource(*arguments[:_FIELDS])
    seqlen_q, _, device, backend, _, _, _, _, heads_k, _, backward, deterministic, _ = arguments[_FIELDS:]
    size = size_that_a_mask_decides

    def integers(*shape: int | torch.SymInt) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=device)

    planes, heads = source.planes, source.heads
    layers: int | torch.SymInt
    if source.kind in ("intervals", "chosen") and source.first is not None:
        layers = source.first.shape[1]
    elif source.kind == "thinned" and source.first is not None:
        layers = source.first.shape[2]
    else:
        layers = size()
    tensors = [integers(planes, layers, seqlen_q) for _ in range(2)]
    on_kernels = backend != "reference"
    tensors.append(torch.empty(FORM if on_kernels else 1, dtype=torch.int64, device="cpu"))
    if on_kernels:
        tensors += [integers(size(), 7), integers(size(), 4), integers(planes, size(), 32)]
    if backward:
        q_tiles, rows = size(), size()
        columns, key_planes = (7, planes) if heads == 1 else (4 + 3 * (heads // heads_k), planes // heads * heads_k)
        tensors += [integers(size(), columns), integers(size(), 4), integers(planes, q_tiles, layers, 2, rows)]
        tensors += [integers(planes, size(), 32), integers(key_planes, size(), 32)]
        if deterministic:
            tensors += [integers(planes, q_tiles, len(TurnRow._fields)), integers(size(), 4)]
    return tensors


register("plan", _SCHEMA, _plan, _fake_plan)
