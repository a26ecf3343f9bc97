"""`cute-attn package`: the library as another loader takes it."""

from __future__ import annotations

from pathlib import Path

import click

from .files import Folder, NewFolder
from .kernels_layout import PACKAGE, write_kernels_layout

__all__ = ["command"]


@click.command("package")
@click.option(
    "--layout", type=click.Choice(["kernels"]), required=True, help="kernels: that of the Hugging Face Hub's loader."
)
@click.option("--output", type=NewFolder(), required=True, help="The folder, new or empty.")
@click.option("--bundle", type=Folder(), help="Also a variant with these kernels, which `build` made.")
def command(layout: str, output: Path, bundle: Path | None) -> None:
    """The library as a folder that another loader takes: `kernels.get_local_kernel`, or an upload to the Hub.

    \b
    cute-attn package --layout kernels --output hub
    cute-attn package --layout kernels --output hub --bundle kernels
    """
    if output.exists() and any(output.iterdir()):
        raise click.UsageError(f"--output must be new or empty, got {output}, which has {min(output.iterdir()).name}")
    if output.resolve().is_relative_to(PACKAGE.resolve()):
        raise click.UsageError(f"--output must lie outside of the library, which is copied, got {output}")
    for variant in write_kernels_layout(output, bundle):
        files = [path for path in variant.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        click.echo(f"{variant}  {len(files)} files, {size / 1e6:.1f} MB")
