"""Rings of shared-memory slots on mbarriers, and the turns that warpgroups take on named barriers."""

from dataclasses import dataclass
from typing import Any

import cutlass.cute as cute
from cutlass import Int32, const_expr

__all__ = ["BARRIER_EPILOGUE", "Ring", "Turns", "mbarriers_of_ring"]

# Named barriers; 0 is that of sync_threads. Each use has one barrier a consumer warpgroup, at most three.
BARRIER_TURN = 1
BARRIER_EPILOGUE = 4


def mbarriers_of_ring(stages: int) -> int:
    """How many mbarriers a ring needs."""
    return 2 * stages + 1


@dataclass(frozen=True)
class Ring:
    """Slots that a producer fills by TMA and consumers read, in order; use number i has slot `i % stages`.

    A use runs: wait_empty, expect, copies (producer); wait_full, reads, release (one lane of every consumer warp).
    A producer that edits what it loads before anybody reads it runs: wait_empty, expect with landing, copies,
    wait_landed, edits, hand_over.

    barriers: `mbarriers_of_ring(stages)` in shared memory: full ones, empty ones, and that of the landing.
    stages: a power of two.
    readers: warps that release a slot. writers: warps that fill one, each of which says when it has.
    """

    barriers: cute.Pointer
    stages: int
    readers: int
    writers: int = 1

    @property
    def full(self) -> cute.Pointer:
        return self.barriers

    @property
    def empty(self) -> cute.Pointer:
        return self.barriers + self.stages

    @property
    def landing(self) -> cute.Pointer:
        return self.barriers + 2 * self.stages

    def initialise(self) -> None:
        """By one thread, before any other touches the ring."""
        for slot in range(self.stages):
            cute.arch.mbarrier_init(self.full + slot, self.writers)
            cute.arch.mbarrier_init(self.empty + slot, self.readers)
        cute.arch.mbarrier_init(self.landing, 1)

    def slot(self, use: Any) -> Any:
        return use & (self.stages - 1)

    def _phase(self, use: Any) -> Any:
        return (use >> (self.stages.bit_length() - 1)) & 1

    def wait_empty(self, use: Any) -> None:
        cute.arch.mbarrier_wait(self.empty + self.slot(use), self._phase(use) ^ 1)

    @cute.jit
    def expect(self, use, n_bytes, landing=False):
        """Announces the bytes of this use; returns the barrier to give to its copies. One lane of the warp acts.

        landing: whether the producer has the slot to itself until `hand_over`.
        """
        barrier = self._barrier(use, landing)
        with cute.arch.elect_one():
            cute.arch.mbarrier_arrive_and_expect_tx(barrier, n_bytes)
        return barrier

    @cute.jit
    def announce(self, use, n_bytes, landing=False):
        """`expect`, but that nobody has the slot before `arrive`: the warp writes to it under its copies."""
        barrier = self._barrier(use, landing)
        with cute.arch.elect_one():
            cute.arch.mbarrier_expect_tx(barrier, n_bytes)
        return barrier

    def arrive(self, barrier: cute.Pointer) -> None:
        """Says at a full barrier, or that of `announce`, that the lanes of this warp have written."""
        cute.arch.sync_warp()
        with cute.arch.elect_one():
            cute.arch.mbarrier_arrive(barrier)

    @cute.jit
    def _barrier(self, use, landing):
        number = self.slot(use)
        if landing:
            number = Int32(2 * self.stages)
        return self.barriers + number

    def wait_landed(self) -> None:
        """By all lanes of the producer's warp."""
        cute.arch.mbarrier_wait(self.landing, 0)

    def hand_over(self, use: Any) -> None:
        """Lets the readers have what the lanes of this warp have edited."""
        cute.arch.fence_view_async_shared()
        cute.arch.sync_warp()
        with cute.arch.elect_one():
            cute.arch.mbarrier_arrive(self.landing)  # a second phase, so that each landing is one of parity 0
            cute.arch.mbarrier_arrive(self.full + self.slot(use))

    def wait_full(self, use: Any) -> None:
        cute.arch.mbarrier_wait(self.full + self.slot(use), self._phase(use))

    def release(self, use: Any) -> None:
        with cute.arch.elect_one():
            cute.arch.mbarrier_arrive(self.empty + self.slot(use))


@dataclass(frozen=True)
class Turns:
    """Consumer warpgroups issue their products one after another: one computes its softmax under another's products.

    A named barrier a warpgroup says that it may go; its 128 threads wait and the 128 of the one before it arrive.
    """

    group: Int32
    groups: int
    enabled: bool

    @cute.jit
    def begin(self):
        """Lets warpgroup 0 go first."""
        if const_expr(self.enabled) and self.group == self.groups - 1:
            self.done()

    def wait(self) -> None:
        if self.enabled:
            cute.arch.barrier(barrier_id=BARRIER_TURN + self.group, number_of_threads=256)

    @cute.jit
    def done(self):
        """Passes the turn to the next warpgroup."""
        if const_expr(self.enabled):
            following = self.group + 1
            if following == self.groups:
                following = Int32(0)
            cute.arch.barrier_arrive(barrier_id=BARRIER_TURN + following, number_of_threads=256)

    @cute.jit
    def end(self):
        """Takes up the last turn passed on, so that the barriers end as they began."""
        if const_expr(self.enabled) and self.group == 0:
            self.wait()
