"""An operation is all that the rest of the library knows of a kind of kernel; the table holds one row for each.

Compiling, caching, bundling, profiling and tuning are handed an operation and know no kernel by name: a new kernel is
a new row. `cute_attn.launch.operations` fills the table.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from .mask import MaskForm
from .score import ScoreForm
from .tiles import Tile

__all__ = ["Operation", "Spec", "operation", "operations", "parse_spec", "register"]


class Spec(Protocol):
    """What the machine code of a kernel depends on: a frozen dataclass that checks itself, hashes and prints well."""

    @property
    def op(self) -> str:
        """The name of its operation."""

    @property
    def tile(self) -> Tile:
        """A field."""

    def canonical(self) -> str:
        """JSON with sorted keys: equal for equal specs, in every process, and unlike that of any other operation."""


@dataclass(frozen=True)
class Operation:
    """A kind of kernel.

    name: as commands, specs and tuned tables have it.
    title: in a few words, for people.
    sources: of a spec, folders and files, of the package or absolute, that its machine code is made from beside what
        all share.
    head_dims: the (head_dim, head_dim_v) that its kernels are built for, the smallest first.
    spec: the type of its specs. parse: the inverse of their `canonical`; ValueError or TypeError for anything else.
    check: raises ValueError for a spec whose tile no multiprocessor holds.
    program: the kernel of a spec and stand-ins for its arguments, to compile; imports the compiler.
    shared_memory_bytes: of a CTA of the kernel that has the products.
    forms: in which its specs have a mask and a score of given forms; the third argument is what else they are given.
    table: of a tile schedule, the one that it walks. depth: at head dims, the sum over its products of the dimension
        that is not of the tile.
    call: q, k, v, a mask, the softmax scale and a tile, as something to be called and timed.
    tile: the type of its tiles. tiles: all that may be tried.
    default_tile, graph_tile: at a pair of head_dims, the second of a spec that carries a graph.
    is_tuned: whether `autotune` looks for its fastest tiles; `depth` and `call` are then those of its problems.
    """

    name: str
    title: str
    sources: Callable[[Any], tuple[str, ...]]
    head_dims: tuple[tuple[int, int], ...]
    spec: Callable[..., Spec]
    parse: Callable[[str], Spec]
    check: Callable[[Any], None]
    program: Callable[[Any], tuple[Any, tuple[Any, ...]]]
    shared_memory_bytes: Callable[[Any], int]
    forms: Callable[[MaskForm, ScoreForm, dict[str, Any]], tuple[MaskForm, ScoreForm]]
    table: Callable[[Any], Any]
    depth: Callable[[int, int], int]
    call: Callable[..., Callable[[], object]]
    tile: Callable[..., Tile]
    default_tile: Callable[[int, int], Tile]
    graph_tile: Callable[[int, int], Tile]
    tiles: Callable[[], list[Tile]]
    is_tuned: bool


_table: dict[str, Operation] = {}


def register(row: Operation) -> None:
    """Adds an operation, or replaces the one of its name."""
    _table[row.name] = row


def operations() -> tuple[Operation, ...]:
    return tuple(_table.values())


def operation(name: str) -> Operation:
    """Raises ValueError for a name that no operation has."""
    if name not in _table:
        raise ValueError(f"op must be one of {', '.join(map(repr, _table))}, got {name!r}")
    return _table[name]


def parse_spec(text: str) -> Spec:
    """The spec, of any operation, whose `canonical()` this is. Raises ValueError or TypeError for anything else."""
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError(f"a spec is a JSON object, got {text!r}")
    return operation(fields.get("op", "")).parse(text)
