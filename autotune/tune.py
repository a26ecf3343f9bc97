"""The whole way of one problem: candidates, static pruning, compiling side by side what no bundle holds, measuring,
deciding."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from cute_attn.jit.parallel import Outcome, in_processes
from cute_attn.spec.operation import Spec
from cute_attn.spec.tiles import Tile

from .choice import choose_candidates, why_nothing_compiles
from .measure import EFFORTS, Device, Timings, choose, measure
from .model import MODELLED_SMS
from .predicted import Predictions, predictions_of
from .problem import Problem
from .profile import Profile, compile_profile
from .space import Refused

__all__ = ["Events", "Tuning", "tune"]

Compiler = Callable[[Sequence[Spec], int, Callable[[], bool]], Iterator[Outcome]]


class Events:
    """What a progress bar wants to know; this one shows nothing."""

    def begin(self, what: str, total: int) -> None: ...

    def step(self) -> None: ...


@dataclass
class Tuning:
    """What was found for a problem.

    gpu: its name, None without one: then `measured` is False, `tile` is the default, and `predictions`, for a GPU with
    so many sms, are all there is.
    tile: the winner. refused: before compiling. compiled: profiles. held: those among them that were built before.
    rejected: after compiling, with the reason. left: not compiled, being beyond the effort or the budget, or because of
    why_not: why nothing can be compiled here. predictions: of what may run, in whose order it is measured.
    """

    problem: Problem
    gpu: str | None
    sms: int
    tile: Tile
    measured: bool
    why_not: str = ""
    refused: list[Refused] = field(default_factory=list)
    compiled: dict[Tile, Profile] = field(default_factory=dict)
    held: list[Tile] = field(default_factory=list)
    compile_seconds: dict[Tile, float] = field(default_factory=dict)
    rejected: list[Refused] = field(default_factory=list)
    left: list[Tile] = field(default_factory=list)
    predictions: Predictions = field(default_factory=Predictions)
    timings: Timings = field(default_factory=Timings)

    @property
    def speedup(self) -> float:
        """Of the winner over the default; 1 where nothing was measured."""
        final = self.timings.final
        return median(final[self.problem.default]) / median(final[self.tile]) if final else 1.0


def compile_in_processes(specs: Sequence[Spec], workers: int, until: Callable[[], bool]) -> Iterator[Outcome]:
    return in_processes(compile_profile, specs, workers, until=until)


def tune(
    problem: Problem,
    device: Device | None,
    effort: str = "quick",
    budget: float | None = None,
    workers: int = 1,
    compiler: Compiler | None = None,
    events: Events | None = None,
    now: Callable[[], float] = time.monotonic,
) -> Tuning:
    """Searches the tiles of a problem.

    Kernels that bundles hold are not compiled. Where nothing can be compiled, these and what the cache holds are all
    candidates.

    Args:
        device: what measures; None prunes, compiles and ranks by predicted times, and keeps the default.
        effort: "quick" compiles the default and the candidates that are likeliest fast, "full" all of them.
        budget: seconds for the problem, of which half may go into compiling; the default is always served.
        workers: compiles at a time. compiler, now: in the place of the real ones, for tests.

    Raises ValueError for an unknown effort; RuntimeError if the default does not compile or run, KernelNotBuilt if it
    can neither be compiled nor found.
    """
    events, start = events or Events(), now()
    sms = device.sms if device else MODELLED_SMS
    why_not = "" if compiler else why_nothing_compiles()
    choice = choose_candidates(problem, effort, sms, why_not)
    gpu = device.gpu if device else None
    tuning = Tuning(problem, gpu, sms, problem.default, device is not None, why_not, choice.refused)
    tuning.compiled, tuning.held = dict(choice.held), list(choice.held)
    wanted = [tile for tile in choice.tiles if tile not in choice.held]
    until = None if budget is None else start + budget / 2
    _compile(tuning, wanted, workers, compiler or compile_in_processes, events, until, now)
    missed = [t for t in wanted if t not in tuning.compiled and not _is_rejected(tuning, t)]
    tuning.left = choice.left + missed
    for tile in [t for t in tuning.compiled if t != problem.default]:
        if reason := tuning.compiled[tile].refusal:
            tuning.rejected.append(Refused(tile, reason))
    runnable = [tile for tile in choice.tiles if tile in tuning.compiled and not _is_rejected(tuning, tile)]
    tuning.predictions = predictions_of(problem, runnable, tuning.compiled, sms)
    if device is None:
        return tuning
    events.begin(f"measuring {problem.op}", len(runnable))
    deadline = None if budget is None else device.now() + max(0.0, start + budget - now())
    tuning.timings = measure(device, problem, tuning.predictions.ranked, EFFORTS[effort], deadline, events.step)
    return replace(tuning, tile=choose(problem.default, tuning.timings.final))


def _compile(
    tuning: Tuning,
    tiles: list[Tile],
    workers: int,
    compiler: Compiler,
    events: Events,
    deadline: float | None,
    now: Callable[[], float],
) -> None:
    """Compiles the default, if it is one of the tiles, then the others until the deadline."""
    if not tiles:
        return
    specs = {tuning.problem.spec(tile): tile for tile in tiles}
    first = [spec for spec, tile in specs.items() if tile == tuning.problem.default]
    others = [spec for spec, tile in specs.items() if tile != tuning.problem.default]
    events.begin(f"compiling {tuning.problem.op}", len(specs))

    def over() -> bool:
        return deadline is not None and now() >= deadline

    for part, until in ((first, _never), (others, over)):
        if until() or not part:
            continue
        for outcome in compiler(part, workers, until):
            events.step()
            tile = specs[outcome.item]
            if outcome.error and tile == tuning.problem.default:
                raise RuntimeError(f"the default tile {tile} does not compile: {outcome.error}")
            if outcome.error:
                tuning.rejected.append(Refused(tile, f"does not compile: {outcome.error}"))
            else:
                tuning.compiled[tile] = outcome.result
                tuning.compile_seconds[tile] = outcome.seconds


def _never() -> bool:
    return False


def _is_rejected(tuning: Tuning, tile: Tile) -> bool:
    return any(refused.tile == tile for refused in tuning.rejected)
