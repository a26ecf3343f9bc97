"""Pictures of masks: as text for a terminal, as PNG with the tile grid over it.

Both are computed from the ends of the intervals, so that a mask of a million rows draws as quickly as a small one.
"""

from __future__ import annotations

import io
import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from .checks import check_number, check_tile, shown
from .intervals import IntervalMask, check_mask

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["coverage", "draw_png", "draw_text"]

# Colours of a tile that no row, some rows, every row attends: what is not attended in it, and what is.
TILE_COLOURS = {
    "none": ("#f1f3f5", "#f1f3f5"),
    "partial": ("#fce8cb", "#ef9b33"),
    "full": ("#2b7a9b", "#2b7a9b"),
}
INK, MUTED = "#22303c", "#6b7885"
_DPI = 110
_MOST_TILES = 96  # a side; more could not be told apart
_WIDTH, _RIGHT, _TOP, _BOTTOM = 6.2, 0.45, 0.78, 0.95  # of the picture and around it, in inches


def coverage(mask: IntervalMask, rows: int, columns: int, batch: int = 0, head: int = 0) -> torch.Tensor:
    """Fraction of attended pairs in each cell of a `rows x columns` grid laid over the mask, float64 on the CPU.

    The number of pairs left of an edge e is the sum over intervals of `relu(e - lo) - relu(e - hi)`. With the ends
    counted and summed by cell, `relu(e - x)` adds up to `e * count - sum` over the cells before e.
    """
    plane = _plane(mask, batch, head)
    rows, columns = check_number("rows", rows, 1), check_number("columns", columns, 1)
    row_edges, column_edges = (
        torch.tensor(_edges(*pair), device="cpu") for pair in ((mask.seqlen_q, rows), (mask.seqlen_k, columns))
    )
    line = torch.searchsorted(row_edges, torch.arange(mask.seqlen_q, device="cpu"), right=True) - 1
    left = torch.zeros(rows, columns + 1, dtype=torch.int64, device="cpu")
    for bound, sign in ((mask.lo, 1), (mask.hi, -1)):
        ends = bound[plane].cpu().long()
        cell = torch.searchsorted(column_edges, ends, right=True) - 1
        slot = (line * (columns + 1) + cell).flatten()
        count = torch.bincount(slot, minlength=left.numel()).view_as(left)
        total = torch.zeros_like(left).view(-1).index_add_(0, slot, ends.flatten()).view_as(left)
        count, total = (x.cumsum(1) - x for x in (count, total))
        left += sign * (column_edges * count - total)
    cells = row_edges.diff()[:, None] * column_edges.diff()
    return left.diff(dim=1).double() / cells


def draw_text(mask: IntervalMask, width: int = 80, batch: int = 0, head: int = 0) -> str:
    """The mask in block characters, at most `width` columns wide: rows are queries, columns keys.

    A short mask has two characters a key; in a longer one a cell stands for many pairs: `█` all attended, `▓▒░` some,
    `·` none. One of batch and head is drawn. ValueError for a width below 40 or a batch or head that the mask does not
    have.
    """
    _plane(mask, batch, head)
    width = check_number("width", width, 40)
    gutter = max(3, len(str(mask.seqlen_q))) + 1
    room = width - gutter - 2
    if 0 in (mask.seqlen_q, mask.seqlen_k):
        return f"(an empty mask: {mask.seqlen_q} rows, {mask.seqlen_k} keys)"
    is_exact = 2 * mask.seqlen_k <= room and mask.seqlen_q <= 48
    if is_exact:
        rows, columns, cell = mask.seqlen_q, mask.seqlen_k, 2
    else:
        columns, cell = _round_number_of_cells(mask.seqlen_k, min(room, mask.seqlen_k)), 1
        rows = round(columns * mask.seqlen_q / mask.seqlen_k / 2)  # a character is twice as tall as wide
        rows = _round_number_of_cells(mask.seqlen_q, min(max(rows, 1), mask.seqlen_q, 60))
    shares = coverage(mask, rows, columns, batch, head)
    row_edges = _edges(mask.seqlen_q, rows)
    labelled = {rows * i // 4 for i in range(4)}
    lines = [_key_axis(mask.seqlen_k, columns * cell, gutter), " " * gutter + "┌" + "─" * (columns * cell) + "┐"]
    for row, line in enumerate(shares.tolist()):
        label = str(row_edges[row]) if row in labelled else ""
        lines.append(f"{label:>{gutter - 1}} │" + "".join(_shade(x) * cell for x in line) + "│")
    lines.append(" " * gutter + "└" + "─" * (columns * cell) + "┘")
    lines.append(" " * gutter + ("█ attended  · not" if is_exact else "█ all attended  ▓▒░ some  · none"))
    return "\n".join(line.rstrip() for line in lines)


def draw_png(
    mask: IntervalMask,
    path: str | os.PathLike[str],
    tile: tuple[int, int] = (128, 128),
    batch: int = 0,
    title: str = "Mask",
    head: int = 0,
) -> Path:
    """Writes a PNG of the attended area with the grid of `(rows, keys)` tiles over it, and returns its path.

    Tiles are coloured by what a kernel does with them: none are skipped, partial ones masked, full ones not masked.
    With more than 96 tiles a side the area alone is drawn, as its share of each pixel. ValueError for an empty
    mask or a batch or head that it does not have.
    """
    _plane(mask, batch, head)
    tile = check_tile(tile)
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a path, got {shown(path)}")
    if not isinstance(title, str):
        raise TypeError(f"title must be a string, got {shown(title)}")
    if 0 in (mask.seqlen_q, mask.seqlen_k):
        raise ValueError(f"mask has nothing to draw: {mask.seqlen_q} rows, {mask.seqlen_k} keys")
    path = Path(path)
    path.write_bytes(_png(mask, tile, batch, title, head))
    return path


def _png(
    mask: IntervalMask, tile: tuple[int, int] = (128, 128), batch: int = 0, title: str = "IntervalMask", head: int = 0
) -> bytes:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    plane = _plane(mask, batch, head)
    height = min(max(_WIDTH * mask.seqlen_q / mask.seqlen_k, 1.2), 9.0)
    rows, columns = (min(n, round(x * _DPI)) for n, x in ((mask.seqlen_q, height), (mask.seqlen_k, _WIDTH)))
    shares = coverage(mask, rows, columns, batch, head)
    schedule = mask.schedule(tile)
    tiles = (-(-mask.seqlen_q // tile[0]), -(-mask.seqlen_k // tile[1]))
    has_grid = max(tiles) <= _MOST_TILES
    grid = schedule.to_grid()[plane].cpu().long() if has_grid else None

    left = 0.5 + 0.08 * len(f"{mask.seqlen_q:,}")
    wide, tall = left + _WIDTH + _RIGHT, _TOP + height + _BOTTOM
    figure = Figure(figsize=(wide, tall), dpi=_DPI, facecolor="white")
    axes = figure.add_axes((left / wide, _BOTTOM / tall, _WIDTH / wide, height / tall))
    axes.imshow(
        _colours(shares, grid, mask, tile),
        extent=(0, mask.seqlen_k, mask.seqlen_q, 0),
        aspect="auto",
        interpolation="nearest",
    )
    if grid is not None:
        thickness = min(1.2, 24 / max(tiles))
        across, down = range(tile[0], mask.seqlen_q, tile[0]), range(tile[1], mask.seqlen_k, tile[1])
        axes.hlines(across, 0, mask.seqlen_k, color="white", linewidth=thickness)
        axes.vlines(down, 0, mask.seqlen_q, color="white", linewidth=thickness)
    for set_ticks, length in ((axes.set_xticks, mask.seqlen_k), (axes.set_yticks, mask.seqlen_q)):
        ticks = sorted({length * i // 4 for i in range(5)})
        set_ticks(ticks, [f"{x:,}" for x in ticks])
    axes.tick_params(length=3, color=MUTED, labelcolor=MUTED, labelsize=8.5)
    axes.set_xlabel("key", color=MUTED, fontsize=9.5)
    axes.set_ylabel("query row", color=MUTED, fontsize=9.5)
    for spine in axes.spines.values():
        spine.set(color="#c5ccd3", linewidth=0.8)

    attended = mask.row_area().view(mask.planes, -1)[plane].sum().item() / (mask.seqlen_q * mask.seqlen_k)
    layers = f"{mask.layers} interval{'s' * (mask.layers > 1)} a row at most"
    facts = f"{mask.seqlen_q:,} × {mask.seqlen_k:,}, {attended:.1%} attended, {layers}"
    size = min(12.0, 12.0 * 62 / max(1, len(title)))  # a long title still fits in one line
    x = left / wide
    figure.text(x, 1 - 0.30 / tall, title, color=INK, fontsize=size, fontweight="bold", va="center")
    figure.text(x, 1 - 0.57 / tall, facts, color=MUTED, fontsize=9.5, va="center")
    if grid is not None:
        none, partial, full = torch.bincount(grid.flatten(), minlength=3).tolist()
        entries = {f"full: {full:,}": "full", f"partial: {partial:,}": "partial", f"none: {none:,}": "none"}
        note = f"tiles of {tile[0]} × {tile[1]}"
    else:
        entries, note = {"attended": "full"}, ""
    patches = [Patch(facecolor=TILE_COLOURS[kind][1], edgecolor="#c5ccd3", linewidth=0.6) for kind in entries.values()]
    figure.legend(
        patches,
        list(entries),
        loc="center left",
        bbox_to_anchor=(x, 0.25 / tall),
        ncols=3,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        handlelength=1.1,
        handleheight=1.1,
        columnspacing=1.6,
        borderaxespad=0,
        borderpad=0,
    )
    figure.text((left + _WIDTH) / wide, 0.25 / tall, note, color=MUTED, fontsize=9, ha="right", va="center")
    return _bytes(figure)


def _bytes(figure: Figure) -> bytes:
    """As a PNG of 64 colours: a tenth of the size, and nobody sees the difference."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    file = io.BytesIO()
    picture.quantize(64, dither=Image.Dither.NONE).save(file, format="PNG", optimize=True)
    return file.getvalue()


def _edges(length: int, cells: int) -> list[int]:
    return [length * i // cells for i in range(cells + 1)]


def _round_number_of_cells(length: int, most: int) -> int:
    """The largest number of equal cells if it is not much below `most`, else `most`: equal cells draw sharp edges."""
    even = next(n for n in range(most, 0, -1) if length % n == 0)
    return even if even >= 0.6 * most else most


def _shade(share: float) -> str:
    """Only what is wholly attended is a full block, only what is not at all a dot."""
    if share in (0, 1):
        return "·█"[int(share)]
    return "░▒▓"[min(2, int(share * 3))]


def _key_axis(seqlen_k: int, characters: int, gutter: int) -> str:
    """Keys over the frame: every quarter where there is room, the last one ending with the frame."""
    line = list("q\\k".ljust(gutter + 2 + characters))
    for i in (0, 4, 2, 1, 3):
        label = str(seqlen_k * i // 4)
        at = min(gutter + 1 + characters * i // 4, len(line) - len(label))
        if all(c == " " for c in line[at - 1 : at + len(label) + 1]):
            line[at : at + len(label)] = label
    return "".join(line)


def _colours(shares: torch.Tensor, grid: torch.Tensor | None, mask: IntervalMask, tile: tuple[int, int]) -> np.ndarray:
    """RGB image, `(rows, columns, 3)`: each cell between its tile's two colours, as much as it is attended."""
    from matplotlib.colors import to_rgb

    colours = {kind: [to_rgb(colour) for colour in pair] for kind, pair in TILE_COLOURS.items()}
    if grid is None:
        background, attended = np.array([colours["none"][0], colours["full"][1]])
    else:
        rows, columns = (
            torch.tensor(
                [(first + last - 1) // 2 // size for first, last in itertools.pairwise(_edges(length, cells))],
                device="cpu",
            )
            for length, cells, size in zip((mask.seqlen_q, mask.seqlen_k), shares.shape, tile, strict=True)
        )
        kind = grid[rows[:, None], columns].numpy()
        background, attended = (np.array(side)[kind] for side in zip(*colours.values(), strict=True))
    return background + (attended - background) * shares.clamp(0, 1).numpy()[..., None]


def _plane(mask: IntervalMask, batch: int, head: int) -> int:
    """The plane that is drawn."""
    check_mask("mask", mask)
    for name, value, count in (("batch", batch, mask.batch), ("head", head, mask.heads)):
        if check_number(name, value, 0) >= count:
            raise ValueError(f"{name} must be below the mask's {name}{'s' * (name == 'head')} {count}, got {value}")
    return batch * mask.heads + head


IntervalMask._text = draw_text
IntervalMask._png = _png
