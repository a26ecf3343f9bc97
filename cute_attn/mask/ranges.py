"""Slices as people write them: ranges of rows, ranges of keys, and a type for each pair."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Any, TypeVar, overload

import numpy as np
import torch

from ..kinds import is_int
from .checks import Integers, check_device, check_integer_tensor, check_integers, shown

__all__ = ["AttnMaskType", "AttnRange", "AttnRanges", "RangesLike", "ranges_tensor", "types_tensor"]

Value = TypeVar("Value")


@dataclass(frozen=True, order=True)
class AttnRange:
    """The half-open range [start, end) of token positions."""

    start: int
    end: int

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            value = getattr(self, name)
            if isinstance(value, np.integer):
                object.__setattr__(self, name, int(value))
            elif not is_int(value):
                raise TypeError(f"AttnRange: {name} must be an int, got {shown(value)}")
        if self.start < 0 or self.start > self.end:
            raise ValueError(f"AttnRange: 0 <= start <= end must hold, got [{self.start}, {self.end})")
        if self.end >= 1 << 31:
            raise ValueError(f"AttnRange: end must be below 2^31, got {self.end}")

    @classmethod
    def from_range(cls, pair: AttnRange | Sequence[int]) -> AttnRange:
        """From `[start, end]` or another AttnRange."""
        if isinstance(pair, AttnRange):
            return pair
        if isinstance(pair, (torch.Tensor, np.ndarray)):
            pair = check_integers("AttnRange: [start, end]", pair).tolist()
        if not isinstance(pair, Sequence) or isinstance(pair, (str, bytes)):
            raise TypeError(f"AttnRange: expected [start, end], got {shown(pair)}")
        if len(pair) != 2:
            raise ValueError(f"AttnRange: expected [start, end], got {len(pair)} numbers: {list(pair)}")
        # NumPy's and torch's integers become ints; a float or bool stays one and is refused
        return cls(*(operator.index(x) if hasattr(x, "__index__") and not isinstance(x, bool) else x for x in pair))

    @property
    def seqlen(self) -> int:
        return self.end - self.start

    def __len__(self) -> int:
        return self.end - self.start

    def __iter__(self) -> Iterator[int]:
        return iter((self.start, self.end))

    def __repr__(self) -> str:
        return f"[{self.start}, {self.end})"


class AttnRanges(Sequence[AttnRange]):
    """A list of ranges, one for each slice; ranges may overlap and need no order."""

    def __init__(self, ranges: Iterable[AttnRange | Sequence[int]] = ()) -> None:
        self._ranges = _pairs("ranges", ranges)

    @classmethod
    def from_ranges(cls, ranges: Iterable[AttnRange | Sequence[int]]) -> AttnRanges:
        """From `[[start, end], ...]`."""
        return cls(ranges)

    @classmethod
    def from_cu_seqlens(cls, cu_seqlens: Integers) -> AttnRanges:
        """From cumulative lengths `[0, a, a + b, ...]`: one range for each sequence."""
        ends = check_integers("cu_seqlens", cu_seqlens)
        if ends.ndim != 1:
            raise ValueError(f"cu_seqlens must have shape (documents + 1,), got {tuple(ends.shape)}")
        return _read("cu_seqlens", list(pairwise(ends.tolist())), cls)

    def append(self, item: AttnRange | Sequence[int]) -> None:
        self._ranges.append(AttnRange.from_range(item))

    def extend(self, items: Iterable[AttnRange | Sequence[int]]) -> None:
        self._ranges.extend(_pairs("items", items))

    def to_naive_ranges(self) -> list[tuple[int, int]]:
        return [(r.start, r.end) for r in self._ranges]

    def to_tensor(self, device: torch.device | str | None = None) -> torch.Tensor:
        """int32 tensor `(n, 2)`."""
        place = torch.device("cpu") if device is None else check_device(device)
        return torch.tensor(self.to_naive_ranges(), dtype=torch.int32, device=place).reshape(-1, 2)

    @property
    def total_seqlen(self) -> int:
        """Sum of the lengths."""
        return sum(r.seqlen for r in self._ranges)

    @property
    def start(self) -> int:
        return min((r.start for r in self._ranges), default=0)

    @property
    def end(self) -> int:
        return max((r.end for r in self._ranges), default=0)

    def __len__(self) -> int:
        return len(self._ranges)

    @overload
    def __getitem__(self, index: int) -> AttnRange: ...
    @overload
    def __getitem__(self, index: slice) -> AttnRanges: ...
    def __getitem__(self, index: int | slice) -> AttnRange | AttnRanges:
        return AttnRanges(self._ranges[index]) if isinstance(index, slice) else self._ranges[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AttnRanges) and self._ranges == other._ranges

    def __hash__(self) -> int:
        return hash(tuple(self._ranges))

    def __repr__(self) -> str:
        return f"AttnRanges({self._ranges})"


class AttnMaskType(Enum):
    """How a slice with rows [qs, qe) and keys [ks, ke) masks row i; the same names as MagiAttention's."""

    FULL = "full"  # [ks, ke)
    CAUSAL = "causal"  # [ks, ke - (qe - 1 - i)): aligned bottom right
    INVCAUSAL = "inv_causal"  # [ks + (i - qs), ke): aligned top left
    BICAUSAL = "bi_causal"  # [ks + (i - qs), ke - (qe - 1 - i)): both

    def to_int_type(self) -> int:
        return _TYPES.index(self)

    @classmethod
    def from_int_type(cls, value: int | np.integer) -> AttnMaskType:
        if not is_int(value, np.integer):
            raise TypeError(f"AttnMaskType: expected an int 0..3, got {shown(value)}")
        if value not in range(4):
            raise ValueError(f"AttnMaskType: expected 0 full, 1 causal, 2 inv_causal or 3 bi_causal, got {value}")
        return _TYPES[int(value)]

    @classmethod
    def parse(cls, value: AttnMaskType | str | int | np.integer) -> AttnMaskType:
        """From an AttnMaskType, one of its names, or 0..3."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            try:
                return cls(value.lower())
            except ValueError:
                names = ", ".join(repr(t.value) for t in cls)
                raise ValueError(f"AttnMaskType: unknown name {value!r}; allowed: {names}") from None
        if isinstance(value, (int, np.integer)):
            return cls.from_int_type(value)
        raise TypeError(f"AttnMaskType: expected an AttnMaskType, a name or 0..3, got {type(value).__name__}")


_TYPES = list(AttnMaskType)

RangesLike = torch.Tensor | np.ndarray | AttnRanges | Sequence[Sequence[int]]


def ranges_tensor(name: str, ranges: RangesLike, device: torch.device | str | None = None) -> torch.Tensor:
    """Ranges in any accepted form as an int64 tensor `(n, 2)`; `name` is the argument that errors speak of."""
    if isinstance(ranges, AttnRanges):
        ranges = ranges.to_tensor()
    elif isinstance(ranges, np.ndarray):
        ranges = check_integers(name, ranges)
    elif not isinstance(ranges, torch.Tensor):
        if isinstance(ranges, (str, bytes)) or not isinstance(ranges, Sequence):
            raise TypeError(f"{name} must be a tensor, AttnRanges or a list of pairs, got {type(ranges).__name__}")
        ranges = AttnRanges(_each(name, ranges, AttnRange.from_range)).to_tensor()
    check_integer_tensor(name, ranges)
    if ranges.ndim != 2 or ranges.shape[1] != 2:
        raise ValueError(f"{name} must have shape (n, 2), got {tuple(ranges.shape)}")
    return ranges.to(device=ranges.device if device is None else check_device(device), dtype=torch.int64)


def types_tensor(name: str, types: object, count: int, device: torch.device | str | None = None) -> torch.Tensor:
    """Mask types in any accepted form (None, one type, a list, a tensor) as an int64 tensor `(count,)`."""
    place = torch.device("cpu") if device is None else check_device(device)
    if types is None:
        return torch.zeros(count, dtype=torch.int64, device=place)
    if isinstance(types, np.ndarray) and types.ndim:
        types = types.tolist()  # of numbers or of names
    if isinstance(types, torch.Tensor):
        check_integer_tensor(name, types)
        tensor = types
    elif isinstance(types, (str, int, np.integer, AttnMaskType)):
        tensor = torch.full((count,), _read(name, types, AttnMaskType.parse).to_int_type(), device="cpu")
    elif isinstance(types, Sequence):
        kinds = _each(name, types, AttnMaskType.parse)
        tensor = torch.tensor([kind.to_int_type() for kind in kinds], dtype=torch.int64, device="cpu")
    else:
        raise TypeError(f"{name} must be None, a tensor, a type or a list of types, got {type(types).__name__}")
    if tensor.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), one type a slice, got {tuple(tensor.shape)}")
    return tensor.to(device=tensor.device if device is None else place, dtype=torch.int64)


def _pairs(name: str, ranges: Iterable[AttnRange | Sequence[int]]) -> list[AttnRange]:
    if isinstance(ranges, (str, bytes)) or not isinstance(ranges, Iterable):
        raise TypeError(f"{name} must be pairs [start, end], got {shown(ranges)}")
    if isinstance(ranges, (torch.Tensor, np.ndarray)):
        ranges = ranges_tensor(name, ranges).tolist()
    return _each(name, ranges, AttnRange.from_range)


def _each(name: str, items: Iterable[Any], read: Callable[[Any], Value]) -> list[Value]:
    return [_read(f"{name}[{index}]", item, read) for index, item in enumerate(items)]


def _read(name: str, item: Any, read: Callable[[Any], Value]) -> Value:
    """What `read` makes of an item; its errors say which argument they are about."""
    try:
        return read(item)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None
