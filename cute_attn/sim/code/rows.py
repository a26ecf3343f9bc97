"""Which row of its register file each register has."""

from __future__ import annotations

from collections.abc import Sequence

from .ptx import Reg
from .template import Group


class Rows:
    """Which row of its register file each register has, chosen so that stacked operands are slices."""

    def __init__(self) -> None:
        self.row: dict[Reg, int] = {}
        self.size = {"p": 1, "h": 1, "r": 1, "d": 1}

    def of(self, register: Reg) -> int:
        if register not in self.row:
            self.row[register] = self.size[register.kind]
            self.size[register.kind] += 1
        return self.row[register]

    def place(self, registers: Sequence[Reg]) -> None:
        """Neighbouring rows, in order, for those that have none yet."""
        for register in registers:
            self.of(register)

    def arrange(self, group: Group) -> None:
        """Orders a group by the rows of an operand that has them all, and places the others in that order."""
        if len(group) < 2:
            return
        slots = [("sources", i) for i in range(len(group[0].sources))]
        slots += [("destinations", i) for i in range(len(group[0].destinations))]
        if not group[0].ordered:
            for slot in slots:
                column = self._column(group, *slot)
                if column and all(o in self.row for o in column):
                    row_of = {id(t): self.row[o] for t, o in zip(group, column, strict=True)}
                    group.sort(key=lambda t: row_of[id(t)])
                    break
        for slot in slots:
            self.place(self._column(group, *slot))

    @staticmethod
    def _column(group: Group, slot: str, index: int) -> list[Reg]:
        """One operand of every member, if they are different registers; else nothing."""
        column = [getattr(t, slot)[index].operand for t in group]
        return column if all(isinstance(o, Reg) for o in column) and len(set(column)) == len(column) else []
