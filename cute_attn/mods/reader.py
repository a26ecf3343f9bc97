"""One part of a traced mask_mod, some rows of it, as intervals: exactly, in O(rows + keys) times intervals.

A boolean node is a set of keys for each row. A comparison of integers becomes `linear op 0`, whose terms are split into
cases until a sum of what reads the query and of what reads the key is left; that is one binary search.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch

from ..mask import IntervalMask
from .compare import Column, NotIntervals, limited, swapped
from .graph import COLUMN, ELEMENT, Graph, Node
from .linear import Linear

__all__ = ["GraphReader"]

_COMPARISONS = ("eq", "ne", "lt", "le")
_EXACT = 1 << 24  # integers up to it are floats
_PERIODS = 256  # of // and % of query and key, each a case
_ENDS = 1 << 40  # beyond all sums of positions


class GraphReader:
    """Reads the nodes of a graph for some rows of one plane.

    value: what a node that reads at most one side says: 0-d, or one for each row or each key.
    known: sets of keys of nodes that other planes share with this one; those of `own` nodes are its own.
    most: intervals a row that may stand on the way. spend: told of the rows and keys of every search.
    """

    def __init__(
        self,
        graph: Graph,
        rows: int,
        keys: int,
        value: Callable[[int], torch.Tensor],
        device: torch.device,
        most: int,
        spend: Callable[[int], None],
        known: dict[int, IntervalMask],
        own: Collection[int],
    ) -> None:
        self.nodes, self.stages = graph.nodes, graph.stages()
        self.rows, self.keys, self.value, self.device, self.most = rows, keys, value, device, most
        self._spend, self._shared, self._own, self._sets = spend, known, own, dict[int, IntervalMask]()

    def _number(self, i: int) -> int | None:
        """The value of an integer that is the same for all pairs, if it is one."""
        if self.stages[i] == ELEMENT or self.nodes[i].dtype == "f32" or self.value(i).ndim:
            return None
        return int(self.value(i))

    def _limited(self, mask: IntervalMask) -> IntervalMask:
        return limited(mask, self.most)

    # ------------------------------------------------ sets of keys

    def keys_of(self, i: int) -> IntervalMask:
        """Where a boolean node is true."""
        kept = self._sets if i in self._own else self._shared
        if i not in kept:
            kept[i] = self._limited(self._read(i))
        return kept[i]

    def _read(self, i: int) -> IntervalMask:
        node = self.nodes[i]
        if self.stages[i] == COLUMN:
            return self._runs(self.value(i))
        if self.stages[i] != ELEMENT:
            return self._rows_where(self.value(i))
        args = node.operands
        if node.op in ("and", "or", "xor", "where", "not"):
            return self._joined(node.op, *(self.keys_of(a) for a in args))
        if node.op in _COMPARISONS:
            return self._compared(node.op, *args)
        if node.op == "convert" and self.nodes[args[0]].dtype != "f32":
            return self._sign("ne", self.summed(args[0]))
        raise NotIntervals(self._what(node))

    def _joined(self, op: str, *sets: IntervalMask) -> IntervalMask:
        if op == "not":
            return self._limited(~sets[0])
        a, b = sets[-2:]
        if op == "and":
            return self._limited(a & b)
        if op == "or":
            return self._limited(a | b)
        if op == "xor":
            return self._limited(self._limited(a & ~b) | self._limited(~a & b))
        return self._limited(self._limited(sets[0] & a) | self._limited(~sets[0] & b))

    def _rows_where(self, value: torch.Tensor) -> IntervalMask:
        hi = (value.bool().int() * self.keys).expand(1, 1, self.rows)
        return IntervalMask._made(torch.zeros_like(hi), hi.contiguous(), self.keys)

    def _runs(self, value: torch.Tensor) -> IntervalMask:
        one = self._limited(IntervalMask.from_dense(value.bool()[None]))
        lo, hi = (x.expand(-1, -1, self.rows).contiguous() for x in (one.lo, one.hi))
        return IntervalMask._made(lo, hi, self.keys)

    # ------------------------------------------------ comparisons

    def _compared(self, op: str, x: int, y: int) -> IntervalMask:
        dtypes = {self.nodes[i].dtype for i in (x, y)}
        if dtypes == {"bool"}:
            a, b = self.keys_of(x), self.keys_of(y)
            if op in ("eq", "ne"):
                differ = self._joined("xor", a, b)
                return differ if op == "ne" else self._limited(~differ)
            return self._joined("and", ~a, b) if op == "lt" else self._joined("or", ~a, b)
        if ELEMENT not in (self.stages[x], self.stages[y]):
            if self.stages[x] == COLUMN:
                return self._search(op, self.value(x), self.value(y))
            return self._search(swapped[op], self.value(y), self.value(x))
        if "f32" in dtypes:
            return self._float(op, x, y)
        return self._sign(op, self.summed(x) - self.summed(y))

    def _float(self, op: str, x: int, y: int) -> IntervalMask:
        """An integer of both sides, made a float, against a float of one side: the integer against its threshold."""
        if self.stages[x] != ELEMENT:
            x, y, op = y, x, swapped[op]
        node = self.nodes[x]
        if self.stages[y] == ELEMENT or node.op != "convert" or self.nodes[node.operands[0]].dtype == "f32":
            raise NotIntervals("it computes a float of query and key")
        left = self.summed(node.operands[0])
        least, largest = left.range()
        if least < -_EXACT or largest > _EXACT:
            raise NotIntervals("it makes floats of integers past 2^24")
        bound = self.value(y).double()
        if bool(bound.isnan().any()):
            raise NotIntervals("it compares NaN")
        bound = bound.clamp(-_ENDS, _ENDS)
        if op in ("eq", "ne"):
            threshold = torch.where(bound == bound.floor(), bound, float(_ENDS))
        else:
            threshold = bound.ceil() if op in ("lt", "ge") else bound.floor()
        zero = torch.zeros((), dtype=torch.int64, device=bound.device)
        sides = (zero, threshold.long()) if self.stages[y] == COLUMN else (threshold.long(), zero)
        return self._sign(op, left - Linear(*sides))

    def _search(self, op: str, column: torch.Tensor, row: torch.Tensor) -> IntervalMask:
        """column op row, both of one side."""
        self._spend(self.rows + self.keys)
        if column.ndim == 0:
            compare = {"lt": torch.lt, "le": torch.le, "gt": torch.gt, "ge": torch.ge, "eq": torch.eq, "ne": torch.ne}
            return self._rows_where(compare[op](column, row))
        if not row.dtype.is_floating_point:
            row = row.long()
        return Column(column, self.most).compared(op, row.expand(self.rows))

    def summed(self, i: int) -> Linear:
        """An integer node as a sum; what is no sum is a term of it."""
        node = self.nodes[i]
        if node.dtype == "f32":
            raise NotIntervals("it computes a float of query and key")
        zero = torch.zeros((), dtype=torch.int64, device=self.device)
        if self.stages[i] != ELEMENT:
            value = self.value(i).long()
            return Linear(zero, value) if self.stages[i] == COLUMN else Linear(value, zero)
        args = node.operands
        if node.op == "add":
            return self.summed(args[0]) + self.summed(args[1])
        if node.op == "sub":
            return self.summed(args[0]) - self.summed(args[1])
        if node.op == "neg":
            return self.summed(args[0]) * -1
        if node.op == "convert" and self.nodes[args[0]].dtype in ("i32", "i64"):
            return self.summed(args[0])
        if node.op == "mul":
            for x, y in (args, args[::-1]):
                if (c := self._number(y)) is not None:
                    return self.summed(x) * c
        return Linear(zero, zero, {i: 1})

    def _sign(self, op: str, x: Linear) -> IntervalMask:
        """x op 0."""
        if op == "ne":
            return self._limited(~self._sign("eq", x))
        if not x.terms:
            return self._search(op, x.column, -x.row)
        i, c = max(x.terms.items())
        if c < 0:
            return self._sign(swapped[op], x * -1)
        node, rest = self.nodes[i], x.without(i)
        args = node.operands
        if node.op in ("minimum", "maximum", "abs"):
            if op == "eq":
                return self._joined("and", self._sign("le", x), self._sign("ge", x))
            a = self.summed(args[0])
            b = a * -1 if node.op == "abs" else self.summed(args[1])
            both = (node.op == "minimum") == (op in ("gt", "ge"))
            return self._joined("and" if both else "or", *(self._sign(op, rest + y * c) for y in (a, b)))
        if node.op == "where":
            return self._chosen(op, args[0], *(rest + self.summed(a) * c for a in args[1:]))
        if node.op == "convert" and self.nodes[args[0]].dtype == "bool":
            return self._chosen(op, args[0], rest + Linear.number(c, self.device), rest)
        if node.op == "mul":
            for first, second in (args, args[::-1]):
                factor = self.nodes[first]
                if factor.op == "convert" and self.nodes[factor.operands[0]].dtype == "bool":
                    return self._chosen(op, factor.operands[0], rest + self.summed(second) * c, rest)
        if node.op in ("floor_divide", "remainder") and (d := self._number(args[1])):
            return self._divided(op, node.op, self.summed(args[0]), d, c, rest)
        raise NotIntervals(self._what(node))

    def _chosen(self, op: str, condition: int, x: Linear, y: Linear) -> IntervalMask:
        return self._joined("where", self.keys_of(condition), self._sign(op, x), self._sign(op, y))

    def _divided(self, op: str, kind: str, x: Linear, d: int, c: int, rest: Linear) -> IntervalMask:
        """c * (x // d) + rest op 0, or the same of x % d; c > 0."""
        if d < 0:  # x // d is (-x) // (-d), x % d is -((-x) % (-d))
            x, d = x * -1, -d
            if kind == "remainder":
                op, c, rest = swapped[op], c, rest * -1
        if kind == "floor_divide" and c == 1:  # x // d op t
            one, bound = Linear.number(d, self.device), rest * -d
            if op == "eq":
                return self._joined("and", self._sign("ge", x - bound), self._sign("lt", x - bound - one))
            if op in ("le", "gt"):
                return self._sign({"le": "lt", "gt": "ge"}[op], x - bound - one)
            return self._sign(op, x - bound)
        least, largest = x.range()
        if largest // d - least // d >= _PERIODS:
            what = "%" if kind == "remainder" else "//"
            raise NotIntervals(f"{what} of query and key has more than {_PERIODS} periods")
        found = []
        for period in range(least // d, largest // d + 1):
            inside = x - Linear.number(period * d, self.device)
            value = inside if kind == "remainder" else Linear.number(period, self.device)
            here = self._sign("ge", inside), self._sign("lt", inside - Linear.number(d, self.device))
            found.append(self._joined("and", self._joined("and", *here), self._sign(op, rest + value * c)))
        lo, hi = (torch.cat([getattr(part, side) for part in found], 1) for side in ("lo", "hi"))
        return self._limited(IntervalMask._united(lo, hi, self.keys, 1))

    def _what(self, node: Node) -> str:
        names = {"load": "an element of a captured tensor", "bit_and": "&", "bit_or": "|", "bit_xor": "^", "mul": "*"}
        return f"{names.get(node.op, node.op)} of query and key"
