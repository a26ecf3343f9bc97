"""`BlockMask`: a mask as flex_attention takes it, blocks of queries by keys and a function of single pairs."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ..eager import outside_of_graphs
from ..mask import IntervalMask
from ..mask.blocks import BlockGrid
from ..mask.checks import check_device, check_flag, shown
from .arguments import check_mod, check_orders, check_seq_lengths
from .block_lists import check_block_size, check_lists, in_order, transposed
from .reading import Captured, Reading, read_lists
from .trace import trace

__all__ = ["BlockMask", "as_block_mask", "noop_mask"]

MaskMod = Callable[..., Any]

FIELDS = (
    "kv_num_blocks",
    "kv_indices",
    "full_kv_num_blocks",
    "full_kv_indices",
    "q_num_blocks",
    "q_indices",
    "full_q_num_blocks",
    "full_q_indices",
)


_OF_SLICE = (
    "mask_mod of a sliced BlockMask is not known, since batch elements, heads and queries count from the slice: assign "
    "one, such as part.mask_mod = lambda b, h, q_idx, kv_idx: whole.mask_mod(b + first_b, h + first_h, q_idx + "
    "first_row, kv_idx)"
)


def noop_mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    """A mask_mod that attends every pair."""
    return q_idx.new_ones((), dtype=torch.bool)


def _sliced_mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    """The mask_mod of a slice, whose batch elements, heads and rows are not those that the whole mask's speaks of."""
    raise ValueError(_OF_SLICE)


class _Field:
    """A list of blocks, made when it is asked for."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, mask: BlockMask, owner: type | None = None) -> Any:
        return self if mask is None else mask._field(self.name)

    def __set__(self, mask: BlockMask, value: object) -> None:
        raise AttributeError(f"{self.name} of a BlockMask is not assigned: BlockMask.from_kv_blocks makes another mask")


class BlockMask:
    """Which pairs flex_attention attends: those in a listed full block, and those in another listed block where
    mask_mod is true.

    Args:
        seq_lengths: rows and keys.
        kv_num_blocks: integers `([[batch,] heads,] rows)`, for each row of blocks how many are listed.
        kv_indices: integers `(..., rows, width)`: their columns, of which the first kv_num_blocks of a row count. In
            any order, repeated or not; batch and heads may be 1.
        full_kv_num_blocks, full_kv_indices: the same for blocks all of whose pairs are attended, or both None.
        q_num_blocks, q_indices, full_q_num_blocks, full_q_indices: kept as they are, and not read: the kv lists decide.
        BLOCK_SIZE: rows and keys of a block, or one int for both.
        mask_mod: `mask_mod(b, h, q_idx, kv_idx)`, for listed blocks that are not full.
        dq_write_order, dq_write_order_full, dq_kv_order, dq_kv_order_spt: None; our kernels order their sums by
            themselves.

    `create_block_mask` makes one of a function alone and `BlockMask.from_kv_blocks` one of lists. Raises TypeError or
    ValueError naming the argument for lists that do not fit, counts above the width, blocks outside of the keys, and
    for a mask_mod that cannot be traced.

    A mask is what its mask_mod said when it was made: tensors that it captures must not change afterwards, which is
    noticed where the mask is not intervals. mask_mod and seq_lengths may be assigned.
    """

    kv_num_blocks = _Field()
    kv_indices = _Field()
    full_kv_num_blocks = _Field()
    full_kv_indices = _Field()
    q_num_blocks = _Field()
    q_indices = _Field()
    full_q_num_blocks = _Field()
    full_q_indices = _Field()

    def __init__(
        self,
        seq_lengths: tuple[int, int],
        kv_num_blocks: torch.Tensor,
        kv_indices: torch.Tensor,
        full_kv_num_blocks: torch.Tensor | None,
        full_kv_indices: torch.Tensor | None,
        q_num_blocks: torch.Tensor | None,
        q_indices: torch.Tensor | None,
        full_q_num_blocks: torch.Tensor | None,
        full_q_indices: torch.Tensor | None,
        BLOCK_SIZE: int | tuple[int, int] = 128,
        mask_mod: MaskMod = noop_mask,
        *,
        dq_write_order: None = None,
        dq_write_order_full: None = None,
        dq_kv_order: None = None,
        dq_kv_order_spt: None = None,
    ) -> None:
        check_orders(
            dq_write_order=dq_write_order,
            dq_write_order_full=dq_write_order_full,
            dq_kv_order=dq_kv_order,
            dq_kv_order_spt=dq_kv_order_spt,
        )
        given = (kv_num_blocks, kv_indices, full_kv_num_blocks, full_kv_indices)
        block = check_block_size(BLOCK_SIZE)
        lengths = check_seq_lengths(seq_lengths)
        lists = check_lists(*given, block, lengths)
        queries = (q_num_blocks, q_indices, full_q_num_blocks, full_q_indices)
        self._start(lengths, block, lists.leading, full_kv_indices is not None)
        self._fields.update(zip(FIELDS, (*given, *queries), strict=True))
        self._grid: BlockGrid | None = lists.grid
        self.mask_mod = mask_mod

    def _start(
        self, lengths: tuple[int, int], block: tuple[int, int], leading: tuple[int, ...], has_full: bool
    ) -> None:
        self._lengths, self.BLOCK_SIZE, self._leading, self._has_full = lengths, block, leading, has_full
        self._fields: dict[str, torch.Tensor | None] = {}
        self._captured: Captured | None = None
        self._reading: Reading | None = None

    # ---------------------------------------------------------------- making

    @classmethod
    @outside_of_graphs
    def from_kv_blocks(
        cls,
        kv_num_blocks: torch.Tensor,
        kv_indices: torch.Tensor,
        full_kv_num_blocks: torch.Tensor | None = None,
        full_kv_indices: torch.Tensor | None = None,
        BLOCK_SIZE: int | tuple[int, int] = 128,
        mask_mod: MaskMod | None = None,
        seq_lengths: tuple[int, int] | None = None,
        compute_q_blocks: bool = True,
        *,
        dq_write_order: None = None,
        dq_write_order_full: None = None,
        dq_kv_order: None = None,
    ) -> BlockMask:
        """A mask of lists of key blocks, as BlockMask has them.

        seq_lengths: None for as many rows and keys as the lists have blocks, a column being as wide as the list.
        compute_q_blocks: False leaves the lists of query blocks None. dq_write_order, dq_write_order_full, dq_kv_order:
            None; our kernels order their sums by themselves.
        """
        check_flag("compute_q_blocks", compute_q_blocks)
        orders = {
            "dq_write_order": dq_write_order,
            "dq_write_order_full": dq_write_order_full,
            "dq_kv_order": dq_kv_order,
        }
        check_orders(**orders)
        block = check_block_size(BLOCK_SIZE)
        if seq_lengths is None:
            if not isinstance(kv_indices, torch.Tensor) or kv_indices.ndim < 2:
                raise ValueError(f"kv_indices must have shape (..., rows, width), got {shown(kv_indices)}")
            seq_lengths = (kv_indices.shape[-2] * block[0], kv_indices.shape[-1] * block[1])
        lists = kv_num_blocks, kv_indices, full_kv_num_blocks, full_kv_indices
        mask = cls(seq_lengths, *lists, None, None, None, None, block, noop_mask if mask_mod is None else mask_mod)
        if compute_q_blocks:
            for name in FIELDS[4:]:
                del mask._fields[name]
        return mask

    @classmethod
    def _of_reading(
        cls,
        reading: Reading,
        grid: BlockGrid | None,
        captured: Captured | None,
        mask_mod: MaskMod,
        block: tuple[int, int],
        leading: tuple[int, ...],
        has_full: bool,
    ) -> BlockMask:
        """A mask whose attended pairs are known; its blocks are found when they are asked for."""
        mask = object.__new__(cls)
        mask._start((reading.intervals.seqlen_q, reading.intervals.seqlen_k), block, leading, has_full)
        mask._grid, mask._reading, mask._captured, mask._mask_mod = grid, reading, captured, mask_mod
        return mask

    # ---------------------------------------------------------------- what it attends

    def reading(self) -> Reading:
        """What the mask attends. Raises ValueError for a slice that has got no mask_mod, and where a tensor that
        mask_mod captures has changed since the mask was made and would be read."""
        if self._reading is None:
            raise ValueError(_OF_SLICE)
        if self._reading.predicate is not None:
            self._reading.predicate.check()
        return self._reading

    def reads_planes(self) -> tuple[bool, bool]:
        """Whether mask_mod reads b, and h."""
        return (False, False) if self._captured is None else self._captured.reads_planes

    @property
    def intervals(self) -> IntervalMask | None:
        """The mask as an IntervalMask; None where it is intervals thinned by a function, and for a slice that has
        none."""
        if self._reading is None and self._captured is None:
            return None
        reading = self.reading()
        return reading.intervals if reading.predicate is None else None

    @property
    def mask_mod(self) -> MaskMod:
        """May be assigned: the listed blocks stay."""
        return self._mask_mod

    @mask_mod.setter
    def mask_mod(self, mask_mod: MaskMod) -> None:
        check_mod("mask_mod", mask_mod, 4)
        self._blocks()
        self._mask_mod, self._reading, self._captured = mask_mod, None, None
        if not _is_of_slice(mask_mod):
            self._captured = Captured.of(trace(mask_mod, "mask_mod", self.device), mask_mod, self.device)
            self._read_lists(self._captured)

    @property
    def seq_lengths(self) -> tuple[int, int]:
        """Rows and keys. Others may be assigned that have as many blocks."""
        return self._lengths

    @seq_lengths.setter
    def seq_lengths(self, lengths: tuple[int, int]) -> None:
        found = check_seq_lengths(lengths)
        grid = self._blocks()
        if [-(-n // size) for n, size in zip(found, self.BLOCK_SIZE, strict=True)] != list(self._shape_in_blocks):
            raise ValueError(
                f"seq_lengths must have {self._shape_in_blocks[0]} x {self._shape_in_blocks[1]} blocks of "
                f"{self.BLOCK_SIZE}, got {found}; _adjust(q_len, kv_len) makes a smaller mask"
            )
        self._lengths, self._reading = found, None
        self._grid = BlockGrid(grid.listed, grid.full, grid.block, *found)
        if self._captured is not None:
            self._read_lists(self._captured)

    @outside_of_graphs
    def _read_lists(self, captured: Captured) -> None:
        """Finds what the mask attends while it is made: no call waits for it, or leaves a graph for it."""
        captured.check()
        batch, heads = self._planes
        self._reading = read_lists(captured, self._blocks(), batch, heads)

    def _blocks(self) -> BlockGrid:
        if self._grid is None:
            self._grid = BlockGrid.from_mask(self.reading().intervals, self.BLOCK_SIZE)
        return self._grid

    # ---------------------------------------------------------------- fields

    def _field(self, name: str) -> torch.Tensor | None:
        if name not in self._fields:
            if "kv_num_blocks" not in self._fields:
                self._fields.update(zip(FIELDS[:4], self._kv_lists(), strict=True))
            if name not in self._fields:
                self._fields.update(zip(FIELDS[4:], self._q_lists(), strict=True))
        return self._fields[name]

    def _kv_lists(self) -> tuple[torch.Tensor | None, ...]:
        """Lists as torch makes them: what is listed first, in order, then the other columns."""
        states = self._states()
        partial = in_order(states == 1 if self._has_full else states > 0)
        return (*partial, *(in_order(states == 2) if self._has_full else (None, None)))

    def _q_lists(self) -> tuple[torch.Tensor | None, ...]:
        columns = self._shape_in_blocks[1]
        partial = transposed(self.kv_num_blocks, self.kv_indices, columns)
        if not self._has_full:
            return (*partial, None, None)
        return (*partial, *transposed(self.full_kv_num_blocks, self.full_kv_indices, columns))

    def _states(self) -> torch.Tensor:
        """int8 `(batch, heads, rows, columns)`: 0 none, 1 partial, 2 full."""
        states = self._blocks().states()
        return states.expand(*self._planes, -1, -1).reshape(*self._leading, *states.shape[2:])

    @property
    def _planes(self) -> tuple[int, int]:
        batch, heads = (1, 1, *self._leading)[-2:]
        return batch, heads

    @property
    def _shape_in_blocks(self) -> tuple[int, int]:
        rows, columns = (-(-n // size) for n, size in zip(self._lengths, self.BLOCK_SIZE, strict=True))
        return rows, columns

    # ---------------------------------------------------------------- looking

    @property
    def device(self) -> torch.device:
        if self._reading is not None:
            return self._reading.intervals.device
        return self._blocks().listed.device

    @property
    def shape(self) -> tuple[int, ...]:
        """Batch and heads, as far as the lists have them, then rows and keys."""
        return (*self._leading, *self._lengths)

    def numel(self) -> int:
        """Number of pairs, attended or not."""
        count = 1
        for n in self.shape:
            count *= n
        return count

    def sparsity(self) -> float:
        """Percentage of the pairs that lie in no listed block; below 0 where ragged blocks count as whole ones."""
        listed = int(self.kv_num_blocks.sum())
        if self.full_kv_num_blocks is not None:
            listed += int(self.full_kv_num_blocks.sum())
        pairs = listed * self.BLOCK_SIZE[0] * self.BLOCK_SIZE[1]
        return 100 * (1 - pairs / self.numel()) if self.numel() else 100.0

    def to_dense(self) -> torch.Tensor:
        """int32 `(..., rows, columns)` of blocks: 1 where one is listed."""
        return (self._states() > 0).int()

    def as_tuple(self, flatten: bool = True) -> tuple[Any, ...]:
        """seq_lengths, the eight lists, BLOCK_SIZE and mask_mod, in the order in which BlockMask takes them; lengths
        and sizes as single numbers unless flatten is False."""
        check_flag("flatten", flatten)
        lists = tuple(getattr(self, name) for name in FIELDS)
        if flatten:
            return (*self.seq_lengths, *lists, *self.BLOCK_SIZE, self.mask_mod)
        return (self.seq_lengths, *lists, self.BLOCK_SIZE, self.mask_mod)

    def to_string(self, grid_size: int | tuple[int, int] = (20, 20), limit: int = 4) -> str:
        """The listed blocks as text, for at most `limit` elements of batch and heads: `██` where all blocks of a cell
        are listed, `░░` some, blank none. grid_size: the most rows and columns of cells, -1 for one a block."""
        dense = self.to_dense()
        rows, columns = (grid_size, grid_size) if isinstance(grid_size, int) else grid_size
        most = zip(dense.shape[-2:], (rows, columns), strict=True)
        steps = [1 if cells == -1 else max(1, -(-n // cells)) for n, cells in most]
        planes = dense[None].flatten(0, -3)
        parts = []
        for i, plane in enumerate(planes[:limit]):
            lines = [str(_position(i, self._leading))]
            for line in plane.float().split(steps[0]):
                shares = [cell.mean().item() for cell in line.split(steps[1], dim=1) if cell.numel()]
                lines.append("".join("██" if x == 1 else "░░" if x else "  " for x in shares))
            parts.append("\n".join(lines))
        if len(planes) > limit:
            parts.append(f"and {len(planes) - limit} more: to_string(limit=...), or mask[batch, head].to_string()")
        return "\n\n".join(parts)

    def __str__(self) -> str:
        return f"BlockMask(shape={self.shape}, sparsity={self.sparsity():.2f}%,\n{self.to_string()}\n)"

    def __repr__(self) -> str:
        name = getattr(self.mask_mod, "__name__", repr(self.mask_mod))
        return f"BlockMask(shape={self.shape}, BLOCK_SIZE={self.BLOCK_SIZE}, mask_mod={name}, device='{self.device}')"

    # ---------------------------------------------------------------- moving

    def __getitem__(self, index: Any) -> BlockMask:
        """The mask of some batch elements, heads and rows of blocks, indexed as tensors of this shape are; an int keeps
        its dimension. Its mask_mod must be assigned before it is used, as it counts all three from those of the
        slice."""
        index = index if isinstance(index, tuple) else (index,)
        sizes = (*self._leading, self._shape_in_blocks[0])
        index = _without_ellipsis(index, len(sizes))
        if len(index) > len(sizes):
            raise IndexError(f"a BlockMask of shape {self.shape} takes at most {len(sizes)} indices, got {len(index)}")
        index = (*index, *[slice(None)] * (len(sizes) - len(index)))
        index = tuple(_kept(i, n) if isinstance(i, int) else i for i, n in zip(index, sizes, strict=True))
        rows = torch.arange(sizes[-1], device=self.device)[index[-1]].flatten()
        missing = sizes[-1] * self.BLOCK_SIZE[0] - self._lengths[0]
        is_ragged = (rows == sizes[-1] - 1) & (missing > 0)
        if bool(is_ragged[:-1].any()):
            raise ValueError(f"a slice must have the ragged last row of blocks, {sizes[-1] - 1}, as its last one")
        length = len(rows) * self.BLOCK_SIZE[0] - (missing if bool(is_ragged[-1:].any()) else 0)
        lists: list[Any] = [None if x is None else x[index] for x in (getattr(self, name) for name in FIELDS[:4])]
        return self.from_kv_blocks(
            lists[0],
            lists[1],
            lists[2],
            lists[3],
            self.BLOCK_SIZE,
            _sliced_mask_mod,
            (length, self._lengths[1]),
            self._fields.get("q_indices", ...) is not None,
        )

    def _adjust(self, q_len: int, kv_len: int) -> BlockMask:
        """The mask of the first q_len queries and kv_len keys."""
        lengths = check_seq_lengths((q_len, kv_len))
        if lengths[0] > self._lengths[0] or lengths[1] > self._lengths[1]:
            raise ValueError(
                f"_adjust must not make a mask longer than its {self._lengths[0]} rows and {self._lengths[1]} keys, "
                f"got {lengths[0]} and {lengths[1]}: create_block_mask makes it for the longest"
            )
        block = self.BLOCK_SIZE
        if self._reading is not None:
            reading = self._reading.restricted(*lengths)
            grid = None if reading.predicate is None else _first_blocks(self._blocks(), lengths)
            return self._of_reading(reading, grid, self._captured, self.mask_mod, block, self._leading, self._has_full)
        grid = _first_blocks(self._blocks(), lengths)
        mask = object.__new__(BlockMask)
        mask._start(lengths, block, self._leading, self._has_full)
        mask._grid, mask._captured, mask._mask_mod = grid, self._captured, self.mask_mod
        return mask

    def to(self, device: torch.device | str | int) -> BlockMask:
        """The mask on another device; what mask_mod captures stays where it is."""
        device = check_device(device)
        mask = object.__new__(BlockMask)
        mask._start(self._lengths, self.BLOCK_SIZE, self._leading, self._has_full)
        mask._fields.update({name: None if x is None else x.to(device) for name, x in self._fields.items()})
        mask._grid = None if self._grid is None else self._grid.to(device)
        mask._reading = None if self._reading is None else self._reading.to(device)
        mask._captured, mask._mask_mod = self._captured, self._mask_mod
        return mask


def as_block_mask(mask: object) -> BlockMask:
    """A BlockMask of ours as it is; torch's by its attributes, kept while they hold the same; an IntervalMask as
    what it is. TypeError for anything else."""
    if isinstance(mask, BlockMask):
        return mask
    if isinstance(mask, IntervalMask):
        leading = (mask.batch, mask.heads)
        return BlockMask._of_reading(Reading(mask), None, None, noop_mask, (128, 128), leading, True)
    try:
        lists: list[Any] = [getattr(mask, name) for name in FIELDS[:4]]
        rest = mask.BLOCK_SIZE, mask.mask_mod, mask.seq_lengths  # type: ignore[attr-defined]
    except AttributeError:
        maker = ""
        if callable(mask):
            maker = ": create_block_mask makes one of a mask_mod"
        elif isinstance(mask, torch.Tensor):
            maker = ": IntervalMask.from_dense makes one of a dense bool tensor"
        raise TypeError(
            f"block_mask must be a BlockMask, of cute_attn or torch, an IntervalMask or None, got {shown(mask)}{maker}"
        ) from None
    return _of_lists(mask, lists, rest)


class _Kept(NamedTuple):
    """What a mask of torch's was, and ours of it."""

    lists: list[Any]  # copies that nobody else holds
    rest: tuple[Any, ...]
    ours: BlockMask


_FOREIGN: weakref.WeakKeyDictionary[Any, _Kept] = weakref.WeakKeyDictionary()


@outside_of_graphs
def _of_lists(mask: Any, lists: list[Any], rest: tuple[Any, ...]) -> BlockMask:
    """Found again by what the lists hold, since compiled code and NumPy write into them unseen; on a GPU that waits."""
    kept = _FOREIGN.get(mask)
    if kept is None or kept.rest != rest or not all(map(_are_equal, kept.lists, lists)):
        block, mask_mod, (rows, keys) = rest
        if isinstance(lists[1], torch.Tensor) and lists[1].shape[-2] * block[0] < rows:  # torch's slices say all rows
            rows = lists[1].shape[-2] * block[0]
        copies = [x.clone() if isinstance(x, torch.Tensor) else x for x in lists]
        ours = BlockMask.from_kv_blocks(copies[0], copies[1], copies[2], copies[3], block, mask_mod, (rows, keys))
        kept = _FOREIGN[mask] = _Kept(copies, rest, ours)
    return kept.ours


def _are_equal(x: Any, y: Any) -> bool:
    if not (isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor)):
        return x is y
    return x.dtype == y.dtype and x.device == y.device and torch.equal(x, y)


def _is_of_slice(mask_mod: MaskMod) -> bool:
    """Whether a mask_mod is what slices have, ours or torch's."""
    return mask_mod is _sliced_mask_mod or getattr(mask_mod, "__name__", "") == "_sliced_mask_mod_error"


def _without_ellipsis(index: tuple[Any, ...], dims: int) -> tuple[Any, ...]:
    """An index of so many dimensions, in which an ellipsis is the slices that it stands for."""
    at = [place for place, i in enumerate(index) if i is Ellipsis]
    if len(at) > 1 or any(i is None or isinstance(i, bool) for i in index):
        raise IndexError(f"indices of a BlockMask must be ints, slices, tensors and one ellipsis at most, got {index}")
    if not at:
        return index
    return (*index[: at[0]], *[slice(None)] * (dims + 1 - len(index)), *index[at[0] + 1 :])


def _kept(i: int, n: int) -> slice:
    """An int as the slice that keeps its dimension."""
    if not -n <= i < n:
        raise IndexError(f"index {i} is out of range for a dimension of size {n} of a BlockMask")
    return slice(i % n, i % n + 1)


def _position(i: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    found: list[int] = []
    for n in reversed(shape):
        i, here = divmod(i, n)
        found.insert(0, here)
    return tuple(found)


def _first_blocks(grid: BlockGrid, lengths: tuple[int, int]) -> BlockGrid:
    rows, columns = (-(-n // size) for n, size in zip(lengths, grid.block, strict=True))
    listed, full = (
        IntervalMask._united(mask.lo[:, :, :rows], mask.hi[:, :, :rows], columns, mask.heads)
        for mask in (grid.listed, grid.full)
    )
    return BlockGrid(listed, full, grid.block, *lengths)
