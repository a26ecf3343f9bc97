"""Masks with a plane for each head: what they are made of, every operation, and their schedules, plane by plane."""

import pytest
import torch
from cases import stacked
from planes import gaps, mask_of

from cute_attn.mask import IntervalMask, causal, full
from cute_attn.mask.draw import coverage, draw_png, draw_text
from cute_attn.mask.tiles import by_lane

ROWS, KEYS = 150, 300


def planes_of(mask):
    """The masks of batch 1 and heads 1 that it consists of."""
    return [IntervalMask(mask.lo[p : p + 1], mask.hi[p : p + 1], mask.seqlen_k) for p in range(mask.planes)]


def test_a_mask_of_heads_says_what_it_is():
    mask = mask_of("both", 2, 3, ROWS, KEYS)
    assert (mask.planes, mask.batch, mask.heads) == (6, 2, 3)
    assert repr(mask).startswith("IntervalMask(batch=2, heads=3, layers=")
    assert "heads" not in repr(mask_of("batch", 2, 3, ROWS, KEYS))
    again = IntervalMask(mask.lo, mask.hi, KEYS, heads=3)
    assert again.equals(mask)
    assert not again.equals(IntervalMask(mask.lo, mask.hi, KEYS, heads=2))
    assert not again.equals(IntervalMask(mask.lo, mask.hi, KEYS))


def test_dense_and_areas_have_a_dimension_of_heads():
    mask = mask_of("both", 2, 3, ROWS, KEYS)
    one_by_one = planes_of(mask)
    dense = torch.cat([p.to_dense() for p in one_by_one]).view(2, 3, ROWS, KEYS)
    assert torch.equal(mask.to_dense(), dense)
    assert torch.equal(mask.row_area(), dense.sum(3))
    assert mask.area() == dense.sum()
    assert mask_of("batch", 2, 3, ROWS, KEYS).to_dense().shape == (2, ROWS, KEYS)


def test_intervals_in_any_order_are_united_plane_by_plane():
    lo, hi = torch.randint(-5, KEYS + 5, (2, 2, 3, 4, ROWS))
    mask = IntervalMask.from_intervals(lo, hi, KEYS)
    keys = torch.arange(KEYS)
    assert (mask.batch, mask.heads) == (2, 3)
    assert torch.equal(mask.to_dense(), ((lo[..., None] <= keys) & (keys < hi[..., None])).any(2))


@pytest.mark.parametrize(
    "shares", [("heads", "batch"), ("both", "heads"), ("batch", "both"), ("both", "both")], ids=str
)
def test_operators_take_what_both_share(shares):
    a, b = (mask_of(share, 2, 3, ROWS, KEYS, first=i) for i, share in enumerate(shares))
    dense_a, dense_b = (m.to_dense().view(m.batch, m.heads, ROWS, KEYS) for m in (a, b))
    for mask, wanted in ((a | b, dense_a | dense_b), (a & b, dense_a & dense_b)):
        assert (mask.batch, mask.heads) == (2, 3)
        assert torch.equal(mask.to_dense(), wanted)
    assert torch.equal((~a).to_dense(), ~a.to_dense())


def test_rows_and_keys_are_chosen_in_every_plane():
    mask = mask_of("both", 2, 3, ROWS, KEYS)
    dense, order, positions = mask.to_dense(), torch.randperm(ROWS), torch.arange(3, KEYS, 2)
    for got, wanted in (
        (mask[20:70], dense[:, :, 20:70]),
        (mask.permute_rows(order), dense[:, :, order]),
        (mask.remap(positions), dense[..., positions]),
    ):
        assert (got.batch, got.heads) == (2, 3)
        assert torch.equal(got.to_dense(), wanted)
    assert mask.to("cpu") is mask


@pytest.mark.parametrize("tile", [(128, 128), (64, 48)], ids=str)
def test_every_plane_is_scheduled_by_itself(tile):
    mask = mask_of("both", 2, 3, ROWS, KEYS)
    schedule = mask.schedule(tile)
    each = [p.schedule(tile) for p in planes_of(mask)]
    assert schedule.planes == 6
    assert torch.equal(schedule.to_grid(), torch.cat([s.to_grid() for s in each]))
    assert torch.equal(schedule.to_grid_transposed(), schedule.to_grid().mT)
    idle = torch.cat([~p.to_dense().any(1) for p in planes_of(mask)])
    assert torch.equal(schedule.idle_keys, by_lane(idle, tile[1]))


def test_one_plane_is_drawn(tmp_path):
    mask = mask_of("both", 2, 3, ROWS, KEYS)
    for batch, head in ((0, 1), (1, 2)):
        alone = planes_of(mask)[3 * batch + head]
        assert torch.equal(coverage(mask, 10, 20, batch, head), coverage(alone, 10, 20))
        assert draw_text(mask, 60, batch, head) == draw_text(alone, 60)
    assert draw_png(mask, tmp_path / "plane.png", batch=1, head=2).stat().st_size
    with pytest.raises(ValueError, match="head must be below the mask's heads 3, got 3"):
        draw_text(mask, 60, 0, 3)


def test_keys_that_one_plane_alone_leaves_out_are_idle_in_it():
    mask = stacked(gaps(ROWS, KEYS, 3), full(ROWS, KEYS), heads=2)
    assert mask.schedule((128, 128)).idle_keys[0].any()
    assert not mask.schedule((128, 128)).idle_keys[1].any()


LO = causal(4, 6).lo.expand(6, -1, -1)
FIVE = LO[None, None]


def with_heads(heads):
    return IntervalMask(LO, LO, 6, heads=heads)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: IntervalMask(LO, LO, 6, heads=4), ValueError, "heads must divide the planes of .*got heads 4 and 6"),
        (lambda: IntervalMask(LO, LO, 6, heads=0), ValueError, "heads must be positive, got 0"),
        (lambda: IntervalMask(LO, LO, 6, heads=2.0), TypeError, "heads must be an int, got 2.0"),
        (lambda: IntervalMask(LO, LO, 6, heads=True), TypeError, "heads must be an int, got True"),
        (lambda: IntervalMask(LO[None], LO[None], 6), ValueError, "lo and hi must both have shape"),
        (lambda: IntervalMask.from_intervals(FIVE, FIVE, 6), ValueError, "lo and hi must both have shape .*heads"),
        (lambda: IntervalMask.from_intervals(LO[None, :0], LO[None, :0], 6), ValueError, "at least one head"),
        (lambda: with_heads(3) & with_heads(2), ValueError, r"equal lengths, .* and heads \(or heads 1\)"),
    ],
)
def test_bad_heads_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
