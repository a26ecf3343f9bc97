"""`cute-attn build`: kernels compiled ahead, into a bundle."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..directories import cache_directory, obstacle
from ..jit.build import build, load_specs, specs_of
from ..jit.parallel import Outcome
from ..jit.record import NOTHING_RECORDED
from ..launch.packing import can_share
from ..spec.operation import Spec, operation
from ..strict_json import loads
from .files import NewFolder
from .options import given
from .specs import Heads, OperationName, SpecField, check_goes_with, packed_specs, spec_under

__all__ = ["HeadDim", "command", "json_object", "progress"]

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FLAGS = ("sink", "deterministic", "planes_by_head")  # that are fields of the specs of some operations


class HeadDim(click.ParamType):
    """DIM or DIM/DIM_V."""

    name = "head_dim"

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        parts = value.split("/")
        if len(parts) > 2 or not all(part.isdigit() for part in parts):
            self.fail(f"expected a head_dim such as 128, or 192/128 for another one of v, got {value!r}", param, ctx)
        return int(parts[0]), int(parts[-1])


def progress(console: Console) -> Progress:
    """A bar that counts what is done and says how long it took."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


@click.command("build")
@click.option("--output", type=NewFolder(), required=True, help="The bundle, new or to add to.")
@click.option("--specs", "files", type=FILE, multiple=True, help="A JSON list of specs, as record_specs saves it.")
@click.option(
    "--spec", "texts", multiple=True, metavar="JSON", help="One spec, as the error of a missing kernel has it."
)
@click.option("--selftest", "for_selftest", is_flag=True, help="Every kernel that `cute-attn selftest` runs.")
@click.option(
    "--mask",
    "masks",
    multiple=True,
    metavar="NAME[:key=value,...]",
    help="Kernels for this kind of mask; one of decode takes any.",
)
@click.option("--seqlen", type=click.IntRange(1), default=8192, show_default=True, help="Of the masks.")
@click.option("--op", "ops", type=OperationName(), multiple=True, default=["fwd", "bwd"], show_default=True)
@click.option(
    "--dtype", "dtypes", type=click.Choice(["bf16", "fp16"]), multiple=True, default=["bf16"], show_default=True
)
@click.option("--head-dim", "dims", type=HeadDim(), multiple=True, default=["128"], show_default=True)
@click.option(
    "--heads",
    type=Heads(),
    multiple=True,
    help="Of calls with so many query and key heads: also the forwards of few rows, where query heads share tiles.",
)
@click.option("--softcap", is_flag=True, help="With scores capped by tanh.")
@click.option("--sink", is_flag=True, help="With sinks (forward, decode).")
@click.option("--deterministic", is_flag=True, help="With sums of dQ in a fixed order (backward).")
@click.option("--planes-by-head", is_flag=True, help="For a mask of its own for each query head (backward).")
@click.option(
    "--field",
    "extra",
    type=SpecField(),
    multiple=True,
    metavar="NAME=VALUE",
    help="Another field of specs, of the operations that have it: split=true, piece=16.",
)
@click.option(
    "--candidates",
    type=click.Choice(["quick", "full"]),
    is_flag=False,
    flag_value="quick",
    help="Also the tiles that `autotune` of this effort (quick) tries for each --mask, and all kernels' profiles.",
)
@click.option("--workers", type=click.IntRange(1), default=os.cpu_count(), show_default="one a core")
@click.pass_context
def command(
    context: click.Context,
    output: Path,
    files: tuple[Path, ...],
    texts: tuple[str, ...],
    for_selftest: bool,
    masks: tuple[str, ...],
    seqlen: int,
    ops: tuple[str, ...],
    dtypes: tuple[str, ...],
    dims: tuple[tuple[int, int], ...],
    heads: tuple[tuple[int, int], ...],
    softcap: bool,
    sink: bool,
    deterministic: bool,
    planes_by_head: bool,
    extra: tuple[tuple[str, Any], ...],
    candidates: str | None,
    workers: int,
) -> int:
    """Kernels compiled ahead into a bundle, which load_bundle or CUTE_ATTN_BUNDLES loads where no compiler is.

    \b
    cute-attn build --output kernels --selftest
    cute-attn build --output kernels --specs specs.json
    cute-attn build --output kernels --mask causal --head-dim 64 --head-dim 128
    cute-attn build --output kernels --mask causal --heads 32/8
    cute-attn build --output kernels --mask causal --candidates
    cute-attn build --output kernels --mask causal --op decode --field split=true
    """
    named = given(context)
    of_masks = ("seqlen", "ops", "dtypes", "dims", "heads", "softcap", *_FLAGS, "extra", "candidates")
    for option in (o for o in context.command.params if o.name in of_masks and o.name in named and not masks):
        raise click.UsageError(f"{option.opts[0]} goes with --mask: specs have their own")
    for name in (name for name in _FLAGS if name in named):
        check_goes_with(f"--{name.replace('_', '-')}", name, ops)
    if softcap:
        check_goes_with("--softcap", "score", ops)
    for name in dict(extra):
        check_goes_with(f"--field {name}", name, ops)
    if heads:
        check_goes_with("--heads", "packed_heads", ops)
        _check_may_share(dict(extra))
    recorded = {file: load_specs(file) for file in files}
    for file, found in recorded.items():
        if not found:
            raise click.UsageError(f"{file} holds no kernel: {NOTHING_RECORDED}")
    specs = [spec for found in recorded.values() for spec in found]
    specs += specs_of([json_object(text) for text in texts], "--spec")
    if for_selftest:
        from ..selftest.cases import specs as selftest_specs

        specs += selftest_specs()
    fields = {**{name: context.params[name] for name in _FLAGS}, **dict(extra)}
    for name, op, dtype, dim in product(masks, ops, dtypes, dims):
        named_so = [spec_under(operation(op), dtype, dim, name, seqlen, None, softcap, fields)]
        named_so += _tried(op, dtype, dim, name, seqlen, candidates) if candidates else []
        specs += named_so + [packed for spec in named_so for of in heads for packed in packed_specs(spec, of)]
    if not specs:
        raise click.UsageError("nothing to build: give --selftest, --specs, --spec or --mask")
    console = Console()
    if why := _not_kept():
        console.print(f"kernels are built into {output} alone: the cache cannot be used: {why}", soft_wrap=True)
    failures = []
    with progress(console) as bar:
        task = bar.add_task("building", total=len(set(specs)))
        for outcome in _builder(bool(candidates))(specs, output, workers):
            bar.advance(task)
            if outcome.error:
                failures.append(outcome)
            else:
                bar.console.print(f"{outcome.seconds:5.1f} s  {outcome.item}")
    for failure in failures:
        console.print(f"[red]failed[/red]  {failure.item}: {failure.error}")
    console.print(f"{len(set(specs)) - len(failures)} kernels in {output}; load_bundle or CUTE_ATTN_BUNDLES loads them")
    return 1 if failures else 0


def _check_may_share(wanted: dict[str, Any]) -> None:
    if "packed_heads" in wanted:
        raise click.UsageError("--heads names what --field packed_heads does: give one of them")
    if not can_share(False, **wanted):
        raise click.UsageError("--heads: query heads share no tiles with --field softmax=exact, fp32_out or piece")


def _not_kept() -> str:
    """Why the processes that build cannot keep kernels in the user's cache too; they would each say it."""
    try:
        return obstacle(cache_directory())
    except OSError as error:
        return str(error)


def _builder(profiled: bool) -> Callable[..., Iterator[Outcome]]:
    builder: Callable[..., Iterator[Outcome]] = build
    return importlib.import_module("autotune.build").build_candidates if profiled else builder


def _tried(op: str, dtype: str, dims: tuple[int, int], mask: str, seqlen: int, effort: str) -> list[Spec]:
    """Of the tiles that `autotune` tries."""
    shape = {"head_dim": dims[0], "head_dim_v": dims[1], "seqlen_q": seqlen, "seqlen_k": seqlen}
    problem = importlib.import_module("autotune").Problem(op=op, dtype=dtype, mask=mask, **shape)
    specs: list[Spec] = importlib.import_module("autotune.build").specs_tried(problem, effort)
    return specs


def json_object(text: str) -> object:
    """What --spec decodes to."""
    try:
        return loads(text)
    except ValueError as error:
        raise click.UsageError(f"--spec is not JSON: {error}: {text!r}") from None
