"""The site that `make docs` builds: whole, no link leads nowhere, and nothing in it comes from other hosts."""

import importlib.util
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from test_docs import MODULES, NEEDS

ROOT = Path(__file__).parent.parent
SETTINGS = (ROOT / "docs" / "zensical.toml").read_text()
INTEGRATIONS = [f"cute_attn.integrations.{library}" for library in NEEDS.values()]
LOADED = {"audio", "embed", "iframe", "img", "object", "script", "source", "track", "video"}

spec = importlib.util.spec_from_file_location("make_site", ROOT / "docs" / "make_site.py")
make_site = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_site)


def test_every_page_has_one_place_in_the_navigation():
    places = re.findall(r'" = "([^"]+\.md)"', SETTINGS)
    reference = [f"reference/{name}.md" for name in make_site.REFERENCE]
    assert sorted(places) == sorted([*make_site.PAGES.values(), *reference])


@pytest.mark.parametrize("module", [*MODULES, *INTEGRATIONS])
def test_the_reference_shows_every_public_name(module):
    shown = {
        name.rpartition(".")[2]
        for _, _, modules in make_site.REFERENCE.values()
        for there, chosen in modules.items()
        for name in make_site.names_of(there, chosen)
    }
    assert set(make_site.public_names(module)) <= shown


@pytest.mark.parametrize(
    ("path", "written", "read"),
    [
        ("README.md", "[docs/masks.md](docs/masks.md#slices)", "[Masks](masks.md#slices)"),
        ("README.md", "![x](docs/images/causal.png)", "![x](images/causal.png)"),
        ("docs/api.md", "[time](../benchmarks/results/mask_lookup.md)", "[time](benchmarks/results/mask_lookup.md)"),
        ("benchmarks/first_light/README.md", "[masks](../../docs/masks.md)", "[masks](../masks.md)"),
        ("docs/functions.md", "[mask_mods.py](mask_mods.py)", "mask_mods.py"),
        ("docs/api.md", "[here](#autocast)", "[here](#autocast)"),
        ("docs/api.md", "[web](https://example.org/)", "[web](https://example.org/)"),
    ],
)
def test_links_lead_to_places_of_the_site(path, written, read):
    assert make_site.moved(written, path) == read


@pytest.mark.parametrize("link", ["[x](nowhere.md)", "[x](../benchmarks/nowhere.py)", "![x](images/nowhere.png)"])
def test_a_link_to_a_file_that_is_not_there_ends_the_build(link):
    with pytest.raises(SystemExit, match=r"docs/api\.md: a link leads to .*nowhere\.\w+, which is not there"):
        make_site.moved(link, "docs/api.md")


class Read(HTMLParser):
    """The anchors of a page, where its links lead, and what a browser loads to show it."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loaded = set(), [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        at = dict(attributes)
        self.anchors |= {at.get("id"), at.get("name")}
        if tag == "a" and "href" in at:
            self.links.append(at["href"])
        if tag == "link" and at.get("rel") not in ("next", "prev", "canonical"):
            self.loaded.append(at["href"])
        if tag in LOADED:
            self.loaded += [at[key] for key in ("src", "srcset", "data", "poster") if at.get(key)]


def leads_nowhere(site, pages, path, link):
    """Whether a link of the page at `path` leads to no file of the site, or to no anchor there."""
    parts = urlsplit(link)
    there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not there.is_relative_to(site) or not there.is_file():
        return True
    return bool(parts.fragment) and unquote(parts.fragment) not in pages[there].anchors


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_all_that_it_needs_is_in_it(tmp_path, capfd):
    if importlib.util.find_spec("zensical") is None:
        assert os.environ.get("CI", "").lower() not in ("1", "true"), "EXTRAS of .ci/run must have docs"
        pytest.skip("needs the extra docs")
    make_site.build(tmp_path)
    assert "No issues found" in "".join(capfd.readouterr())
    site = (tmp_path / "site").resolve()
    pages = {path: Read(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) == len(make_site.PAGES) + len(make_site.REFERENCE)

    for path, page in pages.items():
        foreign = [link for link in page.loaded if urlsplit(link).scheme or urlsplit(link).netloc]
        assert foreign == [], f"{path.name} loads what other hosts have"
        inside = [link for link in page.links if not urlsplit(link).scheme]
        assert len(inside) > 20
        assert [link for link in inside + page.loaded if leads_nowhere(site, pages, path, link)] == [], path.name
    for sheet in site.rglob("*.css"):
        assert re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", sheet.read_text()) == [], sheet.name

    attention = (site / "reference" / "attention.html").read_text()
    assert 'id="cute_attn.flex_flash_attn_func"' in attention
    assert "Exact attention of packed tokens under any union of slices." in attention
    found = json.dumps(json.loads((site / "search.json").read_text()))
    assert "any union of slices" in found
