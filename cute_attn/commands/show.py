"""`cute-attn show`: a mask, drawn and measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from ..mask import AttnMaskType, IntervalMask, from_spec
from ..mask.draw import draw_png, draw_text
from ..mods.arguments import check_mod
from ..mods.masks import create_mask
from ..mods.recognise import Recognised, recognise
from ..mods.trace import trace
from .files import Picture
from .functions import MaskMod
from .options import TileSize
from .terminal import drawn

__all__ = ["command", "facts"]

DEFAULT_LENGTH = 1024
_MOST_PAIRS = 1 << 28  # of a mask that must be evaluated pair by pair to be drawn


class Slice(click.ParamType):
    """FIRST:LAST,FIRST:LAST[,TYPE]: rows, keys and one of the four types."""

    name = "slice"

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in value.split(",")]
        try:
            if len(parts) not in (2, 3):
                raise ValueError("expected rows, keys and perhaps a type")
            rows, keys = ([int(end) for end in part.split(":")] for part in parts[:2])
            if len(rows) != 2 or len(keys) != 2:
                raise ValueError("a range is FIRST:LAST")
            kind = AttnMaskType.parse(parts[2] if len(parts) == 3 else "full")
        except ValueError as error:
            self.fail(f"expected a slice such as 0:128,0:256,causal, got {value!r}: {error}", param, ctx)
        return rows, keys, kind


@click.command("show")
@click.option(
    "--mask",
    "spec",
    metavar="NAME[:key=value,...]",
    help="A named mask, such as causal or block_causal:block_size=128.",
)
@click.option(
    "--slice",
    "slices",
    type=Slice(),
    multiple=True,
    metavar="ROWS,KEYS[,TYPE]",
    help="Slices instead, each such as 0:128,0:256,causal; may be repeated.",
)
@click.option(
    "--mod",
    type=MaskMod(),
    metavar="FILE:FUNCTION",
    help="A function mask_mod(b, h, q_idx, kv_idx) of a Python file, and whether it is read as intervals.",
)
@click.option(
    "--seqlen-q",
    type=click.IntRange(1),
    help=f"Rows; {DEFAULT_LENGTH} for a named mask or a function, the largest end of the slices.",
)
@click.option("--seqlen-k", type=click.IntRange(1), help="Keys; as many as rows, or the largest end of the slices.")
@click.option(
    "--tile",
    type=TileSize(),
    default="128x128",
    show_default=True,
    metavar="ROWSxKEYS",
    help="Tiles to count and colour.",
)
@click.option(
    "--batch", type=click.IntRange(0), default=0, show_default=True, help="Which element of a batched mask to draw."
)
@click.option(
    "--head", type=click.IntRange(0), default=0, show_default=True, help="Which query head a function is drawn for."
)
@click.option("--png", type=Picture(), help="Write a picture with the tile grid.")
def command(
    spec: str | None,
    slices: tuple[tuple[list[int], list[int], AttnMaskType], ...],
    mod: Callable[..., Any] | None,
    seqlen_q: int | None,
    seqlen_k: int | None,
    tile: tuple[int, int],
    batch: int,
    head: int,
    png: Path | None,
) -> None:
    """A mask as text and PNG, with its tiles counted.

    \b
    cute-attn show --mask shared_prefix:prefix_length=256,lengths=300/468
    cute-attn show --slice 0:600,0:600,causal --slice 600:1024,0:1024 --png mask.png
    cute-attn show --mod masks.py:neighbours --seqlen-q 4096 --head 3
    """
    if [spec is not None, bool(slices), mod is not None].count(True) != 1:
        raise click.UsageError("give either --mask or --slice or --mod")
    reading = None
    if mod is not None:
        mask, reading = of_function(mod, seqlen_q or DEFAULT_LENGTH, seqlen_k, batch, head)
        title, batch = getattr(mod, "__name__", "mask_mod"), 0
    elif spec is not None:
        mask, title = from_spec(spec, seqlen_q or DEFAULT_LENGTH, seqlen_k), spec
    else:
        q_ranges, k_ranges, kinds = (list(part) for part in zip(*slices, strict=True))
        mask = IntervalMask.from_slices(q_ranges, k_ranges, kinds, seqlen_q, seqlen_k)
        title = f"{len(slices)} slice{'s' * (len(slices) > 1)}"
    console = Console()
    click.echo(drawn(draw_text(mask, max(40, min(console.width, 100)), batch)))
    console.print(facts(mask, tile, reading))
    if png is not None:
        draw_png(mask, png, tile, batch, title)
        click.echo(f"picture: {png}")


def of_function(
    mod: Callable[..., Any], seqlen_q: int, seqlen_k: int | None, batch: int, head: int
) -> tuple[IntervalMask, Recognised]:
    """The mask of a function for one batch element and head, and how it is read."""

    def here(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return mod(b + batch, h + head, q_idx, kv_idx)

    lengths = seqlen_q, seqlen_q if seqlen_k is None else seqlen_k
    cpu = torch.device("cpu")
    try:
        check_mod("mask_mod", mod, 4)
        found = recognise(trace(here, "mask_mod", cpu), *lengths, 1, 1, cpu)
        if found.predicate is None:
            return found.intervals, found
        if lengths[0] * lengths[1] > _MOST_PAIRS:
            raise ValueError(
                f"the function is not read as intervals: {found.reason}; such masks are drawn of at most "
                f"{_MOST_PAIRS:,} pairs, got {lengths[0]:,} rows and {lengths[1]:,} keys"
            )
        return IntervalMask.from_dense(create_mask(here, None, None, *lengths, device=cpu)), found
    except (TypeError, IndexError, ZeroDivisionError) as error:
        raise ValueError(str(error)) from None


def facts(mask: IntervalMask, tile: tuple[int, int], reading: Recognised | None = None) -> Table:
    """What there is to say about a mask in numbers."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    pairs = mask.planes * mask.seqlen_q * mask.seqlen_k
    area = mask.area()
    table.add_row("shape", f"{mask.seqlen_q:,} rows, {mask.seqlen_k:,} keys, batch {mask.batch}")
    table.add_row(
        "attended", f"{area:,} of {pairs:,} pairs, {_share(area, pairs)}; sparsity {_share(pairs - area, pairs)}"
    )
    if reading is not None and reading.predicate is not None:
        table.add_row(
            "read as", f"a predicate in {_share(reading.intervals.area(), pairs)} of the pairs: {reading.reason}"
        )
    else:
        name = "layers" if reading is None else "read as"
        table.add_row(name, f"{mask.layers} interval{'s' * (mask.layers > 1)} a row at most")
    items = mask.schedule(tile).forward.columns
    partial, full = (int(count.long().sum()) for count in (items.n_partial, items.n_full))
    total = mask.planes * -(-mask.seqlen_q // tile[0]) * -(-mask.seqlen_k // tile[1])
    table.add_row(
        f"tiles {tile[0]}x{tile[1]}",
        f"{full:,} full, {partial:,} partial, {total - full - partial:,} none: {_share(full + partial, total)} visited",
    )
    return table


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "nothing"
