"""An order of steps in which something goes wrong, in words."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import SimError
from ..state.steps import ADD, ARRIVE, COPY, EXPECT, INIT, MEET, PASS, UNTIL, WAIT, Step, Warp
from .run import Flight, Moved, Run

LISTED = 40  # last steps, and those who wait


@dataclass(frozen=True)
class Counterexample:
    """An order, and what it leads to.

    error: the class of error that a run in this order raises. order: who did what, the last steps. waits: who waits for
    what, and who would come there.
    """

    error: type[SimError]
    what: str
    order: tuple[str, ...]
    waits: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.error.__name__}: {self.what}", "in this order:", *(f"  {line}" for line in self.order)]
        return "\n".join(lines + ([*self.waits] and ["then:", *(f"  {line}" for line in self.waits)]))


def counterexample(run: Run, error: type[SimError], what: str) -> Counterexample:
    return Counterexample(error, what, _order(run), _waits(run))


_WORDS = {
    INIT: "initialises {0.thing} for {0.number} arrivals",
    ARRIVE: "arrives at {0.thing}",
    EXPECT: "expects {0.number} bytes at {0.thing}",
    COPY: "starts a copy of {0.number} bytes that reports to {0.thing}",
    WAIT: "passes {0.thing} (parity {0.number})",
    MEET: "comes to {0.thing}",
    PASS: "goes on behind {0.thing}",
    ADD: "adds {0.number} to {0.thing}",
    UNTIL: "has waited for {0.thing} to be {0.extra} {0.number}",
}


def _order(run: Run) -> tuple[str, ...]:
    """The last steps; warps that take the same steps one after another are one line."""
    moves: list[Moved] = []
    trail = run.trail
    while trail is not None:
        trail, moved = trail
        moves.append(moved)
    lines: list[tuple[list[Warp], str]] = []
    for moved in reversed(moves):
        warp, text = run.warps[moved.warp], _text(moved)
        if lines and lines[-1][1] == text and lines[-1][0][0].cta == warp.cta and not isinstance(moved.what, Flight):
            lines[-1][0].append(warp)
        else:
            lines.append(([warp], text))
    listed = [f"{who(warps)} {text}" for warps, text in lines]
    left_out = [f"({len(listed) - LISTED} lines before)"] if len(listed) > LISTED else []
    return (*left_out, *listed[-LISTED:])


def _text(moved: Moved) -> str:
    what = moved.what
    if what is None:
        return "ends"
    if isinstance(what, Flight):
        return f"has its {what.bytes} bytes of PTX line {what.line} delivered to {what.thing}"
    extra = f", expecting {what.extra} bytes" if what.what == ARRIVE and what.extra else ""
    return f"{_WORDS[what.what].format(what)}{extra} (PTX line {what.line})"


def who(warps: list[Warp]) -> str:
    """Warps of one CTA."""
    numbers = [warp.number for warp in warps]
    return f"{'warps' if len(numbers) > 1 else 'warp'} {', '.join(map(str, numbers))} of CTA {warps[0].cta}"


def _waits(run: Run) -> tuple[str, ...]:
    """Who waits, for what, and who else would still come there."""
    waiting: dict[tuple[object, Step], list[int]] = {}
    for i, warp in enumerate(run.warps):
        if run.at[i] < len(run.programs[i]):
            waiting.setdefault((warp.cta, run.programs[i][run.at[i]]), []).append(i)
    lines = []
    for (_, step), warps in waiting.items():
        barrier = run.barriers.get(step.thing)
        if step.what == UNTIL and run.counters is not None:
            state = f"{step.thing} to be {step.extra} {step.number}; it is {run.counters[step.thing]}"
        else:
            state = str(barrier or step.thing) + (f", waits for parity {step.number}" if step.what == WAIT else "")
        lines.append(
            f"{who([run.warps[i] for i in warps])} at PTX line {step.line}: {state}; {_coming(run, step, warps)}"
        )
    return tuple(lines[:LISTED])


def _coming(run: Run, step: Step, but: list[int]) -> str:
    """Who has steps left that this wait may need."""
    helpful = {ADD} if step.what == UNTIL else {ARRIVE, EXPECT, COPY, MEET}
    coming: dict[object, list[Warp]] = {}
    for i, program in enumerate(run.programs):
        left = program[run.at[i] :]
        if i not in but and any(s.thing == step.thing and s.what in helpful for s in left):
            coming.setdefault(run.warps[i].cta, []).append(run.warps[i])
    if not coming:
        return "nobody else comes there any more"
    return f"to come there: {' and '.join(who(warps) for warps in coming.values())}"
