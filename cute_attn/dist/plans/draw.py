"""Who owns what: pictures of a mask on its placements, as text for a terminal and as PNG."""

from __future__ import annotations

from pathlib import Path

import torch

from ..placing.needs import Spans, meet
from .placed import PlacedMask

__all__ = ["draw_png", "draw_text", "ownership"]

NONE, RECEIVED, OWNED = (0.945, 0.953, 0.961), (0.937, 0.608, 0.200), (0.169, 0.478, 0.608)


def ownership(placed: PlacedMask, ranks: torch.Tensor, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`(held, needed)`, float64 `(ranks, columns)` each: the share of every part of the key axis that a rank holds, and
    that its queries need. Columns are equal parts of `[0, key.padded_length)`."""
    key = placed.key
    edges = torch.linspace(0, key.padded_length, columns + 1, dtype=torch.float64, device="cpu").round().long()
    group = torch.arange(key.world, device="cpu").repeat_interleave(key.chunks.shape[1])
    starts = key.chunks.reshape(-1) * key.chunk_size
    held = Spans(group, starts, starts + key.chunk_size)
    return _shares(held, edges, ranks, key.world), _shares(placed.needs, edges, ranks, key.world)


def draw_text(placed: PlacedMask, width: int = 80, lines: int = 32) -> str:
    """A line for each of at most `lines` ranks, evenly chosen: what it holds is dark, what it receives is light."""
    ranks = _chosen(placed.world, lines)
    margin = len(str(placed.world - 1)) + 1
    held, needed = ownership(placed, ranks, min(max(8, width - margin), placed.key.padded_length))
    rows = []
    for rank, own, need in zip(ranks.tolist(), held.tolist(), needed.tolist(), strict=True):
        cells = "".join(_cell(*shares) for shares in zip(own, need, strict=True))
        rows.append(f"{rank:>{margin - 1}} {cells.rstrip()}")
    return "\n".join(rows)


def draw_png(placed: PlacedMask, path: str | Path, title: str = "Placement") -> Path:
    """Writes a PNG with a line for each rank (of more than 256, evenly chosen ones) and the key axis across; returns
    its path."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    ranks, keys = _chosen(placed.world, 256), placed.key.padded_length
    held, needed = ownership(placed, ranks, min(1024, keys))
    none, received, owned = (torch.tensor(x, dtype=torch.float64, device="cpu") for x in (NONE, RECEIVED, OWNED))
    light = needed.clamp(max=1)[..., None]
    image = none + light * (received - none)
    image = image + (held > 0)[..., None] * (owned - image)
    figure = Figure(figsize=(9.0, 5.0), dpi=120, facecolor="white")
    axes = figure.add_axes((0.08, 0.12, 0.89, 0.74))
    axes.imshow(image.numpy(), aspect="auto", interpolation="nearest", extent=(0, keys, placed.world, 0))
    axes.set_xlabel("key position")
    axes.set_ylabel("rank")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_title(title, loc="left", fontsize=10, pad=22)
    figure.legend(
        handles=[Patch(color=OWNED, label="held"), Patch(color=RECEIVED, label="received")],
        loc="upper right",
        bbox_to_anchor=(0.97, 0.93),
        ncols=2,
        frameon=False,
        fontsize=9,
    )
    path = Path(path)
    figure.savefig(path)
    return path


def _cell(held: float, needed: float) -> str:
    if held > 0:
        return "█" if held >= 0.5 else "▓"
    return "▒" if needed >= 0.5 else "░" if needed > 0 else " "


def _chosen(world: int, most: int) -> torch.Tensor:
    return torch.arange(world, device="cpu") if world <= most else torch.arange(most, device="cpu") * world // most


def _shares(spans: Spans, edges: torch.Tensor, ranks: torch.Tensor, world: int) -> torch.Tensor:
    columns = len(edges) - 1
    line = torch.full((world,), -1, device="cpu")
    line[ranks] = torch.arange(len(ranks), device="cpu")
    keep = line[spans.group] >= 0
    parts, column = meet(Spans(*[x[keep] for x in spans]), edges[:-1], edges[1:])
    share = torch.zeros(len(ranks), columns, dtype=torch.float64, device="cpu")
    share.view(-1).index_add_(0, line[parts.group] * columns + column, (parts.hi - parts.lo).double())
    return share / edges.diff()
