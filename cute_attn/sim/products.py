"""Matrix multiplies of a CTA's warpgroups: queued when issued, run at commit or when waited for, retired in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import wgmma
from .block import Block
from .errors import AccumulatorInFlight, SharedMemoryExceeded, UnsupportedDescriptor
from .lanes import Entry, Warpgroup
from .memory import Fault

if TYPE_CHECKING:
    from .groups import Group


class Products(Block):
    """The part of a CTA that multiplies matrices."""

    def wgmma(self, sites: tuple[int, ...], g: Group, a: Any, b: Any, accumulate: Any) -> None:
        """Queues products; they run at commit or, in late schedules, when they are waited for."""
        wg, program = g.wg, self.program
        descriptors = []
        for values in (a, b, accumulate):
            if values is None:
                descriptors.append([None] * len(sites))
                continue
            if (values != values[..., :1]).any():
                self.fail(
                    UnsupportedDescriptor, "a wgmma operand differs between the threads of the warpgroup", sites, g
                )
            column = values[..., 0].reshape(-1).tolist()
            descriptors.append(column * len(sites) if len(column) == 1 else column)
        node_writes = program.nodes[g.pc].written
        states = [wg.state[w] for w in g.lanes.warp_numbers]
        for site, descriptor_a, descriptor_b, adds in zip(sites, *descriptors, strict=True):
            tile = program.tiles[site]
            lock = tile.accumulator_lock | tile.fragment_lock
            for state in states:
                if not state.fenced or (state.dirty | node_writes) & lock:
                    what = (
                        "wgmma uses registers that were written since the last wgmma.fence"
                        if state.fenced
                        else "wgmma before any wgmma.fence"
                    )
                    self.fail(AccumulatorInFlight, what, site, g)
            entry = Entry(site, tile, descriptor_a, descriptor_b, bool(adds))
            try:
                entry.readers = self._operand_spans(entry)
            except wgmma.BadDescriptor as error:
                self.fail(UnsupportedDescriptor, str(error), site, g)
            except Fault as fault:
                self.raise_fault(fault, site, g)
            for first, last in entry.readers:
                self.shared.readers[first:last] += 1
            for state in states:
                state.open.append(entry)
                state.accumulators |= tile.accumulator_lock
                state.fragments |= tile.fragment_lock
            entry.waiting = len(states)
        self.machine.statistics["wgmmas"] += len(sites)

    def _operand_spans(self, entry: Entry) -> tuple[tuple[int, int], ...]:
        tile = entry.tile
        spans: list[tuple[int, int]] = []
        size_a, size_b = (wgmma.ELEMENT[t] for t in tile.types)
        if entry.a is not None:
            spans += wgmma.runs((entry.a,), 64, 32, tile.majors[0], size_a)
        spans += wgmma.runs((entry.b,), tile.n, 32, tile.majors[1], size_b)
        for first, last in spans:
            if first * 16 < self.shared.start or last * 16 > self.shared.end:
                raise Fault(
                    SharedMemoryExceeded,
                    f"a wgmma operand reaches to shared {last * 16:#x}; shared memory ends at {self.shared.end:#x}",
                    f"shared {last * 16:#x}",
                )
        return tuple(spans)

    def execute_wgmmas(self, g: Group, entries: list[Entry]) -> None:
        """Runs those not yet done, chains on one accumulator as one product."""
        waiting = [e for e in entries if not e.done]
        while waiting:
            chain = [waiting[0]]
            for entry in waiting[1:]:
                if not (entry.accumulate and chain[0].tile.chains(entry.tile)):
                    break
                chain.append(entry)
            try:
                self._multiply(g.wg, chain)
            except Fault as fault:
                self.raise_fault(fault, chain[0].site, g)
            waiting = waiting[len(chain) :]

    def _multiply(self, wg: Warpgroup, chain: list[Entry]) -> None:
        tile = chain[0].tile
        for entry in chain:
            entry.done = True
        for first, last in _merged([span for e in chain for span in e.readers]):
            self.shared.check_readable(first * 16, last * 16)
        if tile.fragment:
            rows = np.concatenate([e.tile.fragment_rows for e in chain])
            a = wgmma.fragment_matrix(wg.files["r"][rows], tile.types[0])
        else:
            a = self._operand(tuple(e.a or 0 for e in chain), 64, tile.types[0], tile.majors[0])
            a = a if tile.majors[0] == 0 else a.T
        b = self._operand(tuple(e.b for e in chain), tile.n, tile.types[1], tile.majors[1])
        product = a @ (b.T if tile.majors[1] == 0 else b)
        if tile.sign < 0:
            product = -product
        file = wg.files["r"].view(np.float32)
        if isinstance(tile.accumulator_rows, slice):
            wgmma.add_product(file[tile.accumulator_rows], product, fresh=not chain[0].accumulate)
        else:
            accumulator = file[tile.accumulator_rows]
            wgmma.add_product(accumulator, product, fresh=not chain[0].accumulate)
            file[tile.accumulator_rows] = accumulator

    def _operand(self, descriptors: tuple[int, ...], rows: int, kind: str, major: int) -> np.ndarray:
        """[rows, k] if K-major, [k, rows] otherwise, as float32."""
        index = wgmma.granules(descriptors, rows, 32, major, wgmma.ELEMENT[kind])
        raw = self.shared.words[16].take(index)
        return wgmma.decode(raw.view(np.uint8), kind)

    def retire(self, g: Group, keep: int) -> None:
        """wgmma.wait_group: all but the newest `keep` groups of these warps are complete."""
        for warp in g.lanes.warp_numbers:
            state = g.wg.state[warp]
            while len(state.committed) > keep:
                entries = state.committed.popleft()
                self.execute_wgmmas(g, entries)
                for entry in entries:
                    entry.waiting -= 1
                    if entry.waiting == 0:
                        for first, last in entry.readers:
                            self.shared.readers[first:last] -= 1
            state.accumulators = state.fragments = 0
            for entry in [e for group in state.committed for e in group] + state.open:
                state.accumulators |= entry.tile.accumulator_lock
                state.fragments |= entry.tile.fragment_lock


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges joined where they touch."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(set(spans)):
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return joined
