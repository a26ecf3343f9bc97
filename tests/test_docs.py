"""The documents tell the truth: their examples run and print what they say, their links lead somewhere."""

import contextlib
import importlib.util
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
# A block of code and, if it follows at once, the block of text that it prints. A block after the line
# `<!-- not run: REASON -->` is left alone.
EXAMPLE = re.compile(r"(?<!-->\n)^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


def name(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [p for p in PAGES if EXAMPLE.search(p.read_text())], ids=name)
def test_examples_run_in_order_and_print_what_the_page_says(page):
    names = {}
    for code, expected in EXAMPLE.findall(page.read_text()):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(page), "exec"), names)
        if expected or printed.getvalue():
            assert printed.getvalue() == expected, code


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_gallery_is_what_its_script_writes(tmp_path, monkeypatch):
    path = ROOT / "docs" / "make_gallery.py"
    spec = importlib.util.spec_from_file_location("make_gallery", path)
    gallery = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gallery)
    assert (ROOT / "docs" / "gallery.md").read_text() == gallery.text(), f"run python {name(path)}"
    monkeypatch.setattr(gallery, "DOCS", tmp_path)
    monkeypatch.setattr(gallery, "ENTRIES", gallery.ENTRIES[:2])  # as many pictures as show that it draws
    monkeypatch.setattr(gallery, "text", lambda: "the page")
    gallery.main()
    assert (tmp_path / "gallery.md").read_text() == "the page"
    drawn = {path.name for path in (tmp_path / "images").iterdir()}
    assert drawn == {gallery.file_name(title) for title, _, _ in gallery.ENTRIES}
    assert drawn <= {path.name for path in (ROOT / "docs" / "images").iterdir()}


def test_the_readme_names_commands_that_exist():
    text = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make (\S+)", text, re.MULTILINE):
        assert f"\n{target}:" in makefile
    from cute_attn import cli

    for command in re.findall(r"`cute-attn (\w+)", text):
        assert command in cli.COMMANDS
