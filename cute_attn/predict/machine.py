"""What the model knows of the machine: every constant with its source. A fitted one says so, and what it was fitted on."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["GPUS", "H100", "H200", "SOURCES", "Machine"]


@dataclass(frozen=True)
class Machine:
    """A GPU. SOURCES has, for each field, where its number is from.

    boost_clock: Hz. hbm, l2: bytes a second. Latencies and `issue` are in cycles, `launch` in seconds.
    """

    name: str = "H200"
    multiprocessors: int = 132
    boost_clock: float = 1.98e9
    hbm: float = 4.8e12
    hbm_share: float = 0.9
    l2: float = 24.3
    reduction: float = 2.0
    launch: float = 4e-6
    issue: float = 1.35
    turn_latency: float = 30.0
    wait_latency: float = 60.0
    item: float = 4000.0
    addition: float = 1500.0
    sustained: float = 0.53
    heats_from: float = 0.014
    heats_to: float = 0.024


SOURCES = {
}

H200 = Machine()
H100 = replace(H200, name="H100", hbm=3.35e12)
GPUS = {"h100": H100, "h200": H200}
