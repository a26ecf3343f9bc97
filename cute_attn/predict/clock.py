"""The clock: its highest while a call is short, and what the power allows once the GPU has been busy for a while."""

from __future__ import annotations

import math

from .machine import Machine

__all__ = ["clock"]


def clock(machine: Machine, tensor_share: float, seconds: float) -> float:
    """Hz for a call repeated ten times, that takes `seconds` at the highest clock and keeps the tensor cores busy for
    `tensor_share` of the cycles.

    The power that products take grows with the cube of the clock (voltage follows it), so what a power limit leaves
    is a cube root. The limit acts once ten calls have taken long enough: between `heats_from` and `heats_to` a call.
    """
    limited = min(1.0, (machine.sustained / max(tensor_share, 1e-9)) ** (1 / 3))
    since = math.log(max(seconds, 1e-9) / machine.heats_from) / math.log(machine.heats_to / machine.heats_from)
    return machine.boost_clock * (1 - (1 - limited) * min(1.0, max(0.0, since)))
