"""The table of operations: each kind of kernel as one row."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ..bwd import config as bwd
from ..fwd import config as fwd
from ..mask import IntervalMask
from ..spec.attention import AttentionSpec
from ..spec.backward import BackwardSpec, backward_forms
from ..spec.forward import ForwardSpec
from ..spec.operation import Operation, register
from ..spec.tiles import BackwardTile, Tile, TileConfig

__all__ = ["BACKWARD", "FORWARD"]


def _of_graphs(spec: AttentionSpec) -> tuple[str, ...]:
    """What makes machine code of the graph that a spec carries, if it carries one."""
    return ("mods/graph.py", "mods/device") if spec.score.graph else ()


def _forward_program(spec: ForwardSpec) -> tuple[Any, tuple[Any, ...]]:
    from ..fwd.arguments import fake_arguments
    from ..fwd.kernel import ForwardKernel

    return ForwardKernel(spec), fake_arguments(spec)


def _forward_call(q: Tensor, k: Tensor, v: Tensor, mask: IntervalMask, scale: float, tile: Any) -> Callable[[], object]:
    from .forward import forward

    return lambda: forward(q, k, v, mask, softmax_scale=scale, tile=tile)


def _forward_tiles() -> list[Tile]:
    return [TileConfig(*values) for values in product((128, 192), range(48, 257, 16), (2, 4), (True, False))]


def _backward_program(spec: BackwardSpec) -> tuple[Any, tuple[Any, ...]]:
    from ..bwd.arguments import fake_arguments
    from ..bwd.backward import BackwardKernels

    return BackwardKernels(spec), fake_arguments(spec)


def _backward_call(
    q: Tensor, k: Tensor, v: Tensor, mask: IntervalMask, scale: float, tile: Any
) -> Callable[[], object]:
    from .backward import backward
    from .forward import forward

    out, lse, _ = forward(q, k, v, mask, softmax_scale=scale)
    dout = torch.randn_like(out)
    return lambda: backward(dout, q, k, v, out, lse, mask, softmax_scale=scale, tile=tile)


def _backward_tiles() -> list[Tile]:
    return [BackwardTile(*values) for values in product((64, 128), (2, 4), (1, 2, 4), (1, 2, 4))]


FORWARD = Operation(
    name="fwd",
    title="forward",
    sources=lambda spec: ("fwd", *_of_graphs(spec)),
    spec=ForwardSpec,
    parse=ForwardSpec.from_canonical,
    check=fwd.check,
    program=_forward_program,
    shared_memory_bytes=fwd.shared_memory_bytes,
    forms=lambda mask, score: (mask, score),
    table=lambda schedule: schedule.forward,
    depth=lambda d, dv: d + dv,  # S and PV
    call=_forward_call,
    tile=TileConfig,
    default_tile=fwd.default_tile,
    tiles=_forward_tiles,
    is_tuned=True,
)
BACKWARD = Operation(
    name="bwd",
    title="backward",
    sources=lambda spec: ("bwd",),
    spec=BackwardSpec,
    parse=BackwardSpec.from_canonical,
    check=bwd.check,
    program=_backward_program,
    shared_memory_bytes=bwd.shared_memory_bytes,
    forms=backward_forms,
    table=lambda schedule: schedule.backward,
    depth=lambda d, dv: 3 * d + 2 * dv,  # S, dQ and dK; dP and dV
    call=_backward_call,
    tile=BackwardTile,
    default_tile=bwd.default_tile,
    tiles=_backward_tiles,
    is_tuned=True,
)
for row in (FORWARD, BACKWARD):
    register(row)
