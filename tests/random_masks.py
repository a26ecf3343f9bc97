"""Random mask_mods, and what a BlockMask's reading attends, pair by pair."""

import operator
import random

import torch

from cute_attn.mods.evaluate import evaluate

LENGTHS = (37, 45)  # queries and keys
BATCH, HEADS = 2, 3
LARGEST = 64  # rows of the tables


def _tables(rng):
    """Tensors to capture: ids in runs, ids that come back, limits, flags, a table for each batch element and head."""
    seeded = torch.Generator().manual_seed(rng.randrange(1 << 30))
    ids = torch.randint(0, 5, (LARGEST,), generator=seeded)
    return {
        "runs": ids.sort().values,
        "ids": ids.repeat_interleave(7)[:LARGEST],
        "limits": torch.randint(-5, 50, (LARGEST,), generator=seeded, dtype=torch.int32),
        "flags": torch.rand(LARGEST, generator=seeded) < 0.2,
        "floats": torch.randn(LARGEST, generator=seeded) * 20,
        "lengths": torch.randint(0, 40, (BATCH, HEADS), generator=seeded),
    }


def integer(rng, depth):
    """A random integer of b, h, q, k."""
    tables = _tables(rng)
    if depth == 0:
        name = rng.choice(["runs", "ids", "limits"])
        c = rng.randrange(-40, 40)
        return rng.choice(
            [
                lambda b, h, q, k: q,
                lambda b, h, q, k: k,
                lambda b, h, q, k: q - k,
                lambda b, h, q, k: q + k,
                lambda b, h, q, k: c + 0 * q,
                lambda b, h, q, k: tables[name][q],
                lambda b, h, q, k: tables[name][k],
                lambda b, h, q, k: tables["lengths"][b, h],
                lambda b, h, q, k: (b + 1) * (h - 1),
                lambda b, h, q, k: q % 7,
                lambda b, h, q, k: k // 8,
            ]
        )
    x, y = integer(rng, depth - 1), integer(rng, depth - 1)
    condition = boolean(rng, depth - 1)
    d = rng.choice([-9, -4, 2, 5, 16])
    return rng.choice(
        [
            lambda b, h, q, k: x(b, h, q, k) + y(b, h, q, k),
            lambda b, h, q, k: x(b, h, q, k) - y(b, h, q, k),
            lambda b, h, q, k: -x(b, h, q, k),
            lambda b, h, q, k: x(b, h, q, k) * d,
            lambda b, h, q, k: x(b, h, q, k) // d,
            lambda b, h, q, k: x(b, h, q, k) % d,
            lambda b, h, q, k: x(b, h, q, k).abs(),
            lambda b, h, q, k: torch.minimum(x(b, h, q, k), y(b, h, q, k)),
            lambda b, h, q, k: torch.maximum(x(b, h, q, k), y(b, h, q, k)),
            lambda b, h, q, k: torch.where(condition(b, h, q, k), x(b, h, q, k), y(b, h, q, k)),
            lambda b, h, q, k: x(b, h, q, k).clamp(-d * d, 12),
            lambda b, h, q, k: condition(b, h, q, k).to(torch.int64) * y(b, h, q, k),
        ]
    )


def boolean(rng, depth):
    """A random mask_mod."""
    tables = _tables(rng)
    if depth == 0:
        x, y = integer(rng, 0), integer(rng, 0)
        compare = rng.choice([operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne])
        c = rng.uniform(-20, 20)
        return rng.choice(
            [
                lambda b, h, q, k: compare(x(b, h, q, k), y(b, h, q, k)),
                lambda b, h, q, k: compare(x(b, h, q, k), y(b, h, q, k)),
                lambda b, h, q, k: compare(tables["floats"][q], tables["floats"][k] * 0.5),
                lambda b, h, q, k: compare((q - k).to(torch.float32), c),
                lambda b, h, q, k: compare(tables["floats"][k], x(b, h, q, k)),
                lambda b, h, q, k: tables["flags"][q],
                lambda b, h, q, k: tables["flags"][k],
            ]
        )
    x, y, z = (boolean(rng, depth - 1) for _ in range(3))
    i, j = integer(rng, depth), integer(rng, depth - 1)
    compare = rng.choice([operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne])
    return rng.choice(
        [
            lambda b, h, q, k: x(b, h, q, k) & y(b, h, q, k),
            lambda b, h, q, k: x(b, h, q, k) | y(b, h, q, k),
            lambda b, h, q, k: x(b, h, q, k) ^ y(b, h, q, k),
            lambda b, h, q, k: ~x(b, h, q, k),
            lambda b, h, q, k: torch.where(x(b, h, q, k), y(b, h, q, k), z(b, h, q, k)),
            lambda b, h, q, k: compare(x(b, h, q, k), y(b, h, q, k)),
            lambda b, h, q, k: compare(i(b, h, q, k), j(b, h, q, k)),
            lambda b, h, q, k: compare(i(b, h, q, k), j(b, h, q, k)),
        ]
    )


def random_mask(seed):
    rng = random.Random(seed)
    return boolean(rng, rng.choice([1, 1, 2, 2, 3]))


def grid(batch, heads, rows, keys):
    """b, h, q, k that meet in every pair."""
    return (
        torch.arange(batch)[:, None, None, None],
        torch.arange(heads)[:, None, None],
        torch.arange(rows)[:, None],
        torch.arange(keys),
    )


def dense_of(mask_mod, batch, heads, rows, keys):
    """What a mask_mod says of every pair, without any of our code."""
    b, h, q, k = grid(batch, heads, rows, keys)
    said = mask_mod(b, h, q, k)
    return torch.broadcast_to(said, (batch, heads, rows, keys))


def spread(mask, batch, heads):
    """An IntervalMask as bool `(batch, heads, rows, keys)`."""
    shape = mask.batch, mask.heads, mask.seqlen_q, mask.seqlen_k
    return mask.to_dense().reshape(shape).expand(batch, heads, -1, -1)


def thinned(intervals, predicate, batch, heads):
    """The pairs of intervals for which a traced predicate holds; None for all."""
    inside = spread(intervals, batch, heads)
    if predicate is None:
        return inside
    inputs = dict(zip(("b", "h", "q", "kv"), grid(batch, heads, intervals.seqlen_q, intervals.seqlen_k), strict=True))
    inputs = {name: x for name, x in inputs.items() if predicate.graph.reads(name)}
    (holds,) = evaluate(predicate.graph, inputs, predicate.tensors, predicate.scalars, torch.float32, inside)
    return inside & holds


def attended(reading, batch, heads):
    """The pairs that a Reading says are attended, and that what it says of its full part is true."""
    traced = None if reading.predicate is None else reading.predicate.traced
    found = thinned(reading.intervals, traced, batch, heads)
    if reading.full is not None:
        full = spread(reading.full, batch, heads)
        assert not (full & ~spread(reading.intervals, batch, heads)).any()
        assert not (reading.holds_in_full and (full & ~found).any())
        found = found | full
    return found
