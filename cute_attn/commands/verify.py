"""`cute-attn verify`: a kernel on a small problem, in every schedule, and all orders of its barriers."""

from __future__ import annotations

import re
from typing import Any, cast

import click
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from .. import sim
from ..backend import current
from ..jit.build import specs_of
from ..jit.compiler import needs_compiler
from ..launch.shapes import spec_for
from ..mask import from_spec
from ..selftest.cases import TestedSpec, case_for
from ..selftest.check import launch, make_problem
from ..selftest.decode import decode_case
from ..spec.score import ScoreForm
from .build import HeadDim, json_object
from .options import given

__all__ = ["command"]

_NOT_OF = {"sink": ("bwd",), "deterministic": ("fwd", "decode"), "mask": ("decode",), "seqlen": ("decode",)}


@click.command("verify")
@click.option("--op", type=click.Choice(["fwd", "bwd", "decode"]), default="fwd", show_default=True)
@click.option("--head-dim", "dims", type=HeadDim(), default="128", show_default=True)
@click.option("--dtype", type=click.Choice(["bf16", "fp16"]), default="bf16", show_default=True)
@click.option("--mask", "mask", default="causal", show_default=True, metavar="NAME[:key=value,...]")
@click.option("--seqlen", type=click.IntRange(1), default=4096, show_default=True, help="That the mask is made for.")
@click.option("--softcap", is_flag=True, help="Scores are capped.")
@click.option("--sink", is_flag=True, help="Sinks join the softmax (forward, decode).")
@click.option("--deterministic", is_flag=True, help="Sums of dQ in a fixed order (backward).")
@click.option("--spec", "text", metavar="JSON", help="A spec of any operation, in place of the options above.")
@click.pass_context
def command(
    context: click.Context,
    op: str,
    dims: tuple[int, int],
    dtype: str,
    mask: str,
    seqlen: int,
    softcap: bool,
    sink: bool,
    deterministic: bool,
    text: str | None,
) -> int:
    """Whether a kernel can hang, or err with its timing: on a small problem, simulated; all orders of its barriers.

    \b
    cute-attn verify --head-dim 128 --mask causal
    cute-attn verify --op bwd --deterministic
    cute-attn verify --op decode --head-dim 192/128

    Runs it in the schedules of `cute_attn.sim.strict`, whose results must agree, and searches from what its warps did
    to synchronise every other order. docs/simulator.md says what that proves. Needs no GPU.
    """
    named = given(context)
    if text is not None and (others := named - {"text"}):
        raise click.UsageError(f"--spec says all: it goes without --{min(others).replace('_', '-')}")
    for name in named & _NOT_OF.keys():
        if op in _NOT_OF[name]:
            raise click.UsageError(f"--{name} is none of {op}'s options")
    if text is not None:
        spec = cast(TestedSpec, specs_of([json_object(text)], "--spec")[0])
    elif op == "decode":
        spec = decode_case(dims=dims, dtype=dtype, softcap=15.0 * softcap, sink=sink).spec
    else:
        variant: dict[str, Any] = {"deterministic": deterministic} if op == "bwd" else {"sink": sink}
        score = ScoreForm("softcap" if softcap else "plain")
        spec = cast(TestedSpec, spec_for(op, dtype, *dims, from_spec(mask, seqlen), score=score, **variant))
    console = Console()
    console.print(str(spec), highlight=False)
    case = case_for(spec).simulated()
    console.print(f"on: {case.name}", highlight=False)
    problem = make_problem(case, torch.device("cpu"))
    try:
        with needs_compiler():
            _, found = sim.verify(
                lambda: launch(case, problem, "sim", **current().options),
                deterministic=getattr(spec, "deterministic", False),
            )
    except sim.SimError as error:
        console.print(f"{type(error).__name__}: {error}", highlight=False, markup=False)
        return 1
    console.print(_table(found))
    for one in found:
        for line in _said(one):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 0 if all(one.holds for one in found) else 1


def _table(found: list[sim.Verified]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("kernel")
    for name in ("CTAs", "warps", "steps", "states"):
        table.add_column(name, justify="right")
    table.add_column("in all orders")
    for one in found:
        checked = one.checked
        counts = (checked.warps, checked.steps, checked.states) if checked else ("", "", "")
        table.add_row(_short(one.kernel), str(one.ctas), *map(str, counts), _verdict(one))
    return table


def _short(kernel: str) -> str:
    """The part of a mangled name that says something."""
    return re.sub(r"^kernel_cutlass_kernel_|_object_at_.*|_tensor.*", "", kernel)[:48]


def _verdict(one: sim.Verified) -> str:
    if one.checked is None:
        return "not searched"
    if one.checked.found:
        return one.checked.found.error.__name__
    return "holds" if one.holds else "undecided"


def _said(one: sim.Verified) -> list[str]:
    """What a line of the table has no room for."""
    name, checked = _short(one.kernel), one.checked
    if checked is None:
        return [f"{name}: {one.refused}"]
    lines = [f"{name}: {why}" for why in checked.races.values()]
    if checked.found:
        lines.append(f"{name}: {checked.found}")
    if checked.residency is not None:
        lines.append(f"{name}: {checked.residency}")
    return lines
