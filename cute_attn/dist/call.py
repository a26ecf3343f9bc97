"""A call of calc_attn, checked: how it is attended, how its tensors move, and what every rank must have alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..backend import resolve
from ..backends.find import find
from ..checks import check_flag, check_qkv, check_scale, check_sink, check_softcap
from .checks import check_rows
from .cost import CostModel
from .manager import Manager
from .partial import AttentionSettings
from .runtime import CALL, Route

__all__ = ["Call", "check_call"]


class Call(NamedTuple):
    """sink: `(sinks, heads_q)` in the compute dtype, or None. compared: by the name of the argument."""

    sink: torch.Tensor | None
    route: Route
    settings: AttentionSettings
    compared: dict[str, object]


def check_call(
    manager: Manager,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sink: torch.Tensor | None,
    softmax_scale: float | None,
    softcap: float,
    deterministic: bool,
    return_max_logits: bool,
    backend: str | None,
    requires_grad: Sequence[bool],
) -> Call:
    """The arguments of calc_attn; backend: as `resolve` gives it, None asks; requires_grad: of q, k, v and sink.

    Raises as calc_attn does, on every rank where one of them does.
    """
    with manager.guard.checks(CALL):
        check_qkv(q, k, v, "(rows, heads, head_dim)")
        for name, x, side in (("q", q, "q"), ("k and v", k, "k")):
            check_rows(name, x, manager.placement(side).rows_per_rank, f"the rows of side {side!r} on each rank")
        sinks = check_sink(sink, "sh", q)
        check_flag("deterministic", deterministic)
        check_flag("return_max_logits", return_max_logits)
        found = find(resolve(q.device) if backend is None else backend)
        found.check_served(q.dtype, (q.shape[2], v.shape[2]), q.device)
        settings = AttentionSettings(
            softmax_scale=float(check_scale(softmax_scale, q.shape[2])),
            softcap=float(check_softcap(softcap)),
            deterministic=deterministic,
            sm_margin=manager.config.overlap_config.sm_margin,
            backend=found,
        )
        shape = CostModel(q.shape[1], k.shape[1], q.shape[2], v.shape[2], q.element_size())
        route = manager.route(shape, q.device)
    compared: dict[str, object] = {
        **{f"the shape of {name}": tuple(x.shape) for name, x in (("q", q), ("k", k), ("v", v))},
        "dtype": q.dtype,
        "device": q.device.type,
        "the shape of sink": None if sink is None else tuple(sink.shape),
        "the dtype of sink": None if sink is None else sink.dtype,
        "softmax_scale": settings.softmax_scale,
        "softcap": settings.softcap,
        "deterministic": deterministic,
        "return_max_logits": return_max_logits,
        "backend": found.name,
        "requires_grad": tuple(requires_grad),
    }
    return Call(None if sinks is None else sinks[0, 0], route, settings, compared)
