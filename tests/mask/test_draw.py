"""Pictures show what the mask attends: cell by cell against the dense mask."""

import itertools
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cute_attn import mask as masks
from cute_attn.mask.draw import TILE_COLOURS, coverage, draw_png, draw_text


def cells(text):
    """The characters between the frame's sides, line by line."""
    return [line.split("│")[1] for line in text.splitlines() if "│" in line]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31))
def test_coverage_is_the_share_of_attended_pairs_in_each_cell(sq, sk, rows, columns, seed):
    rows, columns = min(rows, sq), min(columns, sk)
    ends = torch.randint(-2, sk + 3, (2, 2, 3, sq), generator=torch.Generator().manual_seed(seed))
    mask = masks.IntervalMask.from_intervals(ends[0], ends[1], sk)
    dense = mask.to_dense()[1].double()
    row_edges, column_edges = ([n * i // parts for i in range(parts + 1)] for n, parts in ((sq, rows), (sk, columns)))
    expected = torch.stack(
        [
            torch.stack([dense[a:b, c:d].mean() for c, d in itertools.pairwise(column_edges)])
            for a, b in itertools.pairwise(row_edges)
        ]
    )
    torch.testing.assert_close(coverage(mask, rows, columns, batch=1), expected, rtol=0, atol=1e-12)


def test_a_short_mask_is_drawn_pair_by_pair():
    mask = masks.block_diffusion(12, block_size=2)
    drawn = [
        [pair == "██" for pair in map("".join, zip(line[::2], line[1::2], strict=True))]
        for line in cells(draw_text(mask))
    ]
    assert drawn == mask.to_dense()[0].tolist()


def test_a_short_causal_mask_looks_like_this():
    assert draw_text(masks.causal(3, 4)).splitlines() == [
        "q\\k  0 1 2 3 4",
        "    ┌────────┐",
        "  0 │████····│",
        "  1 │██████··│",
        "  2 │████████│",
        "    └────────┘",
        "    █ attended  · not",
    ]


@pytest.mark.parametrize("width", [40, 60, 80, 100])
@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (300, 7), (1000, 1000), (4096, 1 << 20)])
def test_every_line_fits_the_width(width, shape):
    lines = draw_text(masks.causal(*shape), width).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= 64


def test_full_blocks_and_dots_mean_all_and_none():
    mask = masks.causal_documents(1000, cu_seqlens=[0, 250, 1000])
    drawn = cells(draw_text(mask))
    dense = mask.to_dense()[0].double()
    rows, columns = len(drawn), len(drawn[0])
    for i, line in enumerate(drawn):
        for j, character in enumerate(line):
            cell = dense[
                1000 * i // rows : 1000 * (i + 1) // rows, 1000 * j // columns : 1000 * (j + 1) // columns
            ].mean()
            assert (character == "█") == (cell == 1)
            assert (character == "·") == (cell == 0)


def test_each_batch_element_has_its_picture():
    mask = masks.prefix_lm(8, prefix_length=[0, 8])
    assert "·" in "".join(cells(draw_text(mask, batch=0)))
    assert "·" not in "".join(cells(draw_text(mask, batch=1)))


def test_a_million_rows_draw_quickly():
    mask = masks.causal(1 << 20)
    start = time.perf_counter()
    assert "1048576" in draw_text(mask)
    assert time.perf_counter() - start < 10


def test_empty_masks_are_said_to_be_empty():
    assert draw_text(masks.full(0, 5)) == "(an empty mask: 0 rows, 5 keys)"


def test_png_shows_full_partial_and_skipped_tiles(tmp_path):
    from matplotlib.colors import to_rgb
    from PIL import Image

    path = draw_png(masks.causal(64), tmp_path / "mask.png", tile=(16, 16), title="causal")
    with Image.open(path) as picture:
        count, pixels = {}, picture.convert("RGB")
        for n, colour in pixels.getcolors(1 << 20):
            for kind, pair in TILE_COLOURS.items():
                if max(abs(round(255 * a) - b) for a, b in zip(to_rgb(pair[1]), colour, strict=True)) <= 4:
                    count[kind] = count.get(kind, 0) + n
    tile = 682 * 682 / 16
    assert count["full"] == pytest.approx(6 * tile, rel=0.1)
    assert count["none"] == pytest.approx(6 * tile, rel=0.1)
    assert count["partial"] == pytest.approx(4 * tile * 17 / 32, rel=0.1)
    assert path.stat().st_size < 40_000


def test_png_of_more_tiles_than_can_be_told_apart_shows_the_area(tmp_path):
    path = draw_png(masks.sliding_window(20_000, left=2000, right=0), tmp_path / "long.png")
    assert path.stat().st_size > 1000


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda mask, path: draw_text(mask, 10), "width must be >= 40, got 10"),
        (lambda mask, path: draw_text(mask, batch=1), "batch must be below the mask's batch 1, got 1"),
        (lambda mask, path: draw_png(mask, path, batch=-1), "batch must be >= 0"),
        (lambda mask, path: draw_png(mask, path, tile=(0, 8)), "tile must be"),
        (lambda mask, path: draw_png(masks.full(0), path), "nothing to draw: 0 rows, 0 keys"),
    ],
)
def test_bad_arguments_are_named(call, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        call(masks.causal(8), tmp_path / "mask.png")
