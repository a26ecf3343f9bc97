"""`cute-attn doctor`: what this machine has, and what runs on it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from itertools import product
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import __version__
from ..directories import cache_directory
from ..launch import tuned
from ..mask import causal
from ..spec.forward import HEAD_DIMS
from ..spec.operation import operations
from .machine import backends, best_device

__all__ = ["command"]


@click.command("doctor")
def command() -> None:
    """What this machine has, and what of cute_attn runs on it."""
    console = Console()
    console.print(_table("machine", [(name, state, text) for name, (state, text) in _findings().items()]))
    console.print(_table("backends", [(b.name, "ok" if b.runs else "no", b.reason) for b in backends()]))
    console.print(_table("tiles, causal at 8,192 tokens, 32 heads on 8", _tiles()))
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
        "CuTe DSL": _version("nvidia-cutlass-dsl", "compiles the kernels"),
        "C compiler": _compiler(),
        "cache": _cache(cache_directory()),
    }


def _tiles() -> list[tuple[str, str, str]]:
    """Which tile each kernel takes, and where it comes from: a tuned table or the static defaults."""
    device = best_device()
    gpu, sms = tuned.gpu_of(device) if device.type == "cuda" else ("", 0)
    mask = causal(8192)
    rows = []
    for row, dims in product(operations(), HEAD_DIMS):
        key = tuned.TunedKey.of(gpu, sms, row.name, "bf16", dims, (32, 8), mask)
        found = tuned.lookup(key, row.default_tile(*dims))
        name = f"{row.name} {dims[0]}" if dims[0] == dims[1] else f"{row.name} {dims[0]}/{dims[1]}"
        rows.append((name, "ok", f"{found.tile}: {found.source}"))
    known = [f"{len(table.tiles)} in {table.origin}" for table in tuned.tables()]
    rows.append(("tables", "ok" if known else "no", "; ".join(known) or "none; `cute-attn autotune` writes one"))
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


def _version(package: str, purpose: str) -> tuple[str, str]:
    try:
        return "ok", f"{importlib.metadata.version(package)} ({purpose})"
    except importlib.metadata.PackageNotFoundError:
        return "missing", f"install {package}: it {purpose}"


def _compiler() -> tuple[str, str]:
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        found = name and shutil.which(name)
        if found:
            return "ok", f"{found} (links compiled kernels)"
    return "missing", "none of $CC, cc, gcc, clang; links compiled kernels"


def _cache(directory: Path) -> tuple[str, str]:
    existing = next(d for d in (directory, *directory.parents) if d.exists())
    if not os.access(existing, os.W_OK):
        return "no", f"{directory} cannot be written; CUTE_ATTN_CACHE_DIR names another place"
    return "ok", str(directory)


def _table(title: str, rows: list[tuple[str, str, str]]) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2, 0, 0)
    )
    for name, state, text in rows:
        table.add_row(name, Text(state, style="green" if state == "ok" else "yellow"), text)
    return table
