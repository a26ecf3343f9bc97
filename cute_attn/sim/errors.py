"""What the simulator finds, as one family of exceptions that name the place: kernel, PTX line, warps, CTA, barrier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cute_attn.errors import Unavailable


@dataclass(frozen=True)
class Place:
    """Where in a launch something was found. Fields that do not apply are None or empty."""

    kernel: str
    line: int | None = None  # PTX line number, from 1
    text: str = ""  # that line
    cta: tuple[int, int, int] | None = None
    warps: tuple[int, ...] = ()

    @property
    def who(self) -> str:
        """The warps, and their CTA."""
        warps = f"warp{'s' if len(self.warps) > 1 else ''} {', '.join(map(str, self.warps))}"
        return warps + (f" of CTA {self.cta}" if self.cta is not None else "")

    def __str__(self) -> str:
        parts = [f"kernel {self.kernel}"]
        if self.cta is not None:
            parts.append(f"CTA {self.cta}")
        if self.warps:
            parts.append(f"warp{'s' if len(self.warps) > 1 else ''} {', '.join(map(str, self.warps))}")
        if self.line is not None:
            parts.append(f"PTX line {self.line}: {self.text}")
        return "; ".join(parts)


class SimError(RuntimeError):
    """A kernel did something wrong, or something that the simulator does not know."""

    def __init__(self, what: str, place: Place, *, subject: str = "", notes: Sequence[str] = ()):
        """`what` happened at `place`, about `subject` (barrier, address, transaction); `notes` are further lines."""
        self.what, self.place, self.subject, self.notes = what, place, subject, tuple(notes)
        lines = [what + (f" [{subject}]" if subject else ""), f"  at {place}", *(f"  {note}" for note in notes)]
        super().__init__("\n".join(lines))


class Deadlock(SimError):
    """All that could run waits for something that cannot happen any more."""


class RegistersExceeded(Deadlock):
    """A setmaxnreg.inc waits for more registers than its CTA was launched with, or than others give back."""


class OutOfBounds(SimError):
    """An access outside every buffer, outside shared memory, or through a pointer into the wrong space."""


class Misaligned(SimError):
    """An address that is not a multiple of what the instruction needs."""


class UninitializedRead(SimError):
    """A read of memory that nobody wrote."""


class CopyInFlight(UninitializedRead):
    """An access to memory that an asynchronous copy or a wgmma still writes or reads."""


class TensorMapInUse(SimError):
    """A tensor map is changed that a copy may still read, or nothing tells whoever changes it that it does not."""


class MissingProxyFence(SimError):
    """The async proxy touches shared memory that ordinary stores wrote, with no fence.proxy.async in between."""


class MissingBarrier(SimError):
    """The async proxy touches shared memory that another warp wrote, and no barrier orders the one behind the other."""


class Race(SimError):
    """Two accesses to the same memory, of which one at least writes, and nothing orders one behind the other."""


class TransactionCount(SimError):
    """An mbarrier's transaction bytes do not add up."""


class OverArrival(SimError):
    """More arrivals at a barrier than it expects in a phase."""


class AccumulatorInFlight(SimError):
    """A register that a wgmma in flight owns was touched before wgmma.wait_group, or lacks a wgmma.fence."""


class RedundantReduction(SimError):
    """One bulk reduction was issued by more lanes or warps than meant: it would be added more than once."""


class SharedMemoryExceeded(SimError):
    """An access beyond the dynamic shared memory that the launch asked for."""


class UnsupportedInstruction(SimError):
    """An instruction or modifier that the simulator does not know."""


class UnsupportedDescriptor(SimError):
    """A tensor map or matrix descriptor with bits that the simulator does not know."""


class UntestedVersion(SimError, Unavailable):
    """A version of the DSL or of PTX that the simulator was not tested with."""
