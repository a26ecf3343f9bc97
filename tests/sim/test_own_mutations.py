"""What keeps our forward and backward right is needed: without any of it, or with any of it altered, a fault is found.

An edit is of one instruction of the PTX of a kernel. Whether it does harm was said before it was run. Of five that was
said wrongly, and others took their place: a slot that is not used again needs no wait and no release, and where no
register was touched since the last wgmma.fence, another does nothing; of looks for a turn the last is what counts.
"""

import functools
import re
from typing import Any, NamedTuple

import pytest
import torch

from cute_attn import sim
from cute_attn.launch.backward import backward
from cute_attn.launch.forward import forward
from cute_attn.reference import attention_forward
from cute_attn.selftest.masks import MASKS
from cute_attn.sim.host.strict import SCHEDULES

pytestmark = pytest.mark.slow

# Operation, head dimensions, mask and options; that of fwd_64 has rows with several intervals.
KERNELS: dict[str, tuple[str, tuple[int, int], str, dict[str, bool]]] = {
    "fwd_128": ("fwd", (128, 128), "causal", {}),
    "fwd_192_128": ("fwd", (192, 128), "causal", {}),
    "fwd_64": ("fwd", (64, 64), "slices", {}),
    "bwd_128": ("bwd", (128, 128), "causal", {}),
    "bwd_128_deterministic": ("bwd", (128, 128), "causal", {"deterministic": True}),
    "bwd_256": ("bwd", (256, 256), "causal", {}),
}
TOKENS, CTAS = 300, 2  # so few that each has several items, and uses every slot again


class Edit(NamedTuple):
    pattern: str
    instead: str


EDITS = {
    "no proxy fence": Edit(r"fence\.proxy\.async\.shared::cta;", ""),
    "no meeting": Edit(r"bar\.sync \t(?:1, 256|%r\d+, 128|[56], 160);", ""),
    "no word to a meeting": Edit(r"bar\.arrive [34], 160;", ""),
    "no wait": Edit(r"@P1 bra\.uni DONE;", "bra.uni DONE;"),
    "other parity": Edit(
        r"(mbarrier\.try_wait\.parity\.shared\.b64 P1, \[%r\d+\], )(%r\d+), 10000000;",
        r".reg .b32 other; xor.b32 other, \2, 1; \1other;",
    ),
    "no release": Edit(r"mbarrier\.arrive\.shared\.b64 [^;]*;", ""),
    "released twice": Edit(r"(mbarrier\.arrive\.shared\.b64 [^;]*;)", r"\1 \1"),
    "one arrival more": Edit(
        r"(mbarrier\.init\.shared\.b64 \t\[[^\]]*\], )(%r\d+);",
        r"{ .reg .b32 other; add.s32 other, \2, 1; \1other; }",
    ),
    "bytes short": Edit(
        r"(mbarrier\.arrive\.expect_tx\.shared\.b64 %\w+, \[[^\]]*\], )(%r\d+);",
        r"{ .reg .b32 other; sub.s32 other, \2, 16; \1other; }",
    ),
    "row left": Edit(  # a copy and what is expected of it, both short: the end of the slot has what was there before
        r"(mbarrier\.arrive\.expect_tx\.shared\.b64 %\w+, \[[^\]]*\], )(%r\d+);((?:(?!expect_tx)[\s\S])*?)"
        r"(cp\.async\.bulk\.shared::cluster[^,]*, [^,]*, )(%r\d+)(, [^;]*;)",
        r"{ .reg .b32 other; sub.s32 other, \2, 16; \1other; }\3{ .reg .b32 other; sub.s32 other, \5, 16; \4other\6 }",
    ),
    "other rows": Edit(
        r"(cp\.async\.bulk\.tensor\.4d\.shared[^{]*\{%r\d+, )(%r\d+)([^;]*;)",
        r"{ .reg .b32 other; add.s32 other, \2, 8; \1other\3 }",
    ),
    "products not waited for": Edit(r"wgmma\.wait_group\.sync\.aligned \t\d;", ""),
    "no wgmma.fence": Edit(r"wgmma\.fence\.sync\.aligned;", ""),
    "stores not waited for": Edit(r"cp\.async\.bulk\.wait_group\.read \t0;", ""),
    "reductions not waited for": Edit(r"cp\.async\.bulk\.wait_group \t0;", ""),
    "sums added twice": Edit(r"((?:cp\.reduce\.async\.bulk|red\.relaxed\.gpu\.global\.add\.v4)[^;]*;)", r"\1 \1"),
    "turns taken relaxed": Edit(r"ld\.acquire(\.gpu\.global\.b32)", r"ld.relaxed\1"),
    "turns passed relaxed": Edit(r"red\.release(\.gpu\.global\.add)", r"red.relaxed\1"),
    "no turn passed": Edit(r"red\.release\.gpu\.global\.add\S* [^;]*;", ""),
    "mask ignored": Edit(
        r"selp\.f32 \t(%r\d+), (?:0fFF800000, (%r\d+)|(%r\d+), 0fFF800000), %p\d+;", r"mov.b32 \t\1, \2\3;"
    ),
}
HARMLESS = {
    "a second proxy fence": Edit(r"(fence\.proxy\.async\.shared::cta;)", r"\1 \1"),
    "a second wgmma.fence": Edit(r"(wgmma\.fence\.sync\.aligned;)", r"\1 \1"),
    "all products waited for": Edit(r"wgmma\.wait_group\.sync\.aligned \t1;", "wgmma.wait_group.sync.aligned \t0;"),
    "stores waited for to their end": Edit(r"cp\.async\.bulk\.wait_group\.read \t0;", "cp.async.bulk.wait_group \t0;"),
}

# What is the right name for each: of what is missing, or of what comes of it. WrongResult: other numbers, no error.
NAMES = {
    "no proxy fence": {"MissingProxyFence"},
    "no meeting": {"MissingBarrier", "Race", "UninitializedRead", "OverArrival"},
    "no word to a meeting": {"Deadlock"},
    "no wait": {"Race", "CopyInFlight", "UninitializedRead"},
    "other parity": {"Deadlock"},
    "no release": {"Deadlock"},
    "released twice": {"OverArrival", "Race", "CopyInFlight", "Deadlock"},
    "one arrival more": {"Deadlock"},
    "bytes short": {"TransactionCount"},
    "row left": {"UninitializedRead"},
    "other rows": {"WrongResult"},
    "products not waited for": {"AccumulatorInFlight"},
    "no wgmma.fence": {"AccumulatorInFlight"},
    "stores not waited for": {"CopyInFlight"},
    "reductions not waited for": {"Race"},
    "sums added twice": {"WrongResult"},
    "turns taken relaxed": {"Race"},
    "turns passed relaxed": {"Race"},
    "no turn passed": {"Deadlock"},
    "mask ignored": {"WrongResult"},
}

# By kernel and edit, how many places there are for it, and those that are tried: the call comes by them.
PLACES: dict[str, dict[str, tuple[int, tuple[int, ...]]]] = {
    "fwd_128": {
        "no proxy fence": (2, (1,)),
        "no meeting": (2, (0, 1)),
        "no wait": (22, (0, 21)),
        "no release": (20, (2, 4, 12, 17)),
        "released twice": (20, (4,)),
        "other rows": (8, (4,)),
        "products not waited for": (14, (7,)),
        "no wgmma.fence": (14, (13,)),
        "stores not waited for": (2, (0,)),
    },
    "fwd_192_128": {
        "no meeting": (2, (1,)),
        "no wait": (22, (2, 7)),
        "other parity": (21, (0, 3)),
        "no release": (19, (12,)),
        "one arrival more": (13, (3,)),
        "bytes short": (3, (0, 1)),
        "other rows": (11, (0,)),
        "products not waited for": (14, (13,)),
        "mask ignored": (256, (0,)),
    },
    "fwd_64": {
        "no proxy fence": (2, (0, 1)),
        "no wait": (22, (2, 11)),
        "other parity": (21, (10,)),
        "no release": (20, (0, 8)),
        "one arrival more": (13, (0,)),
        "bytes short": (3, (2,)),
        "other rows": (4, (2,)),
        "no wgmma.fence": (14, (13,)),
        "mask ignored": (256, (5,)),
    },
    "bwd_128": {
        "no proxy fence": (9, (3, 7)),
        "no meeting": (8, (0, 4)),
        "no word to a meeting": (4, (0,)),
        "no wait": (13, (2, 12)),
        "no release": (12, (2, 7)),
        "bytes short": (4, (1,)),
        "row left": (3, (0, 2)),
        "products not waited for": (8, (0, 5)),
        "no wgmma.fence": (10, (0,)),
        "stores not waited for": (7, (0,)),
        "sums added twice": (4, (0,)),
    },
    "bwd_128_deterministic": {
        "no proxy fence": (9, (5,)),
        "no wait": (13, (9,)),
        "other parity": (10, (0,)),
        "one arrival more": (13, (1,)),
        "reductions not waited for": (6, (0,)),
        "turns taken relaxed": (8, (2,)),
        "turns passed relaxed": (4, (0,)),
        "no turn passed": (4, (0,)),
    },
    "bwd_256": {
        "no proxy fence": (9, (5,)),
        "no meeting": (6, (1, 2)),
        "no wait": (13, (5,)),
        "other parity": (10, (3,)),
        "no release": (12, (4,)),
        "bytes short": (4, (2,)),
        "other rows": (24, (8,)),
        "products not waited for": (10, (6,)),
        "no wgmma.fence": (10, (0,)),
        "stores not waited for": (3, (0,)),
        "sums added twice": (32, (20,)),
    },
}


class Call(NamedTuple):
    """A call of a compiled function: everything that it was given, before it ran, and what it left."""

    function: Any
    arguments: tuple
    ptx: str
    fresh: list[int]
    left: list[torch.Tensor]


def tensors(arguments: Any) -> list[torch.Tensor]:
    if isinstance(arguments, torch.Tensor):
        return [arguments]
    return [t for a in arguments for t in tensors(a)] if isinstance(arguments, (tuple, list)) else []


def copied(arguments: Any) -> Any:
    if isinstance(arguments, torch.Tensor):
        return arguments.clone()
    return type(arguments)(map(copied, arguments)) if isinstance(arguments, (tuple, list)) else arguments


@functools.cache
def call_of(kernel: str) -> Call:
    op, (head_dim, head_dim_v), mask_name, variant = KERNELS[kernel]
    torch.manual_seed(16)
    mask = MASKS[mask_name](TOKENS)
    shapes = (mask.seqlen_q, 2, head_dim), (mask.seqlen_k, 1, head_dim), (mask.seqlen_k, 1, head_dim_v)
    q, k, v = (torch.randn(1, *shape).bfloat16() for shape in shapes)
    options = {"softmax_scale": 0.1, "sm_margin": 132 - CTAS, "backend": "sim", **variant}
    calls = []

    def noted(function, *arguments, ptx, fresh, **_):
        before = copied(arguments)
        sim_run(function, *arguments, ptx=ptx, fresh=fresh)
        numbers = [i for i, t in enumerate(tensors(arguments)) if any(t is f for f in fresh)]
        calls.append(Call(function, before, ptx, numbers, tensors(arguments)))

    sim_run = sim.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sim, "run", noted)
        if op == "fwd":
            forward(q, k, v, mask, **options)
        else:
            out, lse, _ = attention_forward(q, k, v, mask.lo, mask.hi, None, 0.1, 0.0)
            backward(torch.randn_like(out), q, k, v, out, lse, mask, **options)
    (call,) = calls
    return call


def edited(call: Call, edit: Edit, count: int, i: int) -> str:
    """The code with the i-th match, of `count`, altered."""
    matches = list(re.finditer(edit.pattern, call.ptx))
    assert len(matches) == count, "the kernel has changed: choose other places that the call comes by"
    return call.ptx[: matches[i].start()] + matches[i].expand(edit.instead) + call.ptx[matches[i].end() :]


def finding(call: Call, ptx: str, schedule: Any, deterministic: bool) -> str:
    """What a run of altered code finds, or that it leaves other numbers; "" for nothing."""
    arguments = copied(call.arguments)
    flat = tensors(arguments)
    how = {"mode": schedule.mode, "seed": schedule.seed, "races": schedule.races}
    try:
        sim.run(
            call.function, *arguments, ptx=ptx, fresh=[flat[i] for i in call.fresh], deterministic=deterministic, **how
        )
    except sim.SimError as error:
        return type(error).__name__
    for got, wanted in zip(flat, call.left, strict=True):
        if got.is_floating_point() and got.numel():
            finite = wanted.isfinite()
            if not torch.equal(finite, got.isfinite()) or not bool(
                ((got - wanted)[finite].abs() <= 2.0**-6 * wanted[finite].abs().max()).all()
            ):
                return "WrongResult"
    return ""


def test_there_are_edits_of_every_kind():
    tried = [what for places in PLACES.values() for what, (_, numbers) in places.items() for _ in numbers]
    assert len(tried) >= 60
    assert set(tried) == set(EDITS) == set(NAMES)


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_edit_of_a_kernel_that_does_harm_is_found_by_a_right_name(kernel):
    """By the first schedule that finds anything. The kernel as it is, whatever would be found in it, is clean."""
    call, deterministic = call_of(kernel), "deterministic" in kernel
    for schedule in SCHEDULES:
        assert not finding(call, call.ptx, schedule, deterministic), schedule
    wrong = []
    for what, (count, numbers) in PLACES[kernel].items():
        for i in numbers:
            ptx = edited(call, EDITS[what], count, i)
            found = next(filter(None, (finding(call, ptx, schedule, deterministic) for schedule in SCHEDULES)), "")
            if found not in NAMES[what]:
                wrong.append((what, i, found))
    assert not wrong


@pytest.mark.parametrize("kernel", ["fwd_128", "bwd_128"])
@pytest.mark.parametrize("what", HARMLESS)
def test_what_does_no_harm_is_let_pass(kernel, what):
    call = call_of(kernel)
    ptx = re.sub(HARMLESS[what].pattern, HARMLESS[what].instead, call.ptx)
    assert ptx != call.ptx
    for schedule in (SCHEDULES[0], SCHEDULES[1], SCHEDULES[-1]):  # eager, late and starving
        assert not finding(call, ptx, schedule, False), schedule
