"""`cute-attn inspect`: what a kernel costs, read off its machine code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from ..jit.build import specs_of
from ..jit.obtain import obtain
from ..launch.tiles import default_tile
from ..profile.inspect import KernelReport, inspect, keep
from ..profile.sass import disassembler
from ..spec.operation import operation
from .build import json_object
from .files import NewFolder
from .options import TileSize, given
from .specs import OperationName, SpecField, check_goes_with, spec_under, tile_under

__all__ = ["command"]

_OF_SPECS = ("softmax", "sink", "max_logits")  # options that are fields of the specs of some operations


@click.command("inspect")
@click.option("--op", type=OperationName(), default="fwd", show_default=True)
@click.option("--head-dim", type=click.IntRange(8, 256), default=128, show_default=True)
@click.option("--head-dim-v", type=click.IntRange(8, 256), help="As --head-dim if not given.")
@click.option("--dtype", type=click.Choice(["bf16", "fp16"]), default="bf16", show_default=True)
@click.option("--mask", "mask", default="causal", show_default=True, metavar="NAME[:key=value,...]")
@click.option("--seqlen", type=click.IntRange(1), default=4096, show_default=True, help="That the mask is made for.")
@click.option("--tile", type=TileSize(), metavar="ROWSxKEYS", help="The default tile if not given.")
@click.option("--stages", type=int, default=2, show_default=True, help="Of K and V, with --tile.")
@click.option("--softmax", type=click.Choice(["stale", "exact"]), default="stale", show_default=True)
@click.option("--softcap", is_flag=True, help="Scores are capped.")
@click.option("--sink", is_flag=True, help="Sinks join the softmax.")
@click.option("--max-logits", is_flag=True, help="The largest score of each head is returned; implies --softmax exact.")
@click.option(
    "--field", "extra", type=SpecField(), multiple=True, metavar="NAME=VALUE", help="Another field of the spec."
)
@click.option("--spec", "text", metavar="JSON", help="A spec of any operation, in place of the options above.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
@click.option("--keep", "directory", type=NewFolder(), help="Leave .ptx and .cubin there.")
@click.pass_context
def command(
    context: click.Context,
    op: str,
    head_dim: int,
    head_dim_v: int | None,
    dtype: str,
    mask: str,
    seqlen: int,
    tile: tuple[int, int] | None,
    stages: int,
    softmax: str,
    softcap: bool,
    sink: bool,
    max_logits: bool,
    extra: tuple[tuple[str, Any], ...],
    text: str | None,
    as_json: bool,
    directory: Path | None,
) -> None:
    """What a kernel costs, read off its machine code: registers, spills, issue slots of its loops. Needs no GPU.

    It is the kernel that a launch would take, of a bundle or the cache, and compiled if it is in neither.

    \b
    cute-attn inspect --head-dim 128 --mask causal
    cute-attn inspect --head-dim 64 --tile 128x176 --json --keep /tmp/kernel
    """
    named = given(context)
    for name in (name for name in _OF_SPECS if name in named):
        check_goes_with(f"--{name.replace('_', '-')}", name, [op])
    if softcap:
        check_goes_with("--softcap", "score", [op])
    for name in dict(extra):
        check_goes_with(f"--field {name}", name, [op])
    if "stages" in named:
        check_goes_with("--stages", "stages", [op], "tile")
    if "stages" in named and tile is None:
        raise click.UsageError("--stages goes with --tile: the default tile has its own")
    if max_logits and "softmax" in named and softmax != "exact":
        raise click.UsageError(f"--max-logits implies --softmax exact, got --softmax {softmax}")
    disassembler()  # sooner than after the compile
    if text is None:
        row, dims = operation(op), (head_dim, head_dim_v or head_dim)
        config = tile_under(row, default_tile(op, dims), tile, stages)
        fields = {"sink": sink, "max_logits": max_logits, "softmax": "exact" if max_logits else softmax, **dict(extra)}
        spec = spec_under(row, dtype, dims, mask, seqlen, config, softcap, fields)
    else:
        (spec,) = specs_of([json_object(text)], "--spec")
    entry = obtain(spec)
    report = inspect(entry)
    kept = keep(entry, directory) if directory else []
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=1))
        return
    console = Console()
    console.print(str(spec), highlight=False)
    console.print(_summary(report))
    console.print(_loops(report))
    for path in kept:
        click.echo(f"kept: {path}")


def _summary(report: KernelReport) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("registers at entry", str(report.registers))
    table.add_row("spilled", f"{report.spill_bytes:,} bytes")
    table.add_row("shared memory", f"{report.smem_bytes:,} bytes")
    table.add_row("warnings", "\n".join(report.warnings) or "none")
    return table


def _loops(report: KernelReport) -> Table:
    """A column a loop with products; that over partial tiles, if there is one, comes before that over full ones."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("one pass of each loop with products")
    for index in range(len(report.loops)):
        table.add_column(f"loop {index + 1}", justify="right")
    table.add_row("tensor cycles", *(str(loop.tensor_cycles) for loop in report.loops))
    table.add_row("issue slots a warp", *(str(loop.common) for loop in report.loops))
    table.add_row("issue slots a tensor cycle", *(f"{loop.slots_per_cycle:.3f}" for loop in report.loops))
    for pipe in sorted({pipe for loop in report.loops for pipe in loop.by_pipe}):
        table.add_row(f"  {pipe}", *(str(loop.by_pipe.get(pipe, 0)) for loop in report.loops))
    table.add_row("behind a branch", *(str(loop.conditional) for loop in report.loops))
    table.add_row("mufu before the wait for PV", *(str(loop.mufu_before_pv_wait) for loop in report.loops))
    return table
