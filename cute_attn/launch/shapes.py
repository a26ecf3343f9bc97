"""The spec that a problem leads to: what the launchers would ask for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

from cute_attn.mask import IntervalMask
from cute_attn.spec.mask import MaskForm
from cute_attn.spec.operation import Spec, operation
from cute_attn.spec.score import ScoreForm
from cute_attn.spec.tiles import Tile

from .dims import kernel_dims

__all__ = ["spec_for", "spec_of"]

AnySpec = TypeVar("AnySpec", bound=Spec)


def spec_for(
    op: str,
    dtype: str,
    head_dim: int,
    head_dim_v: int,
    mask: IntervalMask,
    tile: Tile | None = None,
    score: ScoreForm | None = None,
    predicate: str = "",
    **variant: Any,
) -> Spec:
    """The spec of an operation on a mask; such a spec has those of these facts that it has fields for.

    tile, score: None for the default, and for plain scores. predicate: the text of the graph that thins the mask, which
    is one of `cute_attn.mask.thinned`. variant: further fields of the spec.

    Raises ValueError or TypeError for head dims, tiles or variants that no kernel serves.
    """
    row = operation(op)
    dims = kernel_dims(head_dim, head_dim_v)
    if tile is None:
        tile = row.graph_tile(*dims) if predicate or (score and score.graph) else row.default_tile(*dims)
    schedule = mask.schedule((tile.m, tile.n))
    is_marked = mask._thinning is not None and mask._thinning.is_marked
    kind = MaskForm.of(schedule.layers, schedule.has_lower, schedule.has_upper, predicate, is_marked)
    form, score = row.forms(kind, score or ScoreForm())
    facts = {"dtype": dtype, "head_dim": dims[0], "head_dim_v": dims[1], "mask": form, "score": score, "tile": tile}
    own = {field.name for field in fields(row.spec)}  # type: ignore[arg-type]
    return row.spec(**{name: value for name, value in facts.items() if name in own}, **variant)


@functools.cache
def spec_of(kind: Callable[..., AnySpec], **fields: Any) -> AnySpec:
    """A spec of a kind, checked once."""
    return kind(**fields)
