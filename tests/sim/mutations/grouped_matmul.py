"""Mutations of the products of groups ("groups"): maps for a, b and c that are changed before each group and reused."""

from mutations import Mutation, drop, move, repeat, skip_wait, substitute

ACQUIRE, PUBLISH = r"fence\.proxy\.tensormap", r"tensormap\.cp_fenceproxy"
ACQUIRED = r"fence\.proxy\.tensormap\S+\s+\[(%rd\d+)\], 128;"
IN_PLACE = r"tensormap.replace.tile.global_dim.global.b1024.b32 [\1], 2, 1;"
AGAIN = r"fence.proxy.tensormap::generic.acquire.gpu [\1], 128;"


def last_field(name: str, value: int) -> str:
    """Another field in place of one that means nothing for a matrix."""
    return rf"tensormap.replace.tile.{name}.shared::cta.b1024.b32 \1, {value};"


LAST = r"tensormap\.replace\.tile\.global_dim\S+\s+(\[%r\d+\]), 4, %r\d+;"

GROUPS = [
    # ---- acquire and release
    Mutation(
        "map of a not acquired", "groups", "missing proxy fence", "harmful",
        "TMA may read it as it was for the former group", (drop("acquire a", ACQUIRE),), ("tensor map",),
    ),
    Mutation(
        "map of c not acquired", "groups", "missing proxy fence", "harmful",
        "stores read maps as loads do", (drop("acquire c", ACQUIRE),), ("tensor map",),
    ),
    Mutation(
        "map of b acquired before it is published", "groups", "missing proxy fence", "harmful",
        "what the fence orders comes behind it", (move("publish b", PUBLISH, ACQUIRE),), ("tensor map",),
    ),
    Mutation(
        "map of a acquired in place of that of b", "groups", "missing proxy fence", "harmful",
        "the fence is of 128 bytes, one map",
        (substitute("acquire b", ACQUIRED, r"{ .reg .b64 other; sub.u64 other, \1, 128; "
                    r"fence.proxy.tensormap::generic.acquire.gpu [other], 128; }"),), ("tensor map",),
    ),
    Mutation(
        "async proxy fence in place of the acquire", "groups", "wrong fence space", "harmful",
        "maps are read through another proxy", (substitute("acquire a", ACQUIRED, "fence.proxy.async;"),),
        ("tensor map",),
    ),
    Mutation(
        "memory fence in place of the acquire", "groups", "wrong fence space", "harmful",
        "it orders ordinary accesses only", (substitute("acquire a", ACQUIRED, "fence.acq_rel.gpu;"),),
        ("tensor map",),
    ),
    Mutation(
        "field of the map of a replaced in place and not released", "groups", "missing release", "harmful",
        "the acquire has nothing to see", (substitute("acquire a", ACQUIRED, rf"{IN_PLACE} {AGAIN}"),),
        ("tensor map",),
    ),
    Mutation(
        "field of the map of a replaced in place, released too early", "groups", "missing release", "harmful",
        "a release is of what came before it",
        (substitute("acquire a", ACQUIRED, rf"fence.proxy.tensormap::generic.release.gpu; {IN_PLACE} {AGAIN}"),),
        ("tensor map",),
    ),
    Mutation(
        "field of the map of a replaced in place and released", "groups", "missing release", "benign",
        "the way without shared memory",
        (substitute("acquire a", ACQUIRED, rf"{IN_PLACE} fence.proxy.tensormap::generic.release.gpu; {AGAIN}"),),
    ),
    Mutation(
        "map of b acquired twice", "groups", "more fences", "benign", "once is enough", (repeat("acquire b", ACQUIRE),),
    ),
    Mutation(
        "map of c published twice", "groups", "more fences", "benign",
        "nobody reads it in between", (repeat("publish c", PUBLISH),),
    ),
    # ---- maps that are still read
    Mutation(
        "maps changed while loads go through them", "groups", "map in use", "harmful",
        "nothing says that TMA has come to these loads",
        tuple(skip_wait(f"wait load {i}") for i in (1, 2, 3)), ("tensor map",),
    ),
    Mutation(
        "loads before the last not awaited", "groups", "map in use", "harmful",
        "loads are done in any order", tuple(skip_wait(f"wait load {i}") for i in (2, 3)), ("tensor map",),
    ),
    Mutation(
        "map changed while a store goes through it", "groups", "map in use", "harmful",
        "nothing says that TMA has come to the store", (drop("wait stores", r"cp\.async\.bulk\.wait_group"),),
        ("tensor map",),
    ),
    Mutation(
        "map changed while the last store goes through it", "groups", "map in use", "harmful",
        "one group may be left, and it is that of the store",
        (substitute("wait stores", r"(wait_group\.read\s+)0", r"\g<1>1"),), ("tensor map",),
    ),
    Mutation(
        "waits until stores are written before their map changes", "groups", "stronger wait", "benign",
        "that they were read would do", (substitute("wait stores", r"\.read", ""),),
    ),
    Mutation(
        "stores not committed", "groups", "map in use", "harmful",
        "the wait for groups says nothing of a store in none",
        (drop("store c", r"cp\.async\.bulk\.commit_group"),), ("tensor map", "c"),
    ),
    # ---- fields
    Mutation(
        "address of the former group", "groups", "wrong descriptor", "harmful",
        "rows of another matrix", (drop("update a", r"global_address"),), ("global c",),
    ),
    Mutation(
        "row length of the former group", "groups", "wrong descriptor", "harmful",
        "rows begin elsewhere", (drop("update a", r"global_stride\S+\s+\[\S+\], 0,"),), ("global c",),
    ),
    Mutation(
        "depth of the former group", "groups", "wrong descriptor", "harmful",
        "zeros come in place of columns", (drop("update b", r"global_dim\S+\s+\[\S+\], 0,"),), ("global c",),
    ),
    Mutation(
        "rows of the former group", "groups", "wrong descriptor", "harmful",
        "the last tile of a group is stored beyond its rows",
        (drop("update c", r"global_dim\S+\s+\[\S+\], 1,"),), ("global c", "global address"),
    ),
    Mutation(
        "rows and columns change places", "groups", "wrong descriptor", "harmful",
        "the extents are those of the transposed matrix",
        (substitute("update c", r"(global_dim\S+\s+\[\S+\]), 0,", r"\1, 5,"),
         substitute("update c", r"(global_dim\S+\s+\[\S+\]), 1,", r"\1, 0,"),
         substitute("update c", r"(global_dim\S+\s+\[\S+\]), 5,", r"\1, 1,")), ("global c", "global address"),
    ),
    Mutation(
        "another swizzle", "groups", "wrong descriptor", "harmful",
        "the products read 128-byte patterns", (substitute("update b", LAST, last_field("swizzle_mode", 2)),),
        ("global c",),
    ),
    Mutation(
        "a box of half the rows", "groups", "wrong descriptor", "harmful",
        "half of the bytes that the mbarrier expects",
        (substitute("update b", LAST, r"{ .reg .b32 rows; mov.b32 rows, 32; "
                    r"tensormap.replace.tile.box_dim.shared::cta.b1024.b32 \1, 1, rows; }"),), ("full",),
    ),
    Mutation(
        "extents of dimensions that a matrix has not", "groups", "field without effect", "benign",
        "the rank is two", (drop("update a", r"global_dim\S+\s+\[\S+\], 4,"),),
    ),
    Mutation(
        "another type of two bytes", "groups", "field without effect", "benign",
        "a copy moves bytes", (substitute("update a", LAST, last_field("elemtype", 6)),),
    ),
    Mutation(
        "map of a not published", "groups", "map elsewhere", "harmful",
        "what is in global memory is no map", (drop("publish a", PUBLISH),), ("descriptor",),
    ),
    Mutation(
        "map of a published in b's place", "groups", "map elsewhere", "harmful",
        "what a's loads read is no map", (substitute("publish a", r"\[(%rd\d+)\]", r"[\1+128]"),),
        ("descriptor", "tensor map"),
    ),
    # ---- the ring and the stores
    Mutation(
        "consumer does not wait for loads", "groups", "removed wait", "harmful",
        "what the stage held before, or nothing", (skip_wait("wait full"),), ("a", "b"),
    ),
    Mutation(
        "producer does not wait for the consumer", "groups", "removed wait", "harmful",
        "loads land on what products read", (skip_wait("wait empty"),), ("full", "a", "b"),
    ),
    Mutation(
        "no proxy fence before a ragged tile is stored", "groups", "missing proxy fence", "harmful",
        "TMA reads through the async proxy", (drop("epilogue fence", r"fence\.proxy\.async"),), ("c",),
    ),
    Mutation(
        "tile overwritten while it is stored", "groups", "wrong store-read wait", "harmful",
        "within a group only this wait keeps the former store's source",
        (drop("wait store read", r"cp\.async\.bulk\.wait_group"),), ("c",),
    ),
]  # fmt: skip
