"""One thread block as translated code and the scheduler see it, and the cluster it belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .addresses import GENERIC_LOCAL, GENERIC_SHARED
from .barriers import Told
from .load_store import LoadStore
from .order import Order
from .products import Products

if TYPE_CHECKING:
    from .groups import Group


class CTA(LoadStore, Products):
    """A running thread block."""

    def shared_address(self, offset: int, wide: bool) -> np.ndarray:
        return np.array([self.base + offset], np.uint64 if wide else np.uint32)

    def local_address(self, offset: int, wide: bool) -> np.ndarray:
        return np.array([offset], np.uint64 if wide else np.uint32)

    @staticmethod
    def to_generic_shared(address: np.ndarray) -> np.ndarray:
        return address + np.uint64(GENERIC_SHARED)

    @staticmethod
    def from_generic_shared(address: np.ndarray) -> np.ndarray:
        return address - np.uint64(GENERIC_SHARED)

    @staticmethod
    def to_generic_local(address: np.ndarray) -> np.ndarray:
        return address + np.uint64(GENERIC_LOCAL)

    @staticmethod
    def from_generic_local(address: np.ndarray) -> np.ndarray:
        return address - np.uint64(GENERIC_LOCAL)


class Cluster:
    """CTAs that run together and reach each other's shared memory."""

    def __init__(self, size: int, threads: int) -> None:
        self.order = Order(size, 4 * -(-threads // 128))
        self.told = Told()  # at its barrier
        self.ctas: list[CTA] = []
        self.phase = 0
        self.arrived: set[tuple[int, int]] = set()  # (rank, warp)
        self.waiters: list[Group] = []
