"""Operations by name, and the specs that options lead to: an option sets a field that some specs have, or all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any

import click

from ..launch.packing import packed_choices
from ..launch.shapes import spec_for
from ..mask import from_spec
from ..mask.tiles import needs_bounds
from ..spec.forward import ForwardSpec
from ..spec.operation import Operation, Spec, operations
from ..spec.score import ScoreForm
from ..spec.tiles import Tile
from ..strict_json import loads

__all__ = ["Heads", "OperationName", "SpecField", "check_goes_with", "has", "packed_specs", "spec_under", "tile_under"]

OF_ALL = ("dtype", "head_dim", "head_dim_v", "mask", "score", "tile")  # fields that have options of their own


class OperationName(click.ParamType):
    """The name of an operation that is in the table when the command runs."""

    name = "op"

    def get_metavar(self, param, ctx=None):
        return f"[{'|'.join(row.name for row in operations())}]"

    def convert(self, value, param, ctx):
        names = [row.name for row in operations()]
        if value not in names:
            self.fail(f"{value!r} is not one of {', '.join(map(repr, names))}.", param, ctx)
        return value


class SpecField(click.ParamType):
    """NAME=VALUE: a field of specs; a value that is no JSON is a text."""

    name = "field"

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        name, _, text = value.partition("=")
        if not name or not text:
            self.fail(f"expected NAME=VALUE such as split=true, got {value!r}", param, ctx)
        if name in OF_ALL:
            self.fail(f"{name} is said by other options, got {value!r}", param, ctx)
        try:
            return name, loads(text)
        except ValueError:
            return name, text


class Heads(click.ParamType):
    """HEADS_Q/HEADS_K."""

    name = "heads"

    def get_metavar(self, param, ctx=None):
        return "Q/K"

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        parts = value.split("/")
        if len(parts) == 2 and all(part.isdecimal() for part in parts):
            q, k = map(int, parts)
            if k and q and q % k == 0:
                return q, k
        self.fail(
            f"expected query heads, a multiple of the key heads, and key heads, such as 32/8, got {value!r}", param, ctx
        )


def has(kind: Callable[..., Any], name: str) -> bool:
    """Whether specs, or tiles, of a type have a field."""
    return name in {field.name for field in fields(kind)}  # type: ignore[arg-type]


def check_goes_with(option: str, name: str, ops: Iterable[str], of: str = "spec") -> None:
    """UsageError unless one of these operations has the field that an option sets, of its specs or its tiles."""
    having = [row.name for row in operations() if has(getattr(row, of), name)]
    if not having:
        raise click.UsageError(f"{option}: no operation has it")
    if not set(having) & set(ops):
        raise click.UsageError(f"{option} goes with --op {' or '.join(having)}")


def spec_under(
    row: Operation,
    dtype: str,
    head_dims: tuple[int, int],
    mask: str,
    seqlen: int,
    tile: Tile | None,
    softcap: bool,
    wanted: dict[str, Any],
    heads: tuple[int, int] | None = None,
) -> Spec:
    """The spec of an operation on a mask that is named; of the fields that are wanted it gets those that it has.
    heads: as in `spec_for`."""
    score = ScoreForm("softcap" if softcap else "plain")
    own = {name: value for name, value in wanted.items() if has(row.spec, name)}
    try:
        found = from_spec(mask, seqlen)
        if own.get("piece") and has(row.spec, "window"):  # of a cache's keys nothing else says what rows attend
            own = {"window": needs_bounds(found)[0], **own}
        return spec_for(row.name, dtype, *head_dims, found, tile, score, heads=heads, **own)
    except TypeError as error:
        raise click.UsageError(str(error)) from None


def packed_specs(spec: Spec, heads: tuple[int, int]) -> list[Spec]:
    """What launches of few query rows with such heads, of q and k, ask for in place of a forward whose heads may share
    tiles, see `can_share`; of other operations nothing."""
    if not isinstance(spec, ForwardSpec):
        return []
    return [replace(spec, packed_heads=choice) for choice in packed_choices(heads, spec.tile.m)]


def tile_under(row: Operation, default: Any, tile: tuple[int, int] | None, stages: int) -> Tile:
    """The default with other numbers of rows, keys and stages, of those that such a tile has."""
    if tile is None:
        return default
    wanted = {"m": tile[0], "rows": tile[0], "n": tile[1], "stages": stages}
    found = replace(default, **{name: value for name, value in wanted.items() if has(row.tile, name)})
    for what, size, made in (("rows", tile[0], found.m), ("keys", tile[1], found.n)):
        if size != made:
            raise click.UsageError(f"--tile {tile[0]}x{tile[1]}: the {row.title} has tiles of {made} {what}")
    return found
