"""The problems that tiles are tuned for."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from cute_attn.kinds import is_int
from cute_attn.launch.dims import kernel_dims
from cute_attn.launch.shapes import spec_for
from cute_attn.launch.tiles import default_tile
from cute_attn.launch.tuned import TunedKey
from cute_attn.mask import IntervalMask, from_spec
from cute_attn.spec.operation import Spec, operations
from cute_attn.spec.tiles import Tile
from cute_attn.strict_json import loads

__all__ = ["PRESETS", "Problem", "load_shapes"]


@dataclass(frozen=True)
class Problem:
    """One operation at one shape under one mask; `mask` is a name as every command takes it.

    Raises TypeError or ValueError for what no kernel serves.
    """

    op: str = "fwd"
    dtype: str = "bf16"
    batch: int = 1
    heads_q: int = 32
    heads_k: int = 8
    head_dim: int = 128
    head_dim_v: int = 128
    seqlen_q: int = 8192
    seqlen_k: int = 8192
    mask: str = "causal"

    def __post_init__(self) -> None:
        if self.op not in _ops():
            raise ValueError(f"Problem.op must be one of {', '.join(_ops())}, got {self.op!r}")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "str" and not isinstance(value, str):
                raise TypeError(f"Problem.{field.name} must be a string, got {value!r}")
            if field.type == "int" and not is_int(value):
                raise TypeError(f"Problem.{field.name} must be an int, got {value!r}")
            if field.type == "int" and value < 1:
                raise ValueError(f"Problem.{field.name} must be at least 1, got {value}")
        if self.heads_q % self.heads_k:
            raise ValueError(f"Problem.heads_q must be a multiple of heads_k, got {self.heads_q} and {self.heads_k}")
        self.spec()

    @property
    def default(self) -> Tile:
        """The tile that it gets without tuning."""
        return default_tile(self.op, (self.head_dim, self.head_dim_v))

    def intervals(self) -> IntervalMask:
        return _intervals(self.mask, self.seqlen_q, self.seqlen_k)

    def spec(self, tile: Tile | None = None) -> Spec:
        """Of its kernel with a tile. Raises ValueError if there is no such kernel."""
        heads = self.heads_q, self.heads_k
        return spec_for(self.op, self.dtype, self.head_dim, self.head_dim_v, self.intervals(), tile, heads=heads)

    def key(self, gpu: str, sms: int) -> TunedKey:
        dims = kernel_dims(self.op, self.head_dim, self.head_dim_v)
        return TunedKey.of(gpu, sms, self.op, self.dtype, dims, (self.heads_q, self.heads_k), self.intervals())

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        dims = f"{self.head_dim}" if self.head_dim == self.head_dim_v else f"{self.head_dim}/{self.head_dim_v}"
        lengths = f"{self.seqlen_q:,}" if self.seqlen_q == self.seqlen_k else f"{self.seqlen_q:,} x {self.seqlen_k:,}"
        heads = f"heads {self.heads_q}/{self.heads_k}"
        return f"{self.op} {self.dtype}, head_dim {dims}, {heads}, batch {self.batch}, {lengths} tokens, {self.mask}"


@functools.lru_cache(maxsize=64)
def _intervals(mask: str, seqlen_q: int, seqlen_k: int) -> IntervalMask:
    return from_spec(mask, seqlen_q, seqlen_k)


def _ops() -> list[str]:
    """The operations that problems may be of."""
    return [row.name for row in operations() if row.is_tuned]


def _each(**shape: Any) -> tuple[Problem, ...]:
    return tuple(Problem(op=op, **shape) for op in _ops())


_PACKED = "causal_documents:cu_seqlens=" + "/".join(str(end) for end in range(0, 16385, 2048))
PRESETS: dict[str, tuple[Problem, ...]] = {
    "causal": _each(mask="causal"),
    "full": _each(mask="full"),
    "packed": _each(mask=_PACKED, seqlen_q=16384, seqlen_k=16384),
    "window": _each(mask="sliding_window:left=1023,right=0", seqlen_q=16384, seqlen_k=16384),
    "small": _each(
        mask="causal", head_dim=64, head_dim_v=64, heads_q=16, heads_k=16, batch=4, seqlen_q=2048, seqlen_k=2048
    ),
    "large": _each(mask="causal", head_dim=256, head_dim_v=256, heads_q=16, heads_k=4),
    "latent": _each(mask="causal", head_dim=192, head_dim_v=128, heads_q=32, heads_k=32),
}


def load_shapes(path: Path) -> list[Problem]:
    """The problems of a JSON list of objects with the fields of `Problem`; without `op`, every operation.

    Raises ValueError or TypeError, naming the item.
    """
    try:
        items = loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(items, list) or not items:
        raise ValueError(f"{path} must hold a JSON list with at least one shape")
    names = {field.name for field in fields(Problem)}
    problems: list[Problem] = []
    for number, item in enumerate(items):
        if not isinstance(item, dict) or not set(item) <= names:
            raise ValueError(
                f"{path}: shape {number} must be an object with fields of {', '.join(sorted(names))}, got {item!r}"
            )
        shape = {"head_dim_v": item.get("head_dim", 128), "seqlen_k": item.get("seqlen_q", 8192), **item}
        try:
            first = Problem(**shape)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: shape {number}: {error}") from None
        problems += [first] if "op" in item else [replace(first, op=op) for op in _ops()]
    return problems
