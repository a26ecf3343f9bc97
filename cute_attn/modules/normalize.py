"""Partial results over parts of the keys, and how they become one, with gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["normalize_attention", "normalize_cudnn_attention"]

Tensor = torch.Tensor


def normalize_attention(
    local_outs: Sequence[Tensor], local_maxes: Sequence[Tensor], local_sums: Sequence[Tensor]
) -> Tensor:
    """`sum(o e^m) / sum(l e^m)` over partial results (o, m, l), as `AttentionOp.apply_attention` gives them.

    Args:
        local_outs: o, sums of values weighted by `e^(score - m)`, `(b, t, heads, d)` each, one or more.
        local_maxes, local_sums: m, and l, the sum of `e^(score - m)`, `(b, t, heads, 1)` each.

    Returns `(b, t, heads, d)` in the dtype of the outs. A part with l = 0 is empty and counts for nothing, whatever its
    o and m hold; where all are empty the result is 0. Raises TypeError or ValueError naming the argument.
    """
    _check("local_outs", local_outs, None)
    for name, others in (("local_maxes", local_maxes), ("local_sums", local_sums)):
        _check(name, others, [(*out.shape[:3], 1) for out in local_outs])
    full = [total != 0 for total in local_sums]
    levels = [m.detach().masked_fill(~f, -torch.inf) for m, f in zip(local_maxes, full, strict=True)]
    shared = _largest(levels)
    weights = [
        (m - shared).masked_fill(~f, -torch.inf).exp() for m, f in zip(local_maxes, full, strict=True)
    ]  # fmt: skip
    total = sum(w * x for w, x in zip(weights, local_sums, strict=True))
    return _weighted(local_outs, weights, full, total)


def normalize_cudnn_attention(local_outs: Sequence[Tensor], local_stats: Sequence[Tensor]) -> Tensor:
    """The result over all keys of results over parts of them and their log-sum-exps.

    Args:
        local_outs: `(b, t, heads, d)` each, one or more. local_stats: lse, `(b, heads, t)` each.

    Returns `(b, t, heads, d)` in the dtype of the outs. A part whose lse is -inf is empty and counts for nothing,
    whatever its out holds; where all are empty the result is 0. Raises TypeError or ValueError naming the argument.
    """
    _check("local_outs", local_outs, None)
    _check("local_stats", local_stats, [(out.shape[0], out.shape[2], out.shape[1]) for out in local_outs])
    stats = [lse.transpose(1, 2)[..., None] for lse in local_stats]
    full = [lse != -torch.inf for lse in stats]
    shared = _largest([lse.detach() for lse in stats])
    weights = [(lse - shared).exp() for lse in stats]
    return _weighted(local_outs, weights, full, sum(weights))


def _largest(levels: list[Tensor]) -> Tensor:
    """The largest of each row, 0 where all are -inf: what exponents are taken relative to."""
    shared = levels[0]
    for level in levels[1:]:
        shared = torch.maximum(shared, level)
    return shared.masked_fill(shared == -torch.inf, 0.0)


def _weighted(outs: Sequence[Tensor], weights: list[Tensor], full: list[Tensor], total: Tensor | int) -> Tensor:
    """`sum(w o) / total`, of what is not empty; 0 where all is."""
    summed = sum(w * out.masked_fill(~f, 0.0) for w, out, f in zip(weights, outs, full, strict=True))
    empty = ~torch.stack(full).any(0)
    return (summed / torch.as_tensor(total, device=empty.device).masked_fill(empty, 1.0)).to(outs[0].dtype)


def _check(name: str, values: object, shapes: list[tuple[int, ...]] | None) -> None:
    """A list of floating tensors; of these shapes, or all of one of four dimensions."""
    if not isinstance(values, (list, tuple)) or not values:
        raise TypeError(f"{name} must be a list of one tensor or more, got {type(values).__name__}")
    for value in values:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            raise TypeError(f"{name} must hold floating tensors, got {got}")
    if shapes is None:
        if any(value.ndim != 4 or value.shape != values[0].shape for value in values):
            got = ", ".join(str(tuple(value.shape)) for value in values)
            raise ValueError(f"{name} must all have one shape (b, t, heads, d), got {got}")
    elif [tuple(value.shape) for value in values] != shapes:
        got = ", ".join(str(tuple(value.shape)) for value in values)
        raise ValueError(f"{name} must be one for each of local_outs, of shapes {shapes}, got {got}")
