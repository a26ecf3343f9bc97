"""Mutations of the grouped copy: a tensor map a CTA, made in shared memory, published, acquired, used once."""

from mutations import Mutation, drop, move, repeat

ACQUIRE = r"fence\.proxy\.tensormap"

GROUPED = [
    Mutation(
        "map not acquired", "grouped", "missing proxy fence", "harmful",
        "maps are read through a proxy of their own", (drop("acquire", ACQUIRE),), ("tensor map",),
    ),
    Mutation(
        "map acquired before it is published", "grouped", "missing proxy fence", "harmful",
        "what the fence orders comes behind it",
        (move("publish", r"tensormap\.cp_fenceproxy", ACQUIRE),), ("tensor map",),
    ),
    Mutation(
        "map with the rows of all groups", "grouped", "wrong descriptor", "harmful",
        "the box brings the next group's rows where zeros belong",
        (drop("update", r"tensormap\.replace\.tile\.global_dim\S*\s+\[\S+\], 1,"),), ("global out",),
    ),
    Mutation(
        "map acquired twice", "grouped", "more fences", "benign", "once is enough", (repeat("acquire", ACQUIRE),),
    ),
]  # fmt: skip
