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
from .checks import Integers, check_device, check_integer_tensor, check_integers, check_number, shown
from .range_arithmetic import chunks, differences, overlaps, united

__all__ = [
    "AttnMaskType",
    "AttnRange",
    "AttnRanges",
    "RangesLike",
    "check_one_length",
    "ranges_tensor",
    "slice_tensors",
    "types_tensor",
]

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
    def from_range(cls, pair: Any) -> AttnRange:
        """From `[start, end]` or another AttnRange, MagiAttention's own too."""
        if isinstance(pair, AttnRange):
            return pair
        if hasattr(pair, "start") and hasattr(pair, "end"):
            pair = [pair.start, pair.end]
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

    def is_empty(self) -> bool:
        return self.start == self.end

    def is_subrange_of(self, other: AttnRange) -> bool:
        return other.start <= self.start and self.end <= other.end

    def is_overlap_with(self, other: AttnRange) -> bool:
        return self.start < other.end and other.start < self.end

    def clone(self) -> AttnRange:
        """The range itself, which never changes."""
        return self

    def to_naive_range(self) -> tuple[int, int]:
        return self.start, self.end

    def offset(self, offset: int) -> AttnRange:
        return AttnRange(self.start + offset, self.end + offset)

    def truncate(self, start: int | None = None, end: int | None = None) -> AttnRange:
        """The part in [start, end), None for no bound."""
        first = self.start if start is None else max(self.start, start)
        return AttnRange(first, max(first, self.end if end is None else min(self.end, end)))

    def intersect(self, other: AttnRange) -> AttnRange:
        """The positions of both; an empty range if there are none."""
        end = min(self.end, other.end)
        return AttnRange(min(end, max(self.start, other.start)), end)

    def union(self, other: AttnRange) -> list[AttnRange]:
        """One range where they overlap or one lies in the other, else both."""
        if self.is_empty() or other.is_empty() or not self.is_overlap_with(other):
            return [self, other]
        return [AttnRange(min(self.start, other.start), max(self.end, other.end))]

    def diff_by(self, other: AttnRange) -> list[AttnRange]:
        """The positions of other that are not in this range, as ranges that are not empty."""
        left = differences(united([other.to_naive_range()]), united([self.to_naive_range()]))
        return [AttnRange(*pair) for pair in left]

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
    def from_cu_seqlens(cls, cu_seqlens: Integers, seq_len: int | None = None) -> AttnRanges:
        """From cumulative lengths `[0, a, a + b, ...]`: one range for each sequence. seq_len: where they must end."""
        ends = check_integers("cu_seqlens", cu_seqlens)
        if ends.ndim != 1:
            raise ValueError(f"cu_seqlens must have shape (documents + 1,), got {tuple(ends.shape)}")
        last = int(ends[-1]) if len(ends) else 0
        if seq_len is not None and check_number("seq_len", seq_len, 0) != last:
            raise ValueError(f"cu_seqlens must end at seq_len, {seq_len}, got {last}")
        return _read("cu_seqlens", list(pairwise(ends.tolist())), cls)

    def append(self, item: AttnRange | Sequence[int]) -> None:
        self._ranges.append(AttnRange.from_range(item))

    def extend(self, items: Iterable[AttnRange | Sequence[int]]) -> None:
        self._ranges.extend(_pairs("items", items))

    def insert(self, index: int, item: AttnRange | Sequence[int]) -> None:
        self._ranges.insert(index, AttnRange.from_range(item))

    def pop(self, index: int = -1) -> AttnRange:
        return self._ranges.pop(index)

    def clone(self) -> AttnRanges:
        return AttnRanges(self._ranges)

    # ---------------------------------------------------------------- as sets of positions

    def sort(self) -> AttnRanges:
        """By where they start; equal ones stay in their order."""
        in_order = sorted(self._ranges, key=lambda r: r.start)
        return AttnRanges(in_order)

    def merge(self) -> AttnRanges:
        """The same positions as ascending ranges that neither overlap nor touch, none of them empty."""
        return AttnRanges(united(self.to_naive_ranges()))

    def truncate(self, start: int | None = None, end: int | None = None) -> AttnRanges:
        """The parts in [start, end), None for no bound, without the empty ones."""
        return AttnRanges(part for r in self._ranges if not (part := r.truncate(start, end)).is_empty())

    def chunk(self, chunk_size: int) -> list[AttnRanges]:
        """Pieces of chunk_size positions each, in the order of the ranges; the last one may be shorter. Raises
        ValueError for ranges that overlap."""
        size = check_number("chunk_size", chunk_size, 1)
        if self.intersect_size():
            raise ValueError(f"ranges must not overlap to be cut into chunks, got {self}")
        return [AttnRanges(piece) for piece in chunks(self.to_naive_ranges(), size)]

    def find_overlap_ranges(self, other: AttnRanges) -> AttnRanges:
        """The positions of both, merged."""
        return AttnRanges(overlaps(*(united(ranges.to_naive_ranges()) for ranges in (self, other))))

    def find_hole_ranges(self, other: AttnRanges) -> AttnRanges:
        """The positions that other has not, merged."""
        return AttnRanges(differences(*(united(ranges.to_naive_ranges()) for ranges in (self, other))))

    def intersect_size(self) -> int:
        """How many positions come again: n - 1 for one that n ranges hold."""
        return self.total_seqlen - self.merge().total_seqlen

    def make_range_local(self, other: AttnRange) -> tuple[AttnRange, AttnRange]:
        """Where a range lies among the positions of the merged ranges, counted one after another; and the merged range
        that holds it. Raises ValueError where none does."""
        before, other = 0, AttnRange.from_range(other)
        for r in self.merge():
            if other.is_subrange_of(r):
                return other.offset(before - r.start), r
            before += r.seqlen
        raise ValueError(f"the range must lie in one of {self.merge()}, got {other}")

    def to_cu_seqlens(self, seq_len: int) -> list[int]:
        """`[0, a, a + b, ...]`. Raises ValueError for ranges that do not follow one another from 0 to seq_len."""
        ends = [0, *(r.end for r in self._ranges)]
        if [r.start for r in self._ranges] != ends[:-1] or ends[-1] != check_number("seq_len", seq_len, 0):
            raise ValueError(f"ranges must follow one another from 0 to {seq_len} to be cumulative lengths, got {self}")
        return ends

    # ---------------------------------------------------------------- looking

    def to_naive_ranges(self) -> list[tuple[int, int]]:
        return [(r.start, r.end) for r in self._ranges]

    def to_tensor(self, device: torch.device | str | None = None) -> torch.Tensor:
        """int32 tensor `(n, 2)`."""
        place = torch.device("cpu") if device is None else check_device(device)
        return torch.tensor(self.to_naive_ranges(), dtype=torch.int32, device=place).reshape(-1, 2)

    @property
    def size(self) -> int:
        """How many ranges there are."""
        return len(self._ranges)

    def is_empty(self) -> bool:
        """Whether there is no range."""
        return not self._ranges

    @property
    def total_seqlen(self) -> int:
        """Sum of the lengths."""
        return sum(r.seqlen for r in self._ranges)

    @property
    def max_seqlen(self) -> int:
        """The longest length; 0 without ranges."""
        return max((r.seqlen for r in self._ranges), default=0)

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

    def __setitem__(self, index: int, item: AttnRange | Sequence[int]) -> None:
        self._ranges[operator.index(index)] = AttnRange.from_range(item)

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
        """From an AttnMaskType, MagiAttention's own too, one of its names, or 0..3."""
        if isinstance(value, cls):
            return value
        if isinstance(value, Enum):
            value = value.value
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
    if not isinstance(ranges, AttnRanges) and hasattr(ranges, "to_naive_ranges"):  # MagiAttention's own
        ranges = AttnRanges(ranges.to_naive_ranges())
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
    elif isinstance(types, (str, int, np.integer, Enum)):
        tensor = torch.full((count,), _read(name, types, AttnMaskType.parse).to_int_type(), device="cpu")
    elif isinstance(types, Sequence):
        kinds = _each(name, types, AttnMaskType.parse)
        tensor = torch.tensor([kind.to_int_type() for kind in kinds], dtype=torch.int64, device="cpu")
    else:
        raise TypeError(f"{name} must be None, a tensor, a type or a list of types, got {type(types).__name__}")
    if tensor.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), one type a slice, got {tuple(tensor.shape)}")
    return tensor.to(device=tensor.device if device is None else place, dtype=torch.int64)


def slice_tensors(
    q_ranges: RangesLike,
    k_ranges: RangesLike,
    types: object,
    device: torch.device | str | None = None,
    types_name: str = "attn_type_map",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Slices in any accepted form (see IntervalMask.from_slices) as int64 tensors, on `device` or where q_ranges is;
    what they hold is checked where they become intervals."""
    q = ranges_tensor("q_ranges", q_ranges, device)
    k = ranges_tensor("k_ranges", k_ranges, device or q.device)
    check_one_length(q, k)
    return q, k, types_tensor(types_name, types, len(q), q.device)


def check_one_length(q_ranges: torch.Tensor, k_ranges: torch.Tensor) -> None:
    if q_ranges.shape[0] != k_ranges.shape[0]:  # len() would make torch.export take the number for a constant
        raise ValueError(f"q_ranges and k_ranges must have one length, got {q_ranges.shape[0]} and {k_ranges.shape[0]}")


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
