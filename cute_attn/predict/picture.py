"""A few tiles as the model played them: what each warpgroup, and the tensor cores for it, did when."""

from __future__ import annotations

from pathlib import Path

from .model import Play

__all__ = ["draw_png", "draw_text"]

_NAMES = {"run": "instructions", "products": "tensor cores"}
_MARKS, _COLOURS = {"run": "#", "products": "="}, {"run": "#ef9b33", "products": "#2b7a9b"}
INK, MUTED = "#22303c", "#6b7885"


def draw_text(play: Play, width: int = 96) -> str:
    """Two lines a warpgroup, each a column for `cycles / width`: `#` where its instructions run, `=` its products."""
    lines = []
    for warpgroup in sorted({span.warpgroup for span in play.spans}):
        for kind, name in _NAMES.items():
            cells = ["."] * width
            for span in play.spans:
                if (span.warpgroup, span.kind) == (warpgroup, kind):
                    first, last = (int(at / play.cycles * width) for at in (span.begin, span.end))
                    cells[first : max(last, first + 1)] = _MARKS[kind] * (max(last, first + 1) - first)
            lines.append(
                f"{f'warpgroup {warpgroup + 1}' if kind == 'run' else '':<12}{name:<13}{''.join(cells[:width])}"
            )
    return "\n".join([*lines, f"{'':<25}0{f'{play.cycles:,.0f} cycles':>{width - 1}}"])


def draw_png(play: Play, path: Path, title: str) -> None:
    """The same as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    warpgroups = sorted({span.warpgroup for span in play.spans})
    figure = Figure(figsize=(9.0, 1.3 + 0.75 * len(warpgroups)), dpi=110, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places, names = [], []
    for warpgroup in warpgroups:
        for kind, name in _NAMES.items():
            place = -2.4 * warpgroup - (kind == "products")
            bars = [
                (span.begin, span.end - span.begin)
                for span in play.spans
                if (span.warpgroup, span.kind) == (warpgroup, kind)
            ]
            axes.broken_barh(bars, (place - 0.4, 0.8), color=_COLOURS[kind])
            places.append(place)
            names.append(f"warpgroup {warpgroup + 1}: {name}")
    axes.set_yticks(places, names)
    axes.set_xlim(0, play.cycles)
    axes.tick_params(length=3, color=MUTED, labelcolor=MUTED, labelsize=8.5)
    axes.set_xlabel("cycle", color=MUTED, fontsize=9.5)
    axes.set_title(title, color=INK, fontsize=11, fontweight="bold", loc="left")
    for spine in axes.spines.values():
        spine.set(color="#c5ccd3", linewidth=0.8)
    figure.savefig(path, format="png")
