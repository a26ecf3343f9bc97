"""What the model knows of the machine: every constant with its source, or what it was fitted on."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["FITTED", "GPUS", "H100", "H200", "HELD_OUT", "MEASURED_ON", "SOURCES", "Error", "Machine"]


@dataclass(frozen=True)
class Machine:
    """A GPU. SOURCES has, for each field, its unit and where its number is from."""

    name: str = "H200"
    multiprocessors: int = 132
    boost_clock: float = 1.98e9
    hbm: float = 4.8e12
    hbm_share: float = 0.9
    l2: float = 29.3
    reduction: float = 2.0
    blur: float = 3.0
    launch: float = 4e-6
    issue: float = 1.0
    turn_latency: float = 30.0
    wait_latency: float = 20.0
    item: float = 9230.0
    addition: float = 6000.0
    ordered: float = 567.0
    sustained: float = 0.442
    heats_from: float = 0.017
    heats_to: float = 0.025


# What benchmarks/predict.py fits on the measured times of flash-attn-4 at head_dim 128, and between which bounds.
FITTED = {
    "item": (1000.0, 12000.0),
    "l2": (20.0, 40.0),
    "sustained": (0.3, 1.0),
    "addition": (200.0, 6000.0),
    "ordered": (1.0, 3000.0),
}

_FITTED = "fitted: flash-attn-4's times at head_dim 128"
SOURCES = {
    "multiprocessors": "NVIDIA's data sheet of the H100 SXM and H200",
    "boost_clock": "Hz; the highest that H100 and H200 SXM report",
    "hbm": "bytes a second; NVIDIA's data sheet",
    "hbm_share": "assumed: what a copy reaches of it",
    "l2": f"bytes a cycle and multiprocessor, to and from L2; {_FITTED}",
    "blur": "chosen: how far play and L2 traffic add up; 1 is their sum, infinity the larger of the two",
    "reduction": "bytes of L2 traffic for a byte that is added there: it is read and written",
    "launch": "seconds a kernel; assumed",
    "issue": "cycles a slot of a warp alone; one is the least, and what the forward's times ask for",
    "turn_latency": "cycles of a barrier of all consumers; assumed",
    "wait_latency": "cycles from the end of a product until a warp goes on; assumed",
    "item": f"cycles of an item beside its tiles: launch, first loads, output; {_FITTED}",
    "addition": f"cycles from a tile's end until the next may add to its sum; {_FITTED}, deterministic, at its bound",
    "ordered": f"cycles a tile more where sums have turns; {_FITTED}, deterministic",
    "sustained": f"share of cycles with products that the power allows at the boost clock; {_FITTED}",
    "heats_from": "seconds of a call up to which ten of them keep the boost clock; read off the same table",
    "heats_to": "seconds of a call from which the power decides; read off the same table",
}


@dataclass(frozen=True)
class Error:
    """Of predictions of measured times that nothing was fitted on, as shares: on average, at worst, over how many."""

    mean: float
    worst: float
    rows: int

    def __str__(self) -> str:
        return (
            f"{self.mean:.0%} on average and {self.worst:.0%} at worst, over {self.rows} measured times of other "
            "kernels on an H200 that the model was not fitted on"
        )


# Written by benchmarks/predict.py into benchmarks/results/predict.json, by operation; a test compares.
HELD_OUT = {
    "fwd": Error(0.049, 0.1164, 15),
    "bwd": Error(0.0509, 0.1421, 15),
    "deterministic": Error(0.0435, 0.0827, 15),
}

H200 = Machine()
H100 = replace(H200, name="H100", hbm=3.35e12)
MEASURED_ON = H200  # all times that it was fitted on and compared with
GPUS = {"h100": H100, "h200": H200}
