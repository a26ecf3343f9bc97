"""From a plan to a spec: the one place where a kernel is chosen, for launches and for those who ask without tensors."""

from __future__ import annotations

import functools
from dataclasses import fields
from typing import Any, NamedTuple

from cute_attn.mask import IntervalMask
from cute_attn.spec.mask import MaskForm
from cute_attn.spec.operation import Spec, operation
from cute_attn.spec.score import ScoreForm
from cute_attn.spec.tiles import Tile

from .dims import kernel_dims
from .packing import can_share, choose_heads, packed, positions
from .tiles import default_tile

__all__ = ["PLAIN", "PlanForm", "score_of_call", "spec_for", "spec_of_call", "spec_of_plan"]

PLAIN = ScoreForm()


class PlanForm(NamedTuple):
    """What a spec depends on of a plan.

    is_bounded: whether some rows of the mask do not attend every key. is_marked: see `cute_attn.mask.thinned`.
    heads: of the mask. heads_in_tile: of the queries, see `cute_attn.launch.packing`.
    """

    tile: Tile
    is_bounded: bool = False
    is_marked: bool = False
    heads: int = 1
    heads_in_tile: int = 1

    @classmethod
    def of(cls, mask: IntervalMask, tile: Tile, heads_in_tile: int = 1) -> PlanForm:
        schedule, thinning = mask.schedule((positions(tile.m, heads_in_tile), tile.n)), mask._thinning
        is_marked = thinning is not None and thinning.is_marked
        return cls(tile, schedule.layers > 0, is_marked, mask.heads, heads_in_tile)


def spec_of_plan(
    op: str,
    form: PlanForm,
    dtype: str,
    head_dims: tuple[int, int],
    score: ScoreForm,
    predicate: str = "",
    **variant: Any,
) -> Any:
    """The spec of an operation on a plan; such a spec has those of these facts that it has fields for.

    head_dims: of the tensors. score: of the forward, or as the operation itself has it. predicate: the text of its
    graph, where one thins the mask. variant: further fields of the spec.

    Raises ValueError or TypeError for head dims, tiles or variants that no kernel serves.
    """
    row = operation(op)
    dims = kernel_dims(op, *head_dims)
    given = MaskForm(form.is_bounded, predicate, form.is_marked)
    mask, score = row.forms(given, score, variant)
    facts = {"dtype": dtype, "head_dim": dims[0], "head_dim_v": dims[1], "mask": mask, "score": score}
    facts |= {"planes_by_head": form.heads > 1, "packed_heads": packed(form.heads_in_tile), "tile": form.tile}
    own = {field.name for field in fields(row.spec)}  # type: ignore[arg-type]
    return row.spec(**({name: fact for name, fact in facts.items() if name in own} | variant))


# Calls come again: their specs are made, and checked, once.
spec_of_call = functools.cache(spec_of_plan)
score_of_call = functools.lru_cache(maxsize=256)(ScoreForm.of)


def spec_for(
    op: str,
    dtype: str,
    head_dim: int,
    head_dim_v: int,
    mask: IntervalMask,
    tile: Tile | None = None,
    score: ScoreForm = PLAIN,
    predicate: str = "",
    heads: tuple[int, int] | None = None,
    **variant: Any,
) -> Spec:
    """The spec of an operation on a mask: what a launch of it asks for.

    tile: None for the default. predicate: with a mask of `cute_attn.mask.thinned`. heads: of q and k, which may share
    tiles; None for as many of both. score, variant, and what is raised: as in `spec_of_plan`.
    """
    has_graph = bool(score.graph or predicate)
    tile, shared = tile or default_tile(op, (head_dim, head_dim_v), has_graph=has_graph), 1
    if op == "fwd" and heads is not None and can_share(has_graph, **variant):
        shared = choose_heads(mask, heads, tile.m)
    return spec_of_plan(op, PlanForm.of(mask, tile, shared), dtype, (head_dim, head_dim_v), score, predicate, **variant)
