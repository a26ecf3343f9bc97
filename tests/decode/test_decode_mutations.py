"""What keeps the kernels over a cache right is needed: without any of it, some schedule finds a fault.

Copies and warps in their order, and what the loaders of pages do: which page a box or a key comes from, how many bytes
are awaited, what is masked and made zero behind a length, and that no page is looked up there. Meetings of the lanes of
a warp are not among it: docs/simulator.md says why.
"""

import re

import pytest
import torch
from caching import make
from decode_case import check

from cute_attn import sim

pytestmark = pytest.mark.slow

# Calls with a table that has no entry beyond the longest sequence, the last one, whose tiles come round in every ring;
# the first and the last tile of the prefill hold values that nobody attends.
CALLS = {
    "boxes": ({"lengths": (1, 100, 300), "page_size": 64, "heads": (8, 2)}, {}),
    "window": ({"lengths": (1, 100, 300), "page_size": 64, "heads": (8, 2)}, {"window_size": (70, 0)}),
    "gathered": ({"lengths": (1, 100, 300), "page_size": 7, "heads": (2, 1), "tokens": 5}, {"mask": True}),
    "prefill": ({"lengths": (65, 300), "page_size": 64, "heads": (1, 1), "tokens": 70}, {"window_size": (200, 0)}),
}
FENCE = r"fence\.proxy\.async\.shared::cta;"
RELEASE = r"mbarrier\.arrive\.shared\.b64 [^;]*;"
WAIT = r"@P1 bra\.uni DONE;"  # of an mbarrier
PAGE = r"(cp\.async\.bulk\.tensor\.4d\.shared[^{]*\{%r\d+, %r\d+, %r\d+, )(%r\d+)"
KEY = r"(cp\.async\.bulk\.tensor\.4d\.shared[^{]*\{%r\d+, )(%r\d+)"
BYTES = r"mov\.b32 \t(%r\d+), (?:8192|16384);(\n\tmbarrier\.arrive\.expect_tx)"
MASK = r"selp\.f32 \t(%r\d+), 0fFF800000, (%r\d+), %p\d+;"
ZEROS = r"st\.shared\.v4\.b32 \t\[%r\d+\], \{0, 0, 0, 0\};"
PAST_THE_END = r"setp\.ge\.s32 \t(%p\d+), %r\d+, %r\d+;(\n\tor\.pred\s+%p\d+, %p\d+, \1;)"
NO_PAGE = r"setp\.ge\.s32 \t(%p\d+), %r\d+, %r\d+;(\n\tmov\.b32 \t%r\d+, -1;)"
# What is taken out or altered: the call that shows it, a pattern, what comes in its place, which of its matches are
# tried, and how many there are.
MUTATIONS = {
    "a proxy fence": ("boxes", FENCE, "", range(2), 2),
    "a meeting": ("boxes", r"bar\.sync \t1, 128;", "", range(4), 4),
    "a wait for products": ("boxes", r"wgmma\.wait_group\.sync\.aligned \t0;", "", range(2), 2),
    "a release": ("boxes", RELEASE, "", range(2), 2),
    "a wait": ("boxes", WAIT, "bra.uni DONE;", range(4), 4),
    "the page of a box": ("boxes", PAGE, r"add.s32 \t\2, \2, 1;\n\t\1\2", range(2), 2),
    "the first key of a box": ("boxes", KEY, r"add.s32 \t\2, \2, 16;\n\t\1\2", range(2), 2),
    "half of the bytes": ("boxes", BYTES, r"mov.b32 \t\1, 4096;\2", range(2), 2),
    "the mask of an end": ("window", MASK, r"mov.b32 \t\1, \2;", (0, 1), 8),
    "zeros for values that nobody attends": ("window", ZEROS, "", range(1), 1),
    "a wait for gathered keys": ("gathered", r"cp\.async\.wait_group \t\d;", "", range(2), 2),
    "a fence behind gathered keys": ("gathered", FENCE, "", range(2), 4),
    "a gathered tile handed over": ("gathered", RELEASE, "", (0, 3), 6),
    "a wait for room for gathered keys": ("gathered", WAIT, "bra.uni DONE;", range(2), 4),
    "the end of what is gathered": ("gathered", NO_PAGE, r"mov.pred \t\1, 0;\2", (1,), 2),
    "the page of a box of a prefill": ("prefill", PAGE, r"add.s32 \t\2, \2, 1;\n\t\1\2", (2, 3, 4, 5), 6),
    "half of the bytes of a prefill": ("prefill", BYTES, r"mov.b32 \t\1, 8192;\2", (1, 2), 3),
    "a wait of the producer of a prefill": ("prefill", WAIT, "bra.uni DONE;", (1, 2, 3), 19),
    "zeros for values of a prefill": ("prefill", ZEROS, "", (8,), 32),
    "a fence behind zeros of a prefill": ("prefill", FENCE, "", (0,), 2),
    "a cleaned tile handed over": ("prefill", RELEASE, "", (0, 1), 18),
    "the end of what a prefill looks up": ("prefill", PAST_THE_END, r"mov.pred \t\1, 0;\2", (0, 1), 3),
}  # fmt: skip
MUTANTS = [(what, i) for what, (_, _, _, tried, _) in MUTATIONS.items() for i in tried]
SCHEDULES = [("eager", 0), ("late", 0), ("random", 1), ("random", 2), ("random", 3), ("starve", 0)]


@pytest.fixture
def mutate(monkeypatch):
    """`mutate(pattern, instead, i)` alters the i-th match in the code that is run; its result is how many there are."""
    original = sim.run
    found = []

    def install(pattern, instead, i):
        def run(function, *arguments, ptx, **options):
            matches = list(re.finditer(pattern, ptx))
            found.append(len(matches))
            place = matches[i]
            altered = ptx[: place.start()] + place.expand(instead) + ptx[place.end() :]
            return original(function, *arguments, ptx=altered, races=options["mode"] == "eager", **options)

        monkeypatch.setattr(sim, "run", run)
        return found

    return install


def call_and_options(name):
    problem, options = CALLS[name]
    call = make(dtype=torch.bfloat16, growing=True, **problem)
    call.cache["page_table"] = call.cache["page_table"][:, :-1].contiguous()
    if "mask" in options:
        options = {"mask": torch.rand(len(problem["lengths"]), problem["tokens"], problem["tokens"]) < 0.6}
    return call, options


@pytest.mark.parametrize("name", CALLS)
def test_the_calls_are_right(name):
    """No entry of a table is read past its end, where the next one belongs to nobody."""
    call, options = call_and_options(name)
    check(call, "sim", "random", 1, **options)


@pytest.mark.parametrize(("what", "i"), MUTANTS)
def test_without_it_a_fault_is_found(what, i, mutate):
    name, pattern, instead, _, count = MUTATIONS[what]
    call, options = call_and_options(name)
    found = mutate(pattern, instead, i)
    assert any(is_faulty(call, options, *schedule) for schedule in SCHEDULES)
    assert set(found) == {count}


def is_faulty(call, options, mode, seed):
    try:
        check(call, "sim", mode, seed, **options)
    except (sim.SimError, AssertionError):
        return True
    return False
