"""Runs mutations in every mode and says what was found, and whether the report names what it should."""

import dataclasses
import functools
import re

import torch

from cute_attn import sim
from cute_attn.sim.addresses import OFFSET_MASK, SHARED_START
from cute_attn.sim.errors import (
    AccumulatorInFlight,
    Misaligned,
    OutOfBounds,
    SharedMemoryExceeded,
    UnsupportedDescriptor,
)
from cute_attn.sim.host.strict import SCHEDULES
from cute_attn.sim.launch import Schedule
from mutations import Mutation
from mutations.attention import ATTENTION
from mutations.exchange import EXCHANGE
from mutations.gram import GRAM
from mutations.grouped import GROUPED
from mutations.grouped_matmul import GROUPS
from mutations.matmul import CLUSTER, MATMUL, REGISTERS
from mutations.patches import PATCHES
from mutations.sums import ELEMENTWISE, SUMS
from mutations.warps import WARPS
from mutations.workloads import WORKLOADS, Expected, Workload

MUTATIONS = {
    m.name: m
    for m in (
        *ELEMENTWISE,
        *SUMS,
        *MATMUL,
        *REGISTERS,
        *CLUSTER,
        *ATTENTION,
        *GRAM,
        *WARPS,
        *GROUPED,
        *GROUPS,
        *EXCHANGE,
        *PATCHES,
    )
}

# Harmful mutations that no mode finds, and why not.
MISSED: dict[str, str] = {}


class WrongResult(Exception):
    """The kernel ran through and left wrong numbers."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one run found: an error, or nothing; `named` says whether the report names what the mutation is about."""

    error: str = ""
    message: str = ""
    named: bool = False

    def __bool__(self) -> bool:
        return bool(self.error)


def run(mutation: Mutation, schedule: Schedule) -> Finding:
    """One run of a mutated kernel, on the same inputs for every mutation."""
    torch.manual_seed(11)
    workload = WORKLOADS[mutation.workload]
    arguments, expected = workload.arguments()
    function = workload.function()
    try:
        how = {"mode": schedule.mode, "seed": schedule.seed, "races": schedule.races}
        sim.run(function, *arguments, ptx=mutated(mutation), **how)
        check(expected)
    except (sim.SimError, WrongResult) as error:
        return Finding(type(error).__name__, str(error), any(_names(what, error, workload) for what in mutation.about))
    return Finding()


@functools.lru_cache(maxsize=1)
def mutated(mutation: Mutation) -> str:
    return mutation.apply(WORKLOADS[mutation.workload].function().__ptx__)


def run_all(mutation: Mutation) -> dict[Schedule, Finding]:
    return {schedule: run(mutation, schedule) for schedule in SCHEDULES}


def check(expected: Expected) -> None:
    """Raises WrongResult, naming a tensor, unless every element is near its reference (NaN is not)."""
    for name, (tensor, reference, tolerance) in expected.items():
        bad = ~((tensor.float() - reference).abs() <= tolerance)
        if bool(bad.any()):
            index = tuple(int(i) for i in bad.nonzero()[0])
            raise WrongResult(
                f"global {name}: {int(bad.sum())} of {bad.numel()} elements are wrong; at {index} it is "
                f"{tensor[index].item():.6g}, should be {reference[index].item():.6g}"
            )


def _names(what: str, error: Exception, workload: Workload) -> bool:
    """Whether a report names a barrier, a region of shared memory, a tensor, or what else a mutation is about."""
    text = str(error)
    if what == "registers":
        return isinstance(error, AccumulatorInFlight) and re.search(r"%r\d+", text) is not None
    if what == "tensor map":
        return re.search(r"\btensor map 0x", text) is not None
    if what == "descriptor":
        return isinstance(error, UnsupportedDescriptor)
    if what == "ended CTA":
        return isinstance(error, OutOfBounds) and re.search(r"CTA \d+ of the cluster has ended", text) is not None
    if what == "beyond":
        return isinstance(error, SharedMemoryExceeded)
    if what == "global address":
        return isinstance(error, (OutOfBounds, Misaligned)) and re.search(r"0x[0-9a-f]+", text) is not None
    if what.startswith("global "):
        return isinstance(error, WrongResult) and f"{what}:" in text
    if what.startswith(("barrier ", "cluster barrier")):
        return re.search(rf"\b{what}\b", text) is not None
    offset, size = workload.regions[what]
    return any(offset <= address < offset + size for address in _shared_addresses(text))


def _shared_addresses(text: str) -> list[int]:
    """Offsets in dynamic shared memory that a report mentions."""
    found = re.findall(r"\b(?:mbarrier|shared(?: address)?) (0x[0-9a-f]+)", text)
    return [(int(address, 16) & OFFSET_MASK) - SHARED_START for address in found]
