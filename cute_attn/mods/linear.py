"""Integers that read both query and key, as sums: `row[query] + column[key]`, and terms that are no such sum."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .compare import NotIntervals

__all__ = ["Linear"]

_LARGEST = 1 << 60  # sums below it do not overflow


@dataclass(frozen=True)
class Linear:
    """row + column + the sum of `coefficient * node`, int64.

    row: 0-d or `(rows,)`. column: 0-d or `(keys,)`. terms: coefficients, by the number of the node.
    """

    row: torch.Tensor
    column: torch.Tensor
    terms: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if max(_size(self.row), _size(self.column)) >= _LARGEST:
            raise NotIntervals("it adds numbers past 2^60")

    @classmethod
    def number(cls, x: int, device: torch.device) -> Linear:
        zero = torch.zeros((), dtype=torch.int64, device=device)
        return cls(zero + min(max(x, -_LARGEST), _LARGEST), zero)

    def __add__(self, other: Linear) -> Linear:
        terms = dict(self.terms)
        for node, c in other.terms.items():
            terms[node] = terms.get(node, 0) + c
        return Linear(self.row + other.row, self.column + other.column, {n: c for n, c in terms.items() if c})

    def __sub__(self, other: Linear) -> Linear:
        return self + other * -1

    def __mul__(self, c: int) -> Linear:
        if abs(c) * max(_size(self.row), _size(self.column)) >= _LARGEST:
            raise NotIntervals("it adds numbers past 2^60")
        return Linear(self.row * c, self.column * c, {node: x * c for node, x in self.terms.items() if c})

    def without(self, node: int) -> Linear:
        return Linear(self.row, self.column, {n: c for n, c in self.terms.items() if n != node})

    def range(self) -> tuple[int, int]:
        """The least and the largest value that there may be; NotIntervals where terms are left."""
        if self.terms:
            raise NotIntervals("// or % of what is no sum of query and key")
        least, largest = 0, 0
        for x in (self.row, self.column):
            if x.numel():
                least, largest = least + int(x.min()), largest + int(x.max())
        return least, largest


def _size(x: torch.Tensor) -> int:
    return max(abs(int(x.min())), abs(int(x.max()))) if x.numel() else 0
