"""What keeps our forward and backward right is needed: without any of it, or with any of it altered, a fault is found.

An edit is of one instruction of the PTX of a kernel. Whether it does harm was said before it was run. Meetings of the
lanes of a warp and the turns that two warpgroups take are not among those that do: docs/simulator.md says why.
"""

import functools
import re
from typing import Any, NamedTuple

import pytest
import torch

from cute_attn import sim
from cute_attn.launch.shapes import spec_for
from cute_attn.selftest.cases import case_for
from cute_attn.selftest.check import launch, make_problem
from cute_attn.selftest.masks import MASKS
from cute_attn.sim.host.strict import SCHEDULES
from cute_attn.spec.operation import operation

pytestmark = pytest.mark.slow

# Operation, head dimensions and mask; that of fwd_64 has rows with several intervals.
KERNELS: dict[str, tuple[str, tuple[int, int], str, dict[str, bool]]] = {
    "fwd_128": ("fwd", (128, 128), "causal", {}),
    "fwd_192_128": ("fwd", (192, 128), "causal", {}),
    "fwd_64": ("fwd", (64, 64), "slices", {}),
    "bwd_128": ("bwd", (128, 128), "causal", {}),
    "bwd_128_deterministic": ("bwd", (128, 128), "causal", {"deterministic": True}),
    "bwd_256": ("bwd", (256, 256), "causal", {}),
}
FORWARD, BACKWARD = tuple(KERNELS)[:3], tuple(KERNELS)[3:]


def with_other(operand: str) -> str:
    """The instruction with a number of its own in the place of its last operand, made by `operand` of it."""
    return rf"{{ .reg .b32 other; {operand} other, \2, {{0}}; \1 other; }}"


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
    "other rows": Edit(
        r"(cp\.async\.bulk\.tensor\.4d\.shared[^{]*\{%r\d+, )(%r\d+)([^;]*;)",
        r"{ .reg .b32 other; add.s32 other, \2, 8; \1other\3 }",
    ),
    "products not waited for": Edit(r"wgmma\.wait_group\.sync\.aligned \t\d;", ""),
    "no wgmma.fence": Edit(r"wgmma\.fence\.sync\.aligned;", ""),
    "stores not waited for": Edit(r"cp\.async\.bulk\.wait_group\.read \t0;", ""),
    "reductions not waited for": Edit(r"cp\.async\.bulk\.wait_group \t0;", ""),
    "sums added twice": Edit(r"(cp\.reduce\.async\.bulk[^;]*;)", r"\1 \1"),
    "turns taken relaxed": Edit(r"ld\.acquire(\.gpu\.global\.b32)", r"ld.relaxed\1"),
    "turns passed relaxed": Edit(r"red\.release(\.gpu\.global\.add)", r"red.relaxed\1"),
    "no turn passed": Edit(r"red\.release\.gpu\.global\.add\S* [^;]*;", ""),
    "no fence at a turn": Edit(r"fence\.proxy\.async\.global;", ""),
    "mask ignored": Edit(r"selp\.f32 \t(%r\d+), 0fFF800000, (%r\d+), %p\d+;", r"mov.b32 \t\1, \2;"),
}
HARMLESS = {
    "a second proxy fence": Edit(r"(fence\.proxy\.async\.shared::cta;)", r"\1 \1"),
    "a second wgmma.fence": Edit(r"(wgmma\.fence\.sync\.aligned;)", r"\1 \1"),
    "all products waited for": Edit(r"wgmma\.wait_group\.sync\.aligned \t1;", "wgmma.wait_group.sync.aligned \t0;"),
    "stores waited for to their end": Edit(r"cp\.async\.bulk\.wait_group\.read \t0;", "cp.async.bulk.wait_group \t0;"),
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
    op, dims, mask, variant = KERNELS[kernel]
    tile = operation(op).default_tile(*dims)
    case = case_for(spec_for(op, "bf16", *dims, MASKS[mask](1000), tile, **variant)).simulated()
    calls = []

    def noted(function, *arguments, ptx, fresh, **_):
        before = copied(arguments)
        sim_run(function, *arguments, ptx=ptx, fresh=fresh)
        numbers = [i for i, t in enumerate(tensors(arguments)) if any(t is f for f in fresh)]
        calls.append(Call(function, before, ptx, numbers, tensors(arguments)))

    sim_run = sim.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sim, "run", noted)
        launch(case, make_problem(case, torch.device("cpu")), "sim")
    (call,) = calls
    return call


def edited(call: Call, edit: Edit, i: int) -> tuple[str, int]:
    matches = list(re.finditer(edit.pattern, call.ptx))
    place = matches[i]
    return call.ptx[: place.start()] + place.expand(edit.instead) + call.ptx[place.end() :], len(matches)


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
