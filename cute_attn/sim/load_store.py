"""Loads and stores of a CTA as translated code calls them, in every address space; `where` switches lanes off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import atomics
from .addresses import GENERIC_LOCAL, GENERIC_SHARED, OFFSET_MASK, PARAM_BASE, RANK_SHIFT
from .block import Block
from .errors import Misaligned, OutOfBounds, UnsupportedInstruction
from .memory import Fault

if TYPE_CHECKING:
    from .groups import Group


class LoadStore(Block):
    """The part of a CTA that reads and writes memory. Addresses come as [..., lanes]; stacking adds leading axes."""

    def _wide(self, address: np.ndarray, offset: np.ndarray, g: Group) -> np.ndarray:
        """Byte addresses as int64, one for every lane at least along the last axis."""
        total = address.astype(np.int64) + offset
        return total if total.shape[-1] == g.lanes.count else np.broadcast_to(total, (*total.shape[:-1], g.lanes.count))

    def load_parameter(self, name: str, offset: int, dtype: str, count: int) -> Any:
        first = self.program.kernel.params[name].offset + offset
        return self._split(self.machine.parameters[first : first + int(dtype[1:]) * count].copy()[None], dtype, count)

    @staticmethod
    def _split(raw: np.ndarray, dtype: str, count: int) -> Any:
        """Bytes [..., size * count] as elements; a tuple of them if there are several."""
        elements = raw.view(dtype)
        return tuple(elements[..., i] for i in range(count)) if count > 1 else elements[..., 0]

    def _load(
        self, space: str, site: tuple[int, ...], g: Group, address: np.ndarray, dtype: str, count: int, where: Any
    ) -> Any:
        size = int(dtype[1:]) * count
        try:
            if where is not None:
                return self._load_some(space, site, g, address, dtype, count, where)
            if size > 16:  # v8 of 32 bits: two words of 16 bytes
                halves = [self._words(space, g, address + 16 * i, 16) for i in range(size // 16)]
                raw = np.concatenate([h[..., None].view(np.uint8) for h in halves], axis=-1)
            else:
                words = self._words(space, g, address, size)
                if count == 1:
                    return words.view(dtype)
                raw = words[..., None].view(np.uint8)
        except Fault as fault:
            self.raise_fault(fault, site, g)
        return self._split(raw, dtype, count)

    def _load_some(
        self, space: str, site: Any, g: Group, address: np.ndarray, dtype: str, count: int, where: np.ndarray
    ) -> Any:
        full = np.zeros((count, *address.shape), dtype)
        if where.any():
            part = self._load(space, site, g, address[..., where], dtype, count, None)
            for i in range(count):
                full[i][..., where] = part[i] if count > 1 else part
        return tuple(full) if count > 1 else full[0]

    def _words(self, space: str, g: Group, address: np.ndarray, size: int) -> np.ndarray:
        if space == "shared":
            return self.shared.load(address - self.base, size)
        if space == "global":
            return self.machine.memory.load(address, size)
        if space == "cluster":
            ranks = address >> RANK_SHIFT
            result = np.empty(address.shape, "c16" if size == 16 else f"u{size}")
            for rank in np.unique(ranks).tolist():
                here = ranks == rank
                offsets = address[here] & OFFSET_MASK
                result[here] = self.peer(rank, int(offsets[0])).shared.load(offsets, size)
            return result
        if space == "param":
            offset = address - PARAM_BASE
            if int(offset.min()) < 0 or int(offset.max()) + size > self.machine.parameters.size:
                raise Fault(OutOfBounds, "access outside the kernel parameters")
            raw = self.machine.parameters[offset[..., None] + np.arange(size)]
            return raw.view("c16" if size == 16 else f"u{size}")[..., 0]
        local, index = self._local(g, address, size)
        return local[index[..., None] + np.arange(size)].view("c16" if size == 16 else f"u{size}")[..., 0]

    def _local(self, g: Group, address: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        per_lane = self.program.local_bytes
        if int(address.min()) < 0 or int(address.max()) + size > per_lane:
            raise Fault(OutOfBounds, f"access outside the {per_lane} bytes of local memory")
        if (address % size).any():
            raise Fault(Misaligned, f"local address {int(address.flat[0]):#x} is not a multiple of {size}")
        if g.wg.local is None:
            g.wg.local = np.full(128 * per_lane, 0xFF, np.uint8)
        return g.wg.local, address + g.lanes.lanes[: address.shape[-1]] * per_lane

    def load_shared(
        self, site: Any, g: Group, address: np.ndarray, offset: Any, dtype: str, count: int, where: Any
    ) -> Any:
        return self._load("shared", site, g, self._wide(address, offset, g), dtype, count, where)

    def load_cluster(
        self, site: Any, g: Group, address: np.ndarray, offset: Any, dtype: str, count: int, where: Any
    ) -> Any:
        return self._load("cluster", site, g, self._wide(address, offset, g), dtype, count, where)

    def load_global(
        self, site: Any, g: Group, address: np.ndarray, offset: Any, dtype: str, count: int, where: Any
    ) -> Any:
        return self._load("global", site, g, self._wide(address, offset, g), dtype, count, where)

    def load_local(
        self, site: Any, g: Group, address: np.ndarray, offset: Any, dtype: str, count: int, where: Any
    ) -> Any:
        return self._load("local", site, g, self._wide(address, offset, g), dtype, count, where)

    def load_param(
        self, site: Any, g: Group, address: np.ndarray, offset: Any, dtype: str, count: int, where: Any
    ) -> Any:
        return self._load("param", site, g, self._wide(address, offset, g), dtype, count, where)

    def load_generic(
        self, site: Any, g: Group, address: np.ndarray, offset: Any, dtype: str, count: int, where: Any
    ) -> Any:
        space, plain = self._resolve(self._wide(address, offset, g))
        return self._load(space, site, g, plain, dtype, count, where)

    def _resolve(self, address: np.ndarray) -> tuple[str, np.ndarray]:
        """The space of generic addresses (all lanes in one) and addresses in it."""
        top = int(address.flat[0]) >> 56
        if top == GENERIC_SHARED >> 56:
            return "cluster", address - GENERIC_SHARED
        if top == PARAM_BASE >> 56:
            return "param", address
        if top == GENERIC_LOCAL >> 56:
            return "local", address - GENERIC_LOCAL
        return "global", address

    def _store(
        self,
        space: str,
        site: tuple[int, ...],
        g: Group,
        address: np.ndarray,
        dtype: str,
        values: tuple[Any, ...],
        where: Any,
    ) -> None:
        size = int(dtype[1:]) * len(values)
        shape = np.broadcast_shapes(address.shape, *(np.shape(v) for v in values))
        raw = np.empty((*shape, len(values)), dtype)
        for i, value in enumerate(values):
            raw[..., i] = value
        address = np.broadcast_to(address, shape)
        warps = g.lanes.warp + g.wg.number
        if where is not None:
            if not where.any():
                return
            address, raw, warps = address[..., where], raw[..., where, :], warps[where]
        raw = raw.view(np.uint8)
        try:
            for i in range(0, size, 16):
                part = min(16, size - i)
                words = np.ascontiguousarray(raw[..., i : i + part]).view("c16" if part == 16 else f"u{part}")[..., 0]
                self._put(space, g, address + i, part, words, warps)
        except Fault as fault:
            self.raise_fault(fault, site, g)
        self.machine.progress += 1

    def _put(self, space: str, g: Group, address: np.ndarray, size: int, words: np.ndarray, warps: np.ndarray) -> None:
        if space == "shared":
            self.shared.store(address - self.base, size, words, warps, self.cluster.order)
        elif space == "global":
            self.machine.memory.store(address, size, words)
        elif space == "cluster":
            ranks = address >> RANK_SHIFT
            for rank in np.unique(ranks).tolist():
                here = ranks == rank
                who = np.broadcast_to(warps, address.shape)[here]
                offsets = address[here] & OFFSET_MASK
                peer = self.peer(rank, int(offsets[0]))
                peer.shared.store(offsets, size, words[here], who, self.cluster.order)
        elif space == "local":
            local, index = self._local(g, address, size)
            local[index[..., None] + np.arange(size)] = np.ascontiguousarray(words)[..., None].view(np.uint8)
        else:
            raise Fault(OutOfBounds, "store to the kernel parameters")

    def store_shared(
        self, site: Any, g: Group, address: np.ndarray, offset: Any, dtype: str, values: Any, where: Any
    ) -> None:
        self._store("shared", site, g, self._wide(address, offset, g), dtype, values, where)

    def store_cluster(
        self, site: Any, g: Group, address: np.ndarray, offset: Any, dtype: str, values: Any, where: Any
    ) -> None:
        self._store("cluster", site, g, self._wide(address, offset, g), dtype, values, where)

    def store_global(
        self, site: Any, g: Group, address: np.ndarray, offset: Any, dtype: str, values: Any, where: Any
    ) -> None:
        self._store("global", site, g, self._wide(address, offset, g), dtype, values, where)

    def store_local(
        self, site: Any, g: Group, address: np.ndarray, offset: Any, dtype: str, values: Any, where: Any
    ) -> None:
        self._store("local", site, g, self._wide(address, offset, g), dtype, values, where)

    def store_generic(
        self, site: Any, g: Group, address: np.ndarray, offset: Any, dtype: str, values: Any, where: Any
    ) -> None:
        space, plain = self._resolve(self._wide(address, offset, g))
        self._store(space, site, g, plain, dtype, values, where)

    def atomic(
        self,
        site: Any,
        g: Group,
        space: str,
        operation: str,
        kind: str,
        address: Any,
        offset: Any,
        values: Any,
        returns: bool,
        where: Any,
    ) -> Any:
        """atom and red: lanes in order, one after another."""
        total = self._wide(address, offset, g)
        if space == "generic":
            space, total = self._resolve(total)
        try:
            return atomics.apply(self, g, space, operation, kind, total, values, returns, where)
        except Fault as fault:
            self.raise_fault(fault, site, g)

    # ------------------------------------------------------------------ 8x8 matrices

    def ldmatrix(self, site: Any, g: Group, address: np.ndarray, offset: Any, count: int, transposed: bool) -> Any:
        """Register i of lane l: elements 2(l % 4), +1 of row l / 4 of matrix i; row r's address is in lane 8i + r."""
        rows = self._matrix_rows(site, g, address, offset, count)
        try:
            words = self.shared.load(rows, 16)
        except Fault as fault:
            self.raise_fault(fault, site, g)
        halves = words[..., None].view(np.uint16)  # [..., warps, matrices, 8, 8]
        if transposed:
            halves = np.ascontiguousarray(np.swapaxes(halves, -1, -2))
        registers = halves.view(np.uint32).reshape(*halves.shape[:-2], 32)  # [..., warps, matrices, 32]
        result = tuple(registers[..., i, :].reshape(*registers.shape[:-3], -1) for i in range(count))
        return result if count > 1 else result[0]

    def stmatrix(
        self, site: Any, g: Group, address: np.ndarray, offset: Any, values: tuple[Any, ...], transposed: bool
    ) -> None:
        rows = self._matrix_rows(site, g, address, offset, len(values))
        shape = (*rows.shape[:-2], 32)
        stacked = np.stack(
            [np.broadcast_to(v, (*rows.shape[:-3], g.lanes.count)).reshape(*rows.shape[:-3], -1, 32) for v in values],
            axis=-2,
        )
        halves = np.ascontiguousarray(stacked).view(np.uint16).reshape(*shape[:-1], len(values), 8, 8)
        if transposed:
            halves = np.swapaxes(halves, -1, -2)
        words = np.ascontiguousarray(halves).view(np.complex128)[..., 0]
        warps = np.asarray(g.numbers)[:, None, None]
        try:
            self.shared.store(rows, 16, words, warps, self.cluster.order)
        except Fault as fault:
            self.raise_fault(fault, site, g)
        self.machine.progress += 1

    def _matrix_rows(self, site: Any, g: Group, address: np.ndarray, offset: Any, count: int) -> np.ndarray:
        """Offsets [..., warps, matrices, 8] of matrix rows."""
        if not g.lanes.whole:
            self.fail(UnsupportedInstruction, "a matrix instruction of a diverged warp", site, g)
        total = self._wide(address, offset, g) - self.base
        return total.reshape(*total.shape[:-1], g.lanes.warps, 4, 8)[..., :count, :]
