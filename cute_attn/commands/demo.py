"""`cute-attn demo`: attention under an irregular mask, checked against dense attention in fp64."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import flex_flash_attn_func
from ..backend import resolve
from ..mask import from_spec
from ..mask.draw import draw_png, draw_text
from .files import Picture
from .machine import best_device
from .show import facts
from .terminal import drawn

__all__ = ["command"]

# One prompt and four answers to it in one packed sequence: two intervals a row.
DEFAULT_MASK = "shared_prefix:prefix_length=256,lengths=180/260/140/188"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
HEADS_Q, HEADS_K, HEAD_DIM = 8, 2, 64
RESULTS = ("out", "lse", "dq", "dk", "dv")
LSE_LIMIT = 1e-4  # lse is fp32 whatever the inputs are: plain PyTorch in bf16 is no measure for it


class Inputs(NamedTuple):
    """q `(tokens, heads_q, head_dim)`; k, v `(tokens, heads_k, head_dim)`; dout, dlse: gradients of the results."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    dout: torch.Tensor
    dlse: torch.Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        return Inputs(*(x.detach().to(dtype).requires_grad_(x.requires_grad) for x in self))


@click.command("demo")
@click.option(
    "--mask", "spec", default=DEFAULT_MASK, show_default=True, metavar="NAME[:key=value,...]", help="The mask."
)
@click.option("--seqlen", type=click.IntRange(1, 8192), default=1024, show_default=True, help="Tokens.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="bf16", show_default=True, help="Of q, k and v.")
@click.option("--png", type=Picture(), help="Where to draw the mask; else a temporary file.")
def command(spec: str, seqlen: int, dtype: str, png: Path | None) -> None:
    """Attention under a mask on this machine: the result checked, the time taken, the mask drawn.

    Runs flex_flash_attn_func forward and backward on the best backend that this machine has, compares out, lse and the
    gradients with dense attention in fp64, and fails if an error is larger than twice that of the same dense formula in
    plain PyTorch in the dtype of the inputs (for lse, which is fp32: larger than 1e-4).
    """
    console = Console()
    device = best_device()
    if device.type == "cuda" and dtype not in ("bf16", "fp16"):
        raise click.UsageError(f"the kernels take bf16 and fp16; {dtype} is for the CPU")
    mask = from_spec(spec, seqlen, device=device)
    if mask.batch != 1:
        raise click.UsageError(f"a packed sequence has one mask; {spec} has a batch of {mask.batch}")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "the CPU"
    console.print(Text(f"cute_attn on {name}, backend {resolve(device)}", style="bold"))
    click.echo(f"{spec}\n{drawn(draw_text(mask, max(40, min(console.width, 80))))}")
    console.print(facts(mask, (128, 128)))
    path = png or _temporary_picture()
    inputs = _random_inputs(seqlen, DTYPES[dtype], device)
    with console.status("computing"):
        dense = mask.to_dense()[0]
        exact, _ = _run(lambda x: _dense_attention(x, dense), inputs.to(torch.float64), times=1)
        plain, plain_seconds = _run(lambda x: _dense_attention(x, dense), inputs)
        ours, our_seconds = _run(lambda x: flex_flash_attn_func(x.q, x.k, x.v, mask), inputs)
        picture = draw_png(mask, path, title=spec)
    errors, all_good = _error_table(exact, plain, ours)
    console.print(errors)
    console.print(_time_table(our_seconds, plain_seconds))
    shape = f"{HEADS_Q} query heads, {HEADS_K} key heads, head_dim {HEAD_DIM}, {seqlen:,} tokens, {dtype}"
    click.echo(f"inputs: {shape}\npicture: {picture}")
    if not all_good:
        console.print(Text("FAILED: an error is larger than its limit", style="bold red"))
        raise click.exceptions.Exit(1)
    console.print(Text("All results agree with dense attention in fp64.", style="bold green"))


def _temporary_picture() -> Path:
    """A file of this user's own: one name for all of them would be the first one's."""
    with tempfile.NamedTemporaryFile(prefix="cute_attn_demo_", suffix=".png", delete=False) as file:
        return Path(file.name)


def _random_inputs(tokens: int, dtype: torch.dtype, device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu").to(device, of)

    q = normal(tokens, HEADS_Q, HEAD_DIM).requires_grad_()
    k, v = (normal(tokens, HEADS_K, HEAD_DIM).requires_grad_() for _ in range(2))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return Inputs(q, k, v, normal(tokens, HEADS_Q, HEAD_DIM), normal(HEADS_Q, tokens, of=wide))


def _dense_attention(x: Inputs, attended: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition, pair by pair, in the dtype of the inputs. A row without keys has out 0 and lse -inf."""
    group = HEADS_Q // HEADS_K
    key, value = (t.repeat_interleave(group, dim=1).transpose(0, 1) for t in (x.k, x.v))
    scores = (x.q.transpose(0, 1) @ key.transpose(1, 2)) / math.sqrt(HEAD_DIM)
    scores = scores.masked_fill(~attended, -torch.inf)
    empty = ~attended.any(1)
    lse = scores.masked_fill(empty[:, None], 0.0).logsumexp(2).masked_fill(empty, -torch.inf)
    weights = (scores - lse.masked_fill(empty, 0.0)[..., None]).exp()
    return (weights @ value).transpose(0, 1), lse


def _run(
    attention: Callable[[Inputs], tuple[torch.Tensor, ...]], inputs: Inputs, times: int = 3
) -> tuple[dict[str, torch.Tensor], tuple[float, float]]:
    """Results and gradients by name, in fp64; seconds of the forward and of the backward, the best of some runs."""
    best = [math.inf, math.inf]
    for _ in range(times):
        start = _now(inputs.q.device)
        out, lse = attention(inputs)
        middle = _now(inputs.q.device)
        dlse = inputs.dlse.masked_fill(lse.isneginf(), 0.0).to(lse.dtype)
        gradients = torch.autograd.grad((out, lse), (inputs.q, inputs.k, inputs.v), (inputs.dout, dlse))
        end = _now(inputs.q.device)
        best = [min(best[0], middle - start), min(best[1], end - middle)]
    results = zip(RESULTS, (out, lse, *gradients), strict=True)
    return {name: value.detach().double() for name, value in results}, (best[0], best[1])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _error_table(
    exact: dict[str, torch.Tensor], plain: dict[str, torch.Tensor], ours: dict[str, torch.Tensor]
) -> tuple[Table, bool]:
    """Largest differences from fp64, and whether all are within their limits."""
    table = Table(title="largest difference from dense attention in fp64", title_justify="left")
    for column in ("", "cute_attn", "plain PyTorch, same dtype", "limit", ""):
        table.add_column(column, justify="right")
    all_good = True
    for name in RESULTS:
        # Rows without keys have lse -inf in all three; their difference would be NaN.
        both_empty = exact[name].isneginf() & ours[name].isneginf()
        error = (ours[name] - exact[name]).masked_fill(both_empty, 0.0).abs().max().item()
        reference = (plain[name] - exact[name]).masked_fill(exact[name].isneginf(), 0.0).abs().max().item()
        limit = LSE_LIMIT if name == "lse" else 2 * reference + 1e-10
        good = error <= limit
        all_good &= good
        verdict = Text("ok", style="green") if good else Text("too large", style="bold red")
        table.add_row(name, f"{error:.1e}", f"{reference:.1e}", f"{limit:.1e}", verdict)
    return table, all_good


def _time_table(ours: tuple[float, float], plain: tuple[float, float]) -> Table:
    table = Table(title="milliseconds, the best of three", title_justify="left")
    for column in ("", "cute_attn", "plain PyTorch, dense"):
        table.add_column(column, justify="right")
    for name, mine, theirs in zip(("forward", "backward"), ours, plain, strict=True):
        table.add_row(name, f"{1e3 * mine:.1f}", f"{1e3 * theirs:.1f}")
    return table
