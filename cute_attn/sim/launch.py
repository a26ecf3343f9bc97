"""What the compiled host code asked for, what memory the kernel may touch, and under which schedule it is to run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import numpy as np

Mode = Literal["eager", "late", "random", "starve"]


@dataclass(frozen=True)
class Launch:
    """One kernel launch as the compiled host code asked for it."""

    kernel: str  # entry name in the PTX
    ptx: str  # whole PTX text
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cluster: tuple[int, int, int]  # (1, 1, 1) if none
    smem_bytes: int  # dynamic shared memory asked for
    arguments: tuple[bytes, ...]  # raw bytes of each kernel parameter, in order, sizes from the PTX .param list
    cooperative: bool = False  # whether all CTAs are to be resident together


class Buffer(NamedTuple):
    """Global memory that the kernel may touch: the extent of storage that a passed tensor spans."""

    address: int  # the real host pointer of `data`
    data: np.ndarray  # uint8 view, writable
    name: str
    unwritten: np.ndarray | None = None  # bool per byte: nobody wrote it yet, reading it is an error; stores clear it


@dataclass(frozen=True)
class Schedule:
    """In which order warps run and when asynchronous copies happen.

    `eager`: in order, copies at once. `late`: copies poisoned and delivered at the last legal moment, stores read their
    source late, whoever is woken runs first. `random`: by `seed`, every warp on its own. `starve`: as `late`, and the
    warp or warpgroup that `seed` chooses runs only when nothing else can.

    races: accesses that nothing orders are looked for, and are an error. fixed_sums: floating-point additions of an
    element that nothing orders are among them.

    Raises:
        ValueError: for an unknown mode or a negative seed.
    """

    mode: Mode = "eager"
    seed: int = 0
    races: bool = False
    fixed_sums: bool = False

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode is {self.mode!r}; allowed: {', '.join(get_args(Mode))}")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must not be negative")


@dataclass
class Report:
    """What a simulated launch did besides writing its buffers."""

    # buffers whose contents depend, within rounding, on an order that the hardware chooses: an element of them received
    # several floating-point additions, or they were computed from such a buffer (these are in `derived` too)
    reduced: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()
    statistics: dict[str, int] = field(
        default_factory=dict
    )  # counts: ctas, segments, lane_instructions, wgmmas, copies
    # of each buffer that was added into: the largest rounding error of an element, relative to the largest element
    rounding: dict[str, float] = field(default_factory=dict)
    # of each buffer with memory that nobody had written before the call: how many bytes of it nobody has written still
    unwritten: dict[str, int] = field(default_factory=dict)
    # of each buffer that was computed from reduced ones: the rounding errors of these, added up
    derived: dict[str, float] = field(default_factory=dict)
    loaded: frozenset[str] = frozenset()  # buffers that were read
    stored: frozenset[str] = frozenset()  # buffers that were written
