"""`cute-attn plan`: how a sequence would be split over many GPUs, without any of them."""

from __future__ import annotations

import time
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.table import Table

from ..dist.config import (
    AutoDispatchAlg,
    ContiguousDispatchAlg,
    DispatchAlg,
    DispatchConfig,
    LocalityDispatchAlg,
    MinHeapDispatchAlg,
    OverlapConfig,
    ZigzagDispatchAlg,
)
from ..dist.cost import CostModel
from ..dist.placing.place import place
from ..dist.plans.draw import draw_png, draw_text
from ..dist.plans.placed import PlacedMask
from ..dist.plans.predict import MoverPrediction, predict_movers
from ..dist.plans.timeline import TIMED, draw_timelines, draw_timelines_png, slowest_rank, timelines
from ..dist.workload import lognormal_documents
from ..mask import from_spec
from .files import Picture
from .options import Tokens
from .terminal import drawn

__all__ = ["command"]

UNEVEN = 1.5  # times the mean area, from which on a rank is said to have too much
CHUNKS_A_RANK = 4  # as few as balance a causal mask
ALGS: dict[str, DispatchAlg] = {
    "auto": AutoDispatchAlg(),
    "locality": LocalityDispatchAlg(),
    "min_heap": MinHeapDispatchAlg(),
    "contiguous": ContiguousDispatchAlg(),
    "zigzag": ZigzagDispatchAlg(),
}


@click.command("plan")
@click.option("--world", type=click.IntRange(1), required=True, help="Number of GPUs.")
@click.option("--seqlen", type=Tokens(), required=True, metavar="TOKENS", help="Such as 65536, 64Ki, 1Mi or 10M.")
@click.option("--mask", "spec", metavar="NAME[:key=value,...]", help="A named mask; causal if there is none.")
@click.option(
    "--documents",
    type=Tokens(),
    metavar="TOKENS",
    help="Packed causal documents of lognormal lengths with this mean, instead of --mask.",
)
@click.option("--chunk-size", type=Tokens(), default="1024", show_default=True, help="Rows that stay together.")
@click.option("--alg", type=click.Choice(list(ALGS)), default="auto", show_default=True, help="The dispatch algorithm.")
@click.option("--degree", type=click.IntRange(1), default=1, show_default=True, help="Stages of remote keys.")
@click.option("--heads-q", type=click.IntRange(1), default=32, show_default=True)
@click.option("--heads-k", type=click.IntRange(1), default=8, show_default=True)
@click.option("--head-dim", type=click.IntRange(1), default=128, show_default=True)
@click.option("--ulysses-size", type=click.IntRange(2), default=8, show_default=True, help="Of a 2-D mesh.")
@click.option("--bandwidth", type=float, default=40.0, show_default=True, help="GB/s of a GPU, to other nodes.")
@click.option("--ranks-per-node", type=click.IntRange(1), default=1, show_default=True, help="GPUs that share a node.")
@click.option("--node-bandwidth", type=float, default=400.0, show_default=True, help="GB/s of a GPU inside a node.")
@click.option(
    "--timeline",
    is_flag=False,
    flag_value="fastest",
    type=click.Choice(["fastest", *TIMED]),
    help="Draw when keys, attention and gradients of the slowest rank have their turn, of a mover or the fastest.",
)
@click.option("--timeline-png", type=Picture(), help="Write a picture of the timeline, and draw it.")
@click.option("--png", type=Picture(), help="Write a picture of who holds what.")
def command(
    world: int,
    seqlen: int,
    spec: str | None,
    documents: int | None,
    chunk_size: int,
    alg: str,
    degree: int,
    heads_q: int,
    heads_k: int,
    head_dim: int,
    ulysses_size: int,
    bandwidth: float,
    ranks_per_node: int,
    node_bandwidth: float,
    timeline: str | None,
    timeline_png: Path | None,
    png: Path | None,
) -> None:
    """How a sequence would be split over many GPUs: balance, bytes, stages, and who holds what. Needs no GPU.

    \b
    cute-attn plan --world 64 --seqlen 512Ki --documents 4Ki
    cute-attn plan --world 1024 --seqlen 10M --mask causal --png plan.png
    cute-attn plan --world 16 --seqlen 256Ki --degree 3 --timeline group_cast
    """
    if spec is not None and documents is not None:
        raise click.UsageError("give either --mask or --documents")
    cost = CostModel(
        heads_q,
        heads_k,
        head_dim,
        head_dim,
        bandwidth=bandwidth * 1e9,
        ranks_per_node=ranks_per_node,
        node_bandwidth=node_bandwidth * 1e9,
    )
    if documents is not None:
        mask, title = lognormal_documents(seqlen, documents), f"packed documents, mean {documents:,}"
    else:
        mask, title = from_spec(spec or "causal", seqlen), spec or "causal"
    began = time.perf_counter()
    placed = PlacedMask(mask, *place(mask, world, chunk_size, config=DispatchConfig(ALGS[alg]), cost=cost))
    seconds = time.perf_counter() - began
    overlap = OverlapConfig(degree=degree)
    mesh_size = ulysses_size if world % ulysses_size == 0 else None
    movers = predict_movers(placed, overlap, cost, mesh_size)
    timeline = timeline or (None if timeline_png is None else "fastest")
    timed = None if timeline is None else _timed(movers, timeline)
    console = Console()
    console.print(_placement(placed, title, alg, seconds))
    console.print(_movers(movers))
    click.echo(_remark(placed), nl=False)
    width = max(40, min(console.width, 120))
    click.echo(drawn("held █, received ▒ (░ in part); a line a rank, keys from left to right"))
    click.echo(drawn(draw_text(placed, width)))
    if timed is not None:
        rank = slowest_rank(placed, overlap, cost, timed)
        click.echo(f"{timed.mover} on rank {rank}, the slowest; a block by its number, 0 what the rank holds itself")
        both = timelines(timed.mover, placed, rank, overlap, cost, mesh_size)
        click.echo(draw_timelines(both, width))
        if timeline_png is not None:
            draw_timelines_png(both, timeline_png, f"{title}: {timed.mover} on rank {rank} of {world:,}")
            click.echo(f"picture: {timeline_png}")
    if png is not None:
        draw_png(placed, png, f"{title}: {seqlen:,} tokens on {world:,} ranks")
        click.echo(f"picture: {png}")


def _placement(placed: PlacedMask, title: str, alg: str, seconds: float) -> Table:
    mask, query, areas = placed.mask, placed.query, placed.areas
    mean = float(areas.double().mean())
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("mask", f"{title}: {mask.seqlen_q:,} tokens, {int(areas.sum()):,} pairs")
    table.add_row(
        "placement",
        f"{query.world:,} ranks of {query.chunks.shape[1]:,} chunks of {query.chunk_size:,} rows by {alg}, "
        f"{query.pad_size:,} rows of padding; planned in {seconds:.1f} s",
    )
    ratio = float(areas.max()) / mean if mean else 1.0
    table.add_row("area a rank", f"max/mean {ratio:.3f}: mean {mean:,.0f}, max {int(areas.max()):,}")
    return table


def _timed(movers: list[MoverPrediction], name: str) -> MoverPrediction:
    """The mover of this name, or the fastest of those that have timelines."""
    found = [m for m in movers if m.mover in TIMED and name in ("fastest", m.mover)]
    if not found:
        raise click.UsageError(f"--timeline {name} does not serve these ranks and heads: see the movers of the table")
    return min(found, key=lambda m: m.seconds)


def _remark(placed: PlacedMask) -> str:
    """A line where one rank has far more to do than the others, empty otherwise."""
    query, areas = placed.query, placed.areas
    ratio = float(areas.max()) / max(float(areas.double().mean()), 1e-9)
    if ratio <= UNEVEN:
        return ""
    idle = int((areas == 0).sum())
    fine = max(1, query.length // (CHUNKS_A_RANK * query.world))
    way_out = f"--chunk-size {fine}" if fine < query.chunk_size else "--alg min_heap, fewer ranks or a longer sequence"
    return (
        f"unbalanced: the busiest rank has {ratio:.1f} times the mean area, {idle:,} of {query.world:,} ranks have "
        f"nothing to attend; try {way_out}\n"
    )


def _movers(movers: list[MoverPrediction]) -> Table:
    """A line a mover (those that the head counts rule out are not there), for the forward: bytes a rank receives on
    average, bytes of the busiest receiver and sender, the average as a share of all-gather's, collectives, time."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("mover", no_wrap=True)
    for name in ("mean bytes", "most in", "most out", "share", "stages", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    whole = float(movers[0].bytes_received.double().mean())
    for m in movers:
        mean = float(m.bytes_received.double().mean())
        table.add_row(
            m.mover,
            _size(mean),
            *(_size(float(x.max())) for x in (m.bytes_received, m.bytes_sent)),
            f"{mean / whole:.2%}" if whole else "-",
            str(m.steps),
            f"{m.seconds * 1e3:.2f} ms" if m.seconds < 1 else f"{m.seconds:.2f} s",
        )
    return table


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
