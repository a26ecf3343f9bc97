"""Builds the site of these pages, in build/docs/site: `make docs`, or `python docs/make_site.py`.

Its pages are docs/*.md, the README and other pages of the repository, and the API reference, which is made of
docstrings. Warnings of the generator, such as a link that leads nowhere, are errors."""

from __future__ import annotations

import ast
import os
import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"!?\[([^\]]*)\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)")

# The pages of the repository, and their places in the site.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/first_light/README.md": "benchmarks/first_light.md",
    **{f"docs/{path.name}": path.name for path in sorted(ROOT.glob("docs/*.md"))},
    **{path: path for path in sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("benchmarks/results/*.md"))},
}

# The pages of the API reference: their titles, where these things are explained, and the public names on them: those of
# a module, or ... for all.
REFERENCE: dict[str, tuple[str, list[str], dict[str, str]]] = {
    "attention": (
        "Attention",
        ["api", "flex_attention", "decode"],
        {
            "cute_attn": "flex_flash_attn_func prepare PreparedAttention flex_attention AuxRequest AuxOutput "
            "flash_attn_with_kvcache "
            "fa3_func_with_sink fa3_qkvpacked_func_with_sink fa3_varlen_func_with_sink fa2_func_with_sink "
            "fa2_qkvpacked_func_with_sink fa2_kvpacked_func_with_sink fa2_varlen_func_with_sink "
            "fa2_varlen_qkvpacked_func_with_sink fa2_varlen_kvpacked_func_with_sink backend.backend"
        },
    ),
    "masks": (
        "Masks",
        ["masks", "gallery", "functions"],
        {"cute_attn.mask": "...", "cute_attn": "BlockMask create_block_mask create_mask and_masks or_masks noop_mask"},
    ),
    "layer": (
        "The layer",
        ["attention_op"],
        {
            "cute_attn": "AttentionOp AttentionType KVQuant KVTensor normalize_attention normalize_cudnn_attention "
            "ChunkedCausalMask LoadBalancedCausalMask StripedMask balanced_order"
        },
    ),
    "dist": ("Context parallelism", ["context_parallel_usage", "context_parallel"], {"cute_attn.dist": "..."}),
    "integrations": (
        "Integrations",
        ["torch", "transformers", "hub"],
        {f"cute_attn.integrations.{library}": "..." for library in ("torch", "transformers", "hub")},
    ),
    "kernels": ("Kernels", ["deployment", "autotune"], {"cute_attn": "load_bundle record_specs", "autotune": "..."}),
    "sim": ("Simulator", ["own_kernels", "simulator"], {"cute_attn.sim": "..."}),
}
ENUMS = {"AttentionType", "AttnMaskType", "AttnOverlapMode", "OverlapAlgType"}  # their members have no docstrings


def public_names(module: str) -> list[str]:
    """Its `__all__`, read without importing it."""
    place = ROOT / module.replace(".", "/")
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    (names,) = (
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    return ast.literal_eval(names)


def names_of(module: str, chosen: str) -> list[str]:
    """Functions before classes where all are shown, else in the order that is chosen."""
    return sorted(public_names(module), key=lambda name: name[0].isupper()) if chosen == "..." else chosen.split()


def title_of(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def reference_page(title: str, guides: list[str], modules: dict[str, str]) -> str:
    """What the generator puts docstrings into."""
    links = ", ".join(f"[{title_of(f'docs/{guide}.md')}](../{guide}.md)" for guide in guides)
    sections = [f"# {title}", f"Explained, with examples: {links}."]
    for module, chosen in modules.items():
        for name in names_of(module, chosen):
            options = "\n    options:\n      show_if_no_docstring: true" if name in ENUMS else ""
            sections.append(f"::: {module}.{name}{options}")
    return "\n\n".join(sections) + "\n"


def moved(text: str, path: str) -> str:
    """A page with its links as they are in the site: to places there, named by titles in the place of file names; links
    to sources become their words. Raises SystemExit for a link to a file that is not there."""
    place = posixpath.dirname(PAGES[path]) or "."

    def replaced(match: re.Match[str]) -> str:
        words, target, anchor = match.groups()
        there = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if not (ROOT / there).exists():  # the generator tells of pages alone
            raise SystemExit(f"{path}: a link leads to {target}, which is not there")
        if there in PAGES:
            words = title_of(there) if posixpath.basename(words) == posixpath.basename(there) else words
            return f"[{words}]({posixpath.relpath(PAGES[there], place)}{anchor or ''})"
        if there.startswith("docs/images/"):
            return f"![{words}]({posixpath.relpath(there.removeprefix('docs/'), place)})"
        return words

    return LINK.sub(replaced, text)


def lay_out(folder: Path) -> None:
    """What the generator reads: its settings and all pages, in `folder`."""
    pages = folder / "pages"
    shutil.copytree(ROOT / "docs" / "images", pages / "images")
    shutil.copy(ROOT / "docs" / "site.css", pages)
    shutil.copy(ROOT / "docs" / "zensical.toml", folder)
    written = {PAGES[path]: moved((ROOT / path).read_text(encoding="utf-8"), path) for path in PAGES}
    written |= {f"reference/{name}.md": reference_page(*page) for name, page in REFERENCE.items()}
    for place, text in written.items():
        (pages / place).parent.mkdir(parents=True, exist_ok=True)
        (pages / place).write_text(text, encoding="utf-8")


def build(folder: Path) -> None:
    """The site, in the folder `site` of an empty folder."""
    lay_out(folder)
    sources = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])  # that have the docstrings
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", "zensical.toml"]
    subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": sources}, check=True)


def main() -> None:
    folder = ROOT / "build" / "docs"
    shutil.rmtree(folder, ignore_errors=True)
    build(folder)
    print(f"the site: {folder / 'site' / 'index.html'}")
    print(f"with search: python -m http.server --bind 127.0.0.1 --directory {folder / 'site'}")


if __name__ == "__main__":
    main()
