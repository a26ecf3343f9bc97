"""Packs of documents of published lengths, and the masks that published evaluations put on them."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch

from cute_attn import IntervalMask

# First and last length of a bin, and how many documents have such a length: the distribution of a pretraining set that
# MagiAttention publishes with its benchmark.
HISTOGRAM = [
    (1, 10, 30254),
    (11, 50, 391188),
    (51, 100, 699596),
    (101, 200, 1377757),
    (201, 500, 3794735),
    (501, 1024, 3316785),
    (1025, 2048, 2106566),
    (2049, 4096, 988525),
    (4097, 8192, 410002),
    (8193, 16384, 173574),
    (16385, 32768, 115007),
    (32769, 65536, 18428),
    (65537, 131072, 22513),
    (131073, 196608, 18284),
]

Rows = torch.Tensor  # of each row: where its document begins and ends, and where it is itself
MaskOf = Callable[[Rows, Rows, Rows], list[tuple[torch.Tensor, torch.Tensor]]]


def pack(total: int, seed: int) -> list[int]:
    """Lengths that fill `total` tokens: uniform within bins, none over a quarter of the total, the last one cut."""
    draw, lengths, left = random.Random(seed), [], total
    bins, weights = [x[:2] for x in HISTOGRAM], [x[2] for x in HISTOGRAM]
    while left:
        first, last = draw.choices(bins, weights)[0]
        lengths.append(min(draw.randint(first, last), total // 4, left))
        left -= lengths[-1]
    return lengths


def masked(lengths: list[int], mask_of: MaskOf) -> IntervalMask:
    """A mask of each document alone."""
    length = torch.tensor(lengths)
    end = length.cumsum(0).repeat_interleave(length)
    begin, total = end - length.repeat_interleave(length), sum(lengths)
    lo, hi = zip(*mask_of(begin, end, torch.arange(total)), strict=True)
    return IntervalMask.from_intervals(torch.stack(lo), torch.stack(hi), total)


def full(begin: Rows, end: Rows, row: Rows) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(begin, end)]


def causal(begin: Rows, end: Rows, row: Rows) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(begin, row + 1)]


def lambda_shaped(begin: Rows, end: Rows, row: Rows) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The first 64 keys, and a window of 4,096."""
    return [(begin, torch.minimum(begin + 64, row + 1)), (torch.maximum(begin, row - 4095), row + 1)]


def shared_question(begin: Rows, end: Rows, row: Rows) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A question and four answers of a fifth each, which see the question and themselves."""
    answer = (end - begin) // 5
    question = end - 4 * answer
    own = question + (row - question) // answer.clamp(min=1) * answer
    is_answer = row >= question
    return [
        (begin, torch.where(is_answer, question, row + 1)),
        (torch.where(is_answer, own, row), row + 1),
    ]


def blockwise(begin: Rows, end: Rows, row: Rows) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Causal in blocks of 256 that see themselves and the one before; the last block sees all."""
    block, last = (row - begin) // 256, (end - 1 - begin) // 256
    near = begin + 256 * (block - 1).clamp(min=0)
    return [(torch.where(block == last, begin, near), row + 1)]
