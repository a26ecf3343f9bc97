"""Which tile a problem gets: the one that was measured fastest for its like, else the static default.

Tables are JSON, written by `autotune`: the user's beside the cache of kernels, and those that the package ships. A key
names the GPU, the operation, its types and sizes, and the kind of mask; lengths and density count by powers of two.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import re
import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast
from weakref import WeakKeyDictionary

import torch

from cute_attn.mask import IntervalMask
from cute_attn.mask.tiles import needs_bounds
from cute_attn.spec.mask import MaskForm
from cute_attn.spec.operation import operation
from cute_attn.spec.score import ScoreForm
from cute_attn.spec.tiles import Tile

from ..directories import cache_directory, warn_unusable

__all__ = [
    "Found",
    "MaskClass",
    "TunedKey",
    "forget",
    "generation",
    "gpu_of",
    "install",
    "lookup",
    "mask_class",
    "table_path",
    "tables",
    "tile_to_json",
    "tuned_tile",
]

NEAREST = 4  # buckets, summed over all axes, that a measured problem may lie away
SHIPPED = Path(__file__).with_name("tuned_tables")
AnyTile = TypeVar("AnyTile", bound=Tile)
Source = Literal["exact", "nearest bucket", "shipped table", "static default"]

log = logging.getLogger("cute_attn.plan")


class MaskClass(NamedTuple):
    """What a mask is to a tile: its layers, and which of their bounds some rows have; and how dense it is.

    layers: 0 if rows attend every key, 1, 2, or "many".
    density: attended pairs in halvings of all pairs, rounded: 0 for all, 1 for causal.
    """

    layers: int | str
    has_lower: bool
    has_upper: bool
    density: int


@dataclass(frozen=True)
class TunedKey:
    """A class of problems that share a tile. seqlen_q, seqlen_k: binary logarithms of the lengths, rounded."""

    gpu: str
    sms: int
    op: str
    dtype: str
    head_dim: int
    head_dim_v: int
    gqa: int
    layers: int | str
    has_lower: bool
    has_upper: bool
    density: int
    seqlen_q: int
    seqlen_k: int

    @classmethod
    def of(
        cls, gpu: str, sms: int, op: str, dtype: str, dims: tuple[int, int], heads: tuple[int, int], mask: IntervalMask
    ) -> TunedKey:
        """heads: of queries and of keys."""
        seqlen_q, seqlen_k = (round(math.log2(max(1, length))) for length in (mask.seqlen_q, mask.seqlen_k))
        ratio, kind = heads[0] // heads[1], mask_class(mask)._asdict()
        return cls(gpu, sms, op, dtype, *dims, ratio, **kind, seqlen_q=seqlen_q, seqlen_k=seqlen_k)

    def distance(self, other: TunedKey) -> float:
        """In buckets; infinite if more than lengths, density or the ratio of heads differs."""
        free = ("gqa", "density", "seqlen_q", "seqlen_k")
        if any(getattr(self, f.name) != getattr(other, f.name) for f in fields(self) if f.name not in free):
            return math.inf
        total = abs(math.log2(self.gqa / other.gqa))
        return total + sum(abs(getattr(self, name) - getattr(other, name)) for name in free[1:])


class Found(NamedTuple):
    tile: Tile
    source: Source
    key: TunedKey | None  # of the entry that gave it


class Table(NamedTuple):
    """A tuned table: where it comes from ("" for one in memory) and its entries."""

    origin: str
    shipped: bool
    tiles: dict[TunedKey, Tile]


def tuned_tile(
    op: str,
    dtype: str,
    dims: tuple[int, int],
    heads: tuple[int, int],
    mask: IntervalMask,
    device: torch.device,
    default: AnyTile,
) -> AnyTile:
    """The tile that a launcher takes; looked up once for a mask object, and in simulation the default."""
    if device.type != "cuda":
        return default
    taken, problem = _taken.setdefault(mask, {}), (op, dtype, dims, heads, device)
    if problem not in taken:
        taken[problem] = default
        gpu, sms = gpu_of(device)
        if any(key.gpu == gpu for table in tables() for key in table.tiles):
            found = lookup(TunedKey.of(gpu, sms, op, dtype, dims, heads, mask), default)
            log.info("%s %s %s, heads %s takes %s: %s", op, dtype, dims, heads, found.tile, found.source)
            taken[problem] = found.tile
    return cast(AnyTile, taken[problem])


def lookup(key: TunedKey, default: Tile) -> Found:
    """The entry for exactly this key in the user's table, else its nearest, else the shipped ones', else `default`."""
    known = tables()
    for shipped in (False, True):
        tiles = {k: tile for table in reversed(known) if table.shipped == shipped for k, tile in table.tiles.items()}
        if key in tiles:
            return Found(tiles[key], "shipped table" if shipped else "exact", key)
        near = min(tiles, key=key.distance, default=None)
        if near is not None and key.distance(near) <= NEAREST:
            return Found(tiles[near], "shipped table" if shipped else "nearest bucket", near)
    return Found(default, "static default", None)


def mask_class(mask: IntervalMask) -> MaskClass:
    """Worked out once for a mask object."""
    found = _classes.get(mask)
    if found is None:
        host = mask._on_host()
        pairs = mask.planes * mask.seqlen_q * mask.seqlen_k
        density = round(-math.log2(max(1, host.area()) / pairs)) if pairs else 0
        found = MaskClass(*_bounds(mask.layers, *needs_bounds(host)), density)
        _classes[mask] = found
    return found


def _bounds(layers: int, has_lower: bool, has_upper: bool) -> tuple[int | str, bool, bool]:
    """What a class has of them: of two layers and more it does not tell which bounds they have."""
    if not (has_lower or has_upper):
        return 0, False, True
    return (1, has_lower, has_upper) if layers == 1 else (2 if layers == 2 else "many", True, True)


_classes: WeakKeyDictionary[IntervalMask, MaskClass] = WeakKeyDictionary()
_taken: WeakKeyDictionary[IntervalMask, dict[tuple[object, ...], Tile]] = WeakKeyDictionary()
_installed: list[Table] = []
_generation = 0


def generation() -> int:
    """A number that changes whenever other tables are asked: plans of another one may have other tiles."""
    return _generation


def tables() -> list[Table]:
    """In the order in which they are asked: installed in this process, the user's, the shipped ones."""
    try:
        own = _read_all(cache_directory() / "tuned", False)
    except OSError as error:
        warn_unusable(error)
        own = ()
    return [*_installed, *own, *_read_all(SHIPPED, True)]


def install(table: dict[str, Any]) -> None:
    """Puts a decoded table before all others in this process: what another rank measured. Raises as `_parsed` does."""
    global _generation
    _installed.insert(0, Table("", False, _parsed(table)))
    _taken.clear()
    _generation += 1


def forget() -> None:
    """Reads the tables anew when they are asked next."""
    global _generation
    _installed.clear()
    _taken.clear()
    _generation += 1
    _read_all.cache_clear()


def table_path(gpu: str) -> Path:
    """The user's table for a GPU. Raises OSError where there is no cache directory."""
    return cache_directory() / "tuned" / f"{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}.json"


def tile_to_json(tile: Tile) -> dict[str, Any]:
    return asdict(cast(Any, tile))


@functools.lru_cache(maxsize=8)
def _read_all(directory: Path, shipped: bool) -> tuple[Table, ...]:
    """Raises OSError where the directory may not be read; glob would pass over that."""
    found = []
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix == ".json")
    except (FileNotFoundError, NotADirectoryError):
        return ()
    for path in paths:
        try:
            tiles, unfit = _that_fit(_parsed(json.loads(path.read_text())))
            found.append(Table(str(path), shipped, tiles))
        except (OSError, ValueError, TypeError, KeyError) as error:
            warnings.warn(f"the tuned table {path} is not used: {error}", stacklevel=4)
            continue
        if unfit:
            told = f"{len(unfit)} tiles of the tuned table {path} are not used, no kernel has them: {unfit[0]}"
            warnings.warn(told, stacklevel=4)
    return tuple(found)


def _parsed(table: dict[str, Any]) -> dict[TunedKey, Tile]:
    """Raises ValueError, TypeError or KeyError for what is no table."""
    if table["format"] != 1:
        raise ValueError(f"its format is {table['format']}, this version of cute_attn reads 1")
    tiles: dict[TunedKey, Tile] = {}
    for entry in table["entries"]:
        key = TunedKey(**entry["key"])
        tiles[key] = operation(key.op).tile(**entry["tile"])
    return tiles


def _that_fit(tiles: dict[TunedKey, Tile]) -> tuple[dict[TunedKey, Tile], list[str]]:
    """Those that kernels have, and why others do not: what was measured with other kernels may no longer fit."""
    kept: dict[TunedKey, Tile] = {}
    unfit = []
    for key, tile in tiles.items():
        row = operation(key.op)
        try:
            mask, score = row.forms(MaskForm(key.layers != 0), ScoreForm(), {})
            facts: dict[str, Any] = {"mask": mask, "score": score, "tile": tile}
            row.check(row.spec(dtype=key.dtype, head_dim=key.head_dim, head_dim_v=key.head_dim_v, **facts))
        except ValueError as error:
            unfit.append(str(error))
        else:
            kept[key] = tile
    return kept, unfit


@functools.cache
def gpu_of(device: torch.device) -> tuple[str, int]:
    """Its name and number of multiprocessors."""
    properties = torch.cuda.get_device_properties(device)
    return properties.name, properties.multi_processor_count
