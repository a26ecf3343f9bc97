"""The documents tell the truth: their examples run and print what they say, their links lead somewhere."""

import contextlib
import importlib
import importlib.util
import io
import json
import re
import shlex
import sys
import types
from pathlib import Path

import click
import pytest
from pages import MARKED

from cute_attn import cli, mask
from cute_attn.launch.shapes import spec_for

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
# A block of code and, if it follows at once, the block of text that it prints. Those that need a stage of their own are
# in pages.py.
EXAMPLE = re.compile(r"(?<!-->\n)^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
NEEDS = {"transformers.md": "transformers"}  # pages whose examples need an extra


def name(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [p for p in PAGES if EXAMPLE.search(p.read_text())], ids=name)
def test_examples_run_in_order_and_print_what_the_page_says(page):
    if page.name in NEEDS:
        pytest.importorskip(NEEDS[page.name])
    names = {}
    for code, expected in EXAMPLE.findall(page.read_text()):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(page), "exec"), names)
        if expected or printed.getvalue():
            assert printed.getvalue() == expected, code


def test_every_other_block_is_run_by_the_file_of_tests_that_it_names():
    text = {page.name: page.read_text() for page in PAGES}
    assert sum(len(re.findall(r"^<!--.*-->\n```", words, re.MULTILINE)) for words in text.values()) == sum(
        len(MARKED.findall(words)) for words in text.values()
    )
    for page, words in text.items():
        for file, _ in MARKED.findall(words):
            assert f'blocks("{page}", __file__)' in (ROOT / file).read_text(), f"{file} runs nothing of {page}"
    assert not [page for page, words in text.items() if "not run" in re.findall(r"<!-- (.{7})", words)]


def commands():
    """Every line of a page that calls us at a terminal."""
    for page in PAGES:
        for line in re.findall(r"^(?:    |\$ )(?:\w+=\S+ )*cute-attn (.*)", page.read_text(), re.MULTILINE):
            yield pytest.param(shlex.split(line, comments=True), id=f"{page.stem}: {line.partition('  ')[0]}")


@pytest.mark.parametrize("arguments", list(commands()))
def test_commands_take_what_the_pages_give_them(arguments, tmp_path, monkeypatch):
    """Read, not run: every option is one, every value is of its kind. Files that a reader would have are there."""
    for name in ("kernels", "bundle"):
        (tmp_path / name).mkdir()
    for name in ("shapes.json", "specs.json"):
        (tmp_path / name).touch()
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    name, command, rest = cli.main.resolve_command(click.Context(cli.main), arguments)
    while isinstance(command, click.Group):
        name, command, rest = command.resolve_command(click.Context(command), rest)
    command.make_context(name, rest)


def test_the_architecture_names_every_file_of_the_packages_that_it_lists():
    text = (ROOT / "docs" / "architecture.md").read_text()
    packages = re.findall(r"^## .*\(cute_attn/(\w+)\)$", text, re.MULTILINE)
    assert {"mask", "mods", "ops", "backends", "launch", "jit", "sm90"} <= set(packages)
    files = [file for p in packages for file in (ROOT / "cute_attn" / p).glob("*.py") if file.name != "__init__.py"]
    missing = [f"{file.parent.name}/{file.name}" for file in files if not re.search(rf"[`/]{file.name}`", text)]
    assert missing == []


def anchors(page):
    """Of the headings of a page, as the web pages of repositories make them."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = [
        re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", words) for words in re.findall(r"^#+ (.*)", prose, re.MULTILINE)
    ]
    return {re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-") for words in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_pictures_exist(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text()):
        if "://" not in target:
            there = page.parent / target if target else page
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), f"{target}#{anchor}"


@pytest.mark.slow
def test_the_galleries_are_what_their_script_writes(tmp_path, monkeypatch):
    path = ROOT / "docs" / "make_gallery.py"
    spec = importlib.util.spec_from_file_location("make_gallery", path)
    gallery = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gallery)
    assert (ROOT / "docs" / "gallery.md").read_text() == gallery.text(), f"run python {name(path)}"
    assert (ROOT / "docs" / "functions.md").read_text() == gallery.functions_text(), f"run python {name(path)}"
    assert (ROOT / "docs" / "scores.md").read_text() == gallery.scores_text(), f"run python {name(path)}"
    functions, scores = gallery.functions(), gallery.functions("score_mods")
    assert len(functions) >= 20
    assert len(scores) >= 10
    monkeypatch.setattr(gallery, "DOCS", tmp_path)
    monkeypatch.setattr(gallery, "ENTRIES", gallery.ENTRIES[:2])  # as many pictures as show that it draws
    few = {"mask_mods": dict(list(functions.items())[-2:]), "score_mods": dict(list(scores.items())[2:5])}
    monkeypatch.setattr(gallery, "functions", lambda module="mask_mods": few[module])
    monkeypatch.setattr(gallery, "text", lambda: "the page")
    monkeypatch.setattr(gallery, "functions_text", lambda: "the other page")
    monkeypatch.setattr(gallery, "scores_text", lambda: "the third page")
    gallery.main()
    assert (tmp_path / "gallery.md").read_text() == "the page"
    assert (tmp_path / "functions.md").read_text() == "the other page"
    assert (tmp_path / "scores.md").read_text() == "the third page"
    drawn = {path.name for path in (tmp_path / "images").iterdir()}
    assert drawn == {
        *(gallery.file_name(title) for title, _, _ in gallery.ENTRIES),
        *(f"function_{name}.png" for name in gallery.functions()),
        *(f"score_{name}.png" for name in gallery.functions("score_mods")),
    }
    wanted = {*drawn, *(f"score_{name}.png" for name in scores), *(f"function_{name}.png" for name in functions)}
    assert wanted <= {path.name for path in (ROOT / "docs" / "images").iterdir()}


@pytest.mark.slow
def test_the_costs_in_the_galleries_are_those_of_the_kernels(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    costs = importlib.import_module("make_costs")
    told = json.loads(costs.COSTS.read_text())
    kernels = {str(spec): spec for spec in costs.priced()}
    assert told.keys() == kernels.keys()
    causal = spec_for("fwd", "bf16", 128, 128, mask.causal(1024))
    (relative,) = (mod for name, mod in costs.functions("score_mods").items() if name == "relative_bias")
    thinned, _ = costs.of_reading(costs.read(costs.functions()["tree"]))
    for name in map(str, (causal, thinned, *costs.of_score(relative))):
        assert told[name] == costs.slots(kernels[name]), f"run python docs/make_costs.py: {name}"


def test_the_readme_names_commands_that_exist():
    text = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make (\S+)", text, re.MULTILINE):
        assert f"\n{target}:" in makefile
    for command in re.findall(r"`cute-attn (\w+)", text):
        assert command in cli.COMMANDS


MODULES = [
    "cute_attn",
    "cute_attn.mask",
    "cute_attn.dist",
    "cute_attn.sim",
    "cute_attn.integrations.torch",
    "cute_attn.integrations.hub",
    "autotune",
]
INTEGRATIONS = {f"cute_attn.integrations.{library}": library for library in NEEDS.values()}


@pytest.mark.parametrize("module", [*MODULES, *INTEGRATIONS])
def test_every_public_name_is_documented(module):
    if module in INTEGRATIONS:
        pytest.importorskip(INTEGRATIONS[module])
    code = re.compile(r"^```.*?^```|`[^`]+`", re.MULTILINE | re.DOTALL)
    said = set(re.findall(r"\w+", " ".join(found for page in PAGES for found in code.findall(page.read_text()))))
    assert set(importlib.import_module(module).__all__) <= said


# ---------------------------------------------------------------- the README in a wheel


@pytest.fixture
def hook(monkeypatch):
    """hatch_build.py, without the build tool."""
    plugin = types.ModuleType("hatchling.metadata.plugin.interface")
    plugin.MetadataHookInterface = object
    monkeypatch.setitem(sys.modules, plugin.__name__, plugin)
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_of_a_wheel_has_no_link_that_leads_nowhere(hook):
    readme = (ROOT / "README.md").read_text()
    assert re.findall(r"\]\(docs/", readme)
    for url in ("", "https://example.org/cute_attn"):
        text = hook.standalone(readme, url)
        targets = re.findall(r"\]\(([^)]+)\)", text)
        assert all(target.startswith("https://") for target in targets)
        assert bool(targets) == bool(url)
        assert "docs/masks.md" in text
    assert "![Attention of four answers" not in hook.standalone(readme)
    assert "(https://example.org/cute_attn/raw/main/docs/images/shared_prefix.png)" in text


def test_the_hook_takes_the_url_that_pyproject_names(hook):
    made = hook.ReadmeHook()
    made.root = str(ROOT)
    metadata = {"urls": {"Repository": "https://example.org/here"}}
    made.update(metadata)
    assert metadata["readme"]["content-type"] == "text/markdown"
    assert "https://example.org/here/blob/main/docs/masks.md" in metadata["readme"]["text"]


def test_the_readme_names_the_extras_that_there_are():
    text = (ROOT / "README.md").read_text()
    project = (
        (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("[project.scripts]")[0]
    )
    declared = set(re.findall(r"^(\w+) = \[", project, re.MULTILINE))
    named = {name for names in re.findall(r"pip install \"\.\[([a-z,]+)\]\"", text) for name in names.split(",")}
    assert named == declared
