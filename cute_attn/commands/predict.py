"""`cute-attn predict`: how long a kernel should take, by a model of the GPU."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from ..jit.compiler import needs_compiler
from ..launch.tiles import tile_on
from ..mask import from_spec
from ..predict.call import Call, Prediction, predict
from ..predict.machine import GPUS, HELD_OUT, MEASURED_ON, Error
from ..predict.ours import OPERATIONS, call_of, code_of
from ..predict.picture import draw_png, draw_text
from ..profile.sass import disassembler
from ..spec.operation import Spec, operation
from .files import Picture
from .options import TileSize, Tokens, given
from .specs import check_goes_with, spec_under, tile_under

__all__ = ["command"]


@click.command("predict")
@click.option("--op", type=click.Choice(OPERATIONS), default="fwd", show_default=True)
@click.option("--head-dim", type=click.IntRange(8, 256), default=128, show_default=True)
@click.option("--head-dim-v", type=click.IntRange(8, 256), help="As --head-dim if not given.")
@click.option("--dtype", type=click.Choice(["bf16", "fp16"]), default="bf16", show_default=True)
@click.option("--mask", "mask", default="causal", show_default=True, metavar="NAME[:key=value,...]")
@click.option("--seqlen", type=Tokens(), default="8Ki", show_default=True, metavar="TOKENS", help="Queries and keys.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True)
@click.option("--heads-q", type=click.IntRange(1), default=32, show_default=True)
@click.option("--heads-k", type=click.IntRange(1), default=8, show_default=True)
@click.option("--tile", type=TileSize(), metavar="ROWSxKEYS", help="As a launch takes it if not given.")
@click.option("--stages", type=int, default=2, show_default=True, help="Of K and V, with --tile.")
@click.option("--softmax", type=click.Choice(["stale", "exact"]), default="stale", show_default=True)
@click.option("--deterministic", is_flag=True, help="Sums of dQ in a fixed order.")
@click.option("--gpu", type=click.Choice(list(GPUS)), default="h200", show_default=True)
@click.option("--png", type=Picture(), help="Write the timeline of a few tiles as a picture.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
@click.pass_context
def command(
    context: click.Context,
    op: str,
    head_dim: int,
    head_dim_v: int | None,
    dtype: str,
    mask: str,
    seqlen: int,
    batch: int,
    heads_q: int,
    heads_k: int,
    tile: tuple[int, int] | None,
    stages: int,
    softmax: str,
    deterministic: bool,
    gpu: str,
    png: Path | None,
    as_json: bool,
) -> None:
    """How long a kernel should take: predicted by a model of the GPU, never measured. Needs no GPU.

    \b
    cute-attn predict --head-dim 128 --mask causal --seqlen 8Ki
    cute-attn predict --op bwd --head-dim 64 --mask full --png timeline.png
    """
    named = given(context)
    for name in ("softmax", "deterministic"):
        if name in named:
            check_goes_with(f"--{name}", name, [op])
    if "stages" in named:
        check_goes_with("--stages", "stages", [op], "tile")
        if tile is None:
            raise click.UsageError("--stages goes with --tile: other tiles have their own")
    if heads_q % heads_k:
        raise click.UsageError(f"--heads-q must be a multiple of --heads-k, got {heads_q} and {heads_k}")
    disassembler()  # sooner than after the compile
    row, dims, intervals = operation(op), (head_dim, head_dim_v or head_dim), from_spec(mask, seqlen)
    heads, is_exact = (heads_q, heads_k), softmax == "exact"
    taken = tile_on(GPUS[gpu].name, op, dtype, dims, heads, intervals, is_exact=is_exact)
    config = tile_under(row, taken.tile, tile, stages)
    fields = {"softmax": softmax, "deterministic": deterministic}
    spec = spec_under(row, dtype, dims, mask, seqlen, config, False, fields, heads)
    with needs_compiler():
        code = code_of(spec)
    call = call_of(spec, code, intervals, heads, batch)
    found = predict(call, GPUS[gpu])
    error = HELD_OUT["deterministic" if deterministic else op]
    if png is not None:
        draw_png(found.play, png, f"Predicted, not measured: {op}, head_dim {dims[0]}/{dims[1]}, loads always there")
    if as_json:
        click.echo(json.dumps(_json(found, spec, call, gpu, error), indent=1))
        return
    console = Console()
    console.print(str(spec), highlight=False)
    if tile is None and taken.key is not None:
        console.print(f"tile: tuned on {taken.key.gpu} ({taken.source})", highlight=False)
    console.print(_table(found, call, gpu, error))
    click.echo("a few tiles, as if their loads were always there:")
    click.echo(draw_text(found.play))
    if png is not None:
        click.echo(f"picture: {png}")


def _json(found: Prediction, spec: Spec, call: Call, gpu: str, error: Error) -> dict[str, object]:
    return {
        "predicted": True,
        "spec": json.loads(spec.canonical()),
        "gpu": gpu,
        "milliseconds": found.seconds * 1e3,
        "tflops": found.tflops,
        "milliseconds_besides": found.besides * 1e3,
        "clock_ghz": found.clock / 1e9,
        "binds": found.binds,
        "at_tiles": found.at_tiles,
        "shares": found.shares,
        "items": len(call.partial),
        "tiles": {"partial": int(call.partial.sum()), "full": int(call.full.sum())},
        "error": {**asdict(error), "measured_on": MEASURED_ON.name},
    }


def _table(found: Prediction, call: Call, gpu: str, error: Error) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row(
        "predicted, not measured", f"{found.seconds * 1e3:.3g} ms, {found.tflops:.0f} TFLOP/s on one {gpu.upper()}"
    )
    own = gpu == MEASURED_ON.name.lower()
    table.add_row("error bar", str(error) if own else f"unknown: no time of an {gpu.upper()} is at hand. Else {error}")
    if found.besides > 0.01 * found.seconds:
        table.add_row("of which", f"{found.besides * 1e3:.3g} ms in launches and the kernels before and after")
    table.add_row("clock", f"{found.clock / 1e9:.2f} GHz, of a call that is repeated ten times")
    table.add_row("binds", found.binds)
    table.add_row("at tiles", f"{found.at_tiles:.0%} of the call, of all multiprocessors")
    table.add_row("busy in a tile", ", ".join(f"{name} {share:.0%}" for name, share in found.shares.items()))
    table.add_row(
        "items", f"{len(call.partial):,}, with {call.partial.sum():,} partial and {call.full.sum():,} full tiles"
    )
    return table
