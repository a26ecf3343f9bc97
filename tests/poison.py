"""Numbers that are not finite, where a mask leaves room for anything: rows without keys, keys without rows."""

import torch
from cases import stacked, with_gaps

from cute_attn.mask import IntervalMask

VALUES = torch.tensor([torch.nan, torch.inf, -torch.inf])
DOCUMENTS = [0, 100, 157, 285, 450, 600]
TOKEN = 120  # in the second document, in a tile with the first and the third


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
    many = with_gaps(200, 400, 20, torch.Generator().manual_seed(0)) & ~IntervalMask.from_slices(
        [[0, 200]], [[150, 190]], None, 200, 400
    )
    return {
        "padding at the end": IntervalMask.from_slices([[0, 170]], [[0, 190]], [1], 300, 333),
        "more rows than keys": IntervalMask.from_slices([[0, 300]], [[0, 130]], [1], 300, 200),
        "holes": holes,
        "one token": IntervalMask.from_slices([[37, 38]], [[5, 6]], None, 40, 70),
        "two layers": two,
        "many layers": many,
        "one for each batch": stacked(
            IntervalMask.from_slices([[0, 170]], [[0, 190]], [1], 260, 260),
            IntervalMask.from_slices([[64, 260]], [[64, 200]], [0], 260, 260),
        ),
    }


MASKS = masks_with_room()
