"""The one representation of a mask: for every query row, a short sorted list of key intervals."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from .checks import check_device, check_integer_tensor, check_length, check_number, check_tile, shown
from .dense import check_dense, runs_of_rows
from .owned import owned_intervals
from .ranges import RangesLike, slice_tensors
from .readback import on_host
from .slices import expand_slices, union_of_slices
from .tiles import TileSchedule
from .union import stack_layers, unite

__all__ = ["IntervalMask", "check_mask"]

_ON_HOST = "on host"  # among what is derived of a mask


@dataclass(frozen=True, eq=False, repr=False)
class IntervalMask:
    """Which keys each query row attends: row i of plane p sees key k iff `lo[p, j, i] <= k < hi[p, j, i]` for some j.

    Args:
        lo, hi: int32 `(batch * heads, layers, seqlen_q)` on one device, a plane for each batch element and head, heads
            fastest. Layer j is the j-th interval of each row: sorted, disjoint, not touching; empty ones (`lo == hi`)
            last.
        seqlen_k: number of keys; `0 <= lo <= hi <= seqlen_k`.
        heads: 1 for a mask that all heads share, else the number of query heads, each with planes of its own. `batch`
            is 1 for a mask that the whole batch shares.

    Raises TypeError or ValueError for anything else; `IntervalMask.from_intervals` takes intervals in any order.
    A mask owns its intervals: they are copied from the tensors given, which may change afterwards. The plans made from
    a mask are kept on it, so that every layer and step of a model shares them; lo and hi are therefore never edited,
    another mask is another IntervalMask.
    """

    lo: torch.Tensor
    hi: torch.Tensor
    seqlen_k: int
    heads: int = field(default=1, kw_only=True)
    _schedules: dict[tuple[int, int], TileSchedule] = field(default_factory=dict, init=False)
    _derived: dict[Hashable, Any] = field(default_factory=dict, init=False)  # what kernels read besides schedules
    _plans: dict[Hashable, Any] = field(default_factory=dict, init=False)  # what travels into ops, by kind of call
    _thinning: Any = field(default=None, init=False)  # of `mask.thinned`, where a predicate leaves some of the pairs
    _prepare: ClassVar[Callable[..., None]]  # of `prepare`; set by `ops`, which stands above masks
    _text: ClassVar[Callable[..., str]]  # of `draw`, and the bytes of a PNG: set by `draw.py`, which reads masks
    _png: ClassVar[Callable[..., bytes]]
    _read: ClassVar[Callable[..., IntervalMask]]  # of `from_function`; set by `mods`, which traces functions

    def __post_init__(self) -> None:
        for name in ("lo", "hi"):
            value = getattr(self, name)
            if not isinstance(value, torch.Tensor) or value.dtype != torch.int32:
                got = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
                raise TypeError(f"{name} must be an int32 tensor, got {got}")
        lo, hi = self.lo, self.hi
        _check_pair(lo, hi)
        if lo.ndim != 3 or lo.shape != hi.shape or lo.shape[0] < 1 or lo.shape[1] < 1:
            raise ValueError(
                f"lo and hi must both have shape (batch, layers, seqlen_q) with at least one batch and layer, "
                f"got {tuple(lo.shape)} and {tuple(hi.shape)}"
            )
        object.__setattr__(self, "heads", check_number("heads", self.heads, 1))
        if lo.shape[0] % self.heads:
            raise ValueError(
                f"heads must divide the planes of lo and hi, (batch * heads, layers, seqlen_q), got heads {self.heads} "
                f"and {lo.shape[0]} planes"
            )
        object.__setattr__(self, "seqlen_k", check_length("seqlen_k", self.seqlen_k))
        for name, value in zip(("lo", "hi"), owned_intervals(lo, hi, self.seqlen_k), strict=True):
            object.__setattr__(self, name, value)

    # ---------------------------------------------------------------- making

    @classmethod
    def _made(cls, lo: torch.Tensor, hi: torch.Tensor, seqlen_k: int, heads: int = 1) -> IntervalMask:
        """A mask of intervals that our own code made, as they should be and held by nobody else: neither checked, which
        would wait for a GPU, nor copied."""
        mask = object.__new__(cls)
        for name, value in (("lo", lo), ("hi", hi), ("seqlen_k", seqlen_k), ("heads", heads)):
            object.__setattr__(mask, name, value)
        for name in ("_schedules", "_derived", "_plans"):
            object.__setattr__(mask, name, {})
        object.__setattr__(mask, "_thinning", None)
        return mask

    @classmethod
    def from_slices(
        cls,
        q_ranges: RangesLike,
        k_ranges: RangesLike,
        attn_type_map: object = None,
        seqlen_q: int | None = None,
        seqlen_k: int | None = None,
        device: torch.device | str | None = None,
    ) -> IntervalMask:
        """The union of slices (MagiAttention's mask description); a pair that several slices cover counts once.

        Args:
            q_ranges, k_ranges: `(n, 2)` int tensors, lists of pairs or AttnRanges; half-open, any order, any overlap.
            attn_type_map: `(n,)` of 0..3, names or AttnMaskType; one for all; None means all full.
            seqlen_q, seqlen_k: lengths of the whole sequences; None means the largest end of the ranges.
            device: where the mask lives; None means where q_ranges is.

        Raises TypeError or ValueError naming the argument for ranges that are not integers of shape `(n, 2)`, do not
        satisfy `0 <= start <= end <= seqlen`, or differ in number, and for types outside 0..3.
        """
        q, k, types = slice_tensors(q_ranges, k_ranges, attn_type_map, device)
        lengths = []
        for name, ranges, seqlen in (("q", q, seqlen_q), ("k", k, seqlen_k)):
            if seqlen is None:
                seqlen = int(ranges.max()) if len(ranges) else 0
            lengths.append(check_length(f"seqlen_{name}", seqlen))
        return cls._of_slices(q, k, types, *lengths)

    @classmethod
    def _of_slices(
        cls, q: torch.Tensor, k: torch.Tensor, types: torch.Tensor, seqlen_q: int, seqlen_k: int
    ) -> IntervalMask:
        """Of tensors as `slice_tensors` gives them. Raises ValueError where they hold no slices of these lengths."""
        lo, hi = union_of_slices(expand_slices(q, k, types, seqlen_q, seqlen_k), seqlen_q, seqlen_k)
        return cls._made(lo[None], hi[None], seqlen_k)

    @classmethod
    def from_intervals(cls, lo: torch.Tensor, hi: torch.Tensor, seqlen_k: int) -> IntervalMask:
        """From integer `lo`, `hi` of shape `(seqlen_q,)`, `(layers, seqlen_q)`, `(batch, layers, seqlen_q)` or `(batch,
        heads, layers, seqlen_q)`, in any order and overlapping at will; bounds are clipped to [0, seqlen_k] and
        intervals with `hi <= lo` are empty. Heads are query heads, or 1 for all."""
        _check_integers("lo", lo)
        _check_integers("hi", hi)
        _check_pair(lo, hi)
        if lo.shape != hi.shape or lo.ndim not in (1, 2, 3, 4):
            raise ValueError(
                "lo and hi must both have shape (seqlen_q,), (layers, seqlen_q), (batch, layers, seqlen_q) or (batch, "
                f"heads, layers, seqlen_q), got {tuple(lo.shape)} and {tuple(hi.shape)}"
            )
        seqlen_k = check_length("seqlen_k", seqlen_k)
        heads = 1
        if lo.ndim == 4:
            heads = lo.shape[1]
            if heads < 1:
                raise ValueError(f"lo and hi must have at least one head, got shape {tuple(lo.shape)}")
            lo, hi = lo.flatten(0, 1), hi.flatten(0, 1)
        lo, hi = (x if x.dtype in (torch.int32, torch.int64) else x.long() for x in (lo, hi))
        while lo.ndim < 3:
            lo, hi = lo[None], hi[None]
        return cls._united(lo, hi, seqlen_k, heads)

    @classmethod
    def from_function(
        cls,
        mask_mod: Callable[..., Any],
        seqlen_q: int,
        seqlen_k: int | None = None,
        *,
        batch: int = 1,
        heads: int = 1,
        device: torch.device | str | int | None = None,
    ) -> IntervalMask:
        """From `mask_mod(b, h, q_idx, kv_idx) -> bool`, read exactly and without evaluating it pair by pair.

        Args:
            mask_mod: comparisons of sums of what reads the query and what reads the key, under `& | ~ ^`, where, abs,
                min, max, `//` and `%`; it may index tensors with either.
            seqlen_q, seqlen_k: rows and keys, as many keys as rows where None.
            batch, heads: batch elements and query heads; the mask has planes for them where the function reads them.
            device: where the mask lives; None means the CPU.

        Raises ValueError, with the reason, for a function that cannot be read so, or be traced.
        """
        return cls._read(mask_mod, seqlen_q, seqlen_k, batch, heads, device)

    @classmethod
    def from_dense(cls, dense: torch.Tensor) -> IntervalMask:
        """From a bool tensor `(seqlen_q, seqlen_k)`, `(batch, seqlen_q, seqlen_k)` or `(batch, heads, seqlen_q,
        seqlen_k)`, True where a row attends a key: its runs. Memory beside the tensor grows with the runs alone. Raises
        TypeError for another dtype, ValueError for another shape."""
        dense = check_dense(dense)
        batch, heads, rows, keys = dense.shape
        lo, hi = runs_of_rows(dense.reshape(batch * heads * rows, keys))
        lo, hi = (x.unflatten(1, (batch * heads, rows)).transpose(0, 1).contiguous() for x in (lo, hi))
        return cls._made(lo, hi, keys, heads)

    @classmethod
    def _united(cls, lo: torch.Tensor, hi: torch.Tensor, seqlen_k: int, heads: int) -> IntervalMask:
        """From int32 or int64 `(planes, layers, seqlen_q)` as `from_intervals` takes them."""
        lo, hi = lo.clamp(0, seqlen_k), hi.clamp(0, seqlen_k)
        planes, layers, rows = lo.shape
        if layers == 1:
            keep = lo < hi
            return cls._made((lo * keep).int(), (hi * keep).int(), seqlen_k, heads)
        lo, hi = (x.transpose(1, 2).reshape(planes * rows, layers).long() for x in (lo, hi))
        row, layer = (lo < hi).nonzero(as_tuple=True)
        merged = unite(row, lo[row, layer], hi[row, layer], seqlen_k)
        lo, hi = stack_layers(*merged, rows=planes * rows)
        lo, hi = (x.reshape(x.shape[0], planes, rows).transpose(0, 1).contiguous() for x in (lo, hi))
        return cls._made(lo, hi, seqlen_k, heads)

    # ---------------------------------------------------------------- looking

    @property
    def planes(self) -> int:
        """That of batch element b and query head h is `(b if batch > 1 else 0) * heads + (h if heads > 1 else 0)`."""
        return self.lo.shape[0]

    @property
    def batch(self) -> int:
        return self.lo.shape[0] // self.heads

    @property
    def layers(self) -> int:
        return self.lo.shape[1]

    @property
    def seqlen_q(self) -> int:
        return self.lo.shape[2]

    @property
    def device(self) -> torch.device:
        return self.lo.device

    def row_area(self) -> torch.Tensor:
        """Number of keys that each row attends, int64 `(batch, seqlen_q)`, or `(batch, heads, seqlen_q)`."""
        return self._by_head((self.hi - self.lo).sum(dim=1, dtype=torch.int64))

    def area(self) -> int:
        """Exact number of attended (row, key) pairs, summed over the mask's planes."""
        return int(self.row_area().sum())

    def to_dense(self) -> torch.Tensor:
        """bool `(batch, seqlen_q, seqlen_k)`, or `(batch, heads, seqlen_q, seqlen_k)`: for looking and for tests."""
        keys = torch.arange(self.seqlen_k, device=self.device, dtype=torch.int32)
        dense = torch.zeros(self.planes, self.seqlen_q, self.seqlen_k, dtype=torch.bool, device=self.device)
        for lo, hi in zip(self.lo.unbind(1), self.hi.unbind(1), strict=True):
            dense |= (keys >= lo[..., None]) & (keys < hi[..., None])
        return self._by_head(dense)

    def _by_head(self, x: torch.Tensor) -> torch.Tensor:
        """`(planes, ...)` as `(batch, heads, ...)` where heads have planes of their own."""
        return x if self.heads == 1 else x.unflatten(0, (self.batch, self.heads))

    def schedule(self, tile: tuple[int, int] = (128, 128)) -> TileSchedule:
        """The tile schedule for `(rows, keys)` tiles, made once and kept."""
        tile = check_tile(tile)
        if tile not in self._schedules:
            thinning = self._thinning
            made = TileSchedule.from_mask(self._on_host(), tile) if thinning is None else thinning.schedule(tile)
            self._schedules[tile] = made.to(self.device)
        return self._schedules[tile]

    def _on_host(self) -> IntervalMask:
        """The same mask on the CPU, where it is planned: read off a GPU once, and kept; itself if it is there."""
        if self.device.type == "cpu":
            return self
        host = self._derived.get(_ON_HOST)
        if host is None:
            lo, hi = on_host([self.lo, self.hi])
            host = self._derived[_ON_HOST] = self._made(lo, hi, self.seqlen_k, self.heads)
        return host

    def prepare(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, backward: bool = True) -> IntervalMask:
        """Makes now, once, every table that calls on such tensors need, so that none of them plans or waits for a GPU,
        and that they can be captured in a CUDA graph.

        Args:
            q, k, v: tensors of the shapes, dtype and device of the calls, `(tokens, heads, head_dim)` or
                `(batch, tokens, heads, head_dim)`; their values are not read.
            backward: whether gradients will be asked for.

        Returns the mask. Raises TypeError or ValueError for tensors that the mask does not fit, NotImplementedError
        where no backend serves them.
        """
        self._prepare(q, k, v, backward)
        return self

    def equals(self, other: IntervalMask) -> bool:
        """Whether both masks have the same shape and attend the same pairs."""
        check_mask("other", other)
        shapes = ((m.batch, m.heads, m.seqlen_q, m.seqlen_k) for m in (self, other))
        if next(shapes) != next(shapes):
            return False
        layers = max(self.layers, other.layers)
        mine, theirs = ([_padded(x * (m.lo < m.hi), layers) for x in (m.lo, m.hi)] for m in (self, other))
        return all(torch.equal(a, b.to(a.device)) for a, b in zip(mine, theirs, strict=True))

    def __repr__(self) -> str:
        heads = f"heads={self.heads}, " if self.heads > 1 else ""
        return (
            f"IntervalMask(batch={self.batch}, {heads}layers={self.layers}, seqlen_q={self.seqlen_q}, "
            f"seqlen_k={self.seqlen_k}, device='{self.device}')"
        )

    def draw(self, width: int = 80, batch: int = 0, head: int = 0) -> None:
        """Prints the mask in block characters, at most `width` columns wide, as `cute_attn.mask.draw.draw_text` has it.
        A notebook shows a mask as a picture by itself."""
        print(self._text(width, batch, head))

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: the first plane."""
        return self._png() if self.seqlen_q and self.seqlen_k else None

    # ---------------------------------------------------------------- combining

    def __or__(self, other: IntervalMask) -> IntervalMask:
        """Pairs that either mask attends; a mask of batch 1 goes with any batch, one of heads 1 with any heads."""
        if not isinstance(other, IntervalMask):
            return NotImplemented
        a, b = self._matched(other, "|")
        return self._united(torch.cat([a.lo, b.lo], 1), torch.cat([a.hi, b.hi], 1), self.seqlen_k, a.heads)

    def __invert__(self) -> IntervalMask:
        """Pairs that this mask does not attend: the gaps between its intervals."""
        empty = self.lo == self.hi
        lo, hi = (x.masked_fill(empty, self.seqlen_k) for x in (self.lo, self.hi))
        edge = lo.new_zeros(self.planes, 1, self.seqlen_q)
        ends = torch.cat([edge, hi], 1), torch.cat([lo, edge + self.seqlen_k], 1)
        return self._united(*ends, self.seqlen_k, self.heads)

    def __and__(self, other: IntervalMask) -> IntervalMask:
        """Pairs that both masks attend; a mask of batch 1 goes with any batch, one of heads 1 with any heads."""
        if not isinstance(other, IntervalMask):
            return NotImplemented
        a, b = self._matched(other, "&")
        if 1 in (a.layers, b.layers):
            return self._united(torch.maximum(a.lo, b.lo), torch.minimum(a.hi, b.hi), self.seqlen_k, a.heads)
        return ~(~a | ~b)

    def _matched(self, other: IntervalMask, op: str) -> tuple[IntervalMask, IntervalMask]:
        same = (self.seqlen_q, self.seqlen_k, self.device) == (other.seqlen_q, other.seqlen_k, other.device)
        pairs = (self.batch, other.batch), (self.heads, other.heads)
        if not same or any(mine != theirs and 1 not in (mine, theirs) for mine, theirs in pairs):
            raise ValueError(
                f"mask {op} mask needs equal lengths, device and batch (or batch 1), and heads (or heads 1): "
                f"{self} and {other}"
            )
        a, b = (m._expanded(*map(max, pairs)) for m in (self, other))
        return a, b

    def _expanded(self, batch: int, heads: int) -> IntervalMask:
        if (self.batch, self.heads) == (batch, heads):
            return self
        lo, hi = (x.unflatten(0, (self.batch, self.heads)).expand(batch, heads, -1, -1) for x in (self.lo, self.hi))
        return self._made(lo.flatten(0, 1), hi.flatten(0, 1), self.seqlen_k, heads)

    # ---------------------------------------------------------------- moving

    def __getitem__(self, rows: slice) -> IntervalMask:
        """The mask of some consecutive rows, `mask[128:256]`; the keys stay."""
        wanted = "IntervalMask takes a slice of rows with step 1, such as mask[128:256]"
        if not isinstance(rows, slice):
            raise TypeError(f"{wanted}, got {rows!r}")
        try:
            begin, end, step = rows.indices(self.seqlen_q)
        except (TypeError, ValueError) as error:  # bounds that are no ints, a step of 0
            raise TypeError(f"{wanted}, got {rows!r}: {error}") from None
        if step != 1:
            raise TypeError(f"{wanted}, got {rows!r}")
        here = slice(begin, end)
        lo, hi = (x[:, :, here].contiguous() for x in (self.lo, self.hi))
        return self._made(lo, hi, self.seqlen_k, self.heads)

    def permute_rows(self, order: torch.Tensor) -> IntervalMask:
        """Row i of the result is row `order[i]` of this mask; `order` is a 1-D integer tensor of rows."""
        _check_integers("order", order, one_dimension=True)
        check_integer_tensor("order", order)
        order = order.to(self.device, torch.int64)
        if order.numel() and not bool(((order >= 0) & (order < self.seqlen_q)).all()):
            raise ValueError(f"order must hold rows in [0, {self.seqlen_q})")
        return self._made(self.lo[:, :, order], self.hi[:, :, order], self.seqlen_k, self.heads)

    def remap(self, positions: torch.Tensor) -> IntervalMask:
        """The same mask over gathered keys: column j of the result is key `positions[j]` of this mask.

        Args:
            positions: 1-D integer tensor of keys, strictly ascending, in [0, seqlen_k).

        Since the order is kept, an interval of keys is an interval of columns: `lo' = searchsorted(positions, lo)`,
        `hi'` alike. Intervals whose gap was not gathered unite. Any other order raises ValueError.
        """
        _check_integers("positions", positions, one_dimension=True)
        check_integer_tensor("positions", positions)
        positions = positions.to(self.device, torch.int64)
        if positions.numel() and not bool(
            (positions[1:] > positions[:-1]).all() & (positions[0] >= 0) & (positions[-1] < self.seqlen_k)
        ):
            raise ValueError(f"positions must be strictly ascending keys in [0, {self.seqlen_k})")
        positions = positions.int().contiguous()
        lo, hi = (torch.searchsorted(positions, x.contiguous(), out_int32=True) for x in (self.lo, self.hi))
        return self._united(lo, hi, positions.numel(), self.heads)

    def to(self, device: torch.device | str | int) -> IntervalMask:
        """The mask on another device; itself if it is there."""
        device = check_device(device)
        if self.device == device:
            return self
        moved = self._made(self.lo.to(device), self.hi.to(device), self.seqlen_k, self.heads)
        if self.device.type == "cpu":
            moved._derived[_ON_HOST] = self._made(self.lo, self.hi, self.seqlen_k, self.heads)
        return moved


def _check_integers(name: str, value: object, one_dimension: bool = False) -> None:
    wanted = f"{name} must be a {'1-D integer tensor' if one_dimension else 'tensor of integers'}"
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{wanted}, got {type(value).__name__}")
    if value.dtype.is_floating_point or value.dtype.is_complex or value.dtype == torch.bool:
        raise TypeError(f"{wanted}, got {value.dtype}")
    if one_dimension and value.ndim != 1:
        raise TypeError(f"{wanted}, got shape {tuple(value.shape)}")


def _check_pair(lo: torch.Tensor, hi: torch.Tensor) -> None:
    if lo.device != hi.device:
        raise ValueError(f"lo and hi must be on one device, got {lo.device} and {hi.device}")
    check_integer_tensor("lo", lo)
    check_integer_tensor("hi", hi)


def check_mask(name: str, value: object) -> None:
    """An IntervalMask; TypeError naming the argument for anything else."""
    if not isinstance(value, IntervalMask):
        raise TypeError(f"{name} must be an IntervalMask, got {shown(value)}")


def _padded(x: torch.Tensor, layers: int) -> torch.Tensor:
    return torch.nn.functional.pad(x, (0, 0, 0, layers - x.shape[1]))
