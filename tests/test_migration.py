"""What the migration pages say: offered names are there, others are refused with a sentence."""

import ast
import inspect
import operator
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import cute_attn
from cute_attn import AttnMaskType, AttnRange, AttnRanges, dist, fa3_func_with_sink, flex_flash_attn_func
from cute_attn.elsewhere import INSTEAD, INSTEAD_IN_DIST, KEYWORDS, KEYWORDS_IN_DIST, KEYWORDS_OF_LAYERS

PAGES = {page.stem: page.read_text() for page in (Path(__file__).parent.parent / "docs").glob("from_*.md")}
METHODS = {
    AttnRange: "clone diff_by intersect is_empty is_overlap_with is_subrange_of offset seqlen truncate union",
    AttnRanges: "append chunk clone extend find_hole_ranges find_overlap_ranges from_cu_seqlens from_ranges insert "
    "intersect_size is_empty make_range_local max_seqlen merge pop size sort to_cu_seqlens to_naive_ranges "
    "total_seqlen truncate __setitem__",
    AttnMaskType: "from_int_type to_int_type",
}


def rows_of_names(page):
    """Of the table below `## Names`: the names there, and what is written of here."""
    table = PAGES[page].split("## Names\n")[1].split("\n## ")[0]
    rows = [row.strip("| ").split(" | ") for row in re.findall(r"^\| `.*", table, re.MULTILINE)]
    return [(re.findall(r"`([\w.]+)`", there), here) for there, here in rows]


def find(name):
    """What a page calls by this name: of a module that it names, of cute_attn or of cute_attn.dist."""
    if name.startswith("cute_attn."):
        return pkgutil.resolve_name(name)
    first = name.partition(".")[0]
    home = cute_attn if first in cute_attn.__all__ else dist
    assert first in home.__all__, name
    return operator.attrgetter(name)(home)


@pytest.mark.parametrize("page", PAGES)
def test_every_name_that_a_page_offers_is_there(page):
    rows = rows_of_names(page)
    assert len(rows) >= 4
    for there, here in rows:
        offered = re.findall(r"`([\w.]+)`", here)
        assert offered or "`(out, lse)`" in here, there
        for name in offered:
            assert name == "indexer_mask" or find(name), name


def test_methods_of_ranges_and_types_are_there():
    for kind, methods in METHODS.items():
        for name in methods.split():
            assert hasattr(kind, name), name


def test_names_that_are_refused_are_on_a_page_beside_what_there_is_instead():
    told = {name for page in PAGES for there, _ in rows_of_names(page) for name in there}
    assert (INSTEAD.keys() | INSTEAD_IN_DIST.keys()) <= told


def words_of(sentence):
    return set(re.findall(r"[A-Za-z_]\w+", sentence))


@pytest.mark.parametrize("name", INSTEAD)
def test_other_names_are_refused_with_what_there_is_instead(name):
    with pytest.raises(ImportError, match=f"^cute_attn has no {name}: "):
        exec(f"from cute_attn import {name}")
    is_in_dist = INSTEAD[name] == "it is in cute_attn.dist"
    assert name in dist.__all__ if is_in_dist else words_of(INSTEAD[name]) & set(cute_attn.__all__)


def test_what_serves_a_keyword_is_there():
    for keywords, names in (
        (KEYWORDS, cute_attn.__all__),
        (KEYWORDS_IN_DIST, dist.__all__),
        (KEYWORDS_OF_LAYERS, ["AttentionOp"]),
    ):
        for name, (neutral, served) in keywords.items():
            assert neutral
            for found in re.findall(
                r"cute_attn\.[\w.]+|\b(?:flash|flex|fa\d|infer|magi)_\w+|\b[A-Z]\w+[A-Z]\w+", served
            ):
                assert pkgutil.resolve_name(found) if "." in found else found in (*names, "ALiBi"), name


def test_the_page_has_the_whole_signature_of_the_layer_and_all_arguments_to_drop():
    page = PAGES["from_maxtext"].split("## Arguments of the module\n")[1].split("\n## ")[0]
    written = re.findall(r"^    (\w+)=(.+?),(?:  #.*)?$", page, re.MULTILINE)
    here = inspect.signature(cute_attn.AttentionOp).parameters
    assert [name for name, _ in written] == list(here)
    for name, value in written[2:]:
        assert ast.literal_eval(value) == getattr(here[name].default, "value", here[name].default), name
    rows = [row.strip("| ").split(" | ") for row in re.findall(r"^\| `.*", page, re.MULTILINE)]
    (same, _), (config, _), *others = rows
    assert set(re.findall(r"`(\w+)`", same)) < here.keys()
    assert all(text.startswith("dropped: ") for _, text in others)
    dropped = [name for there in (config, *(there for there, _ in others)) for name in re.findall(r"`(\w+)`", there)]
    assert sorted(dropped) == sorted(KEYWORDS_OF_LAYERS)


def test_arguments_of_a_layer_that_are_to_be_dropped_are_told_what_serves_them():
    plain = repr(cute_attn.AttentionOp(4, 2))
    for name, (neutral, served) in KEYWORDS_OF_LAYERS.items():
        assert all(repr(cute_attn.AttentionOp(4, 2, **{name: value})) == plain for value in neutral)
        with pytest.raises(ValueError, match=f"^{name} is not supported: .*, got 'x'; {re.escape(served)}$"):
            cute_attn.AttentionOp(4, 2, **{name: "x"})


@pytest.mark.parametrize("name", INSTEAD_IN_DIST)
def test_other_names_of_context_parallelism_are_refused_with_what_there_is_instead(name):
    with pytest.raises(ImportError, match=rf"^cute_attn\.dist has no {name}: "):
        exec(f"from cute_attn.dist import {name}")
    is_in_package = INSTEAD_IN_DIST[name] == "it is in cute_attn itself"
    assert name in cute_attn.__all__ if is_in_package else words_of(INSTEAD_IN_DIST[name]) & set(dist.__all__)


@pytest.mark.parametrize("module", [cute_attn, dist])
def test_names_that_nobody_has_are_no_attributes(module):
    assert not hasattr(module, "no_such_name")
    with pytest.raises(ImportError, match="cannot import name"):
        exec(f"from {module.__name__} import no_such_name")


def test_no_name_that_is_here_is_refused():
    assert not INSTEAD.keys() & set(cute_attn.__all__)
    assert not INSTEAD_IN_DIST.keys() & set(dist.__all__)


def packed(tokens=6, heads=2):
    return [torch.randn(tokens, heads, 8, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_sinks_of_one_dimension_are_taken_in_any_floating_dtype(dtype):
    q, k, v = (x[None] for x in packed())
    sinks = torch.randn(2, dtype=dtype)
    out = fa3_func_with_sink(q, k, v, sink=sinks, causal=True)
    assert torch.equal(out, fa3_func_with_sink(q, k, v, sink=sinks.double()[None], causal=True))
    out, _ = flex_flash_attn_func(q[0], k[0], v[0], [[0, 6]], [[0, 6]], sink=sinks)
    assert torch.equal(out, flex_flash_attn_func(q[0], k[0], v[0], [[0, 6]], [[0, 6]], sink=sinks.double()[None])[0])


def test_a_window_of_128_keys_reaches_127_back():
    seen = cute_attn.IntervalMask.from_function(lambda b, h, q, kv: (kv <= q) & (q - kv < 128), 200)
    assert torch.equal(seen.to_dense(), cute_attn.mask.sliding_window(200, left=127, right=0).to_dense())
