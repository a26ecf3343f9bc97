"""What this machine can run: asked of the library itself, so that it is true whatever has been added to it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..backend import OPTIONS, backend, resolve

__all__ = ["Availability", "backends", "best_device", "has_hopper"]


class Availability(NamedTuple):
    name: str
    runs: bool
    reason: str  # why it does not run, or on what it does


def has_hopper() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)


def backends() -> list[Availability]:
    """Every backend, whether it runs here, and why not."""
    return [_try(name) for name in OPTIONS]


def best_device() -> torch.device:
    """The GPU if its kernels run, else the CPU."""
    if has_hopper() and _try("sm90").runs:
        return torch.device("cuda")
    return torch.device("cpu")


def _try(name: str) -> Availability:
    if name == "sm90" and not has_hopper():
        return Availability(name, False, "needs an NVIDIA Hopper GPU (compute capability 9.0)")
    device = torch.device("cuda" if name == "sm90" else "cpu")
    try:
        with backend(name):
            resolve(device)
    except NotImplementedError as error:
        return Availability(name, False, str(error))
    if name == "sm90":
        return Availability(name, True, torch.cuda.get_device_name())
    return Availability(name, True, "any device" if name == "reference" else "the kernels, interpreted on the CPU")
