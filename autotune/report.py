"""What was found, as a table for a terminal and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from rich.table import Table

from cute_attn.predict.machine import HELD_OUT
from cute_attn.spec.tiles import Tile

from .predicted import GPU
from .tune import Tuning

__all__ = ["NOT_MEASURED", "draw", "summary", "table", "unknown"]

NOT_MEASURED = (
    "Nothing was measured: there is no Hopper GPU here. The times below are predicted by the model of cute-attn "
    f"predict, for an {GPU}, and the defaults stay. Times closer than the error bar are in no known order. The model "
    "cannot choose between numbers of stages, ping-pong or none, a stale or an exact maximum: it hardly sees them."
)
ROWS = 6  # of candidates in the table of a problem


def table(tuning: Tuning) -> Table:
    """The candidates of a problem, best first."""
    where = f"measured on {tuning.gpu}" if tuning.measured else f"NOT measured, predicted for an {GPU}"
    error = f"predictions were off by {HELD_OUT[tuning.problem.op]}"
    title = f"{tuning.problem}\n{where} with {tuning.sms} SMs\n{error}"
    found = Table(title=title, title_justify="left", box=None)
    for name in ("tile", "measured", "predicted", "registers", ""):
        found.add_column(name, justify="left" if name in ("tile", "") else "right")
    seconds = _seconds(tuning)
    shown = sorted(seconds, key=lambda t: seconds[t]) + ([] if tuning.measured else list(tuning.predictions.unknown))
    for tile in shown[:ROWS]:
        predicted = tuning.predictions.seconds.get(tile)
        found.add_row(
            str(tile),
            _microseconds(seconds[tile]) if tuning.measured else "-",
            "-" if predicted is None else _microseconds(predicted),
            str(tuning.compiled[tile].registers),
            ", ".join(["default"] * (tile == tuning.problem.default) + ["chosen"] * (tile == tuning.tile)),
        )
    return found


def summary(tuning: Tuning) -> str:
    """One line: how many candidates went where, and what was decided."""
    counts = (
        f"{len(tuning.refused)} refused unseen, {len(tuning.compiled) - len(tuning.held)} compiled, {len(tuning.held)} "
        f"built before, {len(tuning.rejected)} rejected after (spills, serialised products, errors), "
        f"{len(tuning.left)} not compiled" + f" ({tuning.why_not})" * bool(tuning.why_not)
    )
    if not tuning.measured:
        return f"{counts}; nothing measured, the default {tuning.tile} stays"
    timings = tuning.timings
    counts += f", {len(timings.screening)} measured, {len(timings.failed)} failed, {len(timings.skipped)} out of budget"
    if tuning.tile == tuning.problem.default:
        return f"{counts}; the default {tuning.tile} stays"
    return f"{counts}; {tuning.tile} is {tuning.speedup:.3f} times as fast as the default"


def unknown(tuning: Tuning) -> str:
    """Which candidates have no prediction, why, and where they stand; "" if all have one."""
    without = tuning.predictions.unknown
    if not without:
        return ""
    return (
        f"no prediction of {len(without)} of {len(tuning.predictions.ranked)} candidates "
        f"({'; '.join(dict.fromkeys(without.values()))}), which come last, in the order of the static guess by which "
        f"candidates are chosen before they are compiled: {'; '.join(map(str, without))}"
    )


def draw(tunings: Sequence[Tuning], path: Path) -> None:
    """A PNG with the times of each problem's candidates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.8 + 2.6 * len(tunings)), layout="constrained")
    axes = figure.subplots(len(tunings), squeeze=False)[:, 0]
    for axis, tuning in zip(axes, tunings, strict=True):
        seconds = _seconds(tuning)
        tiles = sorted(seconds, key=lambda t: seconds[t], reverse=True)
        colours = ["tab:green" if t == tuning.tile else "tab:blue" if tuning.measured else "silver" for t in tiles]
        axis.barh([str(t) for t in tiles], [seconds[t] * 1e6 for t in tiles], color=colours)
        axis.set_title(str(tuning.problem), fontsize=8, loc="left")
        axis.set_xlabel("µs, median" if tuning.measured else "µs, predicted: nothing was measured", fontsize=8)
        axis.tick_params(labelsize=7)
    figure.savefig(path, dpi=120)


def _seconds(tuning: Tuning) -> dict[Tile, float]:
    """The best that is known of each candidate: the final timing, the screening, without a GPU the prediction."""
    if not tuning.measured:
        return tuning.predictions.seconds
    times = {**tuning.timings.screening, **tuning.timings.final}
    return {tile: median(values) for tile, values in times.items()}


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f} µs"
