"""The table of operations: each kind of kernel as one row."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ..bwd import config as bwd
from ..decode import config as decode
from ..fwd import config as fwd
from ..mask import IntervalMask
from ..mods.derivative import derivative
from ..mods.graph import Graph
from ..spec.attention import HEAD_DIMS, AttentionSpec
from ..spec.backward import BackwardSpec, backward_score
from ..spec.decode import DECODE_HEAD_DIMS, DecodeSpec, DecodeTile
from ..spec.forward import ForwardSpec
from ..spec.mask import MaskForm
from ..spec.operation import Operation, register
from ..spec.score import ScoreForm
from ..spec.tiles import BackwardTile, Tile, TileConfig

__all__ = ["BACKWARD", "DECODE", "FORWARD"]


def _of_graphs(spec: AttentionSpec) -> tuple[str, ...]:
    """What makes machine code of the graphs that a spec carries, if it carries any."""
    return ("mods/graph.py", "mods/device") if spec.score.graph or spec.mask.predicate else ()


def _backward_sources(spec: BackwardSpec) -> tuple[str, ...]:
    of_graphs = _of_graphs(spec)
    return ("bwd", *of_graphs, *["mods/scatters.py"] * bool(of_graphs))


def _backward_forms(mask: MaskForm, score: ScoreForm, variant: dict[str, Any]) -> tuple[MaskForm, ScoreForm]:
    """A graph of a score_mod becomes that of its derivative, without gradients of what it captured."""
    graph = Graph.parse(score.graph) if score.graph else None
    if graph is not None and len(graph.outputs) == 1:  # a derivative has more
        score = ScoreForm("graph", derivative(graph, (False,) * len(graph.tensors)).text)
    return mask, backward_score(score)


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
    return [BackwardTile(*values) for values in product((64, 128), (2, 4), (1, 2, 4), (0, 1, 2, 4))]


def _decode_forms(mask: MaskForm, score: ScoreForm, variant: dict[str, Any]) -> tuple[MaskForm, ScoreForm]:
    """Windows and lengths are run-time values. Of 8-bit caches the scales of keys change the scores anyway."""
    is_scaled = variant.get("cache", "same") != "same" and not score.is_changed
    return MaskForm(), ScoreForm("scaled") if is_scaled else score


def _decode_program(spec: DecodeSpec) -> tuple[Any, tuple[Any, ...]]:
    from ..decode.arguments import fake_arguments
    from ..decode.kernel import DecodeKernel

    return DecodeKernel(spec), fake_arguments(spec)


def _decode_call(q: Tensor, k: Tensor, v: Tensor, mask: IntervalMask, scale: float, tile: Any) -> Callable[[], object]:
    """k and v are a contiguous cache, all of which is attended, by the tile that its shapes lead to."""
    from ..caches import KVCache
    from .decode import decode as launch

    cache = KVCache(k, v, torch.full((len(q),), k.shape[1], dtype=torch.int32, device=q.device))
    scalars: dict[str, Any] = {
        "softmax_scale": scale,
        "softcap": 0.0,
        "window": (-1, -1),
        "num_splits": 0,
        "sm_margin": 0,
    }
    return lambda: launch(q, cache, None, None, **scalars)


FORWARD = Operation(
    name="fwd",
    title="forward",
    sources=lambda spec: ("fwd", *_of_graphs(spec)),
    head_dims=HEAD_DIMS,
    spec=ForwardSpec,
    parse=ForwardSpec.from_canonical,
    check=fwd.check,
    program=_forward_program,
    shared_memory_bytes=fwd.shared_memory_bytes,
    forms=lambda mask, score, variant: (mask, score),
    table=lambda schedule: schedule.forward,
    depth=lambda d, dv: d + dv,  # S and PV
    call=_forward_call,
    tile=TileConfig,
    default_tile=fwd.default_tile,
    graph_tile=fwd.graph_tile,
    tiles=_forward_tiles,
    is_tuned=True,
)
BACKWARD = Operation(
    name="bwd",
    title="backward",
    sources=_backward_sources,
    head_dims=HEAD_DIMS,
    spec=BackwardSpec,
    parse=BackwardSpec.from_canonical,
    check=bwd.check,
    program=_backward_program,
    shared_memory_bytes=bwd.shared_memory_bytes,
    forms=_backward_forms,
    table=lambda schedule: schedule.backward,
    depth=lambda d, dv: 3 * d + 2 * dv,  # S, dQ and dK; dP and dV
    call=_backward_call,
    tile=BackwardTile,
    default_tile=bwd.default_tile,
    graph_tile=bwd.graph_tile,
    tiles=_backward_tiles,
    is_tuned=True,
)
DECODE = Operation(
    name="decode",
    title="decode",
    sources=lambda spec: ("decode",),
    head_dims=DECODE_HEAD_DIMS,
    spec=DecodeSpec,
    parse=DecodeSpec.from_canonical,
    check=decode.check,
    program=_decode_program,
    shared_memory_bytes=decode.shared_memory_bytes,
    forms=_decode_forms,
    table=lambda schedule: schedule.forward,
    depth=lambda d, dv: d + dv,  # S and PV
    call=_decode_call,
    tile=DecodeTile,
    default_tile=decode.default_tile,
    graph_tile=decode.default_tile,
    is_tuned=False,
    tiles=list,  # none to try: the shapes of a call say how many rows it has
)
for row in (FORWARD, BACKWARD, DECODE):
    register(row)
