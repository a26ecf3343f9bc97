"""Block masks, and dense ones, of functions; and functions of functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..eager import outside_of_graphs
from ..mask import IntervalMask
from ..mask.checks import check_device, check_flag, check_number, device_of, shown
from .arguments import check_mod, check_orders
from .block_lists import check_block_size
from .block_mask import BlockMask, MaskMod
from .evaluate import evaluate
from .reading import Captured, read_function
from .recognise import recognise
from .trace import trace

__all__ = ["and_masks", "create_block_mask", "create_mask", "or_masks"]

_PAIRS = 1 << 20  # evaluated together


@outside_of_graphs
def create_block_mask(
    mask_mod: MaskMod,
    B: int | None,
    H: int | None,
    Q_LEN: int,
    KV_LEN: int,
    device: torch.device | str | int | None = None,
    BLOCK_SIZE: int | tuple[int, int] = 128,
    _compile: bool = False,
    separate_full_blocks: bool = True,
    compute_dq_write_order: None = None,
    dq_kv_order: None = None,
) -> BlockMask:
    """The BlockMask of a function that says whether query q_idx attends key kv_idx.

    Args:
        mask_mod: `mask_mod(b, h, q_idx, kv_idx) -> bool`.
        B, H: batch elements and query heads; None for one mask that all share.
        Q_LEN, KV_LEN: queries and keys.
        device: of the mask; None for the current accelerator, else the CPU.
        BLOCK_SIZE: rows and keys of a block, or one int for both; any, it need not suit the kernels.
        separate_full_blocks: False lists full blocks with the partial ones.
        _compile: changes nothing. compute_dq_write_order, dq_kv_order: None.

    A function that can be read as intervals is never evaluated pair by pair; another is, in the blocks that the part of
    it which can be read meets. Raises ValueError for a function that cannot be traced and for captured tensors that
    require a gradient, IndexError where it indexes outside of a captured tensor.
    """
    check_mod("mask_mod", mask_mod, 4)
    batch, heads = (1 if n is None else check_number(name, n, 1) for name, n in (("B", B), ("H", H)))
    rows, keys = check_number("Q_LEN", Q_LEN, 0), check_number("KV_LEN", KV_LEN, 0)
    block = check_block_size(BLOCK_SIZE)
    check_flag("_compile", _compile)
    check_flag("separate_full_blocks", separate_full_blocks)
    check_orders(compute_dq_write_order=compute_dq_write_order or None, dq_kv_order=dq_kv_order)
    place = _device(device)
    captured = Captured.of(trace(mask_mod, "mask_mod", place), mask_mod, place)
    reading, grid = read_function(captured, rows, keys, batch, heads, place, block)
    return BlockMask._of_reading(reading, grid, captured, mask_mod, block, (batch, heads), separate_full_blocks)


@outside_of_graphs
def create_mask(
    mod_fn: Callable[..., Any],
    B: int | None,
    H: int | None,
    Q_LEN: int,
    KV_LEN: int,
    device: torch.device | str | int | None = None,
) -> torch.Tensor:
    """What a mask_mod says of every pair, bool `(B, H, Q_LEN, KV_LEN)`; of a score_mod, where it does not make a score
    of 0 minus infinity. For looking and for tests: it has every pair. Arguments and errors are those of
    `create_block_mask`."""
    is_score = _takes_score(mod_fn)
    batch, heads = (1 if n is None else check_number(name, n, 1) for name, n in (("B", B), ("H", H)))
    rows, keys = check_number("Q_LEN", Q_LEN, 0), check_number("KV_LEN", KV_LEN, 0)
    place = _device(device)
    traced = trace(mod_fn, "score_mod" if is_score else "mask_mod", place)
    graph = traced.graph
    integers = torch.int32 if is_score else torch.int64  # as flex_attention and create_block_mask have them
    dense = torch.empty(batch, heads, rows, keys, dtype=torch.bool, device=place)
    step = max(1, _PAIRS // max(1, batch * heads * keys))
    for first in range(0, rows, step):
        some = dense[:, :, first : first + step]
        inputs = {
            "b": torch.arange(batch, dtype=integers, device=place)[:, None, None, None],
            "h": torch.arange(heads, dtype=integers, device=place)[:, None, None],
            "q": torch.arange(first, first + some.shape[2], dtype=integers, device=place)[:, None],
            "kv": torch.arange(keys, dtype=integers, device=place),
            "score": torch.zeros((), device=place),
        }
        inputs = {name: x for name, x in inputs.items() if graph.reads(name)}
        (said,) = evaluate(graph, inputs, traced.tensors, traced.scalars, torch.float32, None, "mod_fn")
        some.copy_(~torch.isneginf(said) if is_score else said)
    return dense


def and_masks(*mask_mods: MaskMod) -> MaskMod:
    """The mask_mod of what all of some attend; everything, of none."""
    _check_mods(mask_mods)

    def and_mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        result = q_idx.new_ones((), dtype=torch.bool)
        for mask_mod in mask_mods:
            result = result & mask_mod(b, h, q_idx, kv_idx)
        return result

    return and_mask


def or_masks(*mask_mods: MaskMod) -> MaskMod:
    """The mask_mod of what any of some attends; nothing, of none."""
    _check_mods(mask_mods)

    def or_mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        result = q_idx.new_zeros((), dtype=torch.bool)
        for mask_mod in mask_mods:
            result = result | mask_mod(b, h, q_idx, kv_idx)
        return result

    return or_mask


@outside_of_graphs
def _intervals_of(
    mask_mod: MaskMod,
    seqlen_q: int,
    seqlen_k: int | None,
    batch: int,
    heads: int,
    device: torch.device | str | int | None,
) -> IntervalMask:
    """`IntervalMask.from_function`."""
    check_mod("mask_mod", mask_mod, 4)
    rows = check_number("seqlen_q", seqlen_q, 0)
    keys = rows if seqlen_k is None else check_number("seqlen_k", seqlen_k, 0)
    batch, heads = check_number("batch", batch, 1), check_number("heads", heads, 1)
    place = device_of(device)
    captured = Captured.of(trace(mask_mod, "mask_mod", place), mask_mod, place)
    found = recognise(captured.traced, rows, keys, batch, heads, place)
    if found.predicate is not None:
        raise ValueError(
            f"mask_mod is not read as intervals: {found.reason}. flex_attention takes it as a block mask; "
            "IntervalMask.from_dense(create_mask(mask_mod, ...)) makes intervals of a short one"
        )
    return found.intervals


def _check_mods(mods: tuple[MaskMod, ...]) -> None:
    for i, mod in enumerate(mods):
        check_mod(f"mask_mods[{i}]", mod, 4)


def _takes_score(mod: Callable[..., Any]) -> bool:
    """Whether a function is a score_mod; TypeError where it is no mask_mod either."""
    try:
        check_mod("mod_fn", mod, 4)
    except TypeError:
        if not callable(mod):
            raise TypeError(f"mod_fn must be a mask_mod or a score_mod, got {shown(mod)}") from None
        check_mod("mod_fn", mod, 5)
        return True
    return False


def _device(device: torch.device | str | int | None) -> torch.device:
    if device is None:
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    return check_device(device)


IntervalMask._read = staticmethod(_intervals_of)
