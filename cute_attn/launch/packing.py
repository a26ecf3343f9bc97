"""How many query heads of a key head share the tiles of a forward: few rows would leave most of a tile empty, and those
of several heads fill it, and read each key once."""

from __future__ import annotations

from cute_attn.mask import IntervalMask
from cute_attn.spec.forward import PACKED_HEADS

__all__ = ["can_share", "check_heads", "choose_heads", "packed", "packed_choices", "positions", "shared_by"]

MOST_OF_TILES = 2 / 3  # that may be left where heads share tiles, or another kernel would be compiled for little


def can_share(
    has_graph: bool, *, softmax: str = "stale", fp32_out: bool = False, piece: int = 0, **other: object
) -> bool:
    """Whether a ForwardSpec with these fields may have tiles that heads share."""
    return softmax == "stale" and not (has_graph or fp32_out or piece)


def choose_heads(mask: IntervalMask, heads: tuple[int, int], m: int) -> int:
    """The divisor of the ratio of heads with which fewest tiles of m rows are left, the largest of several; 1 where
    more than MOST_OF_TILES of them would be left, or where heads have planes of their own.

    A tile of several heads has no more tiles of keys than one of a single head, which has more positions: what is
    fewer tiles of queries is less time.

    heads: of q and k.
    """
    if mask.heads > 1 or mask.seqlen_q == 0:
        return 1
    return _choice(mask.seqlen_q, heads[0] // heads[1], m)


def packed_choices(heads: tuple[int, int], m: int) -> list[int]:
    """What specs have, upwards, where `choose_heads` finds heads that share tiles of m rows, over all numbers of query
    rows. heads: of q and k."""
    few = range(1, 2 * m + 1)  # a head with more has three tiles at least, and more than MOST_OF_TILES would be left
    return sorted({packed(shared) for rows in few if (shared := _choice(rows, heads[0] // heads[1], m)) > 1})


def _choice(seqlen_q: int, ratio: int, m: int) -> int:
    def tiles(shared: int) -> int:
        return ratio // shared * -(-seqlen_q // positions(m, shared))

    found = min(reversed(_divisors(ratio)), key=tiles)
    return found if tiles(found) <= MOST_OF_TILES * tiles(1) else 1


def shared_by(packed_heads: int, heads: tuple[int, int]) -> int:
    """How many heads `choose_heads` has found where a spec has packed_heads. Raises ValueError where it finds none."""
    for shared in reversed(_divisors(heads[0] // heads[1])):
        if packed(shared) == packed_heads:
            return shared
    raise ValueError(f"heads {heads} have no {packed_heads} that share a key head")


def check_heads(shared: int, mask: IntervalMask, heads: tuple[int, int]) -> None:
    """Raises ValueError for a number of heads that cannot share a tile."""
    allowed = [1] if mask.heads > 1 else _divisors(heads[0] // heads[1])
    if shared not in allowed:
        numbers = ", ".join(map(str, allowed))
        raise ValueError(
            f"heads_in_tile must be one of {numbers} with heads {heads} and a mask of {mask.heads}, got {shared}"
        )


def _divisors(ratio: int) -> list[int]:
    """Of a ratio of heads, as many as one tile may have, upwards."""
    return [n for n in range(1, min(ratio, PACKED_HEADS[-1]) + 1) if ratio % n == 0]


def packed(shared: int) -> int:
    """What a spec has of so many heads."""
    return next(n for n in PACKED_HEADS if n >= shared)


def positions(m: int, shared: int) -> int:
    """Of a tile of m rows, of so many heads."""
    return m // packed(shared)
