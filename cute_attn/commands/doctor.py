"""`cute-attn doctor`: what this machine has, and what runs on it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import warnings
from collections.abc import Callable, Sequence

import click
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import __version__
from ..directories import CacheUnusable, cache_directory, obstacle
from ..errors import Unavailable, in_words
from ..jit.compiler import missing_compiler
from ..jit.runtime import runtime_library
from ..launch import tuned
from ..mask import causal
from ..profile.sass import disassembler
from ..spec.operation import operations
from .machine import backends, best_device

__all__ = ["command"]


@click.command("doctor")
def command() -> None:
    """What this machine has, and what of cute_attn runs on it."""
    console = Console()
    console.print(_table("machine", [(name, state, text) for name, (state, text) in _findings().items()]))
    console.print(_table("backends", [(b.name, "ok" if b.runs else "no", b.reason) for b in backends()]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheUnusable)  # a row has said it
        tiles = _tiles()
        known = [f"{len(table.tiles)} in {table.origin}" for table in tuned.tables()]
    console.print(_table("tiles, causal at 8,192 tokens, 32 heads on 8", tiles))
    console.print(f"tuned tables: {'; '.join(known) or 'none; `cute-attn autotune` writes one'}")
    kind = "the GPU" if best_device().type == "cuda" else "CPU tensors"
    console.print(f"`cute-attn demo` runs on {kind} here.")


def _findings() -> dict[str, tuple[str, str]]:
    """name -> (ok, no or missing; what was found)."""
    cuda = torch.version.cuda
    return {
        "cute_attn": ("ok", __version__),
        "Python": ("ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        "CPU": ("ok", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads for torch"),
        "PyTorch": ("ok", f"{torch.__version__}, {f'CUDA {cuda}' if cuda else 'without CUDA'}"),
        "GPU": _gpu(),
        "CuTe DSL": _dsl(),
        "runtime": _found(runtime_library, "runs the kernels on a GPU"),
        "C compiler": _compiler(),
        "nvdisasm": _found(disassembler, "reads machine code"),
        "cache": _cache(),
    }


def _tiles() -> list[tuple[str, ...]]:
    """Which tile each kernel takes, and where it comes from: a tuned table or the static defaults."""
    device = best_device()
    gpu, sms = tuned.gpu_of(device) if device.type == "cuda" else ("", 0)
    mask = causal(8192)
    rows: list[tuple[str, ...]] = []
    kernels = [(row, dims) for row in operations() if row.is_tuned for dims in row.head_dims]
    for row, dims in kernels:
        key = tuned.TunedKey.of(gpu, sms, row.name, "bf16", dims, (32, 8), mask)
        found = tuned.lookup(key, row.default_tile(*dims))
        name = f"{row.name} {dims[0]}" if dims[0] == dims[1] else f"{row.name} {dims[0]}/{dims[1]}"
        rows.append((name, f"{found.tile}: {found.source}"))
    return rows


def _gpu() -> tuple[str, str]:
    if not torch.cuda.is_available():
        return "no", "none that PyTorch can use"
    names = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        names.append(f"{properties.name}, sm_{properties.major}{properties.minor}, {memory:.0f} GiB")
    return "ok", "; ".join(names)


def _dsl() -> tuple[str, str]:
    if why := missing_compiler():
        return "missing", f"{why}; bundles need none"
    try:
        return "ok", f"{importlib.metadata.version('nvidia-cutlass-dsl')} (compiles the kernels)"
    except importlib.metadata.PackageNotFoundError:
        return "ok", "of an unknown version (compiles the kernels)"


def _found(find: Callable[[], object], purpose: str) -> tuple[str, str]:
    try:
        return "ok", f"{find()} ({purpose})"
    except Unavailable as error:
        return "missing", str(error)
    except OSError as error:
        return "no", in_words(error)


def _compiler() -> tuple[str, str]:
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        found = name and shutil.which(name)
        if found:
            return "ok", f"{found} (links compiled kernels)"
    return "missing", "none of $CC, cc, gcc, clang; links compiled kernels"


def _cache() -> tuple[str, str]:
    try:
        directory = cache_directory()
    except OSError as error:
        return "no", str(error)
    if why := obstacle(directory):
        return "no", f"{why}, so that kernels live in memory only; CUTE_ATTN_CACHE_DIR names another place"
    return "ok", str(directory)


def _table(title: str, rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2, 0, 0)
    )
    table.add_column()
    for _ in range(max(map(len, rows), default=2) - 2):
        table.add_column()
    table.add_column(overflow="fold")  # paths are told whole
    for name, *states, text in rows:
        table.add_row(name, *(Text(s, style="green" if s == "ok" else "yellow") for s in states), text)
    return table
