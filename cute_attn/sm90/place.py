"""Where the tile in a slot lies: what travels with it to those who mask it or change its scores."""

from typing import Any, NamedTuple

import cutlass.cute as cute

__all__ = ["Place", "place_layout"]


class Place(NamedTuple):
    """Of a tile of keys in the forward, of query rows in the backward.

    first: its first key or query. layer_begin, layer_end: the layers that meet it if it is partial. head: of the query.
    """

    first: Any
    layer_begin: Any
    layer_end: Any
    head: Any

    @classmethod
    def read(cls, places, slot) -> "Place":
        """What is not used of it is not read."""
        return cls(*(places[slot, i] for i in range(len(cls._fields))))

    def publish(self, places, slot) -> None:
        """By one thread, before the slot's barrier is told what to expect: that makes it visible."""
        for i, value in enumerate(self):
            places[slot, i] = value


def place_layout(stages: int) -> cute.Layout:
    """Of the places of a ring, int32, aligned to 16 bytes: each is one vector."""
    size = len(Place._fields)
    return cute.make_layout((stages, size), stride=(size, 1))
