"""Tiles that a call asks for, as they travel in the text of a backend."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..spec.tiles import BackwardTile, TileConfig

__all__ = ["TILES", "read_tile", "tile_of", "tile_text"]

TILES = ("tile", "backward_tile")  # the options


def tile_text(what: str, option: str, given: object) -> str:
    """The text of a TileConfig, for "tile", or a BackwardTile, for "backward_tile", or of a dict of its fields.

    Raises TypeError for anything else, TypeError or ValueError for fields that are no tile; all say what it is.
    """
    kind = _kind(option)
    names = [field.name for field in fields(kind)]
    if isinstance(given, dict):
        if unknown := [name for name in given if name not in names]:
            raise TypeError(f"{what} must have no fields but {', '.join(names)}, got {unknown[0]!r}")
        try:
            given = kind(**given)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{what} must be a tile of a kernel: {error}") from None
    if not isinstance(given, kind):
        raise TypeError(f"{what} must be a {kind.__name__} or a dict of its fields, {', '.join(names)}, got {given!r}")
    return "/".join(str(int(value)) for value in astuple(given))


def read_tile(option: str, text: str | None) -> Any:
    """The tile of this text; None for none, or for an empty one."""
    return tile_of(option, map(int, text.split("/"))) if text else None


def tile_of(option: str, numbers: Iterable[int]) -> Any:
    """The tile with these fields, its bools 0 or 1."""
    kind = _kind(option)
    of_type = {"int": int, "bool": bool}
    return kind(*(of_type[str(field.type)](x) for field, x in zip(fields(kind), numbers, strict=True)))


def _kind(option: str) -> type[TileConfig] | type[BackwardTile]:
    from ..spec.tiles import BackwardTile, TileConfig

    return TileConfig if option == "tile" else BackwardTile
