"""Mutations of loads in im2col mode ("patches"): `tile` is both stages of what the elements of a filter meet."""

from mutations import Mutation, drop, repeat, skip_wait, substitute

ACQUIRE = r"fence\.proxy\.tensormap"
LOAD = r"\{(%r\d+), (%r\d+), (%r\d+), (%r\d+)\}\], (\[%r\d+\]), \{(%rs\d+), (%rs\d+)\};"


def load(at: str = r"\1, \2, \3, \4", offsets: str = r"\6, \7") -> str:
    """The end of the instruction with something else in it."""
    return rf"{{{at}}}], \5, {{{offsets}}};"


def at(number: int, change: int) -> tuple[str, str]:
    """A coordinate that is changed: before the instruction, and in it."""
    places = [rf"\{i}" for i in range(3, 7)]
    before = f"{{ .reg .b32 other; add.s32 other, {places[number]}, {change};"
    places[number] = "other"
    return before, ", ".join(places)


def moved(number: int, change: int):
    """The load with a coordinate changed."""
    before, where = at(number, change)
    whole = r"(cp\.async\.bulk\.tensor\S+) (\[%r\d+\], \[%rd\d+), " + LOAD.partition(r"\], ")[0] + r"\], (.*);"
    return substitute("load", whole, rf"{before} \1 \2, {{{where}}}], \7; }}")


PATCHES = [
    # ---- what is loaded
    Mutation(
        "offsets change places", "patches", "wrong window", "harmful",
        "width comes first", (substitute("load", LOAD, load(offsets=r"\7, \6")),), ("global out",),
    ),
    Mutation(
        "offsets left at zero", "patches", "wrong window", "harmful",
        "every element of the filter meets the first one's pixels",
        (substitute("load", LOAD, load(offsets="0, 0")),), ("global out",),
    ),
    Mutation(
        "an offset that the manual has not", "patches", "wrong window", "harmful",
        "with two axes they have 8 bits", (substitute("load", LOAD, load(offsets=r"256, \7")),), ("descriptor",),
    ),
    Mutation(
        "height and width change places", "patches", "wrong window", "harmful",
        "the first pixel is another", (substitute("load", LOAD, load(r"\1, \3, \2, \4")),),
        ("global out", "descriptor"),
    ),
    Mutation(
        "padding forgotten in the height", "patches", "wrong window", "harmful",
        "one row of pixels on", (moved(2, 1),), ("global out", "descriptor"),
    ),
    Mutation(
        "first pixel outside of the bounding box", "patches", "wrong window", "harmful",
        "the manual says nothing of such pixels", (moved(1, -1),), ("descriptor", "beyond the box"),
    ),
    Mutation(
        "the next image", "patches", "wrong window", "harmful",
        "beyond the last one there are zeros", (moved(3, 1),), ("global out",),
    ),
    Mutation(
        "channels from the second on", "patches", "wrong window", "harmful",
        "the last channel is zero", (moved(0, 1),), ("global out",),
    ),
    Mutation(
        "loaded as a tile", "patches", "wrong descriptor", "harmful",
        "the map is one of windows",
        (substitute("load", r"\.im2col", ".tile"), substitute("load", r"(\[%r\d+\]), \{%rs\d+, %rs\d+\};", r"\1;")),
        ("descriptor",),
    ),
    # ---- the ring and the map
    Mutation(
        "map of windows not acquired", "patches", "missing proxy fence", "harmful",
        "maps are read through a proxy of their own", (drop("acquire", ACQUIRE),), ("tensor map",),
    ),
    Mutation(
        "bytes of half the pixels expected", "patches", "transaction count", "harmful",
        "a load counts whole, even where it brings zeros", (substitute("expect", "4096", "2048"),), ("full",),
    ),
    Mutation(
        "readers do not wait for pixels", "patches", "removed wait", "harmful",
        "what the stage held before, or nothing", (skip_wait("wait full"),), ("tile", "global out"),
    ),
    Mutation(
        "pixels loaded over those still read", "patches", "removed wait", "harmful",
        "readers may be behind", (skip_wait("wait empty"),), ("tile", "full", "global out"),
    ),
    Mutation(
        "stage of pixels not released", "patches", "dropped arrive", "harmful",
        "the producer waits for ever", (drop("release", r"mbarrier\.arrive"),), ("empty",),
    ),
    # ---- the same in other words
    Mutation(
        "map of windows acquired twice", "patches", "more fences", "benign",
        "once is enough", (repeat("acquire", ACQUIRE),),
    ),
    Mutation(
        "map of windows published twice", "patches", "more fences", "benign",
        "nobody reads it in between", (repeat("publish", r"tensormap\.cp_fenceproxy"),),
    ),
    Mutation(
        "load with a hint for the cache", "patches", "same in other words", "benign", "a hint changes no result",
        (substitute("load", r"(complete_tx::bytes)", r"\1.L2::cache_hint"),
         substitute("load", r"(\{%rs\d+, %rs\d+\});", r"\1, 1152921504606846976;")),
    ),
]  # fmt: skip
