"""Pictures of score_mods: what each adds to a score, what it multiplies it with, or what it makes of it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image

from cute_attn.mask.draw import INK, MUTED
from cute_attn.mods.trace import trace

LARGEST = 60  # of scores that a curve shows
SIDE = 256  # pixels of a panel


def draw_scores(mod: Callable[..., Any], path: Path, title: str, heads: int, length: int) -> None:
    """Writes a PNG of the first batch element: a panel for each head, one where the function reads none."""
    graph = trace(mod, "score_mod").graph
    if not graph.reads("q") and not graph.reads("kv"):
        path.write_bytes(_curve(mod, title, heads if graph.reads("h") else 1))
        return
    at = torch.arange(0, length, length // SIDE, dtype=torch.int32)
    head = torch.arange(heads if graph.reads("h") else 1)[:, None, None]
    zero, one = (
        mod(torch.full((len(head), SIDE, SIDE), x), torch.tensor(0), head, at[:, None], at).double() for x in (0.0, 1.0)
    )
    is_added = bool((one - zero - 1).abs().max() < 1e-5)
    shown, what = (zero, "added to the score") if is_added else (one - zero, "what the score is multiplied with")
    path.write_bytes(_panels(shown, title, what, length))


def _panels(values: torch.Tensor, title: str, what: str, length: int) -> bytes:
    count = len(values)
    wide, tall = 0.7 + 2.3 * count + 0.9, 3.3
    figure = Figure(figsize=(max(wide, 4.2), tall), dpi=100, facecolor="white")
    _titled(figure, title, what)
    largest = values.abs().max().item()
    is_signed = bool((values < 0).any()) and bool((values > 0).any())
    ends = (-largest, largest) if is_signed else (values.min().item(), values.max().item())
    width = max(wide, 4.2)
    for head, panel in enumerate(values):
        axes = figure.add_axes(((0.6 + 2.3 * head) / width, 0.5 / tall, 2.0 / width, 2.0 / tall))
        image = axes.imshow(
            panel.numpy(),
            extent=(0, length, length, 0),
            cmap="RdBu" if is_signed else "viridis",
            vmin=ends[0],
            vmax=ends[1],
        )
        axes.set_xticks([0, length // 2, length])
        axes.set_yticks([0, length // 2, length] if head == 0 else [])
        axes.tick_params(length=3, color=MUTED, labelcolor=MUTED, labelsize=8)
        axes.set_xlabel(f"key, head {head}" if count > 1 else "key", color=MUTED, fontsize=9)
        if head == 0:
            axes.set_ylabel("query row", color=MUTED, fontsize=9)
    bar = figure.colorbar(
        image, cax=figure.add_axes(((0.6 + 2.3 * count) / width, 0.5 / tall, 0.12 / width, 2.0 / tall))
    )
    bar.ax.tick_params(length=3, color=MUTED, labelcolor=MUTED, labelsize=8)
    return _bytes(figure)


def _curve(mod: Callable[..., Any], title: str, heads: int) -> bytes:
    scores = torch.linspace(-LARGEST, LARGEST, 241)
    figure = Figure(figsize=(4.2, 3.3), dpi=100, facecolor="white")
    _titled(figure, title, "the new score over the score")
    axes = figure.add_axes((0.6 / 4.2, 0.5 / 3.3, 3.2 / 4.2, 2.0 / 3.3))
    zero = torch.tensor(0)
    for head in range(heads):
        label = f"head {head}" if heads > 1 else None
        axes.plot(scores.numpy(), mod(scores, zero, torch.tensor(head), zero, zero).numpy(), label=label, linewidth=1.4)
    axes.plot(scores.numpy(), scores.numpy(), color="#c5ccd3", linewidth=0.8)
    if heads > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    axes.tick_params(length=3, color=MUTED, labelcolor=MUTED, labelsize=8)
    return _bytes(figure)


def _bytes(figure: Figure) -> bytes:
    """As a PNG of 256 colours: a third of the size."""
    drawn, written = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(written, "PNG", optimize=True)
    return written.getvalue()


def _titled(figure: Figure, title: str, what: str) -> None:
    width, tall = figure.get_size_inches()
    figure.text(0.6 / width, 1 - 0.25 / tall, title, color=INK, fontsize=11, fontweight="bold", va="center")
    figure.text(0.6 / width, 1 - 0.5 / tall, what, color=MUTED, fontsize=9, va="center")
