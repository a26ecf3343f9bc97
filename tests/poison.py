"""Numbers that are not finite, where a mask leaves room for anything: rows without keys, keys without rows."""

import torch

from cute_attn.mask import IntervalMask

VALUES = torch.tensor([torch.nan, torch.inf, -torch.inf])


def idle(mask: IntervalMask) -> tuple[torch.Tensor, torch.Tensor]:
    """bool (batch of the mask, seqlen_q), (batch of the mask, seqlen_k): rows without keys, keys without rows."""
    dense = mask.to_dense()
    return ~dense.any(2), ~dense.any(1)


def fill(x: torch.Tensor, places: torch.Tensor, values: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """x with some of `values`, drawn at random, at places, bool (batch or 1, length of x's dimension dim)."""
    shape = [1] * x.ndim
    shape[0], shape[dim] = places.shape
    drawn = values[torch.randint(len(values), x.shape)].to(x.dtype)
    return torch.where(places.view(shape), drawn, x)


def zeroed(x: torch.Tensor, places: torch.Tensor, dim: int = 1) -> torch.Tensor:
    return fill(x, places, torch.zeros(1), dim)


def poisoned(x: torch.Tensor, places: torch.Tensor, dim: int = 1) -> torch.Tensor:
    return fill(x, places, VALUES, dim)


def masks_with_room() -> dict[str, IntervalMask]:
    """Rows without keys and keys without rows: at the ends and inside of tiles, whole tiles of them, single ones."""
    holes = IntervalMask.from_slices(
        [[10, 100], [140, 141], [200, 290]], [[30, 60], [100, 130], [150, 260]], [0, 0, 1], 300, 450
    )
    two = IntervalMask.from_slices([[20, 250], [100, 250]], [[10, 100], [200, 400]], [0, 1], 300, 450)
    many = _with_gaps(200, 400, 20) & ~IntervalMask.from_slices([[0, 200]], [[150, 190]], None, 200, 400)
    return {
        "padding at the end": IntervalMask.from_slices([[0, 170]], [[0, 190]], [1], 300, 333),
        "more rows than keys": IntervalMask.from_slices([[0, 300]], [[0, 130]], [1], 300, 200),
        "holes": holes,
        "one token": IntervalMask.from_slices([[37, 38]], [[5, 6]], None, 40, 70),
        "two layers": two,
        "many layers": many,
        "one for each batch": _stacked(
            IntervalMask.from_slices([[0, 170]], [[0, 190]], [1], 260, 260),
            IntervalMask.from_slices([[64, 260]], [[64, 200]], [0], 260, 260),
        ),
    }


def _stacked(*masks: IntervalMask) -> IntervalMask:
    return IntervalMask(*(torch.cat([getattr(m, side) for m in masks]) for side in ("lo", "hi")), masks[0].seqlen_k)


def _with_gaps(rows: int, keys: int, layers: int) -> IntervalMask:
    """Intervals of random length, apart from each other; every 16th row has none."""
    generator = torch.Generator().manual_seed(0)
    ends = [torch.randperm(keys - 1, generator=generator)[: 2 * layers].sort().values + 1 for _ in range(rows)]
    ends = torch.stack(ends, 1)
    ends[:, ::16] = 0
    return IntervalMask.from_intervals(ends[0::2], ends[1::2], keys)


MASKS = masks_with_room()
